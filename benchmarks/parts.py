"""Where does the time of (soft-)WPMI go, with P given and from embeddings, where images meet all concepts?

    python benchmarks/parts.py [--N 5000] [--M 20000] [--K 512] [--d 512] [--csv FILE]

Processor milliseconds on one thread of each part of one call, and their shares of the whole; the first call
of each is not counted. What no part has is between the lines: logarithms of the products, extremes of shares.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest.mock import patch

import torch
from similarity import inputs, write_table

from neuronym.similarity import images, pmi
from neuronym.similarity.matrix import FactoredMatrix

PARTS = {  # in the order of work
    "inputs are looked at": (pmi, "checked"),
    "top images": (pmi, "strongest_units"),
    "P, where it is made": (images.Powers, "made"),
    "its powers": (images, "raise_rows"),
    "factors of units": (images, "pair"),
    "products": (images, "multiply_block"),
    "logarithms and prior": (images, "finish"),
}


def timed(function, taken, part):
    def call(*arguments, **options):
        start = time.process_time()
        result = function(*arguments, **options)
        taken[part] = taken.get(part, 0) + time.process_time() - start
        return result

    return call


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"N": 5000, "M": 20000, "K": 512, "d": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    I, T, Q = inputs(args.N, args.M, args.K, args.d, "cpu")
    table = []
    for how, P in (("given", I @ T.T), ("made", FactoredMatrix(I, T))):
        for method in ("soft_wpmi", "wpmi"):
            getattr(pmi, method)(P, Q)
            taken = {}
            patches = [
                patch.object(module, name, timed(getattr(module, name), taken, part))
                for part, (module, name) in PARTS.items()
            ]
            for one in patches:
                one.start()
            start = time.process_time()
            getattr(pmi, method)(P, Q)
            whole = time.process_time() - start
            for one in patches:
                one.stop()
            taken = {part: taken[part] for part in PARTS}
            taken |= {"the rest": whole - sum(taken.values()), "all": whole}
            for part, seconds in taken.items():
                row = {"P": how, "similarity": method, "part": part}
                row |= {"ms": f"{1e3 * seconds:.0f}", "share": f"{seconds / whole:.2f}"}
                print(row, flush=True)
                table.append(row)
    write_table(table, args.csv)


if __name__ == "__main__":
    main()
