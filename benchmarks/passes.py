"""What holds a labelling pass: decoding, resizing or the network? What makes it faster? Is memory flat?

    python benchmarks/passes.py [--targets NAME ...] [--photos 64] [--batch 32] [--repeats 5] [--csv FILE]
    python benchmarks/passes.py --tries       # orders of memory, sizes of pieces, bfloat16, torch.compile
    python benchmarks/passes.py --loaders     # threads and processes that decode
    python benchmarks/passes.py --many 100000 # memory while so many small pictures pass

First, for each network: processor milliseconds an image of decoding a JPEG of 500 x 375 pixels, of resizing
and scaling it, of the bare forward pass in the same batches (preprocessed images at hand, as torch lays them
out), and of the pass that fills an empty cache: the thread of the network by itself, which other load on the
machine hardly moves, and all threads. The ratio is of that thread's time to the bare forward pass; where
another core decodes, the pass takes as long as the slower of both. Medians of interleaved repeats; `spread`
is the largest less the least in parts of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from activations import make_photos
from PIL import Image
from similarity import write_table

from neuronym.activations import target_layers, unit_activations
from neuronym.datasets.images import read_image
from neuronym.datasets.probe import batches, load_probe
from neuronym.models.preprocess import Preprocess
from neuronym.models.targets import load_target
from neuronym.passes import inference, inference_of, PIECE

TARGETS = ["efficientnet_lite0", "torchvision:vit_b_32@random:0"]
TOLD = 10  # how often memory is looked at


def thread_ms(call, count):
    """Processor milliseconds of this thread an image, of all threads, and those of the clock."""
    before = time.thread_time(), time.process_time(), time.perf_counter()
    call()
    after = time.thread_time(), time.process_time(), time.perf_counter()
    return [1000 * (end - start) / count for start, end in zip(before, after)]


def middle(values):
    """Median, and largest less least in parts of it."""
    found = statistics.median(values)
    return found, (max(values) - min(values)) / found


def folder_of(photos):
    folder = tempfile.TemporaryDirectory()
    make_photos(Path(folder.name), photos)
    return folder, load_probe(f"folder:{folder.name}")


def passed(target, probe, layers, batch):
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NEURONYM_CACHE"] = cache
        unit_activations(target, probe, layers, "auto", batch)


def shares(args):
    """Where the time of a pass goes: a row for each network."""
    folder, probe = folder_of(args.photos)
    rows = []
    for name in args.targets:
        target = load_target(name)
        layers = target_layers(target, list(target.layers))
        pictures = [probe.image(i) for i in range(probe.N)]
        inputs = [x for _, (x,) in batches(probe, [target.preprocess], args.batch)]

        def bare():
            with torch.inference_mode():
                for x in inputs:
                    target.model(x)

        def pieces():
            with inference_of(target) as place:
                for x in inputs:
                    for piece in place(x):
                        target.model(piece)

        kinds = {
            "decode": lambda: [read_image(item) for item in probe.items],
            "resize": lambda: [target.preprocess(picture.copy()) for picture in pictures],
            "bare forward": bare,
            "forward as passed": pieces,
            "pass": lambda: passed(target, probe, layers, args.batch),
        }
        taken = defaultdict(list)
        for _ in range(args.repeats):
            for kind, call in kinds.items():
                taken[kind].append(thread_ms(call, probe.N))
        row = {"network": name, "layers": len(layers)}
        row |= {f"{kind} ms": f"{middle([own for own, *_ in some])[0]:.2f}" for kind, some in taken.items()}
        ratio, spread = middle(
            [mine[0] / bare[0] for mine, bare in zip(taken["pass"], taken["bare forward"])]
        )
        row["pass / bare"], row["spread"] = f"{ratio:.2f}", f"{spread:.2f}"
        row["all threads ms"] = f"{middle([whole for _, whole, _ in taken['pass']])[0]:.2f}"
        own = [mine[0] / theirs[0] for mine, theirs in zip(taken["pass"], taken["forward as passed"])]
        row["pass / as passed"] = f"{middle(own)[0]:.2f}"
        clock = [a[2] / b[2] for a, b in zip(taken["pass"], taken["bare forward"])]
        row["clock / bare"] = f"{middle(clock)[0]:.2f}"
        loading = float(row["decode ms"]) + float(row["resize ms"])
        row["held by"] = "forward" if float(row["pass ms"]) > loading else "decode and resize"
        print("\n".join(f"{key:<20}{value}" for key, value in row.items()), flush=True)
        rows.append(row)
    folder.cleanup()
    write_table(rows, args.csv)


def tries(args):
    """Orders of memory, sizes of pieces, bfloat16, torch.compile: milliseconds; how far the output is off."""
    folder, probe = folder_of(args.photos)
    rows = []
    for name in args.targets:
        target = load_target(name)
        torch.manual_seed(0)
        for weight in target.model.parameters():  # a head of zeros would give all forms one output
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.02)
        inputs = [x for _, (x,) in batches(probe, [target.preprocess], args.batch)]
        forms = {"as torch lays it out": forward(target.model, False, 10**9)}
        for pictures in (2, 16):
            piece = pictures * inputs[0][0, 0].numel()
            forms[f"channels last, {pictures} at once"] = forward(target.model, True, piece)
            forms[f"channels first, {pictures} at once"] = forward(target.model, False, piece)
        forms["bfloat16"] = forward(target.model, target.channels_last, None, "bfloat16")
        compiled = torch.compile(target.model)
        forms["torch.compile, channels last"] = forward(compiled, True, 10**9)
        taken, outputs, failed = defaultdict(list), {}, {}
        for form, call in forms.items():
            try:
                outputs[form] = call(inputs[:1])  # compiles
            except Exception as error:
                failed[form] = f"{type(error).__name__}: {str(error).splitlines()[0][:70]}"
        for _ in range(args.repeats):
            for form in outputs:
                taken[form].append(thread_ms(lambda: forms[form](inputs), probe.N)[0])
        exact, plain = outputs["as torch lays it out"], middle(taken["as torch lays it out"])[0]
        for form in forms:
            row = {"network": name, "form": form, "ms": failed.get(form, ""), "x": "", "off": ""}
            if form in outputs:
                ms = middle(taken[form])[0]
                off = float((outputs[form] - exact).abs().max() / exact.abs().max())
                row |= {"ms": f"{ms:.2f}", "x": f"{plain / ms:.2f}", "off": f"{off:.1e}"}
            print(f"{name:<32}{form:<34}{row['ms']:>10}{row['x']:>8}{row['off']:>10}", flush=True)
            rows.append(row)
    folder.cleanup()
    write_table(rows, args.csv)


def forward(model, channels_last, piece, dtype="float32"):
    def call(batches_of):
        with inference(model, "cpu", dtype, piece, channels_last) as place:
            return torch.cat([model(part).float() for x in batches_of for part in place(x)])

    return call


PREPROCESS = Preprocess(256, 224)


def loaded(path):
    """A file as a network's input, as an array: what a process sends back."""
    return PREPROCESS(read_image(path)).numpy()


def loaders(args):
    """Images a second that threads and processes bring to the caller, who does nothing else."""
    folder, probe = folder_of(args.photos)
    rows, workers = [], min(os.cpu_count() or 1, 8)

    def collect(pool):
        for start in range(0, probe.N, args.batch):
            np.stack(list(pool.map(loaded, probe.items[start : start + args.batch])))

    context = get_context("spawn")
    with ThreadPoolExecutor(workers) as threads, ProcessPoolExecutor(workers, context) as processes:
        collect(processes)  # they import
        kinds = {
            "one by one": lambda: [loaded(item) for item in probe.items],
            f"{workers} threads": lambda: collect(threads),
            f"{workers} processes": lambda: collect(processes),
            f"a pass's own, {workers} threads": lambda: [
                None for _ in batches(probe, [PREPROCESS], args.batch, workers=workers)
            ],
        }
        taken = defaultdict(list)
        for _ in range(args.repeats):
            for kind, call in kinds.items():
                taken[kind].append(thread_ms(call, probe.N)[2])
    for kind, some in taken.items():
        ms, spread = middle(some)
        rows.append({"loader": kind, "images/s": f"{1000 / ms:.0f}", "spread": f"{spread:.2f}"})
        print(f"{kind:<28}{1000 / ms:8.0f} images/s, spread {spread:.2f}")
    folder.cleanup()
    write_table(rows, args.csv)


def resident():
    """MiB that this process holds of its own, files that it maps not counted."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Linear(8, 16)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def many(args):
    """Memory while many small pictures are listed, checked and passed."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NEURONYM_CACHE"] = f"{folder}/cache"
        dice = np.random.default_rng(0)
        for i in range(args.many):
            place = Path(folder) / "images" / f"{i // 1000:04}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dice.integers(0, 256, (8, 8, 3), np.uint8)).save(place / f"{i:07}.png")
        target = load_target(Small(), preprocess=Preprocess(8, 8), name="small")

        def tell(what, done):
            rows.append({"pictures": args.many, "what": what, "done": done, "MiB": f"{resident():.0f}"})
            print(f"{what:<12}{done:>9,}{resident():9.0f} MiB", flush=True)

        def watched(items, total, what):
            for number, item in enumerate(items):
                if number % max(1, total // TOLD) == 0:
                    tell(what, number)
                yield item

        tell("begin", 0)
        start = time.perf_counter()
        probe = load_probe(
            f"folder:{folder}/images", progress=lambda items, total, what: watched(items, total, "check")
        )
        tell("listed", probe.N)
        layers = target_layers(target, "conv,fc")
        listed = time.perf_counter()
        unit_activations(
            target,
            probe,
            layers,
            batch_size=256,
            progress=lambda items, total, what: watched(items, total, "pass"),
        )
        tell("end", probe.N)
        print(f"listing {listed - start:.0f} s, pass {time.perf_counter() - listed:.0f} s")
    write_table(rows, args.csv)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    for name, default in {"photos": 64, "batch": 32, "repeats": 5, "many": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--tries", action="store_true", help="orders of memory, pieces, bfloat16, torch.compile"
    )
    parser.add_argument("--loaders", action="store_true", help="threads and processes that decode")
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    cores = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores"
    print(f"torch {torch.__version__}, {cores}, pieces of {PIECE} pixels")
    (many if args.many else tries if args.tries else loaders if args.loaders else shares)(args)


if __name__ == "__main__":
    main()
