"""Images of one thing that a CLIP takes for another, drawn from captions full of the words its neurons
confuse.

class_pairs  pairs of wrong and drawn classes from text
load_writer  who composes captions, by name: one of WRITERS, or an LLM
captions     what the writer composes, less what breaks the rules
attack       captions, pictures of them, and which of these fool the CLIP
fooled       which pictures the CLIP takes for the wrong class

    microworld   | composes captions by its grammar; it knows the microworld's words only
    openai:MODEL | a language model on an OpenAI-compatible server | openai:gpt-3.5-turbo
    hf:ID        | a chat model of transformers | hf:HuggingFaceTB/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.text import name_pattern
from neuronym.common.types import Clip
from neuronym.microworld.world import ADVERSARIAL_SEED, ATOMS, CATEGORY, COUNTS, PLACES, PLURALS, read
from neuronym.models.answers import without_thoughts
from neuronym.models.generators import Generator, pictures
from neuronym.models.llms import LLMS, load_llm
from neuronym.passes import inference

FEWEST = 10  # captions that have to keep the rules
REPEAT_STEP = 1000  # seeds set apart for each repeat
CaptionWriter = Callable[
    [Sequence[str], str, str, int, torch.Generator], list[str]
]  # words, drawn, wrong, n -> captions


def class_pairs(text: str, clip: Clip, names: Sequence[str]) -> list[tuple[str, str]]:
    """(wrong, drawn) of "star<cross,frog<bird", or of "nearest": each name is drawn for the one nearest in
    CLIP's texts.

    An empty text gives none. Errors: ValueError for a pair that is none.
    """
    if text.strip() == "nearest":
        T = clip.encode_text(list(names))
        near = (T @ T.T).fill_diagonal_(-2).argmax(1).tolist()
        return [(names[j], name) for name, j in zip(names, near)]
    pairs = [tuple(name.strip() for name in part.split("<")) for part in text.split(",") if part.strip()]
    wrong = [pair for pair in pairs if len(pair) != 2 or not all(pair) or pair[0] == pair[1]]
    if wrong:
        raise ValueError(
            f"pairs are 'nearest' or wrong<drawn, separated by commas, got '{'<'.join(wrong[0])}'; write "
            "frog<bird"
        )
    return pairs


def load_writer(name: str, device: str | torch.device = "cpu") -> CaptionWriter:
    """ "microworld" composes captions by its grammar; "openai:MODEL" and "hf:ID" ask an LLM (temperature .6,
    top-p .9).

    Errors: KeyError for an unknown name, and those of `load_llm`.
    """
    kind = name.partition(":")[0]
    if name not in WRITERS and kind not in LLMS:
        raise unknown("writer", name, [*WRITERS, *(f"{kind}:NAME" for kind in LLMS)])
    return WRITERS[name] if name in WRITERS else _llm_writer(name, device)


def captions(
    writer: CaptionWriter,
    words: Sequence[str],
    drawn: str,
    wrong: str,
    n: int = 10,
    written: int = 50,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Up to n captions that name the class `drawn`, never the class `wrong`, and as many words as the writer
    could.

    Of `written` captions those that break the rules are left out, and the first n of the rest taken. Without
    words the captions are plain. Errors: ValueError when fewer remain than n or FEWEST, whichever is less.
    """
    check_positive_int("n", n)
    right, bad = name_pattern([drawn]), name_pattern([wrong])
    made = writer(list(words), drawn, wrong, max(written, n), generator or torch.Generator().manual_seed(0))
    kept = [text for text in dict.fromkeys(made) if right.search(text) and not bad.search(text)]
    if len(kept) < min(n, FEWEST):
        raise ValueError(
            f"at least {min(n, FEWEST)} captions have to name '{drawn}' and not '{wrong}', the writer "
            f"gave {len(kept)} such among {len(made)}; use another writer or other words"
        )
    return kept[:n]


def attack(
    clip: Clip,
    writer: CaptionWriter,
    generator: Generator,
    words: Sequence[str],
    drawn: str,
    wrong: str,
    repeat: int = 0,
    n: int = 10,
    each: int = 4,
    dice: torch.Generator | None = None,
) -> tuple[list[str], list[Image.Image], list[bool]]:
    """`each` pictures of n captions: (captions, pictures, fooled?), one entry a picture; `repeat` gives other
    pictures.
    """
    texts = [text for text in captions(writer, words, drawn, wrong, n, generator=dice) for _ in range(each)]
    start = ADVERSARIAL_SEED + REPEAT_STEP * repeat
    made = pictures(generator, texts, range(start, start + len(texts)))
    texts = [text for text, picture in zip(texts, made) if picture is not None]
    made = [picture for picture in made if picture is not None]
    t = clip.encode_text([wrong, drawn])
    return texts, made, fooled(made, clip, t[0] - t[1]).tolist()


def fooled(pictures: Sequence[Image.Image], clip: Clip, v: Tensor) -> Tensor:
    """For each picture whether its embedding e has e . v > 0, v = t(wrong) - t(drawn) [d] (section 5); bool
    [n].
    """
    found = [torch.zeros(0, dtype=torch.bool, device=v.device)]
    with inference(clip.model) as place:
        for i in range(0, len(pictures), 32):
            images = torch.stack([clip.preprocess(picture) for picture in pictures[i : i + 32]])
            found += [clip.encode_image(piece) @ v > 0 for piece in place(images)]
    return torch.cat(found)


def _by_grammar(
    words: Sequence[str], drawn: str, wrong: str, n: int, generator: torch.Generator
) -> list[str]:
    """Captions of the microworld: words in random order, each taken if its place in the sentence is still
    free.

    A word of another shape becomes a second object, once; words that say what `drawn` is not are passed over.
    """
    if CATEGORY.get(drawn) != "shape" or CATEGORY.get(wrong) != "shape":
        raise ValueError(
            f"the microworld's writer draws one shape for another, got '{drawn}' and '{wrong}'; name two "
            f"of {', '.join(ATOMS['shape'])}"
        )
    made = []
    for _ in range(4 * n):
        first: dict[str, str] = {"shape": drawn}
        second: dict[str, str] = {}
        scene: dict[str, str] = {}
        for i in torch.randperm(len(words), generator=generator).tolist():
            found = read(words[i])
            scene = {kind: found[kind] for kind in ("place", "light", "count") if found[kind]} | scene
            for thing in found["given"]:
                if thing.get("shape", drawn) == drawn:
                    first |= {kind: word for kind, word in thing.items() if kind not in first}
                elif thing["shape"] != wrong and not second:
                    second = thing
        if text := _sentence(first, second, scene):
            made.append(text)
    return list(dict.fromkeys(made))[:n] if words else _plain(drawn, n, generator)


def _plain(drawn: str, n: int, generator: torch.Generator) -> list[str]:
    """Captions whose other words are drawn by lot."""

    def lot(kind: str) -> str:
        return ATOMS[kind][int(torch.randint(len(ATOMS[kind]), (), generator=generator))]

    return [
        _sentence(
            {"shape": drawn, **{kind: lot(kind) for kind in ("size", "colour", "texture")}},
            {},
            {"place": lot("place")},
        )
        for _ in range(n)
    ]


def _sentence(first: dict, second: dict, scene: dict) -> str:
    number = 1 if second else COUNTS.index(scene.get("count", "one")) + 1
    nouns = [_noun(thing, number) for thing in (first, second) if thing]
    where = "" if second or "position" not in first else f"on the {first['position']}"
    place = PLACES[scene["place"]] if "place" in scene else ""
    light = f"in {scene['light']} light" if "light" in scene else ""
    return " ".join(filter(None, [" and ".join(nouns), where, place, light]))


def _noun(thing: dict, number: int) -> str:
    words = [thing[kind] for kind in ("size", "colour", "texture") if kind in thing]
    words.append(thing["shape"] if number == 1 else PLURALS[thing["shape"]])
    article = ("an" if words[0][0] in "aeiou" else "a") if number == 1 else COUNTS[number - 1]
    return " ".join([article, *words])


def _llm_writer(name: str, device: str | torch.device) -> CaptionWriter:
    llm = load_llm(name, device)

    def write(words: Sequence[str], drawn: str, wrong: str, n: int, generator: torch.Generator) -> list[str]:
        told = (
            f"Write {n} short descriptions of different photographs, one a line, without numbers. Each "
            "names the "
            f"word '{drawn}'. None names '{wrong}', its plural, a synonym, or anything that looks like it."
        )
        if words:
            told += (
                f" Each uses as many of these words as it can, even where that is odd: {', '.join(words)}."
            )
        seed = int(torch.randint(2**31, (), generator=generator))
        answer = llm.ask(
            [{"role": "user", "content": told}], temperature=0.6, top_p=0.9, max_tokens=1024, seed=seed
        )
        said, cut = without_thoughts(answer)
        said = "" if cut else said
        lines = [re.sub(r"^\s*(\d+[.):]|[-•])\s*", "", line).strip(' "*') for line in said.splitlines()]
        return [
            line for line in lines if line and not line.endswith(":")
        ]  # "Here are 50 descriptions of a dog:"

    return write


WRITERS: dict[str, CaptionWriter] = {"microworld": _by_grammar}
