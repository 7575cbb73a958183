"""Words of labels and captions: which say nothing, singular and plural, names in texts, lists on disk.

STOP           words that no phrase is made of
singular       a word as it is counted
names_it       does a label contain a name, singular or plural?
content_count  how many words of a text say something
EMPTY          the stop words of the published agreement
content_words  the words of a label that it compares
name_pattern   what finds names, or their plurals, in running text
counted        a number with its noun
read_lines     lines of a UTF-8 file
clean          a concept without what cannot be seen
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

# words that no phrase is made of; the last line is what captions say of themselves
STOP = frozenset(
    """a an the this that these those some its it his her their there he she they who which
    of in on at by for from to into onto over under up down out off with without near next and or as
    while than is are was were be been being has have had does do not very other another one's s
    photo photos photograph picture pictures image images""".split()
)

IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "leaves": "leaf",
    "knives": "knife",
    "buses": "bus",
    "movies": "movie",
}


def singular(word: str, only_s: bool = False) -> str:
    """Singular of a lower-case word: a dozen irregular ones, -ies to -y, -es off after ch sh s x z (ss), else
    -s off.

    Words of three letters, and those in -ss -us -is, stay. A rule of counting, not of grammar ("series" is
    "sery"). `only_s` takes off the s of all but words of three letters and of those in -ss, as the published
    agreement does ("boxe", "leave"): its printed values rest on it.
    """
    if only_s:
        return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "sses", "xes", "zzes")) else word[:-1]


def names_it(label: str, name: str) -> bool:
    """Whether the words of `name` follow each other in `label`, singular or plural ("blue rings" names
    "ring").
    """
    said, wanted = ([singular(word) for word in re.findall(r"\w+", text.lower())] for text in (label, name))
    return bool(wanted) and any(
        said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)
    )


def content_count(text: str) -> int:
    """How many words of a text say something: those that are no stop words, or all where there are no others.

    >>> content_count("a red ring on the right"), content_count("over")
    (3, 1)
    """
    words = re.findall(r"\w+", text.lower())
    return sum(word not in STOP for word in words) or len(words)


# those of STOP that the published agreement leaves out: its printed values rest on them
EMPTY = frozenset("a an and at by for from in of on or the to with".split())


def content_words(label: str) -> frozenset[str]:
    """What labels of published methods are compared by: lower-case words without EMPTY ones, an s at the end
    off; Broden's "-c" and "-s" go first.
    """
    words = re.findall("[a-z]+", re.sub("-[cs]$", "", label.lower()))
    return frozenset(singular(word, only_s=True) for word in words if word not in EMPTY)


ENDINGS = {"y": "ies", "f": "ves", "fe": "ves"}  # endings that change before the s


def name_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """What finds one of the names, or its regular plural, as whole words in upper or lower case.

    Not `singular` turned round: names may be phrases with hyphens and brackets, and a text that gives one
    away must be found ("wolves" of wolf), where `names_it` must not find what is not there.
    """
    if not names or not all(name.strip() for name in names):
        raise ValueError(f"a name has letters, got {list(names)}; leave empty ones out")
    spelled = []
    for name in names:
        spelled.append(re.escape(name) + "(s|es)?")
        spelled += [
            re.escape(name.removesuffix(end)) + plural
            for end, plural in ENDINGS.items()
            if name.endswith(end)
        ]
    return re.compile(rf"(?<!\w)({'|'.join(spelled)})(?!\w)", re.IGNORECASE)  # a name may end in a bracket


def counted(n: int, noun: str) -> str:
    """A number with its noun, regular in the plural.

    >>> counted(1, "unit"), counted(3, "unit")
    ('1 unit', '3 units')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file with any line ends and with or without a byte-order mark."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text, wrong = data[: error.start].decode("utf-8"), f"byte 0x{data[error.start]:02x}"
    else:
        wrong = "a null character" if "\0" in text else ""
        text = text.partition("\0")[0] if wrong else text
    lines = re.split(
        r"\r\n|\r|\n", text
    )  # not splitlines(), which also cuts at rare characters inside a line
    if wrong:
        raise ValueError(f"{path} is not UTF-8 text: {wrong} in line {len(lines)}; save it as UTF-8")
    return lines


def clean(text: str) -> str:
    """One concept without byte-order marks, zero-width characters and superfluous white space."""
    return " ".join(re.sub("[\ufeff\u200b]", "", unicodedata.normalize("NFC", text)).split())
