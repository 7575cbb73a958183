"""What do 50,000 features of a layer take, kept dense and by what is active?

    python benchmarks/features.py [--features 50000] [--k 32] [--images 2000] [--memory-mib 256] [--csv FILE]

An untrained TopK autoencoder of the microworld's layer4, largest value over positions; 392 concepts. Each
form runs in a process of its own, without a cache: bytes of the activations, processor seconds of the pass
and of naming all features by two functions, and the peak of memory in use before the pass, after it and after
naming. Labels must be the same.
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


def one(args: argparse.Namespace) -> None:
    """Measure one form and print a row as JSON; the labels go to a file."""
    import torch

    from neuronym.datasets.probe import load_probe
    from neuronym.dissect import clip_dissect
    from neuronym.measurements import measure
    from neuronym.models.clips import load_clip
    from neuronym.models.targets import load_target
    from neuronym.runs.run import peak_mb
    from neuronym.sae.measured import measure_features
    from neuronym.sparse import Encoding, save_sae, SparseAutoencoder

    target, clip = load_target("microworld:resnet"), load_clip("microworld")
    probe, memory = load_probe(f"microworld:{args.images}"), args.memory_mib * 2**20
    g, d = torch.Generator().manual_seed(0), 192
    W = torch.nn.functional.normalize(torch.randn(args.features, d, generator=g), dim=1)
    sae = SparseAutoencoder(W.T, torch.zeros(args.features), W, torch.zeros(d), Encoding("topk", args.k))
    layer = f"layer4@sae:{save_sae(sae, args.folder / 'random.safetensors')}"
    del W, sae
    measure(target, "fc", probe, clip, "microworld")  # embeddings and all that is loaded once
    row = {"form": args.form, "images": args.images, "features": args.features, "before MiB": peak_mb()}
    start, how = time.process_time(), {"pool": "max"}
    if args.form == "dense":
        data = measure(target, layer, probe, clip, "microworld", **how)
    else:
        data = measure_features(target, layer, probe, clip, "microworld", memory=memory, **how)
    [q] = data.Q.values()
    row |= {"activations MiB": q.nbytes / 2**20, "pass s": time.process_time() - start, "pass MiB": peak_mb()}
    start = time.process_time()
    tables = [clip_dissect(data, function, k=1, memory=memory) for function in FUNCTIONS]
    row |= {"naming s": time.process_time() - start, "naming MiB": peak_mb()}
    pd.concat(tables)["label"].to_frame().to_parquet(args.folder / f"{args.form}.parquet")
    print(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"features": 50_000, "k": 32, "images": 2000, "memory-mib": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--csv", type=Path, help="file for the table")
    parser.add_argument("--form", choices=("dense", "active"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        return one(args)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for form in ("dense", "active"):
            call = [sys.executable, *sys.argv, "--form", form, "--folder", folder]
            env = os.environ | {"NEURONYM_CACHE": f"{folder}/cache {form}"}
            done = subprocess.run(call, env=env, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        labels = [pd.read_parquet(Path(folder) / f"{row['form']}.parquet")["label"] for row in rows]
    table = pd.DataFrame(rows)
    print(table.round(1).to_string(index=False))
    print(f"same label for {(labels[0].to_numpy() == labels[1].to_numpy()).mean():.4%} of {len(labels[0])}")
    for row in rows:
        row |= {name: f"{value:.0f}" for name, value in row.items() if isinstance(value, float)}
    write_table(rows, args.csv)


if __name__ == "__main__":
    main()
