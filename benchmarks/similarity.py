"""How much faster, and in how much memory, are the similarity functions than literal loops over units?

    python benchmarks/similarity.py [--shapes 5000x20000x512 500x1000x64:wpmi] [--d 512]
                                    [--memory-mib 512] [--device cpu] [--csv FILE [--resume]] [--minutes M]

For each shape N x M x K and each function, or those named behind the shape, in one run: seconds of the
literal loop over units, of `score` with the same matrix P, and of `score_embeddings`, which makes P in blocks
(the loop is charged for making P once); the ratios; the largest difference of scores, and units whose label
differs; the peak of memory beside inputs; and the roofline: the least time that memory, cache or matrix
products need at the rates measured in this run, and the share of it that `score` reaches. A loop over many
units is timed on some of them, evenly spread, and scaled up; which is stated. Seconds are the processor's on
one thread, which other work on the machine hardly moves, with more --threads those of a clock; the least of
the repeats. Compare ratios, not seconds. --csv writes the table to a file, for `make docs`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from neuronym.common.memory import CACHED
from neuronym.similarity.scores import score, score_embeddings

LONG = 5  # seconds of a call that is not repeated
TOP = {"wpmi": 28, "soft_wpmi": 100}
SHAPES = ["5000x20000x512"]


def unit_columns(X):
    return X / X.norm(dim=0, keepdim=True)


def cubed_columns(X, least=1e-3):
    cubes = (X - X.mean(0, keepdim=True)) ** 3
    return cubes / cubes.norm(dim=0, keepdim=True).clamp(min=least)


def centred_columns(x):
    return unit_columns(x - x.mean(0))


# Literal loops: prepare(P) once, unit(prepared, q, generator) for each unit, finish(rows) once.


def reordered(P, q, generator):
    n = int(0.05 * len(q))
    a, images = q.topk(n)
    b, seen = a.flip(0), P[images]
    rank = seen.argsort(dim=0, stable=True).argsort(0)  # equal values upwards from the most activated image
    draws = [torch.randperm(n, generator=generator).to(b.device) for _ in range(5)]
    baseline = torch.stack([(b - b[draw]).abs() ** 3 for draw in draws]).mean()
    return -((a[:, None] - b[rank]).abs() ** 3).mean(0) / baseline / seen.mean(0) ** 0.5


def images_of(p, q, n):
    return p.gather(0, q.topk(n).indices[:, None].expand(-1, p.shape[1]))


def softly(p, q, generator):
    trust = (0.998 - torch.arange(100, device=p.device) / 100 * (0.998 - 0.97))[:, None]
    return (1 + trust * (images_of(p, q, 100) - 1) + 1e-7).log().sum(0)


def less_prior(rows, lam):
    return rows - lam * (rows.logsumexp(0) - math.log(len(rows)))


def softened(P):
    return (P * 2 / P.std(1, correction=0).mean()).softmax(1)


def standard(X, dim=0):
    return (X - X.mean(dim, keepdim=True)) / X.std(dim, correction=0, keepdim=True)


def standardised(P):
    z, shares = standard(P), softened(standard(standard(P, 1)))
    return centred_columns(shares) + centred_columns((z / 2).exp()), centred_columns(z.clamp(max=8).exp())


def bent(q):
    u = standard(q[:, None])
    return centred_columns(u + u.clamp(min=0) ** 2 / 2)


LOOPS = {
    "cos_similarity": (unit_columns, lambda P, q, g: unit_columns(q[:, None])[:, 0] @ P, lambda rows: rows),
    "cos_similarity_cubed": (
        cubed_columns,
        lambda P, q, g: cubed_columns(q[:, None])[:, 0] @ P,
        lambda rows: rows,
    ),
    "correlation": (
        centred_columns,
        lambda P, q, g: centred_columns(q[:, None])[:, 0] @ P,
        lambda rows: rows,
    ),
    "soft_correlation": (
        lambda P: centred_columns(softened(P)),
        lambda P, q, g: centred_columns(q[:, None])[:, 0] @ P,
        lambda rows: rows,
    ),
    "combined_correlation": (
        lambda P: (centred_columns(P) + centred_columns(softened(P)), cubed_columns(P, 1e-30)),
        lambda P, q, g: (
            centred_columns(q[:, None])[:, 0] @ P[0] + cubed_columns(q[:, None], 1e-30)[:, 0] @ P[1]
        ),
        lambda rows: rows,
    ),
    "standardised_correlation": (
        standardised,
        lambda P, q, g: centred_columns(q[:, None])[:, 0] @ P[0] + bent(q)[:, 0] @ P[1],
        lambda rows: rows,
    ),
    "rank_reorder": (lambda P: P, reordered, lambda rows: rows),
    "wpmi": (
        lambda P: (2 * P).softmax(1),
        lambda p, q, g: (images_of(p, q, 28) + 1e-7).log().sum(0),
        partial(less_prior, lam=0.6),
    ),
    "soft_wpmi": (lambda P: (10 * P).softmax(1), softly, partial(less_prior, lam=1)),
}


def loop(method, P, Q, units):
    """Seconds that the literal loop takes over all units, and its rows for the given ones, before
    `finish`.
    """
    prepare, unit, _ = LOOPS[method]
    clock = clock_for(P)
    generator, start = torch.Generator().manual_seed(0), clock()
    prepared = prepare(P)
    synchronize(P)
    between = clock()
    rows = torch.stack([unit(prepared, Q[:, k], generator) for k in units])
    synchronize(P)
    return between - start + (clock() - between) * Q.shape[1] / len(units), rows


def clock_for(X):
    """Of the processor where one thread works, else of the wall."""
    return time.perf_counter if X.is_cuda or torch.get_num_threads() > 1 else time.process_time


def synchronize(X):
    if X.is_cuda:
        torch.cuda.synchronize()


def seconds(call, X, repeats):
    """Shortest of the repeats, and the last result."""
    shortest, clock = math.inf, clock_for(X)
    for _ in range(repeats):
        start = clock()
        result = call()
        synchronize(X)
        shortest = min(shortest, clock() - start)
    return shortest, result


def peak(call, X):
    """MiB by which a call raises the largest resident (on a device: allocated) size, and its result."""
    gc.collect()
    if X.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        result = call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20, result
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed goes back to the system ...
        Path("/proc/self/clear_refs").write_text("5")  # ... and the peak so far is forgotten
    except (AttributeError, OSError):
        return math.nan, call()
    before = resident()
    result = call()
    return (resident() - before) / 2**10, result


def resident():
    """Largest resident size, KiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def write_table(rows, file):
    """Rows, whose numbers are texts with the digits to be printed, as a CSV file where one is asked for."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(file, index=False)


class Table:
    """Rows that are written as they are found: with --resume a command goes on where it was stopped, with
    --minutes it stops by itself.
    """

    def __init__(self, args, keys):
        self.file, self.keys, self.end = args.csv, keys, time.monotonic() + 60 * args.minutes
        old = args.resume and self.file and self.file.exists()
        self.rows = pd.read_csv(self.file, dtype=str, keep_default_na=False).to_dict("records") if old else []

    @staticmethod
    def options(parser):
        parser.add_argument("--csv", type=Path, help="file for the table")
        parser.add_argument("--resume", action="store_true", help="keep the rows that the file has")
        parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after so many")

    def lacks(self, *key):
        """Whether a row is to be measured now: it is not there, and there is time."""
        have = [tuple(row[name] for name in self.keys) for row in self.rows]
        return tuple(map(str, key)) not in have and time.monotonic() < self.end

    def add(self, row):
        print(row, flush=True)
        self.rows.append({name: str(value) for name, value in row.items()})
        write_table(self.rows, self.file)


def rates(I, T, P):
    """Bytes a second read from memory and from cache, and floating-point operations a second of a matrix
    product.
    """
    hand = P.flatten()[: CACHED // 4]
    from_memory = P.nbytes / seconds(P.sum, P, 3)[0]
    from_cache = hand.nbytes / seconds(hand.sum, P, 20)[0]
    taken, _ = seconds(lambda: torch.mm(I, T.T, out=P), P, 3)
    return from_memory, from_cache, 2 * len(I) * len(T) * I.shape[1] / taken, taken


def bound(method, N, M, K, from_memory, from_cache, products):
    """Least seconds for `score`, and what sets them."""
    P, scores, Q = 4 * N * M, 4 * K * M, 4 * N * K
    moved = {"wpmi": 2 * P, "soft_wpmi": 2 * P}.get(method, P) + scores + Q
    cached = {
        **{m: 4 * K * top * M for m, top in TOP.items()},
        "rank_reorder": 16 * K * int(0.05 * N) * M,
    }.get(method, 0)
    terms = {
        "memory": moved / from_memory,
        "cache": cached / from_cache,
        "products": 2 * N * M * K / products if method.startswith("cos") else 0,
    }
    return max(terms.values()), max(terms, key=terms.get)


def inputs(N, M, K, d, device):
    """Unit rows in a cone, as CLIP's are, and normal activations."""
    generator = torch.Generator().manual_seed(0)
    I, T = (torch.randn(rows, d, generator=generator) for rows in (N, M))
    shared = torch.randn(d, generator=generator)
    I, T = ((X + shared) / (X + shared).norm(dim=1, keepdim=True) for X in (I, T))
    return [X.to(device) for X in (I, T, torch.randn(N, K, generator=generator))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"d": 512, "repeats": 2, "threads": 1, "memory-mib": 512, "loop-units": 16}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="N x M x K, and functions behind a colon")
    parser.add_argument("--device", default="cpu")
    Table.options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = Table(args, ["N", "M", "K", "similarity"])
    for shape in args.shapes:
        shape, _, chosen = shape.partition(":")
        measure(*map(int, shape.split("x")), chosen.split(",") if chosen else list(LOOPS), args, table)


def measure(N, M, K, methods, args, table):
    """Rows of one shape."""
    methods = [method for method in methods if table.lacks(N, M, K, method)]
    if not methods:
        return
    I, T, Q = inputs(N, M, K, args.d, args.device)
    P = I @ T.T
    from_memory, from_cache, products, making = rates(I, T, P)
    units = sorted({i * K // args.loop_units for i in range(args.loop_units)})
    print(
        f"N {N}, M {M}, K {K}, d {args.d}, float32, {args.device}, {args.threads} threads, memory "
        f"{args.memory_mib} MiB; loops timed on {len(units)} of {K} units\nP is {P.nbytes / 2**20:.0f} MiB "
        f"and takes {making:.2f} s; memory {from_memory / 1e9:.1f} GB/s, cache {from_cache / 1e9:.1f} GB/s, "
        f"matrix products {products / 1e9:.0f} GFLOP/s"
    )
    for method in methods:
        if not table.lacks(N, M, K, method):
            continue
        calls = {
            "score": partial(score, P, Q, method, memory=args.memory_mib * 2**20),
            "embed": partial(score_embeddings, I, T, Q, method, memory=args.memory_mib * 2**20),
        }
        score(P[:500, :40].contiguous(), Q[:500], method)  # the first call compiles
        mib, best = {}, {}
        for how, call in calls.items():
            mib[how], (best[how], _) = peak(lambda: seconds(call, P, 1), P)
            if best[how] < LONG:
                best[how] = min(best[how], seconds(call, P, args.repeats)[0])
        mib["loop"], (looped, rows) = peak(lambda: loop(method, P, Q, units), P)
        if looped < LONG:
            looped = min([looped] + [loop(method, P, Q, units)[0] for _ in range(args.repeats - 1)])
        options = {"lam": 0} if method in TOP else {}  # without the prior, rows can be compared one by one
        fast = score(P, Q, method, units=units, memory=args.memory_mib * 2**20, **options)
        if method == "rank_reorder":  # its units draw one after the other
            rows = loop(method, P, Q, range(min(8, K)))[1]
            fast = score(P, Q, method, units=range(min(8, K)), memory=args.memory_mib * 2**20)
        difference, labels = float((rows - fast).abs().max()), int((rows.argmax(1) != fast.argmax(1)).sum())
        least, by = bound(method, N, M, K, from_memory, from_cache, products)
        seconds_of = {"loop s": looped, "score s": best["score"], "made s": best["embed"]}
        ratios = {"ratio": looped / best["score"], "ratio made": (looped + making) / best["embed"]}
        sizes_of = {"MiB loop": mib["loop"], "MiB score": mib["score"], "MiB made": mib["embed"]}
        row = {"N": N, "M": M, "K": K, "similarity": method}
        row |= {name: f"{value:.3g}" for name, value in seconds_of.items()}
        row |= {name: f"{value:.1f}" for name, value in ratios.items()}
        row |= {name: f"{value:.0f}" for name, value in sizes_of.items()}
        row |= {"difference": f"{difference:.0e}", "labels": labels, "of": len(rows)}
        table.add(row | {"least s": f"{least:.2g}", "by": by})


if __name__ == "__main__":
    main()
