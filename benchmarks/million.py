"""What would a million images through a hundred networks cost, on paper, at the rates of this machine?

    python benchmarks/million.py [--images 1000000] [--networks 100] [--M 20000] [--hours 12] [--csv FILE]

Two tables, of one run. First the rates, in processor seconds on one thread, which other work on the machine
hardly moves: a photo looked at once (read, hashed, decoded), decoded and resized for a network, passed
through a ResNet-50 and a ViT-B/32 (torchvision, random weights) and through openai-clip's ViT-B/32 (random
weights too); texts embedded; rows written to the cache with their checksum; units named by the default
function at --sample images and --words concepts. Then what the whole takes at these rates, every second
network being of either kind: processor hours, bytes in the cache, and jobs of at most --hours. Nothing of
that size is run; what grows with images and concepts grows linearly with them (`benchmarks/scale.py` measures
the exponents). --csv writes the costs to FILE and the rates beside it, for `make docs`.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from pathlib import Path

import torch
from activations import make_photos
from layers import processor_seconds, random_clip
from similarity import write_table
from torch.nn.functional import normalize

from neuronym import cache
from neuronym.activations import image_embeddings, unit_activations
from neuronym.datasets.images import examine
from neuronym.datasets.probe import batches, load_probe
from neuronym.dissect import DEFAULT
from neuronym.hooks import resolve_layers
from neuronym.models.targets import load_target
from neuronym.passes import inference
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score_layers

NETWORKS = ["torchvision:resnet50@random:0", "torchvision:vit_b_32@random:0"]
STORED = 2**24  # float32 numbers written to find what a byte costs


def network_rates(name, probe, args, I, T):
    """Seconds an image of a network's bare forward passes and of the pass that fills the cache, seconds of
    naming at --sample images, units, and bytes an image.
    """
    target = load_target(name)
    layers = resolve_layers(target.model, "all", target.example, target.layouts)
    _, images = next(batches(probe, [target.preprocess], args.photos))
    with inference(target.model) as place:
        target.model(next(place(images[0])))
        bare, _ = processor_seconds(lambda: [target.model(x) for x in place(images[0])])
    passed, Q = processor_seconds(lambda: unit_activations(target, probe, layers, workers=0))
    written = sum(entry["bytes"] for entry in cache.entries("activations"))
    units = sum(layer.units for layer in layers)
    dice = torch.Generator().manual_seed(1)
    made_up = {name: torch.randn(args.sample, q.shape[1], generator=dice).relu() for name, q in Q.items()}
    few = {name: q[:200] for name, q in made_up.items()}
    list(score_layers(FactoredMatrix(I[:200], T[:50]), few, DEFAULT))  # the first call compiles
    named, _ = processor_seconds(lambda: sum(1 for _ in score_layers(FactoredMatrix(I, T), made_up, DEFAULT)))
    cache.prune(max_bytes=0)
    return {
        "bare": bare / probe.N,
        "pass": passed / probe.N,
        "naming": named / args.sample / args.words * args.M,
        "units": units,
        "bytes": 4 * units,
        "written": written / probe.N / units,
    }


def measured(args):
    """Seconds, by what takes them, and what every network takes."""
    dice = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["NEURONYM_CACHE"] = str(folder / "cache")
        (folder / "photos").mkdir()
        make_photos(folder / "photos", args.photos)
        files = sorted((folder / "photos").iterdir())
        clip, once = random_clip(folder), {}
        look, _ = processor_seconds(lambda: examine(files))
        probe = load_probe(f"folder:{folder / 'photos'}")
        decode, _ = processor_seconds(lambda: list(batches(probe, [clip.preprocess], args.photos)))
        clip.encode_image(clip.preprocess(probe.image(0))[None])
        embed, _ = processor_seconds(lambda: image_embeddings(clip, probe, workers=0))
        texts, _ = processor_seconds(lambda: clip.encode_text([f"a photo of {i}" for i in range(args.texts)]))
        rows = torch.randn(STORED // 512, 512, generator=dice)
        stored, _ = processor_seconds(lambda: cache.array("test", {"of": "store"}, lambda: rows))
        once = {"look": look / probe.N, "decode": decode / probe.N, "embed": embed / probe.N}
        once |= {"text": texts / args.texts, "byte": stored / (4 * STORED), "d": clip.d}
        cache.prune(max_bytes=0)
        I = normalize(torch.randn(args.sample, clip.d, generator=dice), dim=1)
        T = normalize(torch.randn(args.words, clip.d, generator=dice), dim=1)
        return once, {name: network_rates(name, probe, args, I, T) for name in NETWORKS}


def rate_rows(once, networks, args):
    """The table of rates."""
    rows = [
        ("photos looked at (read, hashed, decoded)", "a second", f"{1 / once['look']:.0f}"),
        ("photos decoded and resized to 224 x 224", "a second", f"{1 / once['decode']:.0f}"),
        ("photos through openai-clip's ViT-B/32, decoded and kept", "a second", f"{1 / once['embed']:.1f}"),
        ("texts through openai-clip's ViT-B/32", "a second", f"{1 / once['text']:.1f}"),
        ("MB kept with checksum", "a second", f"{1e-6 / once['byte']:.0f}"),
    ]
    for name, found in networks.items():
        what = name.removeprefix("torchvision:").partition("@")[0]
        rows += [
            (f"photos through {what}, decoded already", "a second", f"{1 / found['bare']:.1f}"),
            (f"photos through {what}, decoded and kept", "a second", f"{1 / found['pass']:.1f}"),
            (f"units of {what}", "all layers", f"{found['units']}"),
            (f"bytes kept of {what}", "an image and unit", f"{found['written']:.1f}"),
            (
                f"naming all units of {what}, {args.M} concepts",
                "seconds for 1,000 images",
                f"{1000 * found['naming']:.1f}",
            ),
        ]
    return [dict(zip(("what", "of what", "rate"), row)) for row in rows]


def cost_rows(once, networks, args):
    """The table of costs."""
    n, kinds = args.images, list(networks.values())
    of_each = [kinds[i % len(kinds)] for i in range(args.networks)]
    limit = 3600 * args.hours

    def row(step, seconds, kept=0, jobs=0):
        hours = sum(seconds) / 3600
        jobs = jobs or sum(math.ceil(each / limit) for each in seconds)
        return {"step": step, "hours": hours, "GB": kept / 1e9, "jobs": jobs}

    kept = [n * found["bytes"] for found in of_each]
    rows = [
        row("every photo looked at, once", [n * once["look"]]),
        row("image embeddings, once", [n * once["embed"]], n * once["d"] * 4),
        row("concepts embedded, once", [args.M * once["text"]], args.M * once["d"] * 4),
        row("activations of all networks, in parts", [n * found["pass"] for found in of_each], sum(kept)),
        row("parts joined", [size * once["byte"] for size in kept], sum(kept)),
        row("units named", [n * found["naming"] for found in of_each]),
    ]
    rows.append({"step": "all"} | {key: sum(one[key] for one in rows) for key in ("hours", "GB", "jobs")})
    forms = {"hours": ".1f", "GB": ".1f", "jobs": "d"}
    return [one | {key: format(one[key], form) for key, form in forms.items()} for one in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"images": 10**6, "networks": 100, "M": 20000, "hours": 12}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"photos": 24, "texts": 16, "sample": 1000, "words": 5000}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="measured on so many")
    parser.add_argument("--csv", type=Path, help="file for the table of costs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    once, networks = measured(args)
    tables = {"rates": rate_rows(once, networks, args), "costs": cost_rows(once, networks, args)}
    for name, rows in tables.items():
        print(name)
        for row in rows:
            print("  ", "   ".join(row.values()))
    write_table(tables["costs"], args.csv)
    write_table(tables["rates"], args.csv and args.csv.with_name(f"{args.csv.stem}_rates.csv"))


if __name__ == "__main__":
    main()
