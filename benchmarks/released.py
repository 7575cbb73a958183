"""How fast are cosines and correlations against what the release does: columns normalised, then one product?

    python benchmarks/released.py [--shapes 9] [--repeats 7] [--csv FILE]

Processor seconds on one thread, by turns, so that other work on the machine meets all alike: the released
form (for the correlations, which the release lacks, the same written for them), ours, and the bare product
Q' P, below which neither can go. Medians, and the spread (largest less least, in parts of the median).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from similarity import centred_columns, cubed_columns, inputs, LOOPS, unit_columns, write_table

from neuronym.similarity.scores import SIMILARITIES

SHAPES = [  # N, M, K
    (200, 100, 50),
    (500, 200, 100),
    (1000, 500, 128),
    (2000, 1000, 64),
    (1000, 2000, 256),
    (2000, 5000, 256),
    (5000, 2000, 512),
    (3000, 8000, 64),
    (5000, 10000, 512),
]
FORMS = {
    "cos_similarity": unit_columns,
    "cos_similarity_cubed": cubed_columns,
    "correlation": centred_columns,
    "soft_correlation": centred_columns,
}


def processor_seconds(call, times):
    start = time.process_time()
    for _ in range(times):
        result = call()
    return (time.process_time() - start) / times, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for N, M, K in SHAPES[: args.shapes]:
        I, T, Q = inputs(N, M, K, 512, "cpu")
        P = I @ T.T
        times = max(1, 3_000_000 // (N * (M + K)))
        for method, normalise in FORMS.items():
            prepare = LOOPS[method][0]
            calls = {
                "released": lambda: normalise(Q).T @ prepare(P),
                "ours": lambda: SIMILARITIES[method](P, Q),
                "product": lambda: Q.T @ P,
            }
            taken = {name: [] for name in calls}
            for repeat in range(args.repeats + 1):
                found = {}
                for name, call in calls.items():
                    seconds, found[name] = processor_seconds(call, times)
                    taken[name] += [seconds] * (repeat > 0)  # the first call warms up
            middle = {name: median(values) for name, values in taken.items()}
            spread = {name: (max(values) - min(values)) / middle[name] for name, values in taken.items()}
            row = {"N": N, "M": M, "K": K, "similarity": method}
            row |= {f"{name} ms": f"{1e3 * seconds:.3g}" for name, seconds in middle.items()}
            row |= {"ratio": f"{middle['released'] / middle['ours']:.2f}"}
            row |= {"ours / product": f"{middle['ours'] / middle['product']:.2f}"}
            row |= {f"spread {name}": f"{spread[name]:.2f}" for name in ("released", "ours")}
            row |= {"difference": f"{float((found['released'] - found['ours']).abs().max()):.0e}"}
            print(row, flush=True)
            table.append(row)
    write_table(table, args.csv)


if __name__ == "__main__":
    main()
