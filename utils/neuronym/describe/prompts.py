"""What language models are told when they shorten captions and say what captions share.

Prompt    an instruction and worked examples for each of the two tasks
PROMPTS   name of a domain -> Prompt

    objects     the two examples of Describe-and-Dissect
    shared      more examples, for small models, which repeat what they are shown
    satellite   a label, then a landform in brackets
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """What a language model is told: an instruction and worked examples for each of its two tasks."""

    shorten: str
    shortened: tuple[tuple[str, str], ...]  # caption, label
    summarize: str
    summarized: tuple[tuple[tuple[str, ...], str], ...]  # captions, concept
    words: int = 5  # of a concept, what stands in brackets at its end apart
    question: str = "Concept:"  # below the captions


_SHORTEN = ("You turn the caption of a picture into one short label. Keep what the picture shows, leave out what is "
            "repeated or says nothing. Answer with the label alone: no period, no quotes, no numbering.")
_SUMMARIZE = ("You read captions of pictures and name the one concept that most of them share, in 1 to 5 words. "
              "Prefer what is specific and common to many captions over what is said once. Answer with the concept "
              "alone, in one line: no list, no explanation.")
_FABRICS = (("a quilt sewn of red, blue and yellow squares", "a rug woven in many colors", "bright scarves on a rack",
             "a pile of patterned cloth"), "multicolored textiles")
_REDS = (("a red barn behind a fence", "a woman in a red coat", "a bowl of ripe strawberries",
          "red lanterns over a street"), "red-themed scenes")
_REPEATED = ("a kitten on a blanket with a flower pattern with a flower pattern with a flower pattern",
             "kitten on floral blanket")
_SHARED = (
    (("a brown dog on a sofa", "a dog with a ball in the grass", "two dogs beside a car", "a small dog in rain"),
     "dog"),
    (("a wooden table by a window", "an old wooden boat on a lake", "a wooden fence in the rain", "three wooden toys"),
     "wooden"),
    (("a man with a kite at the beach", "two chairs at the beach", "a beach with white stones",
      "a child and a boat at the beach"), "at the beach"))
PROMPTS: dict[str, Prompt] = {
    "objects": Prompt(_SHORTEN, (_REPEATED,), _SUMMARIZE, (_FABRICS, _REDS)),
    "shared": Prompt(_SHORTEN, (_REPEATED,), "Name what the captions have in common. Use 1 to 5 words that most of the "
                     "captions contain.", _SHARED, question="Which words are in most of these captions?"),
    "satellite": Prompt(
        _SHORTEN.replace("a picture", "a satellite picture") + " Put the kind of landform in brackets after the label.",
        (("an aerial view of a field of green crops with rows of crops with rows", "rows of green crops (farmland)"),),
        _SUMMARIZE.replace("pictures", "satellite pictures") + " Put the kind of landform in brackets after it.",
        ((("houses along a curved road", "a grid of streets with roofs", "a suburb with gardens"),
          "dense housing (residential area)"),
         (("a winding line of brown water", "water between two green banks", "a bend with sand beside it"),
          "winding waterway (river)"))),
}
