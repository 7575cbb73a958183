"""How long does it take to name the layers of a ResNet-50, as the release does it and as we do (CLIP-Dissect,
table 4)?

    python benchmarks/layers.py [--N 1000] [--M 2000] [--photos 32] [--csv FILE]

conv1 and layer1 to layer4 of torchvision's ResNet-50, with openai-clip's ViT-B/32 as namer, both with random
weights. Literal is the release's order of work: every image decoded once for the network and once for the
CLIP, batches, hooks that take the mean over positions, then for each layer the matrix of images and concepts,
its softmax and a loop over units, by soft-WPMI. Passes are timed on --photos made-up JPEGs of 500 x 375 and
on a quarter of them, which tells what is done once from what is done for each, and scaled to N images; units
are named from made-up activations and embeddings of N images and M concepts, and those whose label differs
are counted. Processor seconds on one thread, which other work on the machine hardly moves. Embedding the
texts is left out: it is the same work for both, done once for all networks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from activations import make_photos
from PIL import Image
from similarity import inputs, LOOPS, write_table
from torch.nn.functional import normalize

from neuronym.activations import activations_and_embeddings
from neuronym.common.checks import openai_package
from neuronym.datasets.probe import load_probe
from neuronym.hooks import resolve_layers
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.models.weights import random_start
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score

LAYERS = ["conv1", "layer1", "layer2", "layer3", "layer4"]
BATCH = 50  # images of a literal batch
PASSES, ALL = "passes", "all"


def random_clip(folder, text_layers=12):
    """openai-clip's ViT-B/32 with random weights, as a file that `load_clip` reads."""
    openai_package()
    from clip.model import CLIP

    with random_start(0):
        model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, text_layers)
    file = folder / "clip.pt"
    torch.save(model.state_dict(), file)
    return load_clip(f"openai:ViT-B/32@{file}")


def processor_seconds(call):
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


@torch.no_grad()
def literal_passes(files, target, clip):
    """Every layer's means over positions {name: [N, K]} and image embeddings [N, d]."""
    found, rows = {name: [] for name in LAYERS}, []
    hooks = [
        target.model.get_submodule(name).register_forward_hook(
            lambda module, given, out, name=name: found[name].append(out.mean((2, 3)))
        )
        for name in LAYERS
    ]
    for start in range(0, len(files), BATCH):
        target.model(pixels(files[start : start + BATCH], target))
    for hook in hooks:
        hook.remove()
    for start in range(0, len(files), BATCH):
        rows.append(clip.encode_image(pixels(files[start : start + BATCH], clip)))
    return {name: torch.cat(parts) for name, parts in found.items()}, normalize(torch.cat(rows), dim=1)


def pixels(files, network):
    return torch.stack([network.preprocess(Image.open(file).convert("RGB")) for file in files])


@torch.no_grad()
def literal_labels(I, T, q):
    """The concept of every unit of a layer by soft-WPMI, unit by unit."""
    prepare, unit, finish = LOOPS["soft_wpmi"]
    prepared = prepare(I @ T.T)
    return finish(torch.stack([unit(prepared, q[:, k], None) for k in range(q.shape[1])])).argmax(1)


def timed_passes(photos, N):
    """Seconds of the literal passes and of ours over N photos, and the units of every layer."""
    counts, taken = (photos // 4, photos), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["NEURONYM_CACHE"] = str(folder / "cache")
        target, clip = load_target("torchvision:resnet50@random:0"), random_clip(folder, 1)
        for count in counts:
            place = folder / str(count)
            place.mkdir()
            make_photos(place, count)

            def ours():  # with the look at every file, the choice of layers, the rows on disk
                probe = load_probe(f"folder:{place}")
                layers = resolve_layers(target.model, LAYERS, target.example)
                return activations_and_embeddings(target, layers, clip, probe, workers=0)

            literal, (Q, I) = processor_seconds(lambda: literal_passes(sorted(place.iterdir()), target, clip))
            seconds, (our_Q, our_I) = processor_seconds(ours)
            taken.append((literal, seconds))
    off = max(float((Q[name] - our_Q[name]).abs().max() / Q[name].abs().max()) for name in LAYERS)
    print(f"passes differ by {max(off, float((I - our_I).abs().max())):.0e} of the largest value")
    whole = []
    for few, many in zip(*taken):
        each = (many - few) / (counts[1] - counts[0])
        print(f"{each:.3f} s a photo, {few - counts[0] * each:.1f} s once")
        whole.append(few + each * (N - counts[0]))
    return *whole, {name: q.shape[1] for name, q in Q.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"N": 1000, "M": 2000, "photos": 40}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    *passes, units = timed_passes(args.photos, args.N)
    taken = {PASSES: (*passes, "", "")}
    I, T, _ = inputs(args.N, args.M, 1, 512, "cpu")
    P = FactoredMatrix(I, T)
    for seed, (layer, K) in enumerate(units.items()):
        q = torch.randn(args.N, K, generator=torch.Generator().manual_seed(seed)).relu()
        if not seed:
            score(P, q, "soft_wpmi")  # the first call compiles
        literal, theirs = processor_seconds(lambda: literal_labels(I, T, q))
        ours, scores = processor_seconds(lambda: score(P, q, "soft_wpmi"))
        taken[layer] = literal, ours, K, int((scores.argmax(1) != theirs).sum())
    numbers = [[row[i] for row in taken.values() if row[i] != ""] for i in range(4)]
    taken[ALL] = tuple(map(sum, numbers))
    rows = []
    for step, (literal, ours, K, other) in taken.items():
        rows.append({"step": step, "units": K, "literal s": f"{literal:.2f}", "ours s": f"{ours:.2f}"})
        rows[-1] |= {"ratio": f"{literal / ours:.1f}", "other labels": other}
        print(rows[-1], flush=True)
    write_table(rows, args.csv)


if __name__ == "__main__":
    main()
