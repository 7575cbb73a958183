"""What a model is told in step 2 of Describe-and-Dissect: by name, from a file, by layer.

Prompt        an instruction and worked examples for each of its two tasks; one for pictures shown together
PROMPTS       name of a domain -> Prompt
named_prompt  a name or file:PATH -> Prompt
layer_prompts a parameter -> the prompt of each layer

    objects   | Describe-and-Dissect's, with its two worked examples
    textures  | the same for colours, patterns and materials, which early layers see
    shared    | objects with more examples, for small models, which repeat what they are shown
    satellite | asks for a label, then a landform in brackets
    by_layer  | textures for the first half of a network's layers, objects for the others
    file:PATH | yours: JSON with the fields of one of these, as `neuronym.describe.prompts.written` gives it |
              file:mine.json

A layer's own stands after its name: `layer1=textures;layer4=file:mine.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from neuronym.common.checks import unknown
from neuronym.runs.folders import from_root

_TOGETHER = (
    "Name what these pictures have in common: {n} different phrases of 1 to 5 words, each true of most of "
    "the pictures, the best one first. Prefer what is specific over what any picture shows. Answer with the "
    "phrases alone, one a line: no numbers, no introduction, no explanation."
)


@dataclass(frozen=True)
class Prompt:
    """What a language model is told: an instruction and worked examples for each of its two tasks; and what a
    model is told that sees all pictures of a unit.
    """

    shorten: str
    shortened: tuple[tuple[str, str], ...]  # caption, label
    summarize: str
    summarized: tuple[tuple[tuple[str, ...], str], ...]  # captions, concept
    words: int = 5  # of a concept, what stands in brackets at its end apart
    question: str = "Concept:"  # below the captions
    together: str = _TOGETHER  # {n} stands for the number of phrases


_SHORTEN = (
    "You turn the caption of a picture into one short label. Keep what the picture shows, leave out what is "
    "repeated or says nothing. Answer with the label alone: no period, no quotes, no numbering."
)

_SUMMARIZE = (
    "You read captions of pictures and name the one concept that most of them share, in 1 to 5 words. "
    "Prefer what is specific and common to many captions over what is said once. Answer with the concept "
    "alone, in one line: no list, no explanation."
)

_FABRICS = (
    (
        "a quilt sewn of red, blue and yellow squares",
        "a rug woven in many colors",
        "bright scarves on a rack",
        "a pile of patterned cloth",
    ),
    "multicolored textiles",
)

_REDS = (
    (
        "a red barn behind a fence",
        "a woman in a red coat",
        "a bowl of ripe strawberries",
        "red lanterns over a street",
    ),
    "red-themed scenes",
)

_STRIPES = (
    (
        "a zebra beside a tree",
        "a shirt with black and white lines",
        "a road with white stripes",
        "blinds in front of a window",
    ),
    "parallel stripes",
)

_REPEATED = (
    "a kitten on a blanket with a flower pattern with a flower pattern with a flower pattern",
    "kitten on floral blanket",
)

_SHARED = (
    (
        (
            "a brown dog on a sofa",
            "a dog with a ball in the grass",
            "two dogs beside a car",
            "a small dog in rain",
        ),
        "dog",
    ),
    (
        (
            "a wooden table by a window",
            "an old wooden boat on a lake",
            "a wooden fence in the rain",
            "three wooden toys",
        ),
        "wooden",
    ),
    (
        (
            "a man with a kite at the beach",
            "two chairs at the beach",
            "a beach with white stones",
            "a child and a boat at the beach",
        ),
        "at the beach",
    ),
)

PROMPTS: dict[str, Prompt] = {
    "objects": Prompt(_SHORTEN, (_REPEATED,), _SUMMARIZE, (_FABRICS, _REDS)),
    "shared": Prompt(
        _SHORTEN,
        (_REPEATED,),
        "Name what the captions have in common. Use 1 to 5 words that most of the captions contain.",
        _SHARED,
        question="Which words are in most of these captions?",
    ),
    "textures": Prompt(
        _SHORTEN.replace("what the picture shows", "its colours, patterns and materials"),
        (("a close up of a wall with a pattern of a pattern of red bricks", "pattern of red bricks"),),
        _SUMMARIZE.replace(
            "the one concept that most of them share",
            "the one colour, pattern, texture or material that most of them share",
        ),
        (_FABRICS, _STRIPES),
        together=_TOGETHER.replace("pictures have", "pictures have in colour, pattern, texture or material"),
    ),
    "satellite": Prompt(
        _SHORTEN.replace("a picture", "a satellite picture")
        + " Put the kind of landform in brackets after the label.",
        (
            (
                "an aerial view of a field of green crops with rows of crops with rows",
                "rows of green crops (farmland)",
            ),
        ),
        _SUMMARIZE.replace("pictures", "satellite pictures")
        + " Put the kind of landform in brackets after it.",
        (
            (
                ("houses along a curved road", "a grid of streets with roofs", "a suburb with gardens"),
                "dense housing (residential area)",
            ),
            (
                (
                    "a winding line of brown water",
                    "water between two green banks",
                    "a bend with sand beside it",
                ),
                "winding waterway (river)",
            ),
        ),
        together=_TOGETHER.replace("pictures", "satellite pictures")
        + " Put the kind of landform in brackets after each.",
    ),
}

BY_LAYER, FILE = "by_layer", "file:"


def named_prompt(name: str | Prompt) -> Prompt:
    """The prompt of a name, or of a file; a Prompt is its own.

    Errors: KeyError for another name; FileNotFoundError, and ValueError for a file that holds no prompt.
    """
    if isinstance(name, Prompt):
        return name
    if name.startswith(FILE):
        return _read(name.removeprefix(FILE))
    if name not in PROMPTS:
        raise unknown("prompt", name, [*PROMPTS, "file:PATH"])
    return PROMPTS[name]


def layer_prompts(told: str, layers: Sequence[str], network: Sequence[str]) -> dict[str, Prompt]:
    """The prompt of each of `layers`: of one name for all, "by_layer", or "layer1=textures;layer4=objects".

    `network` are the layers of the whole network in order: "by_layer" takes textures for its first half.
    Errors: those of `named_prompt`; ValueError for a layer without a prompt, and for one that is not there.
    """
    if "=" not in told.partition(FILE)[0]:
        return {layer: _of_place(told, layer, network) for layer in layers}
    wanted = dict(part.strip().split("=", 1) for part in told.split(";") if "=" in part)
    strange = [name for name in wanted if name not in (*layers, *network)]
    if strange:
        raise unknown("layer with a prompt", strange[0], list(dict.fromkeys([*layers, *network])))
    absent = [layer for layer in layers if layer not in wanted]
    if absent:
        raise ValueError(
            f"prompts by layer name every layer, got none for '{absent[0]}' in '{told}'; add "
            f"{absent[0]}=objects"
        )
    return {layer: _of_place(wanted[layer], layer, network) for layer in layers}


def written(prompt: Prompt) -> str:
    """A prompt as the JSON that file:PATH reads."""
    return json.dumps(asdict(prompt), indent=1)


def _of_place(name: str, layer: str, network: Sequence[str]) -> Prompt:
    if name == BY_LAYER:
        first = network[: (len(network) + 1) // 2]
        early = any(layer == name or layer.startswith(f"{name}.") for name in first)
        return PROMPTS["textures" if early else "objects"]
    return named_prompt(name)


def _read(path: str) -> Prompt:
    place = from_root(path)
    if not place.is_file():
        raise FileNotFoundError(f"no prompt at {place}; file:PATH is JSON as prompts.written gives it")
    rule = f"a prompt is JSON with {', '.join(field.name for field in fields(Prompt))}"
    try:
        given = json.loads(place.read_text(encoding="utf-8"))
        if not isinstance(given, Mapping):
            raise TypeError("it is no object")
        told = given | {
            "shortened": tuple((str(a), str(b)) for a, b in given["shortened"]),
            "summarized": tuple((tuple(map(str, some)), str(b)) for some, b in given["summarized"]),
        }
        prompt = Prompt(**told)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{rule}, got {place} ({error}); write one with prompts.written") from error
    texts = ("shorten", "summarize", "question", "together")
    wrong = [name for name in texts if not isinstance(told.get(name, ""), str)]
    if wrong or isinstance(prompt.words, bool) or not isinstance(prompt.words, int) or prompt.words < 1:
        raise ValueError(f"{rule}, got another kind of {wrong[0] if wrong else 'words'} in {place}")
    return prompt
