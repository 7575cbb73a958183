"""What an OpenAI-compatible server's reply says: an answer, why there is none, what it did not accept.

PASS         statuses of failures that pass when asked again
answer_of    body of a reply -> Answer, None for what is no chat completion
error_in     status of an error in a body, 0 without one
filtered     whether a refusal is a content filter's
said         what a server said of an error
not_accepted what of a request a refusal is about
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from neuronym.common.types import Answer
from neuronym.models.answers import fault_of, valid

PASS = {0, 408, 409, 425, 429}  # and those from 500 on
CUT = {"length", "max_tokens", "max_output_tokens", "model_length", "max_length", "context_length"}
FILTERED = {
    "content_filter",
    "contentfilter",
    "content_filtered",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "sensitive",
    "spii",
    "image_safety",
    "guardrail_intervened",
}
FAILED = {"error", "insufficient_system_resource", "aborted", "abort", "network_error"}
FILTERS = re.compile(
    r"(?i)content[_ -]?(?:filter|polic|management|moderation|safety|risk|exists)|responsible ?ai|"
    r"data_?inspection|inappropriate|sensitive[_ ](?:content|word)|flagged|moderation|prohibited|guardrail|"
    r"block_?reason|"
    r"safety[_ ](?:system|filter|setting|polic|reason|check)|(?:usage|safety) policies"
)
UNKNOWN = re.compile(
    r"(?i)support|unknown|unrecogni[sz]ed|unexpected|extra|not (?:permitted|allowed|accepted|available|"
    r"implemented|compatible)|deprecated|removed|invalid (?:param|arg|field)|cannot (?:find|be|both)|"
    r"only (?:the )?default|does ?n[o'’]t (?:exist|accept)|no such|forbidden|incompatible|use '?max_comp"
)
ROLES = re.compile(
    r"(?i)system[_ ](?:role|message|prompt|instruction)|developer instruction|roles? must alternate|"
    r"only '?user'? (?:and|or) '?assistant|\brole\b.{0,60}\bsystem\b|\bsystem\b.{0,60}\brole|"
    r"messages\[0\]\.role|first message.{0,40}\buser\b|unexpected role|"
    r"\bsystem\b['\"]? is not (?:one of|supported|a valid|allowed)"
)
SETTABLE = {"max_tokens": "max_completion_tokens", "temperature": "", "top_p": "", "seed": ""}


def answer_of(body: str) -> Answer | None:
    """Text, tokens and fault of a chat completion; None for any other body, and for one that failed."""
    try:
        read = json.loads(body)
        choice = read["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    parts, refused = _parts(content)
    finish = str(choice.get("finish_reason") or choice.get("native_finish_reason") or "").lower()
    if parts is None or finish in FAILED:
        return None
    text = valid(parts).strip()
    tokens = _tokens(read.get("usage"))
    if finish in FILTERED:
        return Answer(text, *tokens, "filtered")
    if refused or isinstance(refusal, str) and refusal.strip() or finish == "refusal":
        return Answer(text or valid(str(refused or refusal)).strip(), *tokens, "refused")
    return Answer(text, *tokens, "cut" if finish in CUT else fault_of(text))


def error_in(body: str) -> int:
    """The status of an error that a body of another status holds, 502 where it tells none; 0 without one."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0
    if not error:
        return 0
    codes = [error.get("code"), error.get("status")] if isinstance(error, dict) else []
    for code in codes:
        if str(code).isdigit() and 400 <= int(code) < 600:
            return int(code)
    return 400 if FILTERS.search(body) else 502


def filtered(status: int, body: str) -> bool:
    """Whether a content filter refused: one request's fault, and none of the others'."""
    if status == 451:
        return True
    shown = status in (400, 403, 422, 500) or status == 200 and body.lstrip().startswith("{")
    return shown and bool(FILTERS.search(body))


def said(body: str) -> str:
    """What a server said of an error: its message where it sent one, else the beginning of its page."""
    try:
        told = json.loads(body)
        told = told.get("error", told) if isinstance(told, dict) else told
        told = told.get("message", told) if isinstance(told, dict) else told
    except (ValueError, RecursionError):
        told = body
    return " ".join(valid(str(told)).split()) or "no reason given"


def not_accepted(status: int, body: str, sent: dict) -> dict[str, str]:
    """What to change in a request that was refused, {name: its new name, "" to leave it out}; {} for nothing.

    "system" is the role: its message goes into the user's first one.
    """
    if status in (401, 403, 404) or status in PASS or not 400 <= status < 600:
        return {}
    text = said(body)
    unknown = bool(UNKNOWN.search(text)) or bool(UNKNOWN.search(body))
    roles = {message["role"] for message in sent["messages"]}
    names = [name for name in (*SETTABLE, "max_completion_tokens") if name in sent]
    told = [one for one in _told(body) if one in names]
    if not told and "system" in roles and ROLES.search(body):
        return {"system": "user"}
    if status >= 500 and not unknown:
        return {}
    if not told:
        places = {name: re.search(rf"(?<![A-Za-z_]){name}(?![A-Za-z_])", text) for name in names}
        told = sorted((n for n in names if places[n]), key=lambda name: places[name].start())
        if "top_p" in told and re.search(r"(?i)\b(?:both|only one|together|either)\b", text):
            told = ["top_p"]
    for name in told:
        if name == "max_tokens" and "max_completion_tokens" in body:
            return {name: "max_completion_tokens"}
        if name in ("max_tokens", "max_completion_tokens"):
            if unknown and not re.search(r"(?i)too large|maximum|at most|less than|exceed", text):
                return {name: "max_completion_tokens" if name == "max_tokens" else ""}
        else:
            return {name: ""}
    return {}


def _parts(content: object) -> tuple[str | None, str]:
    """Text of a message's content, and of a refusal in it; thinking parts are left out. None for neither."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return None, ""
    texts, refused = [], ""
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "refusal":
            refused = str(part.get("refusal") or "refused")
        elif isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"):
            text = part.get("text") or ""
            text = text.get("value", "") if isinstance(text, dict) else text
            texts.append(text if isinstance(text, str) and not part.get("thought") else "")
    return "".join(texts), refused


def _tokens(usage: object) -> tuple[int | None, int | None]:
    """Tokens of prompt and answer as a server counts them; None where it does not."""
    found = []
    for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        values = [usage.get(name) for name in names] if isinstance(usage, dict) else []
        counts = [int(v) for v in values if type(v) in (int, float) and 0 <= v < 1e12 and v == int(v)]
        found.append(counts[0] if counts else None)
    return found[0] or None, found[1]  # a prompt has tokens: none is not counted


def _told(body: str) -> list[str]:
    """Parameters that an error names in a field of its own: `param`, or the last of `loc`."""
    try:
        return list(_fields(json.loads(body), 0))
    except (ValueError, RecursionError):
        return []


def _fields(value: object, depth: int) -> Iterator[str]:
    if depth > 8:
        return
    if isinstance(value, list):
        for one in value[:50]:
            yield from _fields(one, depth + 1)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name in ("param", "parameter", "field") and isinstance(one, str):
                yield one
            elif name == "loc" and isinstance(one, list):
                yield from (str(part) for part in one[-2:])
            else:
                yield from _fields(one, depth + 1)
