"""What do matrix products in half precision cost and change, where they make P from embeddings?

    python benchmarks/halves.py [--N 2000] [--M 20000] [--K 256] [--d 512] [--csv FILE]

For bfloat16 and float16: processor milliseconds on one thread of P = I T' so and in float32, medians of
three; of the scores of P made so, how many units get another label, and for how many the right one is not
among the eight best, so that a screen with exact scores of eight would miss it. Embeddings and activations
are made up: unit rows in a cone, and normal ones, whose best concepts are as near one another as chance has
it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch
from released import processor_seconds
from similarity import inputs, write_table

from neuronym.similarity.scores import score

METHODS = (
    "soft_wpmi",
    "wpmi",
    "cos_similarity_cubed",
    "correlation",
    "soft_correlation",
    "combined_correlation",
)
SCREENED = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"N": 2000, "M": 20000, "K": 256, "d": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    I, T, Q = inputs(args.N, args.M, args.K, args.d, "cpu")
    whole = median(processor_seconds(lambda: I @ T.T, 1)[0] for _ in range(3))
    P = I @ T.T
    right = {method: score(P, Q, method).argmax(1) for method in METHODS}
    table = []
    for dtype in (torch.bfloat16, torch.float16):
        half = I.to(dtype), T.to(dtype)
        taken = median(processor_seconds(lambda: (half[0] @ half[1].T).float(), 1)[0] for _ in range(3))
        made = (half[0] @ half[1].T).float()
        for method in METHODS:
            scores = score(made, Q, method)
            best = scores.topk(SCREENED, dim=1).indices
            row = {"dtype": str(dtype).removeprefix("torch."), "similarity": method}
            row |= {"float32 ms": f"{1e3 * whole:.0f}", "half ms": f"{1e3 * taken:.0f}"}
            row |= {"ratio": f"{whole / taken:.2f}", "units": args.K}
            row |= {"labels changed": int((scores.argmax(1) != right[method]).sum())}
            row |= {"missed by 8": int((best != right[method][:, None]).all(1).sum())}
            print(row, flush=True)
            table.append(row)
    write_table(table, args.csv)


if __name__ == "__main__":
    main()
