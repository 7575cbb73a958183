"""How near are the two sums of three similarity functions to the products that they cannot do without?

    python benchmarks/combined.py [--shapes 9] [--repeats 5] [--csv FILE [--resume]] [--minutes M]

Processor milliseconds on one thread, the least of the repeats, by turns: the three functions that
`combined_correlation` adds, each by itself, and added; that function; `standardised_correlation`; and a
bound, two bare products Q' P, from embeddings of width 512 (`made`) with the product I T' before them.
`difference` is the largest of scores of the first two.
"""

from __future__ import annotations

import argparse

import torch
from released import processor_seconds, SHAPES
from similarity import inputs, Table

from neuronym.similarity.columns import correlation, cos_similarity_cubed
from neuronym.similarity.combined import combined_correlation
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.softened import soft_correlation
from neuronym.similarity.standardised import standardised_correlation


def apart(P, Q):
    return soft_correlation(P, Q) + correlation(P, Q) + cos_similarity_cubed(P, Q, eps=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    parser.add_argument("--repeats", type=int, default=5)
    Table.options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(args, ["P", "N", "M", "K"])
    for N, M, K in SHAPES[: args.shapes]:
        I, T, Q = inputs(N, M, K, 512, "cpu")
        for how, P in (("given", I @ T.T), ("made", FactoredMatrix(I, T))):
            if not table.lacks(how, N, M, K):
                continue

            def products():
                X = P if how == "given" else I @ T.T
                return Q.T @ X + Q.T @ X

            calls = {
                "parts": lambda: apart(P, Q),
                "ours": lambda: combined_correlation(P, Q),
                "standardised": lambda: standardised_correlation(P, Q),
                "bound": products,
            }
            times, taken, found = max(1, 10_000_000 // (N * (M + K))), {}, {}
            for repeat in range(args.repeats + 1):
                for name, call in calls.items():
                    seconds, found[name] = processor_seconds(call, times)
                    if repeat:  # the first call warms up
                        taken[name] = min(seconds, taken.get(name, seconds))
            row = {"P": how, "N": N, "M": M, "K": K}
            row |= {f"{name} ms": f"{1e3 * seconds:.3g}" for name, seconds in taken.items()}
            row |= {"ratio": f"{taken['parts'] / taken['ours']:.2f}"}
            row |= {"ours / bound": f"{taken['ours'] / taken['bound']:.2f}"}
            row |= {"standardised / bound": f"{taken['standardised'] / taken['bound']:.2f}"}
            row |= {"difference": f"{float((found['parts'] - found['ours']).abs().max()):.0e}"}
            table.add(row)


if __name__ == "__main__":
    main()
