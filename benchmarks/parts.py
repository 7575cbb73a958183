"""Where does the time of (soft-)WPMI go, with P given and from embeddings?

    python benchmarks/parts.py [--shapes 200x100x50 ...] [--d 512] [--csv FILE [--resume]] [--minutes M]

Processor milliseconds on one thread of each part of a call, the least of some calls after the first, and of
the whole call; `bound` is that of `released.py`, products and one exponential (torch's) of each value, which
our powers and products are to be compared with; `by concepts` the whole call in the other form, in which a
block of concepts meets all images. What no part has (the rest) is Python's and torch's: calls of some
microseconds each, and room for results.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from unittest.mock import patch

import torch
from released import bound, processor_seconds
from similarity import inputs, Table

from neuronym.similarity import images, kernels, pmi
from neuronym.similarity.matrix import FactoredMatrix

SHAPES = ["200x100x50", "1000x500x128", "1000x2000x256", "5000x2000x512", "3000x8000x64", "5000x20000x512"]
PARTS = {  # in the order of work
    "inputs": [(pmi, "checked"), (pmi, "check_finite")],
    "top images": [(pmi, "strongest_units"), (kernels, "numbered")],
    "making P": [(images.Powers, "made")],
    "powers": [(images, "raise_rows")],
    "factors": [(images, "pair")],
    "products": [(images, "multiply_block")],
    "logarithms and prior": [(images, "finish")],
}


class Clock:
    """Seconds of parts; what is called within one counts as that. `said(part, arguments)` names the part of
    functions that do two.
    """

    def __init__(self, said=lambda part, given: part):
        self.taken, self.busy, self.said = {}, False, said

    def of(self, function, part):
        def call(*given, **options):
            if self.busy:
                return function(*given, **options)
            name, self.busy, start = self.said(part, given), True, time.process_time()
            try:
                return function(*given, **options)
            finally:
                self.taken[name] = self.taken.get(name, 0) + time.process_time() - start
                self.busy = False

        return call


def parts_of(function, parts, P, Q, calls, *said):
    """Least seconds of each part of {part: [(place, name of a function)]}, and of the whole call,
    untouched.
    """
    function(P, Q)
    least = {}
    for _ in range(calls):
        clock = Clock(*said)
        with ExitStack() as patches:
            for part, places in parts.items():
                for place, name in places:
                    patches.enter_context(patch.object(place, name, clock.of(getattr(place, name), part)))
            function(P, Q)
        clock.taken["all"], _ = processor_seconds(lambda: function(P, Q), 1)
        least = {part: min(seconds, least.get(part, seconds)) for part, seconds in clock.taken.items()}
    return least


def told(taken, parts):
    """Milliseconds of each part, of what no part has, and of the whole call, as a row shows them."""
    rest = max(0, taken["all"] - sum(taken.get(part, 0) for part in parts))
    shown = {part: taken.get(part, 0) for part in parts} | {"the rest": rest, "all": taken["all"]}
    return {part: f"{1e3 * seconds:.3g}" for part, seconds in shown.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="N x M x K")
    parser.add_argument("--d", type=int, default=512)
    Table.options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(args, ["N", "M", "K", "P", "similarity"])
    for shape in args.shapes:
        N, M, K = map(int, shape.split("x"))
        I, T, Q = inputs(N, M, K, args.d, "cpu")
        given = I @ T.T
        calls = max(5, 3_000_000 // (N * (M + K)))
        for how, P in (("given", given), ("made", FactoredMatrix(I, T))):
            for method in ("soft_wpmi", "wpmi"):
                if not table.lacks(N, M, K, how, method):
                    continue
                taken = parts_of(getattr(pmi, method), PARTS, P, Q, calls)
                call = bound(method, given, Q)[0]
                row = {"N": N, "M": M, "K": K, "P": how, "similarity": method}
                row |= told(taken, PARTS) | {"bound": "", "by concepts": ""}
                if how == "given":
                    least = min(processor_seconds(call, 1)[0] for _ in range(calls))
                    row["bound"] = f"{1e3 * least:.3g}"
                    with patch.object(images, "scores_by_images", lambda *given: None):
                        other = parts_of(getattr(pmi, method), PARTS, P, Q, calls // 2)["all"]
                    row["by concepts"] = f"{1e3 * other:.3g}"
                table.add(row)


if __name__ == "__main__":
    main()
