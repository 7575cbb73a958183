"""How fast are the similarity functions against what the release does, and against what they must do?

    python benchmarks/released.py [--shapes 9] [--repeats 5] [--methods wpmi soft_wpmi]
                                  [--csv FILE [--resume]] [--minutes M]

Processor seconds on one thread, by turns, so that other work on the machine meets all alike; the least of
the repeats, which other work hardly moves, and the spread (largest less least, in parts of the median). With
P given: the released form (cosines normalise columns and take one product, the others loop over units; for
the correlations, which the release lacks, the same written for them), ours, and a bound: for products of
columns the bare product Q' P; for (soft-)WPMI the products of shares alone, plus one exponential (torch's) of
each value of P. "made" is ours from embeddings, and its bound the bare product I T' plus the bound before it
(for products of columns) or what ours takes with P given. What takes less than some milliseconds is called
several times in a row. The release's temporaries are reused where the C library allows it (up to 32 MB). Of
rank_reorder's loop two units are timed at the larger shapes, and the rest is scaled up.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from statistics import median

import torch
from similarity import centred_columns, cubed_columns, inputs, less_prior, LOOPS, Table, unit_columns

from neuronym.similarity.kernels import products
from neuronym.similarity.matrix import FactoredMatrix
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
PMI = {"wpmi": (28, 2, 0.6), "soft_wpmi": (100, 10, 1)}  # images, a, lam
SHORTEST = 0.01  # seconds of a measurement, which calls in a row fill
WIDTH = 128  # concepts whose shares a cache holds, of all images


def released(method, P, Q, units):
    """The release's scores, with some units in place of all where it loops over them."""
    if method in FORMS:
        return FORMS[method](Q).T @ LOOPS[method][0](P)
    if method == "rank_reorder":
        generator = torch.Generator().manual_seed(0)
        return torch.stack([LOOPS[method][1](P, Q[:, k], generator) for k in range(units)])
    n, a, lam = PMI[method]
    n = min(n, len(P))
    shares, images = (a * P).softmax(1), Q.topk(n, dim=0).indices
    trust = (0.998 - torch.arange(n) / n * (0.998 - 0.97))[:, None]
    rows = []
    for k in range(units):
        x = shares.gather(0, images[:, k : k + 1].expand(-1, P.shape[1]))
        rows.append(
            (x + 1e-7).log().sum(0) if method == "wpmi" else (1 + trust * (x - 1) + 1e-7).log().sum(0)
        )
    return less_prior(torch.stack(rows), lam)


def processor_seconds(call, times):
    start = time.process_time()
    for _ in range(times):
        result = call()
    return (time.process_time() - start) / times, result


def bound(method, P, Q):
    """What no form can leave out, as a call, and how many times it must be taken."""
    if method in FORMS:
        return lambda: Q.T @ P, 1
    if method == "rank_reorder":
        return None, 0
    n = min(PMI[method][0], len(P))
    top, store = Q.topk(n, dim=0).indices.T.int().contiguous(), torch.empty(min(512, len(P)), P.shape[1])
    shares = P[:, :WIDTH].exp().contiguous()
    some, out = torch.full((n,), 0.5), torch.empty(Q.shape[1], shares.shape[1])

    def work():
        for _ in range(0, P.shape[1], WIDTH):
            products(shares, top, some, some, out)
        for start in range(0, len(P), len(store)):
            rows = P[start : start + len(store)]
            torch.exp(rows, out=store[: len(rows)])

    return work, 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    parser.add_argument("--repeats", type=int, default=5)
    methods = [*FORMS, *PMI, "rank_reorder"]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    Table.options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        ctypes.CDLL(None).mallopt(-3, 2**25)  # temporaries up to 32 MB are reused, ours and the release's
    except (AttributeError, OSError):
        pass
    table = Table(args, ["N", "M", "K", "similarity"])
    for N, M, K in SHAPES[: args.shapes]:
        lacking = [method for method in args.methods if table.lacks(N, M, K, method)]
        if not lacking:
            continue
        I, T, Q = inputs(N, M, K, 512, "cpu")
        P, embeddings = I @ T.T, FactoredMatrix(I, T)
        for method in lacking:
            if not table.lacks(N, M, K, method):
                continue
            units = min(K, 2) if method == "rank_reorder" and N * M > 1e6 else K
            function, must = SIMILARITIES[method], bound(method, P, Q)[0]
            calls = {
                "released": lambda: released(method, P, Q, units),
                "ours": lambda: function(P, Q),
                "made": lambda: function(embeddings, Q),
                "I T'": lambda: I @ T.T,
            } | ({"bound": must} if must else {})
            taken, found, times = {name: [] for name in calls}, {}, {}
            for repeat in range(args.repeats + 1):
                for name, call in calls.items():
                    seconds, found[name] = processor_seconds(call, times.get(name, 1))
                    if not repeat:  # the first calls warm up
                        seconds, _ = processor_seconds(call, 1)
                        times[name] = max(1, round(SHORTEST / max(seconds, 1e-5)))
                        continue
                    taken[name].append(seconds * (K / units if name == "released" else 1))
            least = {name: min(values) for name, values in taken.items()}
            spread = {name: (max(some) - min(some)) / median(some) for name, some in taken.items()}
            row = {"N": N, "M": M, "K": K, "similarity": method}
            row |= {f"{name} ms": f"{1e3 * least[name]:.3g}" for name in ("released", "ours")}
            row |= {"ratio": f"{least['released'] / least['ours']:.2f}"}
            row |= {"bound ms": f"{1e3 * least['bound']:.3g}" if must else ""}
            row |= {"ours / bound": f"{least['ours'] / least['bound']:.2f}" if must else ""}
            whole = least["I T'"] + least["bound" if method in FORMS else "ours"]
            row |= {"made ms": f"{1e3 * least['made']:.3g}"}
            row |= {"made / its bound": f"{least['made'] / whole:.2f}"}
            row |= {f"spread {name}": f"{spread[name]:.2f}" for name in ("released", "ours", "made")}
            same = units == K
            off = float((found["released"] - found["ours"]).abs().max()) if same else 0
            table.add(row | {"difference": f"{off:.0e}" if same else ""})


if __name__ == "__main__":
    main()
