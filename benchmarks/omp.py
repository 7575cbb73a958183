"""How much faster, and in how much memory, is matching pursuit over many units than scikit-learn's, unit by
unit?

    python benchmarks/omp.py [--words 10000 30000] [--m 32 128] [--K 384] [--d 512] [--subset 2] [--device
    cpu] [--csv FILE]

For each size, in one run: milliseconds a unit of `matching_pursuit` and of `coefficients`, for K units at
once; seconds a unit of SparseCoder(transform_algorithm="omp") for a few units, and of the Gram matrix of the
words that it makes at each call; the ratios, with the Gram matrix shared among all units of a layer (3,072)
and among the few that were timed. Most of SparseCoder's time goes into a copy of the Gram matrix for each
unit, so the function behind it, orthogonal_mp_gram, is timed for a unit without the copy as well (which
spoils the matrix for the next one), "alone", with its ratios. Then the peak of memory beside inputs; units
whose words differ from SparseCoder's; and the share of a residual's norm that is left.
--subset 0 leaves scikit-learn out. Both compute in float32, the Gram matrix is made by numpy.

The words are made up: rows whose covariance has the eigenvalues 1 / i, i = 1 ... d, in a random basis and
with a common direction, then centred and normalised by `text_pool`: the spectra of text embeddings decay
about so. Directions are normal, without regard to it. The slower the best correlations fall below the bound
of what bfloat16 loses, the fewer words are compared exactly: --decay 0 is a flat spectrum, --decay 2 one far
steeper.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from similarity import peak, seconds, write_table

from neuronym.second_order.pursuit import coarse_dtype, matching_pursuit
from neuronym.second_order.text_code import code_coefficients, reconstruct, text_pool

LAYER = 3072  # units of a layer of ViT-B


def inputs(M, K, d, decay, device):
    """Made-up words as a pool of unit norm, and directions of norm 1."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
    T = (
        torch.randn(M, d, generator=g) * torch.arange(1, d + 1) ** (-decay / 2) @ basis
        + torch.randn(d, generator=g) / d**0.5
    )
    R = torch.randn(K, d, generator=g)
    return (R / R.norm(dim=1, keepdim=True)).to(device), text_pool(T / T.norm(dim=1, keepdim=True)).to(
        device
    ) / 100


def scikit_learn(R, T, m):
    """Seconds of one Gram matrix, of a unit without a copy of it, and of all units with; and codes [K, M]."""
    from sklearn.decomposition import SparseCoder
    from sklearn.linear_model import orthogonal_mp_gram

    nothing = torch.empty(0)
    gram, G = seconds(lambda: np.dot(T, T.T), nothing, 2)
    alone, _ = seconds(
        lambda: orthogonal_mp_gram(G.T, T @ R[0], n_nonzero_coefs=m, copy_Gram=False), nothing, 1
    )
    G = None  # its memory goes
    coder = SparseCoder(T, transform_algorithm="omp", transform_n_nonzero_coefs=m)
    taken, codes = seconds(lambda: coder.transform(R), nothing, 1)
    return gram, alone, max(taken - gram, 0.0) / len(R), codes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, nargs="+", default=[10000, 30000])
    parser.add_argument("--m", type=int, nargs="+", default=[32, 128])
    sizes = {
        "K": 384,
        "d": 512,
        "subset": 2,
        "repeats": 2,
        "threads": torch.get_num_threads(),
        "memory-mib": 256,
    }
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--decay", type=float, default=1, help="eigenvalues fall with this power")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from threadpoolctl import threadpool_limits

    print(
        f"K {args.K}, d {args.d}, float32, {args.device}, {args.threads} threads, memory {args.memory_mib} "
        "MiB, "
        f"eigenvalues i^-{args.decay:g}; coarse products in "
        f"{str(coarse_dtype(torch.float32, torch.device(args.device)))[6:]}; scikit-learn on {args.subset} "
        "units"
    )
    print(
        f"{'words':>6}{'m':>5}{'pursuit':>10}{'coeffs':>8}{'sklearn':>9}{'alone':>8}{'Gram':>8}"
        f"{'ratio: layer':>14}{'subset':>8}"
        f"{'alone: layer':>14}{'subset':>8}{'MiB':>6}{'sklearn':>9}{'differ':>8}{'left':>7}"
    )
    table = []
    for M in args.words:
        R, T = inputs(M, args.K, args.d, args.decay, args.device)
        for m in args.m:

            def pursue():
                return seconds(
                    lambda: matching_pursuit(R, T, m, memory=args.memory_mib * 2**20), R, args.repeats
                )

            mib, (ours, order) = peak(pursue, R)
            more, gamma = seconds(lambda: code_coefficients(R, T, order), R, args.repeats)
            left = float(((R - reconstruct(gamma, order, T)).norm(dim=1) / R.norm(dim=1)).mean())
            gram = alone = theirs = its = math.nan
            differ, unit = "", (ours + more) / args.K
            if args.subset:
                few, words = R[: args.subset].cpu().numpy(), T.cpu().numpy()
                with threadpool_limits(args.threads):
                    its, (gram, alone, theirs, codes) = peak(
                        lambda: scikit_learn(few, words, m), torch.empty(0)
                    )
                differ = sum(set(row) != {*np.flatnonzero(code)} for row, code in zip(order.tolist(), codes))
            ratios = [
                (one + gram / among) / unit
                for one in (theirs, alone)
                for among in (LAYER, max(1, args.subset))
            ]
            print(
                f"{M:6}{m:5}{ours / args.K * 1e3:8.2f}ms{more / args.K * 1e3:6.2f}ms{theirs:8.2f}s"
                f"{alone:7.2f}s{gram:7.2f}s"
                f"{ratios[0]:13.0f}x{ratios[1]:7.0f}x{ratios[2]:13.0f}x{ratios[3]:7.0f}x{mib:6.0f}{its:9.0f}{differ:>8}"
                f"{left:7.3f}",
                flush=True,
            )
            row = {"words": M, "m": m, "ms a unit": f"{1e3 * unit:.1f}", "MiB": f"{mib:.0f}"}
            row |= {"SparseCoder s": f"{theirs:.2f}", "ratio SparseCoder": f"{ratios[0]:.0f}"}
            row |= {"orthogonal_mp_gram s": f"{alone:.2f}", "ratio orthogonal_mp_gram": f"{ratios[2]:.0f}"}
            table.append(row | {"MiB scikit-learn": f"{its:.0f}"})
    write_table(table, args.csv)


if __name__ == "__main__":
    main()
