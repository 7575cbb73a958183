"""How long does Describe-and-Dissect take a unit, against the pattern of the released code, with the same
models?

    python benchmarks/describe.py [--units 32] [--literal-units 4] [--target microworld:resnet] [--layer
    layer4]
                                  [--probe microworld:2000] [--images 10] [--pictures 10] [--repeats 2]
                                  [--threads 2] [--device cpu] [--csv FILE]

"ours" is `caption_examples`, `propose` and `rank_candidates` for all units together, with an empty cache;
"cached" is the same again, with what the first time has left. "literal" takes unit after unit and shares
nothing: target and CLIP loaded anew; images, then these and their crops, through the target one by one;
captions one by one; for every candidate its pictures drawn one by one and shown to the target, and those in
the overall top to the CLIP, one by one. It is timed on some of the units. Boxes are found by the released
code's own steps, bytes that wrap and Pillow's enlargement included (`crops.released`), and ours with
`heatmap=wrap`, which gives the same; phrases, captioner, renderer and CLIP are the package's, called for one
thing at a time, so that the ratios are of the pattern alone.

Processor seconds a unit, of all threads (with `--device cuda` those of the clock): "crops" are the examples
and their CLIP embeddings, "captions" those of the captioner, "summaries" the candidates, "choice" their
pictures and scores. Not in it, since both need it once for all units: the pass over the probe, captions of
ordinary images that the extractive summariser compares with, the captioner's loading. Then what was asked
for, and how far both agree; the script fails where they differ beyond rounding. Compare ratios, not seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from crops import released
from similarity import write_table

from neuronym import hooks
from neuronym.activations import unit_activations
from neuronym.common.checks import check_positive_int
from neuronym.common.memory import top_images
from neuronym.common.subsets import evenly_spaced
from neuronym.datasets.probe import load_probe
from neuronym.describe.candidates import propose, tidy
from neuronym.describe.counting import extract
from neuronym.describe.examples import Example, picture
from neuronym.describe.pipeline import caption_examples, ordinary_captions
from neuronym.describe.selection import rank_candidates
from neuronym.microworld.world import CANDIDATE_SEED, read
from neuronym.models.captioners import load_captioner
from neuronym.models.clips import load_clip
from neuronym.models.generators import load_generator
from neuronym.models.targets import load_target
from neuronym.models.transcripts import open_transcript
from neuronym.passes import exact_float32

STEPS = ("load", "crops", "captions", "summaries", "choice")
CROPS, KEEP, TRIES, BETA, TOP = 4, 10, 5, 5, 10
CLOSE = 1e-4  # relative; beyond rounding of activations and scores in float32


@contextmanager
def timed(took, step):
    clock = time.perf_counter if torch.cuda.is_initialized() else time.process_time
    start = clock()
    yield
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    took[step] += clock() - start


def ours(args, layer, units, probe, Q, captioner, reference, folder):
    """Seconds by step for all units, what they saw, candidates, scores, and how many captions were asked
    for.
    """
    took, book = defaultdict(float), open_transcript(folder / "answers.jsonl")

    def caption(shown):
        with timed(took, "captions"):
            return captioner.caption(shown)

    with timed(took, "load"):
        target, clip = (
            load_target(args.target, args.device, suggest=False),
            load_clip("microworld", args.device),
        )
        generator = load_generator("microworld")
    with timed(took, "crops"):
        seen = caption_examples(
            target,
            layer,
            units,
            probe,
            Q,
            replace(captioner, caption=caption),
            book,
            clip,
            images=args.images,
            crops=CROPS,
            keep=KEEP,
            heatmap="wrap",
            device=args.device,
        )
    took["crops"] -= took["captions"]
    with timed(took, "summaries"):
        candidates = propose(seen.captions, None, reference, tries=TRIES)
    with timed(took, "choice"):
        scores, _ = rank_candidates(
            candidates,
            seen.E,
            generator,
            n=args.pictures,
            beta=BETA,
            top=TOP,
            target=target,
            layer=layer,
            clip=clip,
            device=args.device,
        )
    return took, seen, candidates, scores["topk_compare"], book.asked


# The literal form: one unit, and one picture at a time.


@torch.inference_mode()
def literal(args, layer, unit, probe, Q, captioner, reference, took):
    """Examples, captions, candidates and scores of a unit; adds seconds by step to `took`."""
    with timed(took, "load"):
        target, clip = (
            load_target(args.target, args.device, suggest=False),
            load_clip("microworld", args.device),
        )
        generator = load_generator("microworld")

    def activation(image):
        with hooks.record(target.model, [layer.name], lambda name, output: output) as acts:
            target.model(target.preprocess(image)[None].to(args.device))
        output = acts[layer.name]
        return float(hooks.pool(output, layer.layout, "avg", 1)[0, unit]), output

    def embedding(image):
        return clip.encode_image(clip.preprocess(image)[None].to(args.device))[0].cpu()

    with timed(took, "crops"):
        top = top_images(Q[:, [unit]], args.images)[:, 0].tolist()
        found = [(Example(i, None, float(Q[i, unit])), picture(probe, Example(i, None, 0.0))) for i in top]
        if layer.layout != "fc":
            shown = []
            for example, image in found:
                heat = hooks.as_maps(activation(image)[1], layer.layout, None)[0, unit].float().cpu()
                boxes = [None, *released(heat.numpy())]
                shown += [
                    (
                        example.image,
                        order,
                        box,
                        image if box is None else image.crop(box).resize(image.size, 2),
                    )
                    for order, box in enumerate(boxes)
                ]
            values = [activation(image)[0] for *_, image in shown]
            order = sorted(range(len(shown)), key=lambda j: (-values[j], *shown[j][:2]))
            found = [(Example(shown[j][0], shown[j][2], values[j]), shown[j][3]) for j in order]
        found = found[:KEEP]
        E = [embedding(image) for _, image in found]
    with timed(took, "captions"):
        captions = [captioner.caption([image])[0] for _, image in found]
    with timed(took, "summaries"):
        candidates = tidy(extract(captions, reference, TRIES))
    with timed(took, "choice"):
        drawn = [
            [generator.draw([text], [CANDIDATE_SEED + i])[0] for i in range(args.pictures)]
            if any(read(text).values())
            else []
            for text in candidates
        ]
        acts = [[activation(image)[0] for image in images] for images in drawn]
        scores = literal_scores(acts, lambda c, i: sum(float(embedding(drawn[c][i]) @ e) for e in E) / len(E))
    return [example for example, _ in found], captions, candidates, scores


def literal_scores(acts, cosine):
    """topk_compare of each candidate, from the activations of its pictures and their mean cosine to the
    examples.
    """
    every = [a for mine in acts for a in mine]
    squares, products = [], []
    for c, mine in enumerate(acts):
        stronger = [sum(b > a for b in every) for a in mine]
        ranks = sorted(s + (sum(b == a for b in every) - 1) / 2 for s, a in zip(stronger, mine))[:BETA]
        squares.append(sum(r * r for r in ranks) / len(ranks) if ranks else len(every) ** 2)
        near = [cosine(c, i) for i, s in enumerate(stronger) if s < TOP]
        products.append(sum(near) / len(near) if near else None)
    scores = []
    for square, product in zip(squares, products):
        position = sum(other < square for other in squares)
        weight = len(acts) - position
        scores.append(
            -2 - position if product is None else product / weight if product < 0 else product * weight
        )
    return scores


def differences(found, seen, candidates, scores):
    """What the literal form gives otherwise than ours, in words, and whether it is more than rounding."""
    others = dict.fromkeys(("examples", "captions", "candidates"), 0)
    gaps, wrong = {"activations": 0.0, "scores": 0.0}, False
    for unit, (examples, captions, texts, values) in found.items():
        places = [[(e.image, e.box) for e in some] for some in (examples, seen.examples[unit])]
        others["examples"] += sum(a != b for a, b in zip(*places, strict=True))
        others["captions"] += sum(a != b for a, b in zip(captions, seen.captions[unit], strict=True))
        others["candidates"] += texts != candidates[unit]
        gaps["activations"] = max(
            gaps["activations"],
            *(gap(a.activation, b.activation, 1e-6) for a, b in zip(examples, seen.examples[unit])),
        )
        if texts == candidates[unit]:
            gaps["scores"] = max(gaps["scores"], *map(gap, values, scores[unit].tolist()))
        elif captions == seen.captions[unit]:  # by rounding two examples may change places, and then captions
            wrong = True
    said = [f"{count} {what} differ" for what, count in others.items()]
    said += [f"{what} by at most {most:.0e}" for what, most in gaps.items()]
    return ", ".join(said), wrong or max(gaps.values()) > CLOSE or others["candidates"] == len(found)


def gap(a, b, least=1.0):
    return abs(a - b) / max(abs(b), least)


def report(first, second, third, file):
    """The table, of {step: seconds a unit} of ours, literal and cached."""
    print(f"{'seconds a unit':16}{'ours':>10}{'literal':>10}{'ratio':>8}{'cached':>10}")
    rows = {step: (first[step], second[step], third[step]) for step in STEPS}
    rows["all"] = tuple(sum(column) for column in zip(*rows.values()))
    for step, (a, b, c) in rows.items():
        print(f"{step:16}{a:10.4f}{b:10.4f}{b / a:8.1f}{c:10.4f}")
    table = []
    for step, (a, b, c) in rows.items():
        row = {"seconds a unit": step, "ours": f"{a:.4f}", "literal": f"{b:.4f}", "ratio": f"{b / a:.1f}"}
        table.append(row | {"from the cache": f"{c:.4f}"})
    write_table(table, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {
        "units": 32,
        "literal-units": 4,
        "images": 10,
        "pictures": 10,
        "repeats": 2,
        "threads": torch.get_num_threads(),
    }
    names = {"target": "microworld:resnet", "layer": "layer4", "probe": "microworld:2000", "device": "cpu"}
    for name, default in (sizes | names).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    for name in sizes:
        check_positive_int(f"--{name}", getattr(args, name.replace("-", "_")))
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, exact_float32():
        measure(args, Path(folder))


def measure(args, folder):
    os.environ["NEURONYM_CACHE"] = str(folder / "probe")
    target, probe = load_target(args.target, args.device, suggest=False), load_probe(args.probe)
    [layer] = hooks.resolve_layers(target.model, args.layer, target.example)
    units = evenly_spaced(min(args.units or layer.units, layer.units), layer.units)
    few = units[:: max(1, len(units) // args.literal_units)][: args.literal_units]
    say(f"{layer.name}: activations of {probe.N} images, captions of ordinary ones")
    Q = unit_activations(target, probe, [layer], device=args.device)[layer.name]
    captioner = load_captioner("microworld", args.device)
    reference = ordinary_captions(probe, captioner, open_transcript(folder / "ordinary.jsonl"))
    inputs = probe, Q, captioner, reference
    say("the literal form once, not counted, for what only a first call does")
    literal(args, layer, few[0], *inputs, defaultdict(float))

    times = defaultdict(list)
    for repeat in range(args.repeats):
        kept = folder / f"{repeat}"
        kept.mkdir()
        os.environ["NEURONYM_CACHE"] = str(kept)
        say(f"repeat {repeat + 1} of {args.repeats}: our form, {len(units)} units, twice")
        took, seen, candidates, scores, asked = ours(args, layer, units, *inputs, kept)
        times["ours"].append(took)
        times["cached"].append(ours(args, layer, units, *inputs, kept)[0])
        found, took = {}, defaultdict(float)
        for unit in few:
            say(
                f"repeat {repeat + 1} of {args.repeats}: the literal form, unit {unit}, {len(found) + 1} of "
                f"{len(few)}"
            )
            found[unit] = literal(args, layer, unit, *inputs, took)
        times["literal"].append(took)

    print(
        f"{target.name}, {layer.name}, {len(units)} of {layer.units} units (literal: {len(few)}), "
        f"{probe.name}, "
        f"{args.images} images, {args.pictures} pictures a candidate; {args.device}, {args.threads} threads; "
        f"shortest of {args.repeats}"
    )
    report(
        *(
            {step: min(took[step] for took in times[form]) / count for step in STEPS}
            for form, count in (("ours", len(units)), ("literal", len(few)), ("cached", len(units)))
        ),
        args.csv,
    )
    texts = {text for some in candidates.values() for text in some}
    print(
        f"captions a unit: ours {asked / len(units):.1f}, literal "
        f"{mean(len(one[1]) for one in found.values()):.1f}; "
        f"pictures drawn a unit: ours {len(texts) * args.pictures / len(units):.1f}, "
        f"literal {mean(len(one[2]) for one in found.values()) * args.pictures:.1f}"
    )
    said, wrong = differences(found, seen, candidates, scores)
    print(f"literal against ours, relative: {said}")
    if wrong:
        sys.exit("the literal form gives something else, so the times compare nothing; look at what differs")


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
