"""What a model's answer says, without what stands around it: thoughts, markup, introductions.

fault_of          why a text is no answer: "cut" inside a thought, "empty", "refused"; "" for an answer
without_thoughts  an answer without its thoughts, and whether it ended inside one
first_line        the line of an answer that says something
caption_of        the same of a picture's caption, which may go over several lines
phrases_of        every line that says something, of an answer that lists phrases
plain             a text without numbering, bullet, quotes, markdown and final period
valid             a text that UTF-8 can hold

A reasoning model thinks before it answers, and servers pass the thoughts on in many spellings: tags whose
opening is already in the prompt, brackets, channels. All models' answers are read here, captions too.
"""

from __future__ import annotations

import json
import re
import unicodedata

TORN = "\ufffd"  # what is left of half a character
QUOTES = "\"'`*_“”‘’«»„‹› \t"
THOUGHT = (
    r"(?:\w+:)?(?:think(?:ing)?(?:[ _-]?process)?|thoughts?|reason(?:ing)?|reflection|analysis|"
    r"scratch[_-]?pad|(?:inner|internal)[ _-]?monologue|chain[ _-]of[ _-]thoughts?|cot)"
)
BRACKETED = r"(?:think(?:ing)?|thoughts?|reasoning)"
OPEN = (
    rf"(?:<|&lt;|◁)\s*{THOUGHT}(?:\s[^<>]*)?(?:>|&gt;|▷)|\[\s*{BRACKETED}\s*\]|"
    r"<\|\s*(?:start_thinking|begin_of_thought|think(?:ing)?|begin_of_think(?:ing)?)\s*\|>|"
    r"<(?:unused|ctrl)94>(?:thought)?|<\|channel>\s*(?:thought|analysis)|"
    r"<details\b[^<>]*\breasoning\b[^<>]*>|"
    r"\bhere is my (?:thought|thinking|reasoning) process:"
)
CLOSE = (
    rf"(?:<|&lt;|◁)\s*/\s*{THOUGHT}\s*(?:>|&gt;|▷)|\[\s*/\s*{BRACKETED}\s*\]|"
    r"<\|\s*(?:end_thinking|end_of_thought|/think(?:ing)?|end_of_think(?:ing)?)\s*\|>|"
    r"<(?:unused|ctrl)95>|<channel\|>|<｜end▁of▁thinking｜>|</details>|\bhere is my response:"
)
TAG = re.compile(rf"(?is)(?P<open>{OPEN})|(?P<close>{CLOSE})")
BACKSLASHED = re.compile(rf"(?i)\\?<\\?(/?\s*{THOUGHT}\s*)\\?>")  # tags as markdown escapes them
FENCED = re.compile(rf"(?ims)^[ \t]*```[ \t]*{THOUGHT}[ \t]*\n(?P<said>.*?)(?P<close>^[ \t]*```[ \t]*$|\Z)")
ROUND = re.compile(
    rf"(?is)^\s*\(\s*{BRACKETED}\s*\)(?=\s*\n|.*\(\s*/\s*{BRACKETED}\s*\))|"
    rf"\(\s*(?P<close>/)\s*{BRACKETED}\s*\)"
)
FINAL = r"(?:final(?:[ _-]?(?:answer|response|output))?|answer|response|output|result|conclusion|solution)"
FINAL_TAGS = re.compile(
    rf"(?is)<\s*(?P<tag>{FINAL}|caption|label|concept)\s*>(?P<a>.*?)(?:<\s*/\s*(?P=tag)\s*>|$)|"
    rf"\[\s*(?P<mark>{FINAL})\s*\](?P<b>.*?)(?:\[\s*/\s*(?P=mark)\s*\]|$)|"
    r"<\|(?:begin_of_(?:box|solution)|start_response)\|>(?P<c>.*?)(?:<\||$)|\\boxed\{(?P<d>[^{}]*)\}"
)
CHANNEL = re.compile(
    r"(?is)<\|channel\|>\s*(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(?P<said>.*?)"
    r"(?=<\|(?:end|return|start|channel|call)\|>|$)"
)
BARE_CHANNELS = re.compile(r"(?s)^\s*analysis(?=[A-Z]).*?(?:assistant\s*final(?P<said>.*))?$")
SPECIAL = re.compile(r"(?i)<\|[\w▁]+\|>|</?s>|<eos>|<(?:start|end)_of_turn>|\[/?inst\]")

NAMES = (
    r"(?:concept|label|answer|caption|summary|theme|phrase|description|response|sentence|output|result|"
    r"title|image|picture)"
)
OPENING = re.compile(
    r"(?i)^(?:so|sure|okay|certainly)?\W*(?:the |this |a |one )?(?:\w+ )?"
    r"(?:concept|label|answer|caption|summary|theme|phrase|description|response)"
    r"(?: that \w+(?: \w+){0,4}?)? (?:is|would be|could be)\b(?: that)?\W*"
)
POLITE = re.compile(
    r"(?i)^\W*(?:sure(?: thing)?|certainly|of course|okay|ok|absolutely|great|gladly|alright|got it|yes)"
    r"(?:[!.,:–—-]+|\s*$)\s*"
)
HERE = re.compile(r"(?i)^\W*here(?:['’]s| is| are| you go| it is|['’]re)\b[^:\n]{0,90}:\s*")
LABELLED = re.compile(
    rf"(?i)^\W*(?:(?:short|one-sentence|final|suggested|possible|the|my|image|picture) )*{NAMES}"
    r"\s*\d*\W{0,3}:\W*"
)
ANSWERED = re.compile(r"(?i)^\W*(?:final )?answer\W{0,3}:\W*(?=\w)")
REFUSAL = re.compile(
    r"(?i)^\W*(?:(?:i['’]?m|i am) (?:(?:very|so|really|truly) )?(?:sorry|unable|afraid|not able|not "
    r"comfortable)|(?:i['’]m |i am )?sorry\b[,.]?(?: but)?(?: i|$|\W*(?:that|this|no|can))|"
    r"i (?:can ?not|can['’]?t|could ?n['’]?t|won['’]?t|will not|must decline|have to decline|regret|"
    r"apologi[sz]e|do(?: not|n['’]?t) (?:feel comfortable|see (?:an?|any) (?:image|picture)|have))|"
    r"as an? (?:ai|language|large language)\b|unfortunately,? (?:i|we|this|that|the)\b|my apologies|"
    r"(?:unable|cannot|can['’]t|not able) (?:to )?(?:assist|help|comply|process|view|see|describe|"
    r"fulfil+|generate|provide|answer)|"
    r"it(?:['’]s| is) not (?:possible|appropriate) (?:for me|to)|"
    r"(?:this|the|your) (?:request|content|image|prompt|response) (?:was|has been|is|violates|cannot)\b.*"
    r"(?:block|filter|polic|reject|denied|flagged|inappropriate|process)|"
    r"抱歉|很抱歉|对不起|對不起|我无法|我無法|申し訳|"
    r"lo siento|je suis désolé|es tut mir leid|desculpe|mi dispiace)"
)


def fault_of(text: str) -> str:
    """Why a text is no answer: "cut" where it ends inside a thought, "empty" or "refused"; "" for one."""
    said, cut = without_thoughts(text)
    if cut:
        return "cut"
    lines = _lines(said)
    if not lines:
        return "empty"
    return "refused" if any(REFUSAL.match(_introduced(line)) for line in lines[:1]) else ""


def without_thoughts(text: str) -> tuple[str, bool]:
    """An answer without its thoughts, and whether it ended inside one.

    What stands before a closing tag that was never opened is a thought as well. Of tags or a channel for the
    final answer the last one's content is the answer.
    """
    text = BACKSLASHED.sub(r"<\1>", text)
    text = FENCED.sub(lambda one: f"<think>{one['said']}" + ("</think>" if one["close"] else ""), text)
    text = ROUND.sub(lambda one: "</think>" if one["close"] else "<think>", text)
    channels = list(CHANNEL.finditer(text))
    if channels:
        final = [one["said"] for one in channels if one["name"].lower() == "final"]
        text = final[-1] if final else ""
        return SPECIAL.sub("", text).strip(), not final
    if bare := BARE_CHANNELS.match(text):
        return (bare["said"] or "").strip(), bare["said"] is None
    kept, start, inside, unclosed = [], 0, False, text
    for tag in TAG.finditer(text):
        if tag["open"]:
            if not inside:
                kept.append(text[start : tag.start()])
                unclosed = text[tag.end() :]
            inside = True
        else:
            if not inside:
                kept.clear()
            inside, start = False, tag.end()
    if inside:
        closed = re.search(rf"(?is)<\s*({FINAL})\s*>(.+?)<\s*/\s*\1\s*>\W*$", unclosed)
        return (SPECIAL.sub("", closed[2]).strip(), False) if closed else ("", True)
    said = "".join([*kept, text[start:]])
    if not re.search(r"\w", said):  # the answer stands before a closing tag too many
        last = re.search(rf"(?is)<\s*({FINAL})\s*>[^<]*\w[^<]*<\s*/\s*\1\s*>\W*</\w+>\s*$", text)
        said = text if last else said
    finals = [one["a"] or one["b"] or one["c"] or one["d"] for one in FINAL_TAGS.finditer(said)]
    finals = [one for one in finals if one and re.search(r"\w", one)]
    return SPECIAL.sub("", finals[-1] if finals else said).strip(), False


def first_line(answer: str) -> str:
    """First line that says something, without thoughts, introductions and refusals; "" where none does."""
    said, cut = without_thoughts(answer)
    lines = [] if cut else _lines(_of_json(said))
    line = _introduced(lines[0]) if lines else ""
    return "" if REFUSAL.match(line) else line


def caption_of(answer: str) -> str:
    """The first paragraph that says something, in one line, without what is taken off labels too."""
    said, cut = without_thoughts(answer)
    lines = ("" if cut else _of_json(said)).splitlines()
    answered = [i for i, line in enumerate(lines) if ANSWERED.match(line)]
    said = "\n".join(lines[answered[-1] :] if answered else lines)
    for paragraph in re.split(r"\n\s*\n", said):
        lines = _lines(paragraph, rest=bool(said.strip() != paragraph.strip()))
        text = plain(" ".join([_introduced(line) if i == 0 else line for i, line in enumerate(lines)]))
        if text and not re.fullmatch(rf"(?i)\W*(?:{NAMES})\W*", text):
            return "" if REFUSAL.match(text) else text
    return ""


def phrases_of(answer: str) -> list[str]:
    """The phrases of an answer that lists them: one a line, as JSON, or all in one line between commas; none
    of a refusal.
    """
    said, cut = without_thoughts(answer)
    lines = [] if cut else _lines("\n".join(_texts_of_json(said) or [said]))
    lines = [_introduced(line) if i == 0 else line for i, line in enumerate(lines)]
    if not lines or REFUSAL.match(lines[0]):
        return []
    lines = re.split(r"[,;]", lines[0]) if len(lines) == 1 else lines
    return list(dict.fromkeys(filter(None, map(plain, lines))))


def plain(text: str) -> str:
    """Composed Unicode in one line, without control characters, numbering or bullet, quotes, markdown and
    final period.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(
        c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cf") and c != TORN
    )
    text = re.sub(r"(\*\*|__|`)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    text = re.sub(r"(?<!\w)([*_])(?=\S)([^*_]+)(?<=\S)\1(?!\w)", r"\2", text)
    text = re.sub(r"^(?:[-•–#>]+|\(?\d+[.)])\s+", "", text.strip(QUOTES))
    before = None
    while before != text:
        before, text = text, text.strip(QUOTES).rstrip(".;:!").rstrip()
    return text if re.search(r"\w", text) else ""


def valid(text: str) -> str:
    """A text that UTF-8 can hold: half of a character, as of an emoji that was cut, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _lines(text: str, rest: bool = False) -> list[str]:
    """The lines that say something, from the answer's own on; `rest` says that more follows behind."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if re.search(r"\w", line) and not line.startswith("```")]
    answered = [i for i, line in enumerate(lines) if ANSWERED.match(line)]
    if answered and answered[-1]:
        return lines[answered[-1] :]
    while lines and (len(lines) > 1 or rest) and _only_introduces(lines[0]):
        del lines[0]
    return lines


def _only_introduces(line: str) -> bool:
    bare = line.strip("#> ").strip(QUOTES)
    return (
        bare.endswith((":", "："))
        or not re.search(r"\w", POLITE.sub("", bare))
        or bool(re.fullmatch(rf"(?i){NAMES}", bare))
        or bool(re.fullmatch(r"(?i)here (?:you go|it is)\W*", bare))
    )


def _introduced(line: str) -> str:
    """A line without what introduces it."""
    for opening in (POLITE, HERE, OPENING, POLITE, LABELLED, OPENING):
        rest = opening.sub("", line)
        # "Sure" alone is all that was said, and "the concept is" says nothing
        line = rest if re.search(r"\w", rest) or opening is OPENING else line
    return line


def _of_json(text: str) -> str:
    """The one text in an answer that is JSON, as {"label": "dog"}; any other as it is."""
    return next(iter(_texts_of_json(text)), text)


def _texts_of_json(text: str) -> list[str]:
    """The texts in an answer that is JSON, those under a name first; none of any other."""
    inner = re.sub(r"(?s)^\s*```\w*\s*\n?(.*?)\n?```\s*$", r"\1", text).strip()
    if not inner.startswith(("{", "[")):
        return []
    try:
        found = json.loads(inner)
    except (ValueError, RecursionError):
        return []
    values = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(values, list):
        return []
    named = (
        [v for k, v in found.items() if re.fullmatch(rf"(?i){NAMES}", k)] if isinstance(found, dict) else []
    )
    flat = [one for value in named or values for one in (value if isinstance(value, list) else [value])]
    return [one for one in flat if isinstance(one, str)]
