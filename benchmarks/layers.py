"""How long does it take to name the layers of a ResNet-50, as the release does it and as we do (CLIP-Dissect,
table 4)?

    python benchmarks/layers.py [--images 300] [--M 20000] [--csv FILE]

conv1 and layer1 to layer4 of torchvision's ResNet-50, with openai-clip's ViT-B/32 as namer, both with random
weights, made-up JPEGs of 500 x 375 pixels and made-up text embeddings; by soft-WPMI. Literal is the release's
order of work: every image decoded once for the network and once for the CLIP, batches, hooks that take the
mean over positions, then for each layer the matrix of images and concepts, its softmax and a loop over units.
Processor seconds on one thread, of one run of each, which other work on the machine hardly moves; labels that
differ are counted. Embedding the texts is left out: it is the same work for both, done once for all networks.
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
from similarity import LOOPS, write_table
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
PASSES = "passes"


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--M", type=int, default=20000, help="concepts")
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    if args.images < 100:
        parser.error("soft-WPMI reads 100 images; take --images 100 or more")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["NEURONYM_CACHE"] = str(folder / "cache")
        (folder / "photos").mkdir()
        make_photos(folder / "photos", args.images)
        target, clip = load_target("torchvision:resnet50@random:0"), random_clip(folder, 1)
        T = normalize(torch.randn(args.M, clip.d, generator=torch.Generator().manual_seed(0)), dim=1)
        files = sorted((folder / "photos").iterdir())
        literal, ours, different = {}, {}, {}
        literal[PASSES], (Q, I) = processor_seconds(lambda: literal_passes(files, target, clip))

        def passes():  # with the look at every file, the choice of layers, the rows on disk
            probe = load_probe(f"folder:{folder / 'photos'}")
            layers = resolve_layers(target.model, LAYERS, target.example)
            return activations_and_embeddings(target, layers, clip, probe, workers=0)

        ours[PASSES], (our_Q, our_I) = processor_seconds(passes)
        P = FactoredMatrix(our_I, T)
        score(FactoredMatrix(our_I[:200], T[:50]), our_Q["conv1"][:200], "soft_wpmi")  # compiles once
        for layer in LAYERS:
            literal[layer], theirs = processor_seconds(lambda: literal_labels(I, T, Q[layer]))
            ours[layer], scores = processor_seconds(lambda: score(P, our_Q[layer], "soft_wpmi"))
            different[layer] = int((scores.argmax(1) != theirs).sum())
    rows = []
    for step in [PASSES, *LAYERS, "all"]:
        a, b = (taken.get(step, sum(taken.values())) for taken in (literal, ours))
        units = {"all": sum(q.shape[1] for q in Q.values())}.get(step) or (
            Q[step].shape[1] if step in Q else ""
        )
        other = {"all": sum(different.values())}.get(step, different.get(step, ""))
        rows.append({"step": step, "units": units, "literal s": f"{a:.1f}", "ours s": f"{b:.1f}"})
        rows[-1] |= {"ratio": f"{a / b:.1f}", "other labels": other}
        print(rows[-1], flush=True)
    write_table(rows, args.csv)


if __name__ == "__main__":
    main()
