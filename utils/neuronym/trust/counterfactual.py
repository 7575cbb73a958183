"""Does a unit change when what it is named after is put into a picture or taken away, and more than when
anything else changes?

Counterfactuals   scenes before and after a change of one attribute
pairs             scenes and, of each, one with another shape, colour, ..., light
comings           which concepts come and go within pairs
changes           how activations change, and these
causal_scores     how far a unit's changes go along with those of every concept
attribute_shares  how much of a unit's change is due to each attribute
unit_changes      both of every unit of a layer, with the score of its label

Correlation over images that differ in many ways cannot tell what a unit reacts to from what comes along with
it. A renderer changes one thing at a time; photos that differ in one thing only are not to be had, so that
for these there is no such score.
n pairs, K units, M concepts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int
from neuronym.common.memory import MEMORY, nonzero
from neuronym.datasets.probe import load_probe, Probe
from neuronym.microworld.world import (
    ATOMS,
    COUNTERFACTUAL_SEED,
    presence,
    Scene,
    scene,
    SEED_STEP,
    SIZE,
    Thing,
)
from neuronym.similarity.sparse_columns import over_blocks, SparseColumns

OF_THINGS = ("shape", "colour", "texture", "size", "position")
ATTRIBUTES = (*OF_THINGS, "place", "light", "count")
TOWARDS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}
AWAY = 12  # pixels from the middle
LARGER = 1.75  # radius of a large thing over that of a small one


@dataclass(frozen=True)
class Counterfactuals:
    """Scenes before and after a change, and the attribute that was changed, of n pairs."""

    before: list[Scene]
    after: list[Scene]
    attribute: list[str]


def pairs(count: int = 400, seed: int = 0) -> Counterfactuals:
    """`count` scenes of one thing, each changed in every one of ATTRIBUTES, to another word drawn at random:
    count x 8 pairs. All else stays: position, angle, and what the scene's seed draws; but more things than
    one, all alike, stand elsewhere.
    """
    check_positive_int("count", count)
    found = Counterfactuals([], [], [])
    for i in range(count):
        first = scene(COUNTERFACTUAL_SEED + seed * SEED_STEP + i, given=[{}])
        dice = random.Random(f"counterfactual {first.seed}")
        for attribute in ATTRIBUTES:
            found.before.append(first)
            found.after.append(with_change(first, attribute, dice))
            found.attribute.append(attribute)
    return found


def with_change(first: Scene, attribute: str, dice: random.Random) -> Scene:
    """The scene of one thing with another word for one attribute."""
    [thing] = first.things
    now = "one" if attribute == "count" else getattr(thing if attribute in OF_THINGS else first, attribute)
    word = dice.choice([other for other in ATOMS[attribute] if other != now])
    if attribute == "count":
        look = {kind: getattr(thing, kind) for kind in OF_THINGS if kind != "position"}
        return scene(first.seed, [look], first.place, first.light, word)
    if attribute not in OF_THINGS:
        return replace(first, **{attribute: word})
    return replace(first, things=(_other(thing, attribute, word),))


def _other(thing: Thing, attribute: str, word: str) -> Thing:
    if attribute == "position":
        dx, dy = TOWARDS[word]
        return replace(thing, x=SIZE / 2 + AWAY * dx, y=SIZE / 2 + AWAY * dy)
    if attribute == "size":
        return replace(thing, size=word, radius=thing.radius * (LARGER if word == "large" else 1 / LARGER))
    return replace(thing, **{attribute: word})


def drawn_scenes(scenes: Sequence[Scene]) -> tuple[Probe, Tensor]:
    """A probe of the distinct scenes, and the row of each: [n]."""
    from neuronym.microworld.render import render

    rows: dict[Scene, int] = {}
    where = [rows.setdefault(one, len(rows)) for one in scenes]
    return load_probe([render(one) for one in rows]), torch.tensor(where)


def changes(
    pairs: Counterfactuals, Q: Tensor, rows: Tensor, concepts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Q[after] - Q[before] [n, K], and `comings`; `rows` [2n] are those of the scenes before, then those
    after.
    """
    return _moved(Q, rows), comings(pairs, concepts).to(Q.device)


def comings(pairs: Counterfactuals, concepts: Sequence[str]) -> Tensor:
    """[n, M]: 1 where a concept comes, -1 where it goes, else 0."""
    return presence(pairs.after, concepts).double() - presence(pairs.before, concepts).double()


def _moved(Q: Tensor, rows: Tensor) -> Tensor:
    before, after = rows.to(Q.device).chunk(2)
    return (Q[after] - Q[before]).double()


def causal_scores(dQ: Tensor, dC: Tensor) -> Tensor:
    """S_kc = sum_p dQ_pk dC_pc / (|dQ_k| |dC_c|), from -1 to 1: dQ [n, K], dC [n, M] -> [K, M]; 0 for a unit
    or a concept that never changes.

    It is 1 where the unit changes with the concept alone, by the same amount each time; changes in pairs that
    leave the concept as it is make it smaller, those in the wrong direction negative.
    """
    dQ, dC = (x / nonzero(x.norm(dim=0)) for x in (dQ.double(), dC.double()))
    return dQ.T @ dC


def attribute_shares(dQ: Tensor, attribute: Sequence[str]) -> pd.DataFrame:
    """Share of each unit's squared changes that come from each attribute: dQ [n, K] -> K rows; 0 for a unit
    that never changes.
    """
    kinds, squares = np.array(attribute), dQ.double().square().cpu()
    total = nonzero(squares.sum(0))
    names = dict.fromkeys(attribute)
    return pd.DataFrame(
        {name: (squares[torch.from_numpy(kinds == name)].sum(0) / total).numpy() for name in names}
    )


def unit_changes(
    pairs: Counterfactuals,
    Q: Tensor | SparseColumns,
    rows: Tensor,
    comes: Tensor,
    labels: Sequence[int],
    memory: int = MEMORY,
) -> pd.DataFrame:
    """A row for each unit of Q: causal, the score of its label [K]; best, that of the best concept; and its
    `attribute_shares`. `comes` are the `comings` of all concepts; SparseColumns in blocks of units.
    """
    chosen, comes = torch.as_tensor(labels, dtype=torch.long), comes.to(Q.device)

    def of_units(some: slice, q: Tensor) -> pd.DataFrame:
        dQ = _moved(q, rows)
        scores = causal_scores(dQ, comes)
        own = scores.gather(1, chosen[some, None].to(scores.device))[:, 0]
        table = pd.DataFrame({"causal": own.cpu().numpy(), "best": scores.amax(1).cpu().numpy()})
        return table.join(attribute_shares(dQ, pairs.attribute))

    return over_blocks(of_units, Q, memory, beside=len(rows) + 2 * comes.shape[1])
