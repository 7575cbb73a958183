"""How close does a pass over images come to the forward passes alone plus decoding each image once?

    python benchmarks/activations.py [--target efficientnet_lite0 --clip conse:efficientnet_lite2 --probe
    photos:96]
                                     [--batch 32] [--repeats 2] [--threads 0] [--device cpu] [--dtype float32]
                                     [--csv FILE]

For each pair of networks, in a process of its own: images/s of decoding and preprocessing alone, of the bare
forward passes (preprocessed images at hand, in whole batches and in the pieces that
`neuronym.passes.inference` makes of them on a CPU) and of the pass with an empty cache; user and system
seconds of the pass; MiB by which the first pass raises the process's memory (and a device's); and the ratio
pass / (decoding + faster forwards). Each is the shortest of interleaved repeats: compare the ratios.
"photos:N" are N made-up JPEGs of 500 x 375 pixels. By default the pairs are an ImageNet network with a ConSE
of another and the microworld's, on a GPU also torchvision's RN50 and ViT-B/16 with random weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from similarity import write_table

from neuronym.activations import activations_and_embeddings, target_layers, unit_activations
from neuronym.datasets.probe import batches, load_probe
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.passes import inference

PAIRS = [
    ("efficientnet_lite0", "conse:efficientnet_lite2", "photos:96"),
    ("microworld:resnet", "microworld", "microworld:500"),
]
ON_GPU = [("torchvision:resnet50@none", "", "photos:2048"), ("torchvision:vit_b_16@none", "", "photos:2048")]


def make_photos(folder, count):
    """JPEGs with structure at all scales, about as many bytes as photos have."""
    rng = np.random.default_rng(0)
    for i in range(count):
        layers = [
            Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8)).resize((500, 375), 3)
            for side in (4, 16, 64, 250)
        ]
        pixels = np.average([np.asarray(layer) for layer in layers], axis=0, weights=(8, 4, 2, 1))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:05}.jpg", quality=90)


def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), usage.ru_utime, usage.ru_stime])


def timed(call, device):
    """Wall, user and system seconds."""
    start = used()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return tuple(used() - start)


def largest():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def fresh_pass(args, target, clip, probe):
    """Everything that a user waits for: checks, forward passes, rows on disk."""
    layers = target_layers(target, list(target.layers))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NEURONYM_CACHE"] = folder
        options = {
            "batch_size": args.batch,
            "device": args.device,
            "dtype": args.dtype,
            "workers": args.workers,
        }
        if clip is None:
            unit_activations(target, probe, layers, **options)
        else:
            activations_and_embeddings(target, layers, clip, probe, **options)


def forward(args, network, images, whole):
    """Seconds of the bare forward passes over preprocessed images, which are brought to the device
    beforehand.
    """
    model, function = network
    with inference(model, args.device, args.dtype) as place:
        pieces = [list(place(batch)) for batch in images]
        inputs = (
            [torch.cat(some) for some in pieces] if whole else [piece for some in pieces for piece in some]
        )
        return timed(lambda: [function(x) for x in inputs] and None, args.device)


def measure(args, target_name, clip_name, probe_name, rows):
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NEURONYM_CACHE"] = folder
        kind, _, count = probe_name.partition(":")
        if kind == "photos":
            make_photos(Path(folder), int(count))
            probe_name = f"folder:{folder}"
        target, probe = load_target(target_name, args.device), load_probe(probe_name)
        clip = load_clip(clip_name, args.device) if clip_name else None
        networks = [(target.model, target.model)] + ([(clip.model, clip.encode_image)] if clip else [])
        used_by = [target, clip] if clip else [target]
        preprocesses = {one.preprocess_spec: one.preprocess for one in used_by}
        workers = min(os.cpu_count(), 8) if args.workers is None else args.workers

        def decode():
            for _ in batches(probe, list(preprocesses.values()), args.batch, workers=workers):
                pass

        Path("/proc/self/clear_refs").write_text("5")
        before = largest()
        fresh_pass(args, target, clip, probe)
        peak, best = largest() - before, defaultdict(lambda: (float("inf"),))
        inputs = list(batches(probe, list(preprocesses.values()), args.batch, workers=workers))
        columns = [[x[list(preprocesses).index(one.preprocess_spec)] for _, x in inputs] for one in used_by]
        for _ in range(args.repeats):
            best["decode"] = min(best["decode"], timed(decode, args.device))
            for i, network in enumerate(networks):
                for whole in (True, False):
                    best[i, whole] = min(best[i, whole], forward(args, network, columns[i], whole))
            best["pass"] = min(
                best["pass"], timed(lambda: fresh_pass(args, target, clip, probe), args.device)
            )
    rows.append(report(args, (target_name, clip_name), probe.N, best, peak))


def report(args, names, count, best, peak):
    """Print what was measured; gives the row of the table."""
    seconds = {key: times[0] for key, times in best.items()}
    print(
        f"{' + '.join(name for name in names if name)}: {count} images, batches of {args.batch}, "
        f"{args.dtype}, "
        f"{args.device}, {torch.get_num_threads()} threads"
    )
    print(f"  decoding and preprocessing {count / seconds['decode']:8.1f} images/s")
    floor = seconds["decode"]
    for i, name in enumerate(name for name in names if name):
        floor += min(seconds[i, True], seconds[i, False])
        print(
            f"  forward, whole | in pieces {count / seconds[i, True]:8.1f} | "
            f"{count / seconds[i, False]:.1f}  {name}"
        )
    device = (
        f", {torch.cuda.max_memory_allocated() / 2**20:.0f} on the device" if args.device != "cpu" else ""
    )
    print(
        f"  pass                       {count / seconds['pass']:8.1f} images/s; {best['pass'][1]:.1f} s "
        "user, "
        f"{best['pass'][2]:.1f} s system; {peak:.0f} MiB{device}"
    )
    print(
        f"  pass / sum                 {seconds['pass'] / floor:8.2f}   ({seconds['pass']:.2f} s / "
        f"{floor:.2f} s)"
    )
    per_second = {"whole batches": count / seconds[0, True], "in pieces": count / seconds[0, False]}
    per_second["pass"] = count / seconds["pass"]
    row = {"networks": " + ".join(name for name in names if name), "images": count}
    row |= {f"images/s {name}": f"{value:.1f}" for name, value in per_second.items()}
    return row | {"pass / sum": f"{seconds['pass'] / floor:.2f}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("target", "clip", "probe"):
        parser.add_argument(f"--{name}", default="")
    for name, default in {"batch": 32, "repeats": 2, "threads": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    pairs = PAIRS + (ON_GPU if args.device != "cpu" else [])
    if args.target:
        pairs = [(args.target, args.clip, args.probe or "photos:96")]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        rows = manager.list()
        for pair in pairs:  # a process for each, so that none starts with the memory of another
            process = context.Process(target=measure, args=(args, *pair, rows))
            process.start()
            process.join()
        write_table(list(rows), args.csv)


if __name__ == "__main__":
    main()
