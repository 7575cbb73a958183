"""Which scoring function of Describe-and-Dissect finds a planted name? Final-layer units, the true class
among random others.

python benchmarks/choice.py [--target microworld:resnet] [--clip microworld] [--probe microworld:600] [--draw]
                            [--csv FILE]
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pandas as pd
from similarity import write_table

from neuronym.activations import activations_and_embeddings
from neuronym.common.memory import top_images
from neuronym.datasets.probe import load_probe
from neuronym.describe.scoring import SCORES
from neuronym.describe.selection import rank_candidates
from neuronym.hooks import resolve_layers
from neuronym.models.clips import load_clip
from neuronym.models.generators import load_generator
from neuronym.models.targets import load_target

OTHERS = 4  # names beside the true one
EXAMPLES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="microworld:resnet")
    parser.add_argument("--clip", default="microworld")
    parser.add_argument("--probe", default="microworld:600")
    parser.add_argument("--draw", action="store_true", help="pictures of the microworld's renderer as well")
    parser.add_argument("--csv", type=Path, help="file for the table")
    given = parser.parse_args()
    target, clip, probe = load_target(given.target), load_clip(given.clip), load_probe(given.probe)
    [layer] = resolve_layers(target.model, target.layers[-1], target.example)
    acts, I = activations_and_embeddings(target, [layer], clip, probe)
    Q, names, dice = acts[layer.name], target.classes, random.Random(0)
    candidates = {unit: planted(name, names, dice) for unit, name in enumerate(names)}
    E = {unit: I[rows] for unit, rows in enumerate(top_images(Q, EXAMPLES).T)}
    found = {}
    for text, exclude in (("retrieved, examples left out", EXAMPLES), ("retrieved from all images", 0)):
        scores, _ = rank_candidates(candidates, E, how=list(SCORES), Q=Q, I=I, clip=clip, exclude=exclude)
        found[text] = right(scores, candidates, names)
    if given.draw:
        scores, _ = rank_candidates(
            candidates,
            E,
            load_generator("microworld"),
            how=list(SCORES),
            target=target,
            layer=layer,
            clip=clip,
        )
        found["drawn"] = right(scores, candidates, names)
    print(
        f"{target.name}, '{layer.name}', {len(names)} units, {len(probe)} images of {probe.name}, "
        f"{clip.name}; "
        f"share of units whose true name wins against {OTHERS} others (chance {1 / (OTHERS + 1):.2f})"
    )
    table = pd.DataFrame(found).T.round(3)
    print(table.to_string())
    write_table(table.rename_axis("pictures").reset_index(), given.csv)


def planted(name: str, names: list[str], dice: random.Random) -> list[str]:
    texts = [name, *dice.sample([other for other in dict.fromkeys(names) if other != name], OTHERS)]
    dice.shuffle(texts)
    return texts


def right(scores: dict, candidates: dict[int, list[str]], names: list[str]) -> dict[str, float]:
    return {
        how: sum(candidates[unit][int(some[unit].argmax())] == names[unit] for unit in candidates)
        / len(names)
        for how, some in scores.items()
    }


if __name__ == "__main__":
    main()
