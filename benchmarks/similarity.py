"""How much faster, and in how much memory, are the similarity functions than literal loops over units?

    python benchmarks/similarity.py [--N 2000] [--M 5000] [--K 128] [--d 512] [--repeats 3] [--device cpu]

For each function, in one run: seconds of the literal loop over units with P at hand, of `score` with P at hand, and of
`score_embeddings`; the ratios loop / score, and loop with making P / embeddings; largest difference of scores; units
whose label differs; and the peak of memory beside the inputs (which hold P for the first two). Compare the ratios.
"""
from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from functools import partial
from pathlib import Path

import torch

from utils.similarity import MEMORY, SIMILARITIES, score, score_embeddings


def unit_columns(X):
    return X / X.norm(dim=0, keepdim=True)


def cubed_columns(X):
    cubes = (X - X.mean(0, keepdim=True)) ** 3
    return cubes / cubes.norm(dim=0, keepdim=True).clamp(min=1e-3)


def loop_cos_similarity(P, Q):
    P = unit_columns(P)
    return torch.stack([unit_columns(q[:, None])[:, 0] @ P for q in Q.T])


def loop_cos_similarity_cubed(P, Q):
    P = cubed_columns(P)
    return torch.stack([cubed_columns(q[:, None])[:, 0] @ P for q in Q.T])


def loop_rank_reorder(P, Q):
    n, rows, generator = int(.05 * len(Q)), [], torch.Generator().manual_seed(0)
    for q in Q.T:
        a, images = q.topk(n)
        b, seen = a.flip(0), P[images]
        rank = seen.argsort(0).argsort(0)
        draws = [torch.randperm(n, generator=generator).to(b.device) for _ in range(5)]
        baseline = torch.stack([(b - b[draw]).abs() ** 3 for draw in draws]).mean()
        rows.append(-((a[:, None] - b[rank]).abs() ** 3).mean(0) / baseline / seen.mean(0) ** .5)
    return torch.stack(rows)


def loop_wpmi(P, Q):
    p = (2 * P).softmax(1)
    rows = torch.stack([(p[q.topk(28).indices] + 1e-7).log().sum(0) for q in Q.T])
    return rows - .6 * (rows.logsumexp(0) - math.log(len(rows)))


def loop_soft_wpmi(P, Q):
    p = (10 * P).softmax(1)
    trust = (.998 - torch.arange(100, device=P.device) / 100 * (.998 - .97))[:, None]
    rows = torch.stack([(1 + trust * (p[q.topk(100).indices] - 1) + 1e-7).log().sum(0) for q in Q.T])
    return rows - (rows.logsumexp(0) - math.log(len(rows)))


LOOPS = {name: globals()[f"loop_{name}"] for name in SIMILARITIES}


def inputs(args):
    generator = torch.Generator().manual_seed(0)
    I, T = (torch.randn(rows, args.d, generator=generator) for rows in (args.N, args.M))
    shared = torch.randn(args.d, generator=generator)
    I, T = ((X + shared) / (X + shared).norm(dim=1, keepdim=True) for X in (I, T))
    return [X.to(args.device) for X in (I, T, torch.randn(args.N, args.K, generator=generator))]


def seconds(call, args):
    """Shortest of the repeats."""
    shortest = math.inf
    for _ in range(args.repeats):
        start = time.perf_counter()
        call()
        if args.device != "cpu":
            torch.cuda.synchronize()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def run(method, how, P, I, T, Q, memory=MEMORY):
    if how == "loop":
        return LOOPS[method](P, Q)
    return score(P, Q, method, memory=memory) if how == "score" else score_embeddings(I, T, Q, method, memory=memory)


def peak(args, method, how, out):
    """MiB by which one call raises the largest resident (on a device: allocated) size of a process with its inputs."""
    torch.set_num_threads(args.threads)
    I, T, Q = inputs(args)
    P = None if how == "embed" else I @ T.T
    before = reset_peak(args.device)
    run(method, how, P, I, T, Q, args.memory)
    out.put((largest(args.device) - before) / 2**20)


def largest(device):
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak(device):
    """Forget the peak so far (on Linux); the size now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return largest(device)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"N": 2000, "M": 5000, "K": 128, "d": 512, "repeats": 3, "threads": 1, "memory": MEMORY}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    I, T, Q = inputs(args)
    P = I @ T.T
    making = seconds(lambda: I @ T.T, args)
    print(f"N {args.N}, M {args.M}, K {args.K}, d {args.d}, float32, {args.device}, {args.threads} threads, "
          f"memory {args.memory / 2**20:.0f} MiB; P is {P.nbytes / 2**20:.0f} MiB and takes {making:.3f} s")
    print(f"{'seconds:':21}{'loop':>8}{'score':>8}{'embed':>8}{'ratios:':>10}{'score':>8}{'embed':>8}"
          f"{'diff':>9}{'labels':>8}{'MiB: loop':>11}{'score':>7}{'embed':>7}")
    context = multiprocessing.get_context("spawn")
    for method in SIMILARITIES:
        calls = {how: partial(run, method, how, P, I, T, Q, args.memory) for how in ("loop", "score", "embed")}
        results = {how: call() for how, call in calls.items()}
        best = {how: seconds(call, args) for how, call in calls.items()}
        peaks = {}
        for how in calls:
            out = context.Queue()
            process = context.Process(target=peak, args=(args, method, how, out))
            process.start()
            peaks[how] = out.get()
            process.join()
        fast = results["score"], results["embed"]
        difference = max(float((results["loop"] - scores).abs().max()) for scores in fast)
        labels = max(int((results["loop"].argmax(1) != scores.argmax(1)).sum()) for scores in fast)
        assert labels <= args.K // 50, f"{method}: {labels} of {args.K} labels differ from the literal loop's"
        ratios = best["loop"] / best["score"], (best["loop"] + making) / best["embed"]
        print(f"{method:21}" + "".join(f"{x:8.3f}" for x in best.values()) + f"{ratios[0]:17.1f}x{ratios[1]:7.1f}x"
              f"{difference:9.0e}{labels:8d}{peaks['loop']:11.0f}{peaks['score']:7.0f}{peaks['embed']:7.0f}")


if __name__ == "__main__":
    main()
