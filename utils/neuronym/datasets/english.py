"""The most common English words that can name something: `english_words`."""
from __future__ import annotations

import codecs
import re
from collections import Counter
from pathlib import Path

from neuronym.runs.runs import ROOT

LISTS = ROOT / "data" / "english_words.txt"
# languages in Latin script with many words in wordfreq: a word common in most of them is a name, or international
OTHERS = tuple("ca cs da de es fi fr hu id it lt lv nb nl pl pt ro sh sk sl sv tr vi".split())
SUFFIXES = ("s", "es", "ed", "ing", "ly", "er", "ness", "y", "d", "r", "less", "like", "ful")


def english_words(n: int) -> tuple[list[str], dict[str, int]]:
    """The first n words of wordfreq's English list that pass the rules below, and how many words each rule dropped.

    letters   three or more letters a-z, one of them a vowel, none three times in a row
    stop      no function words, contractions and interjections; not "workin" for "working"
    vulgar    no swear words, slurs and sexual words
    inflected a plural or a third person stands for its base form, which takes its place
    names     no names of people, places and brands: words that many languages use alike while English has few forms of
              them (toyotas, toyotaed, ... are rare beside toyota), and a list of others
    initials  no words of three letters without common forms (cpu, faq)
    foreign   no words far more common in another language while English has few forms of them

    The lists, and the exceptions to the rules, are in data/english_words.txt. Raises a ValueError that says how many
    words there are when n is larger.
    """
    from wordfreq import get_frequency_dict, top_n_list
    english = get_frequency_dict("en", "large")
    others = [get_frequency_dict(language, "small") for language in OTHERS]
    lists = read_lists(LISTS)
    plural = dict(pair.split("=") for pair in lists["plural"])
    vulgar = re.compile("|".join(codecs.decode(word, "rot13").replace("*", ".*") for word in lists["vulgar"]))
    welcome = lists["keep"] | lists["unique"]
    kept, dropped, seen = [], Counter(), set()
    for word in top_n_list("en", len(english), "large"):
        if len(kept) == n:
            return kept, dict(dropped)
        base = plural.get(word) or _base(_base(word, english, lists), english, lists)  # womens, women, woman
        if not re.fullmatch(r"[a-z]{3,}", word) or not re.search("[aeiouy]", word) or re.search(r"(.)\1\1", word):
            rule = "letters"
        elif {word, base} & lists["stop"] or _shortened(word, english):
            rule = "stop"
        elif vulgar.fullmatch(word) or vulgar.fullmatch(base):
            rule = "vulgar"
        elif base in seen:
            rule = "inflected"
        elif base in welcome:
            rule = ""
        else:
            rule = _foreign(base, english, others, lists)
        if rule:
            dropped[rule] += 1
        else:
            dropped["inflected"] += base != word
            kept.append(base)
        seen.add(base)
    if len(kept) < n:
        raise ValueError(f"english:<n> has at most {len(kept)} words, got {n}")
    return kept, dict(dropped)


def read_lists(path: Path) -> dict[str, frozenset[str]]:
    """Sections of a file of "[section]" lines, words and "#" comments."""
    lists, section = {}, None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = lists.setdefault(line.strip("[]"), set())
        elif not line.startswith("#") and line:
            section.update(line.split())
    return {name: frozenset(words) for name, words in lists.items()}


def _shortened(word: str, english: dict[str, float]) -> bool:
    """dont, workin: spellings of a more common don't, working."""
    apostrophe = word.endswith("nt") and english.get(word[:-1] + "'t", 0) > english[word]
    return apostrophe or word.endswith("in") and english.get(word + "g", 0) > english[word]


def _base(word: str, english: dict[str, float], lists: dict[str, frozenset[str]]) -> str:
    """Singular, or infinitive of a third person, when it is a word in its own right; otherwise the word itself."""
    if not word.endswith(("s", "men")) or word.endswith(("ss", "us", "is")) or word in lists["unique"]:
        return word
    forms = [word[:-3] + "man"] if word.endswith("men") else [word[:-1]]
    forms += [word[:-3] + "y"] * word.endswith("ies")
    forms += [word[:-2]] * word.endswith(("ches", "shes", "sses", "xes", "zes", "oes"))
    base = max(forms, key=lambda form: english.get(form, 0))
    return base if len(base) > 2 and english.get(base, 0) > .1 * english[word] else word


def _foreign(word: str, english: dict[str, float], others: list[dict[str, float]],
             lists: dict[str, frozenset[str]]) -> str:
    """The rule by which a word is dropped as a name, initials or a word of another language; "" when by none."""
    if word in lists["names"]:
        return "names"
    own = english[word]
    related = max(english.get(form, 0) for form in _forms(word))
    alike = sum(other.get(word, 0) >= .1 * own for other in others)
    if alike >= 12 and related < own * 10 ** -1.4 or alike >= 8 and related < own * 10 ** -2:
        return "names"
    if len(word) == 3 and related < own * 10 ** -1.5:
        return "initials"
    if max(other.get(word, 0) for other in others) >= 20 * own and related < own * 10 ** -1.2:
        return "foreign"
    return ""


def _forms(word: str) -> list[str]:
    """Spellings that inflections and derivatives of an English word would have."""
    forms = [word + suffix for suffix in SUFFIXES] + [word + word[-1] + suffix for suffix in ("ed", "ing", "y", "er")]
    if word.endswith("e"):
        forms += [word[:-1] + suffix for suffix in ("ing", "y", "ly")]
    if word.endswith("y"):
        forms += [word[:-1] + suffix for suffix in ("ies", "ied", "ily", "ier", "iness")]
    return forms
