"""Where does the time of the cosines and correlations go, with P given and from embeddings?

    python benchmarks/parts_of_columns.py [--shapes 200x100x50 ...] [--csv FILE [--resume]] [--minutes M]

Processor milliseconds on one thread of each part of a call, the least of some calls after the first, and of
the whole call. `product` is that of columns of units and concepts; `bound` the same product alone, of columns
as they lie in memory, and `passes` what one pass that reads each value of P and Q and one that writes it
take: the least that centring, which the bound leaves out, can take. What no part has (the rest) is Python's
and torch's.
"""

from __future__ import annotations

import argparse

import torch
from parts import parts_of, told
from released import FORMS, processor_seconds, SHAPES
from similarity import inputs, Table

from neuronym.similarity import column_loops, columns, softened
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import SIMILARITIES

D = 512  # width of embeddings
PARTS = {  # in the order of work
    "inputs": [(columns, "checked"), (columns, "check_finite"), (softened, "checked")]
    + [(softened, "check_finite"), (columns, "_plain")],
    "slope": [(softened, "_slope")],
    "making P": [(columns, "block")],
    "columns": [(column_loops, "measure_columns"), (softened._Centred, "rows")],
    "softmax and moments": [(column_loops, "share_rows"), (column_loops.Moments, "add")],
    "product": [(torch, "matmul"), (torch, "mm"), (torch.Tensor, "addmm_")],
    "scaling": [(column_loops, "level_out")],
}


def made(part, given):
    """A product as wide as embeddings makes P."""
    return "making P" if part == "product" and given[0].shape[-1] == D else part


def bounds(P, Q, calls):
    """Least seconds of the product Q' P, and of reading all of P and Q and writing as much."""
    stores = [torch.empty_like(X) for X in (P, Q)]

    def passes():
        for X, store in zip((P, Q), stores):
            X.sum()
            torch.add(X, 1, out=store)

    return [min(processor_seconds(call, 1)[0] for _ in range(calls)) for call in (lambda: Q.T @ P, passes)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["x".join(map(str, shape)) for shape in SHAPES])
    Table.options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(args, ["N", "M", "K", "P", "similarity"])
    for shape in args.shapes:
        N, M, K = map(int, shape.split("x"))
        I, T, Q = inputs(N, M, K, D, "cpu")
        given = I @ T.T
        calls = max(5, 10_000_000 // (N * (M + K)))
        product, passes = bounds(given, Q, calls)
        for how, P in (("given", given), ("made", FactoredMatrix(I, T))):
            for method in FORMS:
                if not table.lacks(N, M, K, how, method):
                    continue
                taken = parts_of(SIMILARITIES[method], PARTS, P, Q, calls, made)
                row = {"N": N, "M": M, "K": K, "P": how, "similarity": method}
                row |= told(taken, PARTS)
                row |= {"bound": f"{1e3 * product:.3g}", "passes": f"{1e3 * passes:.3g}"}
                table.add(row)


if __name__ == "__main__":
    main()
