"""Do the words that a CLIP's neurons write say when these fire? `docs/protocols/lens_words.md`, tables of
docs/results/second_order.md.

    python docs/protocols/lens_words.py [--clips microworld:rn,microworld:vit] [--probe microworld:5000]
    [--judge microworld:4000] [--out FOLDER]

Two tables, by default in docs/results/data/lens_words/:

words.csv  clip, layer, value (effect or activation), method; mean over neurons of the AUROC of a neuron's
           word for the neuron, of other neurons' words, and of the difference with its interval; the share
           of neurons whose word passes, with Wilson's interval; the first again for the tenth of the neurons
           of largest effect
codes.csv  clip, layer; correlation of the effect with codes of one and of sixteen words, beside other
           neurons', and the gain of sixteen over one; the AUROC of one word less that of the first of sixteen
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from neuronym.activations import embed_concepts, unit_activations
from neuronym.common.statistics import cross_correlation, interval, paired_interval, sort_columns, wilson
from neuronym.common.types import Clip
from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe, Probe
from neuronym.evaluation.presence import true_presence
from neuronym.models.clips import load_clip
from neuronym.runs.folders import ROOT
from neuronym.second_order import effects
from neuronym.second_order.lens import clip_target, lens_effects, lens_numbers, read_lens
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.text_code import code_coefficients, text_pool
from neuronym.similarity.scores import score

DATA = ROOT / "docs" / "results" / "data" / "lens_words"
WORDS, TOP, LEVEL, SEED = 16, 100, 0.05, 3
DISSECTED = ("soft_wpmi", "combined_correlation")
ONE, FIRST, BEST = "lens, 1 word", f"lens, first of {WORDS}", "best word"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", default="microworld:rn,microworld:vit")
    parser.add_argument("--probe", default="microworld:5000")
    parser.add_argument("--judge", default="microworld:4000")
    parser.add_argument("--concepts", default="microworld")
    parser.add_argument("--out", type=Path, default=DATA)
    arguments = parser.parse_args()
    probe, judge = load_probe(arguments.probe), load_probe(arguments.judge, seed=SEED)
    vocabulary, found = load_concepts(arguments.concepts), []
    for name in arguments.clips.split(","):
        found.append(study(load_clip(name), probe, judge, vocabulary))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, tables in zip(("words", "codes"), zip(*found)):
        table = pd.concat(tables)
        table.to_csv(arguments.out / f"{name}.csv", index=False, float_format="%.5g")
        print(f"{name}\n{table.round(3).to_string(index=False)}\n")


def study(clip: Clip, probe: Probe, judge: Probe, vocabulary: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables of one CLIP."""
    T, truth = embed_concepts(clip, vocabulary), true_presence(judge, vocabulary)
    atoms, words, codes = text_pool(T), [], []
    for name, found, held, Q, held_Q in layers(clip, probe, judge):
        about = effects.mean(found)
        top = min(TOP, len(found.rep))
        directions = effects.principal_directions(found, about, effects.norms(found, about), top)
        order = matching_pursuit(directions.r, atoms, WORDS)
        one = weights(directions.r, atoms, order[:, :1])
        several = weights(directions.r, atoms, order)
        methods = {ONE: signed_word(one), FIRST: signed_word(several)}
        for similarity in DISSECTED:
            label = score(found.rep / effects.SCALE @ T.T, Q, similarity).argmax(1)
            methods[similarity] = label, torch.ones(len(label))
        effect = effects.projections(held, about, directions.r)
        largest = directions.threshold.topk(max(1, len(directions.threshold) // 10)).indices
        place = {"clip": clip.name, "layer": name}
        for value, x in (("effect", effect), ("activation", held_Q)):
            table, own = by_method(auroc_matrix(x, truth), methods, largest)
            words.append(table.assign(**place, value=value))
            if value == "effect":
                codes.append(place | of_codes(effect, truth, {1: one, WORDS: several}, own))
    words = pd.concat(words)
    return words[[*(first := ["clip", "layer", "value"]), *words.columns.drop(first)]], pd.DataFrame(codes)


def layers(clip: Clip, probe: Probe, judge: Probe) -> Iterator[tuple]:
    """(name, effects on the probe, on the judge's scenes, and activations on both) of each layer."""
    target, every = clip_target(clip)
    infos = {number: every[number] for number in lens_numbers(read_lens(clip), "all")}
    found, held = (lens_effects(clip, images, list(infos))[0] for images in (probe, judge))
    Q, held_Q = (unit_activations(target, images, [*infos.values()]) for images in (probe, judge))
    for number, info in infos.items():
        yield info.name, found[number], held[number], Q[info.name], held_Q[info.name]


def weights(R: Tensor, atoms: Tensor, order: Tensor) -> Tensor:
    """Codes as weights [K, M] of all words."""
    gamma = code_coefficients(R, atoms, order)
    return R.new_zeros(len(R), len(atoms)).scatter_add(1, order.clamp_min(0), gamma)


def signed_word(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each neuron's word of largest absolute weight, and its sign, 0 where it has none: [K] both."""
    word = weight.abs().argmax(1)
    return word, weight.gather(1, word[:, None])[:, 0].sign()


def auroc_matrix(x: Tensor, truth: Tensor) -> Tensor:
    """AUROC [K, M] of every column of x [N, K] as a detector of every one of truth [N, M], .5 where all are
    true, or none is: ranks of the positives, added up (Mann-Whitney).
    """
    order, below, most = sort_columns(x)
    ranks = torch.empty_like(below, dtype=torch.float64).scatter_(0, order, (below + most + 1).double() / 2)
    true = truth.double()
    n = true.sum(0)
    lower = ranks.T @ true - n * (n + 1) / 2
    return (lower / (n * (len(true) - n))).nan_to_num(0.5)


def by_method(
    A: Tensor, methods: dict[str, tuple[Tensor, Tensor]], largest: Tensor
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """A row for each method, and each neuron's own AUROC by method; A [K, M] is that of words unsigned."""
    rows, own = [], {}
    for method, (word, sign) in methods.items():
        every = 0.5 + (A[:, word] - 0.5) * sign  # [K, K]: neuron n by the word of neuron m
        own[method] = every.diagonal()
        different = (word[:, None] != word) | (sign[:, None] != sign)
        others = (every * different).sum(1) / different.sum(1).clamp_min(1)
        as_good = ((every >= own[method][:, None]) & different).sum(1)
        passes = (1 + as_good) / (1 + different.sum(1)) <= LEVEL
        low, high = (float(limit) for limit in wilson(float(passes.double().mean()), len(passes)))
        difference = paired_interval(own[method], others)
        row = {"method": method, "auroc": float(own[method].mean()), "other words": float(others.mean())}
        row |= dict(zip(("difference", "low", "high"), difference))
        row |= {"pass": float(passes.double().mean()), "pass low": low, "pass high": high}
        rows.append(row | {"strongest": float(own[method][largest].mean())})
    best = torch.maximum(A, 1 - A).amax(1)
    rows.append({"method": BEST, "auroc": float(best.mean()), "strongest": float(best[largest].mean())})
    return pd.DataFrame(rows), own


def of_codes(effect: Tensor, truth: Tensor, codes: dict[int, Tensor], own: dict[str, Tensor]) -> dict:
    """The row of a layer in codes.csv."""
    row, of_own = {}, {}
    for n, weight in codes.items():
        r = cross_correlation(effect, truth.to(weight.dtype) @ weight.T)  # [K, K]
        of_own[n] = r.diagonal()
        row[f"{n} words"] = float(of_own[n].mean())
        row[f"{n} words, other neurons'"] = float((r.sum(1) - of_own[n]).mean() / max(1, len(r) - 1))
    gain = of_own[WORDS] - of_own[1]
    row |= dict(zip(("gain", "gain low", "gain high"), (float(gain.mean()), *interval(gain.numpy()))))
    single = paired_interval(own[ONE], own[FIRST])
    return row | dict(zip(("one less first", "one less first low", "one less first high"), single))


if __name__ == "__main__":
    main()
