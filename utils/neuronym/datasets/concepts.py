"""The concept set S: lists of words by name.

load_concepts    concept set by name: one of CONCEPTS, or a list of strings -> a list of strings
concept_kinds    concept -> kind ("colour", "object"), for the sets that tell it
concepts_folder  where lists that the user brings are looked for
plain_name       a name of Broden's without its suffix
CONCEPTS         first word of a name -> function of the rest
english_words    the most common English words that can name something
read_lists       the lists that they are taken from

    microworld          | the microworld's 392 concepts: 52 words and pairs of them
    microworld:atoms    | its 52 words
    microworld:captions | 2,000 sentences about its scenes
    english:N           | the N most common English words that can name something | english:20000
    imagenet            | the 1,000 class names of ImageNet
    broden              | Broden's labels (`./dlbroden.sh`; NEURONYM_CONCEPTS)
    places365           | the 365 categories of Places (NEURONYM_CONCEPTS)
    file:PATH           | one concept a line, its kind behind a tab if you like | file:words.txt
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from neuronym.common.checks import unknown
from neuronym.common.text import clean, read_lines
from neuronym.runs.folders import data_dir, ROOT

CAPTIONS = 2_000


def load_concepts(concepts: str | Sequence[str]) -> list[str]:
    """Concepts of a set by name: "microworld", "english:20000", "imagenet", "broden", "places365",
    "file:words.txt"; or your own list of strings, cleaned like those.

    "microworld:atoms" are its 52 single words, "microworld:captions" 2,000 sentences about scenes.

    Every list is cleaned the same way: white space collapsed, blank lines left out, of equal lines the first
    kept; upper and lower case stay apart (ImageNet has a cardigan and a Cardigan). A relative path starts at
    the repository root. Unknown names raise a KeyError, missing lists a FileNotFoundError that says where to
    get them, files that are not UTF-8 text a ValueError that names the line.

    >>> load_concepts(["a dog ", "the sea", "a dog"])
    ['a dog', 'the sea']
    """
    if not isinstance(concepts, str):
        return _own(concepts)
    name = concepts
    kind, _, rest = name.strip().partition(":")
    if kind not in CONCEPTS:
        raise unknown("concept set", kind, CONCEPTS)
    if rest and kind not in ("microworld", "english", "file"):
        raise ValueError(f"{kind} takes nothing after it, got '{name}'")
    found = _cleaned(CONCEPTS[kind](rest.strip()))
    if not found:
        raise ValueError(f"concept set '{name}' is empty")
    return found


def concept_kinds(name: str) -> dict[str, str]:
    """Kind of every concept of the set `name` that tells it, else {}: the microworld's kinds of words, the
    category of Broden's label.csv, what stands behind a tab in a line of a file.
    """
    kind, _, rest = name.strip().partition(":")
    if kind == "microworld":
        from neuronym.microworld.world import CATEGORY

        return CATEGORY
    if kind == "file":
        lines = [line.split("\t") for line in read_lines(_listed(rest.strip()))]
        return {
            clean(line[0]): clean(line[1]) for line in reversed(lines) if len(line) > 1
        }  # of equal ones the first
    broden = _home("NEURONYM_BRODEN", "broden") / "label.csv"
    if kind == "broden" and broden.is_file():
        return {clean(plain_name(row["name"])): row["category"].partition("(")[0] for row in _rows(broden)}
    return {}


def _own(concepts: Sequence[str]) -> list[str]:
    """A list of the user's, cleaned."""
    strange = [c for c in concepts if not isinstance(c, str)]
    if strange:
        raise ValueError(f"concepts are a name or a list of strings, got {strange[0]!r} in the list")
    found = _cleaned(concepts)
    if not found:
        raise ValueError("a list of concepts has at least one string with letters, got none")
    return found


def _cleaned(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, map(clean, lines))))


def _microworld(rest: str) -> list[str]:
    from neuronym.microworld.world import caption, CAPTION_SEED, CLASSES, CONCEPTS, scene

    sets = {
        "": CONCEPTS,
        "atoms": CLASSES,
        "captions": (caption(scene(CAPTION_SEED + i), i % 5) for i in range(CAPTIONS)),
    }
    if rest not in sets:
        raise unknown("microworld concept set", rest, ["atoms", "captions"])
    return list(sets[rest])


def _english(rest: str) -> list[str]:
    if not (rest.isascii() and rest.isdigit() and int(rest) > 0):
        raise ValueError(f"english:<n> takes a number of words, as in 'english:20000', got 'english:{rest}'")
    return english_words(int(rest))[0]


def _imagenet(rest: str) -> list[str]:
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.DEFAULT.meta["categories"])


def _broden(rest: str) -> list[str]:
    """CLIP-Dissect's clean list when it is there, otherwise the labels of a downloaded Broden, cleaned
    alike.
    """
    broden = _home("NEURONYM_BRODEN", "broden") / "label.csv"
    listed = concepts_folder() / "broden_labels_clean.txt"
    if listed.is_file():
        return read_lines(listed)
    if broden.is_file():
        return [plain_name(row["name"]) for row in _rows(broden)]
    raise FileNotFoundError(
        f"Broden's labels not found at {broden} or {listed}; run ./dlbroden.sh, or get "
        "broden_labels_clean.txt from github.com/Trustworthy-ML-Lab/CLIP-dissect (data/) and set "
        "NEURONYM_CONCEPTS to its folder"
    )


def _places365(rest: str) -> list[str]:
    """Lines such as "/a/apartment_building/outdoor 8" -> "apartment building, outdoor", in the order of the
    classes.
    """
    path = concepts_folder() / "categories_places365.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"the Places365 categories are not at {path}; get categories_places365.txt from "
            "github.com/CSAILVision/places365 (`neuronym download places365`) and put it there, or set "
            "NEURONYM_CONCEPTS to its folder"
        )
    names = [re.sub(r"\s+\d+$", "", line.strip()) for line in read_lines(path)]
    return [re.sub("^/[a-z]/", "", name).replace("_", " ").replace("/", ", ") for name in names]


def _file(rest: str) -> list[str]:
    return [line.partition("\t")[0] for line in read_lines(_listed(rest))]


def _listed(rest: str) -> Path:
    path = ROOT / os.path.expanduser(rest)
    if not rest or not path.is_file():
        raise FileNotFoundError(
            f"no file at {path}; 'file:<path>' is absolute or starts at {ROOT}, one concept a line"
        )
    return path


def _rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain_name(name: str) -> str:
    """A name of Broden's without its suffix for scenes and colours."""
    return re.sub("-[sc]$", "", name).replace("_", " ")


CONCEPTS: dict[str, Callable[[str], list[str]]] = {
    "microworld": _microworld,
    "english": _english,
    "imagenet": _imagenet,
    "broden": _broden,
    "places365": _places365,
    "file": _file,
}


def concepts_folder() -> Path:
    """Where lists that the user brings are looked for."""
    return _home("NEURONYM_CONCEPTS", "concepts")


def _home(variable: str, folder: str) -> Path:
    told = os.environ.get(variable)
    return ROOT / os.path.expanduser(told) if told else data_dir() / folder


LISTS = ROOT / "data" / "english_words.txt"
# languages in Latin script with many words in wordfreq: a word common in most of them is a name, or
# international
OTHERS = tuple("ca cs da de es fi fr hu id it lt lv nb nl pl pt ro sh sk sl sv tr vi".split())
SUFFIXES = ("s", "es", "ed", "ing", "ly", "er", "ness", "y", "d", "r", "less", "like", "ful")


def english_words(n: int) -> tuple[list[str], dict[str, int]]:
    """The first n words of wordfreq's English list that pass the rules below, and how many words each rule
    dropped.

    letters   three or more letters a-z, one of them a vowel, none three times in a row
    stop      no function words, contractions and interjections; not "workin" for "working"
    vulgar    no swear words, slurs and sexual words
    inflected a plural or a third person stands for its base form, which takes its place
    names     no names of people, places and brands: words that many languages use alike while English has few
              forms of
              them (toyotas, toyotaed, ... are rare beside toyota), and a list of others
    initials  no words of three letters without common forms (cpu, faq)
    foreign   no words far more common in another language while English has few forms of them

    The lists, and the exceptions to the rules, are in data/english_words.txt. Errors: ValueError that says
    how many words there are when n is larger.
    """
    from wordfreq import get_frequency_dict, top_n_list

    english = get_frequency_dict("en", "large")
    if n > len(english):  # said at once: to go through all of them takes seconds
        raise ValueError(f"english:<n> chooses among {len(english)} words, got {n}")
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
        if (
            not re.fullmatch(r"[a-z]{3,}", word)
            or not re.search("[aeiouy]", word)
            or re.search(r"(.)\1\1", word)
        ):
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
    """Singular, or infinitive of a third person, when it is a word in its own right; otherwise the word
    itself.
    """
    if not word.endswith(("s", "men")) or word.endswith(("ss", "us", "is")) or word in lists["unique"]:
        return word
    forms = [word[:-3] + "man"] if word.endswith("men") else [word[:-1]]
    forms += [word[:-3] + "y"] * word.endswith("ies")
    forms += [word[:-2]] * word.endswith(("ches", "shes", "sses", "xes", "zes", "oes"))
    base = max(forms, key=lambda form: english.get(form, 0))
    return base if len(base) > 2 and english.get(base, 0) > 0.1 * english[word] else word


def _foreign(
    word: str, english: dict[str, float], others: list[dict[str, float]], lists: dict[str, frozenset[str]]
) -> str:
    """The rule by which a word is dropped as a name, initials or a word of another language; "" when by
    none.
    """
    if word in lists["names"]:
        return "names"
    own = english[word]
    related = max(english.get(form, 0) for form in _forms(word))
    alike = sum(other.get(word, 0) >= 0.1 * own for other in others)
    if alike >= 12 and related < own * 10**-1.4 or alike >= 8 and related < own * 10**-2:
        return "names"
    if len(word) == 3 and related < own * 10**-1.5:
        return "initials"
    if max(other.get(word, 0) for other in others) >= 20 * own and related < own * 10**-1.2:
        return "foreign"
    return ""


def _forms(word: str) -> list[str]:
    """Spellings that inflections and derivatives of an English word would have."""
    forms = [word + suffix for suffix in SUFFIXES] + [
        word + word[-1] + suffix for suffix in ("ed", "ing", "y", "er")
    ]
    if word.endswith("e"):
        forms += [word[:-1] + suffix for suffix in ("ing", "y", "ly")]
    if word.endswith("y"):
        forms += [word[:-1] + suffix for suffix in ("ies", "ied", "ily", "ier", "iness")]
    return forms
