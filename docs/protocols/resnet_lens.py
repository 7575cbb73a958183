"""Do the words of a ResNet CLIP's last neurons say what these do? Tables of docs/results/second_order.md.

    python docs/protocols/resnet_lens.py [--clip microworld:rn] [--probe microworld:5000]
    [--held-out microworld:1000] [--out FOLDER]

Directions, codes and CLIP-Dissect's labels come from the probe; every number is of the scenes held out, which
have other seeds. Six tables, by default in docs/results/data/resnet_lens/:

words.csv      correlation over scenes of what a word predicts with a neuron's mean activation and its effect
               along its own direction, mean over neurons and over the tenth of largest effect; a word's value
               in a scene is its CLIP cosine, or whether it is true
pairs.csv      the same for the pairs of a neuron, each with its head's activation s and words of its own,
               beside the one word of the neuron and beside the words of the neuron's other heads
precision.csv  labelling's measure of first words: `label_quality` with the truth held out
heads.csv      TextSpan's texts of the pool's heads, the share of the variance of their outputs they have,
               and that of as many texts drawn at random, mean of 100 draws, by the same algorithm
segments.csv   masks of 300 scenes whose objects have one shape, from neurons and from pairs of neuron and
               head that speak for it (the class is the CLIP's choice), beside masks that know nothing
summary.csv    metric, value: rank 1, what the heads share, and what no neuron writes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from neuronym.activations import embed_concepts, unit_activations
from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe
from neuronym.datasets.tasks import load_masks, load_task
from neuronym.evaluation.label_quality import label_quality
from neuronym.evaluation.presence import presence_oracle, true_presence
from neuronym.microworld.world import SHAPES
from neuronym.models.clips import load_clip
from neuronym.runs.folders import ROOT
from neuronym.second_order import effects, experiments, segmentation
from neuronym.second_order.heads import head_outputs, text_span
from neuronym.second_order.lens import clip_target, POOLED_NUMBER
from neuronym.second_order.pool import pool_effects
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.text_code import code_coefficients, text_pool
from neuronym.similarity.scores import score

DATA = ROOT / "docs" / "results" / "data" / "resnet_lens"
WORDS, TOP = 16, 100
TEXTS, DRAWS = 5, 100
MASKS, NEURONS = "microworld:300", (10, 50, 200)
DISSECTED = ("soft_wpmi", "combined_correlation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="microworld:rn")
    parser.add_argument("--probe", default="microworld:5000")
    parser.add_argument("--held-out", default="microworld:1000", help="a task of the microworld")
    parser.add_argument("--concepts", default="microworld")
    parser.add_argument("--out", type=Path, default=DATA)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    clip, vocabulary = load_clip(arguments.clip), load_concepts(arguments.concepts)
    tables = study(clip, load_probe(arguments.probe), load_task(arguments.held_out).probe, vocabulary)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(arguments.out / f"{name}.csv", index=False)
        print(f"{name}\n{table.round(3).to_string(index=False)}\n")


def study(clip, probe, held_probe, vocabulary) -> dict[str, pd.DataFrame]:
    """All tables of one CLIP."""
    target, layers = clip_target(clip)
    (layer,) = layers.values()
    (found, rest), (held, _) = pool_effects(clip, probe), pool_effects(clip, held_probe)
    Q = unit_activations(target, probe, [layer])[layer.name]
    held_Q = unit_activations(target, held_probe, [layer])[layer.name]
    T = embed_concepts(clip, vocabulary)
    truth = true_presence(held_probe, vocabulary)
    present = {"CLIP": held.rep @ T.T, "truth": truth.float()}

    about = effects.mean(found)
    lengths = effects.norms(found, about)
    directions = effects.principal_directions(found, about, lengths, min(TOP, len(lengths)))
    tested = experiments.Layer(held, about, directions)
    one, several = codes(directions.r, text_pool(T), len(vocabulary))
    weights = {"lens, 1 word": one, f"lens, {WORDS} words": several}
    for similarity in DISSECTED:
        label = score(found.rep / effects.SCALE @ T.T, Q, similarity).argmax(1)
        weights[similarity] = torch.nn.functional.one_hot(label, len(vocabulary)).float()
    dealt = torch.randperm(len(Q[0]), generator=torch.Generator().manual_seed(0))
    weights["lens, 1 word, other neurons'"] = one[dealt]
    values = {"activation": held_Q, "effect": tested.projection()}
    by_unit = experiments.simulations(weights, present, values)
    largest = directions.threshold.topk(max(1, len(directions.threshold) // 10)).indices.tolist()
    return {
        "words": means(by_unit, largest),
        "pairs": pairs(found, held, T, present, one),
        "precision": precision(weights, presence_oracle(held_Q, truth)),
        "heads": heads(clip, probe, T, vocabulary),
        "segments": segments(clip, directions.r, target.example.shape[-1]),
        "summary": summary(found, rest, directions, T, len(vocabulary)),
    }


def codes(R: Tensor, atoms: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """Weights [K, M] of a code of one word, and of WORDS."""
    order = matching_pursuit(R, atoms, min(WORDS, len(atoms)))
    found = []
    for part in (order[:, :1], order):
        gamma = code_coefficients(R, atoms, part)
        found.append(R.new_zeros(len(R), M).scatter(1, part.clamp_min(0), gamma))
    return found[0], found[1]


def means(by_unit: pd.DataFrame, largest: list[int]) -> pd.DataFrame:
    """Means over neurons, their standard errors, and means over those of the largest effects."""
    grouping = ["by", "predicted", "method"]
    table = by_unit.groupby(grouping, sort=False)["correlation"].agg(["mean", "sem"])
    strong = by_unit[by_unit["unit"].isin(largest)].groupby(grouping, sort=False)["correlation"].mean()
    return table.assign(strongest=strong).reset_index()


def pairs(found, held, T: Tensor, present: dict[str, Tensor], of_neuron: Tensor) -> pd.DataFrame:
    """What the words of a pair, of its neuron, and of another head of it predict of s, by its rank in share.

    Heads of a neuron are ranked by ||V|| sd(s) on the probe; s of pairs is never negative, so the sign of a
    word's coefficient is that of the prediction.
    """
    V, M = found.factors.V(), len(T)  # [K, H, d]
    spread = V.norm(dim=2) * found.s.std(0).T  # [K, H]
    atoms, ranked = text_pool(T), spread.argsort(dim=1, descending=True)
    own = codes(normalize(V.flatten(0, 1), dim=1), atoms, M)[0].unflatten(0, V.shape[:2])  # [K, H, M]
    rows, units = [], torch.arange(len(V))
    for place in range(V.shape[1]):
        head, other = ranked[:, place], ranked[:, (place + 1) % V.shape[1]]
        weights = {
            "its own word": own[units, head],
            "the neuron's word": of_neuron,
            "another head's word": own[units, other],
        }
        table = experiments.simulations(weights, present, {"s": held.s[:, head, units]})
        share = float((spread.gather(1, head[:, None]) / spread.sum(1, keepdim=True).clamp_min(1e-30)).mean())
        table = table.groupby(["by", "method"], sort=False)["correlation"].mean().unstack("method")
        rows += [{"by": by, "rank": place + 1, "share": share} | dict(r) for by, r in table.iterrows()]
    return pd.DataFrame(rows).sort_values(["by", "rank"], ignore_index=True)


def precision(weights: dict[str, Tensor], held: Tensor) -> pd.DataFrame:
    """`label_quality` of first words (of largest coefficient, whatever its sign) and of the oracle's."""
    labels = {name: weight.abs().argmax(1) for name, weight in weights.items()} | {"oracle": held.argmax(1)}
    return label_quality(held, labels)


def heads(clip, probe, T: Tensor, vocabulary: list[str]) -> pd.DataFrame:
    """A row for each head of the pool."""
    (outputs,) = head_outputs(clip, probe).values()
    g, rows = torch.Generator().manual_seed(0), []
    for head in range(outputs.shape[1]):
        chosen, shares = text_span(outputs[:, head], T, TEXTS)
        drawn = [torch.randperm(len(T), generator=g)[:TEXTS] for _ in range(DRAWS)]
        chance = sum(float(text_span(outputs[:, head], T[some], TEXTS)[1].sum()) for some in drawn) / DRAWS
        texts = ", ".join(vocabulary[j] for j in chosen.tolist())
        rows.append((head, texts, float(shares.sum()), chance))
    return pd.DataFrame(rows, columns=["head", "texts", "share", "of random texts"])


def segments(clip, R: Tensor, size: int) -> pd.DataFrame:
    """A row for each way to a mask: METRICS, and the lower and upper ends of the intervals of mean IoU."""
    data = load_masks(MASKS)
    names = embed_concepts(clip, list(SHAPES))
    guess = (effects.representations(clip, data.probe) @ names.T).argmax(1)
    heats = {"last attention": segmentation.attention_heat(clip, data.probe)}
    for n in NEURONS:
        weights = {f"{n} neurons": segmentation.class_weights({POOLED_NUMBER: R}, names, n)}
        heats |= segmentation.neuron_heat(clip, data.probe, weights, guess)
        heats |= segmentation.pair_heat(clip, data.probe, names, guess, n)
    every = heats.pop("all pairs")
    found, _ = segmentation.segment(heats | {"all pairs": every}, data.mask, size)
    rows = []
    for name, result in found.items():
        ranges = segmentation.bootstrap(result["table"], generator=torch.Generator().manual_seed(0))
        low, high = ranges["mean_iou"]
        row = {metric: result[metric] for metric in segmentation.METRICS}
        rows.append({"method": name} | row | {"iou low": low, "iou high": high})
    return pd.DataFrame(rows)


def summary(found, rest: Tensor, directions, T: Tensor, M: int) -> pd.DataFrame:
    """metric, value: of the lens itself."""
    V = found.factors.V()
    spread = V.norm(dim=2) * found.s.std(0).T
    atoms = text_pool(T)
    own = codes(normalize(V.flatten(0, 1), dim=1), atoms, M)[0].abs().argmax(1).unflatten(0, V.shape[:2])
    first = codes(directions.r, atoms, M)[0].abs().argmax(1)
    total = effects.total(found, effects.Mean(torch.zeros_like(found.s[0]), torch.zeros_like(rest[0])))
    values = {
        "neurons": len(V),
        "heads": V.shape[1],
        "explained by rank 1, mean": float(directions.explained_variance.mean()),
        "explained by rank 1, least": float(directions.explained_variance.min()),
        "largest head's share, mean": float((spread.amax(1) / spread.sum(1).clamp_min(1e-30)).mean()),
        "different first words of a neuron's heads, mean": sum(len(set(row)) for row in own.tolist())
        / len(V),
        "pairs with the neuron's first word": float((own == first[:, None]).float().mean()),
        "length of what no neuron writes, of 100": float(rest.norm(dim=1).mean()),
        "largest gap of the sum, of 100": float((total + rest - found.rep).abs().max()),
    }
    return pd.DataFrame(list(values.items()), columns=["metric", "value"])


if __name__ == "__main__":
    main()
