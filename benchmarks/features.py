"""What do 50,000 features of a layer take, kept dense and by what is active?

    python benchmarks/features.py [--features 50000] [--k 32] [--images 2000] [--memory-mib 256] [--csv FILE]
        [--notebook labelling|trust|evaluation] [--explorer] [--parts]

An untrained TopK autoencoder of the microworld's layer4, largest value over positions; 392 concepts. Each
form runs in a process of its own, without a cache: bytes of the activations, processor seconds of the pass
and of naming all features by two functions, and the peak of memory in use before the pass, after it and after
naming. Labels must be the same. `notebook` runs a notebook on the features and on layer4 itself in place of
this, with the settings of NOTEBOOKS: the peak of each. `explorer` opens the explorer on named features, and
three of them in it. `parts` takes what labelling does with them apart: what each step takes beyond what was
in use before it, and what it leaves (Linux alone says so).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from similarity import write_table

FUNCTIONS = ("combined_correlation", "soft_wpmi")
NOTEBOOKS = {  # what is left out of a notebook takes time and no other memory
    "labelling": {},
    "trust": {"draws": 50, "samples": 10, "splits": 3, "counterfactuals": 100},
    "evaluation": {"units": 20, "dissected": 50, "pictures": 4},
}


def untrained(args: argparse.Namespace, folder: Path) -> Path:
    """The file of a random autoencoder of layer4."""
    import torch

    from neuronym.sparse import Encoding, save_sae, SparseAutoencoder

    g, d = torch.Generator().manual_seed(0), 192
    W = torch.nn.functional.normalize(torch.randn(args.features, d, generator=g), dim=1)
    sae = SparseAutoencoder(W.T, torch.zeros(args.features), W, torch.zeros(d), Encoding("topk", args.k))
    return save_sae(sae, folder / "random.safetensors")


def one(args: argparse.Namespace) -> None:
    """Measure one form and print a row as JSON; the labels go to a file."""

    from neuronym.datasets.probe import load_probe
    from neuronym.dissect import clip_dissect
    from neuronym.measurements import measure
    from neuronym.models.clips import load_clip
    from neuronym.models.targets import load_target
    from neuronym.runs.run import peak_mb

    target, clip = load_target("microworld:resnet"), load_clip("microworld")
    probe, memory = load_probe(f"microworld:{args.images}"), args.memory_mib * 2**20
    layer = f"layer4@sae:{untrained(args, args.folder)}"
    measure(target, "fc", probe, clip, "microworld")  # embeddings and all that is loaded once
    row = {"form": args.form, "images": args.images, "features": args.features, "before MiB": peak_mb()}
    start, how = time.process_time(), {"pool": "max", "sparse": args.form == "active", "memory": memory}
    data = measure(target, layer, probe, clip, "microworld", **how)
    [q] = data.Q.values()
    row |= {"activations MiB": q.nbytes / 2**20, "pass s": time.process_time() - start, "pass MiB": peak_mb()}
    start = time.process_time()
    tables = [clip_dissect(data, function, k=1, memory=memory) for function in FUNCTIONS]
    row |= {"naming s": time.process_time() - start, "naming MiB": peak_mb()}
    pd.concat(tables)["label"].to_frame().to_parquet(args.folder / f"{args.form}.parquet")
    print(json.dumps(row))


def notebooks(args: argparse.Namespace, folder: str) -> list[dict]:
    """Peak memory and minutes of a notebook, of the layer's units and of its features."""
    rows = []
    for name, layer in (("units", "layer4"), ("features", f"layer4@sae:{untrained(args, Path(folder))}")):
        given = {"layers": layer, "probe": f"microworld:{args.images}", "pooling": "max", "run_name": name}
        given |= {"memory": args.memory_mib} | NOTEBOOKS[args.notebook]
        call = [sys.executable, "-m", "neuronym", args.notebook]
        call += [str(word) for pair in given.items() for word in ("-p", *pair)]
        places = {"NEURONYM_CACHE": f"{folder}/cache", "NEURONYM_RESULTS": f"{folder}/{name}"}
        start = time.perf_counter()
        subprocess.run(call, env=os.environ | places, stdout=sys.stderr, check=True)
        minutes = (time.perf_counter() - start) / 60
        [said] = Path(folder, name).rglob("metrics.json")
        metrics = json.loads(said.read_text())
        units = args.features if name == "features" else 192
        row = {"notebook": args.notebook, "layer": name, "units": units, "images": args.images}
        rows.append(row | {"peak MiB": metrics["peak_mb"], "minutes": minutes})
    return rows


def apart(args: argparse.Namespace, folder: str, form: str) -> list[dict]:
    """What the explorer, or parts of labelling, take beyond measuring, by a call of this script: rows."""
    call = [sys.executable, *sys.argv, "--form", form, "--folder", folder]
    env = os.environ | {"NEURONYM_CACHE": f"{folder}/cache"}
    done = subprocess.run(call, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def take_parts(args: argparse.Namespace) -> None:
    """Print rows of what parts of labelling take, as JSON."""
    from neuronym.common.memory import give_back
    from neuronym.common.tables import write_table
    from neuronym.dissect import clip_dissect, DEFAULT
    from neuronym.evaluation.meaning import with_meaning
    from neuronym.measurements import measure, top_images_parts
    from neuronym.similarity.labels import write_labels
    from neuronym.similarity.sparse_columns import score_blocks

    memory, layer = args.memory_mib * 2**20, f"layer4@sae:{untrained(args, args.folder)}"
    given = (f"microworld:{args.images}", "microworld", "microworld")
    few = measure("microworld:resnet", "layer4", *given, pool="max")
    data = measure("microworld:resnet", layer, *given, pool="max", sparse=True, memory=memory)
    [q], [some], rows, made = data.Q.values(), few.Q.values(), [], {}

    def named() -> None:
        for _ in score_blocks(data.P, q, DEFAULT, memory=memory):
            pass

    steps = {
        "192 units named: loops are loaded": lambda: list(score_blocks(few.P, some, DEFAULT, memory=memory)),
        "all features scored": named,
        "labels table": lambda: made.update(labels=clip_dissect(data, memory=memory)),
        "labels written": lambda: write_labels(made["labels"], args.folder),
        "top images written": lambda: write_table(top_images_parts(data, 10), args.folder / "top_images.csv"),
        "columns of meaning": lambda: with_meaning(made["labels"], data.Q, data.I, memory=memory),
    }
    for step, work in steps.items():
        give_back()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, start = in_use("VmRSS"), time.process_time()
        work()
        peak = in_use("VmHWM")
        give_back()
        row = {"step": step, "features": args.features, "images": args.images, "peak MiB": peak - before}
        rows.append(row | {"left MiB": in_use("VmRSS") - before, "s": time.process_time() - start})
    print(json.dumps(rows))


def in_use(what: str) -> float:
    """MiB of memory in use, or the most that was, by /proc."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[what].split()[0]) / 1024


def open_explorer(args: argparse.Namespace) -> None:
    """Print that row as JSON."""
    from neuronym.atlas.explorer import Answers, as_network
    from neuronym.dissect import clip_dissect
    from neuronym.measurements import measure
    from neuronym.runs.run import peak_mb

    memory, layer = args.memory_mib * 2**20, f"layer4@sae:{untrained(args, args.folder)}"
    given = ("microworld:resnet", layer, f"microworld:{args.images}", "microworld", "microworld")
    data = measure(*given, pool="max", sparse=True, memory=memory)
    labels = clip_dissect(data, k=1, memory=memory)
    row = {"features": args.features, "images": args.images, "named MiB": peak_mb()}
    start = time.perf_counter()
    answers = Answers([as_network(data, labels)])
    answers.start("")
    row |= {"explorer s": time.perf_counter() - start, "explorer MiB": peak_mb()}
    start = time.perf_counter()
    for unit in (3, args.features // 2, args.features - 1):
        answers.details(0, unit)
    print(json.dumps([row | {"a unit s": (time.perf_counter() - start) / 3, "units MiB": peak_mb()}]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"features": 50_000, "k": 32, "images": 2000, "memory-mib": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--csv", type=Path, help="file for the table")
    parser.add_argument("--notebook", choices=NOTEBOOKS, help="peak of a notebook")
    parser.add_argument("--explorer", action="store_true", help="peak of the explorer")
    parser.add_argument("--parts", action="store_true", help="what steps of labelling take")
    parser.add_argument("--form", choices=("dense", "active", "explorer", "parts"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        return {"explorer": open_explorer, "parts": take_parts}.get(args.form, one)(args)
    with tempfile.TemporaryDirectory() as folder:
        form = "explorer" if args.explorer else "parts" if args.parts else ""
        rows = notebooks(args, folder) if args.notebook else apart(args, folder, form) if form else []
        for form in () if rows else ("dense", "active"):
            call = [sys.executable, *sys.argv, "--form", form, "--folder", folder]
            env = os.environ | {"NEURONYM_CACHE": f"{folder}/cache {form}"}
            done = subprocess.run(call, env=env, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        tables = [pd.read_parquet(Path(folder) / f"{row['form']}.parquet") for row in rows if "form" in row]
    print(pd.DataFrame(rows).round(1).to_string(index=False))
    if tables:
        same = tables[0]["label"].to_numpy() == tables[1]["label"].to_numpy()
        print(f"same label for {same.mean():.4%} of {len(same)}")
    for row in rows:
        row |= {name: f"{value:.0f}" for name, value in row.items() if isinstance(value, float)}
    write_table(rows, args.csv)


if __name__ == "__main__":
    main()
