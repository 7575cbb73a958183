"""Orthogonal matching pursuit over many units at once: which few words make up each direction.

matching_pursuit  the words of every unit, in the order in which they are chosen
check_matrices    the inputs, or a sentence on what is wrong with them
working_dtype     float64 for float64, else float32

K units, M words (atoms), d width, m words a unit. Codes are nested: the first n columns of `order` are the code of n;
`neuronym.second_order.text_code` makes the pool and the coefficients.
"""
from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from neuronym.common.blocks import at_hand, CACHED, fit, in_threads, MEMORY, or_one, slices, whole
from neuronym.passes import Progress
from neuronym.second_order.screening import Atoms, best_atoms, BLOCK, coarse_dtype, screened

GROUP = 192   # units of one product: more make products hardly faster


@torch.no_grad()
def matching_pursuit(R: Tensor, T: Tensor, m: int, *, memory: int = MEMORY, progress: Progress | None = None) -> Tensor:
    """Orthogonal matching pursuit (Pati 1993): R [K, d] in the atoms T [M, d] -> order [K, m], int64, of chosen atoms.

    At every step the atom of largest |t_j . residual|, not divided by |t_j|, ties by lower index; then least squares on
    all chosen. A unit ends, -1 from there on, when its residual is orthogonal to all atoms (zero among these) or the best
    atom depends on those chosen, up to rounding. `memory` bytes beside inputs and result; progress(groups, total, text)
    wraps the loop. ValueError for unequal d, m > M, inputs that are not finite.
    """
    check_matrices(R=R, T=T)
    whole("m", m, len(T), f"the pool of {len(T)} texts")
    whole("memory", memory)
    dtype, cpu = torch.promote_types(working_dtype(R), working_dtype(T)), R.device.type == "cpu"
    R, T = R.detach().to(dtype), T.detach().to(dtype)
    coarse = coarse_dtype(dtype, R.device)
    M, d = math.ceil(len(T) / BLOCK) * BLOCK, T.shape[1]
    threads = max(1, min(torch.get_num_threads(), len(R), memory // (4 * CACHED))) if cpu else 1
    one = m * d * dtype.itemsize + M * coarse.itemsize + M // BLOCK * 32 + 80 * d
    [units] = fit(memory, (M * d * coarse.itemsize + CACHED * (threads if cpu else 8), one, len(R)))
    groups = list(slices(len(R), min(units, GROUP * threads) if cpu else units))
    atoms, order = screened(T, coarse), torch.full((len(R), m), -1, device=R.device)
    for group in groups if progress is None else progress(groups, len(groups), "matching pursuit"):
        in_threads(group.stop - group.start, threads, partial(_pursue, R[group], atoms, order[group]))
    return order


def check_matrices(**given: Tensor) -> None:
    """ValueError unless all are finite real matrices, none empty, of one width and on one device."""
    for name, X in given.items():
        if not isinstance(X, Tensor) or X.ndim != 2 or 0 in X.shape or X.is_complex():
            got = f"{X.dtype} {list(X.shape)}" if isinstance(X, Tensor) else type(X).__name__
            raise ValueError(f"expected {name} as a real torch tensor of two axes, none empty, got {got}")
        finite = X.isfinite().all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise ValueError(f"{name} must be finite, but row {row} is not; leave it out")
    if len({(X.shape[1], X.device) for X in given.values()}) > 1:
        found = ", ".join(f"{name} {list(X.shape)} on {X.device}" for name, X in given.items())
        raise ValueError(f"expected equal widths d on one device, got {found}")


def working_dtype(X: Tensor) -> torch.dtype:
    return X.dtype if X.dtype == torch.float64 else torch.float32


def _pursue(R: Tensor, atoms: Atoms, order: Tensor, share: slice) -> None:
    """The pursuit of R[share], written to order[share]; all directions and atoms are taken at norm 1."""
    (K, d), m = R[share].shape, order.shape[1]
    rows, r = torch.arange(share.start, share.stop, device=R.device), _unit(R[share])
    Q = R.new_empty(K, m, d)  # orthonormal bases of the chosen atoms
    C, tops = (atoms.coarse.new_empty(K * len(atoms.coarse) // n) for n in (1, BLOCK))
    noise = 16 * torch.finfo(R.dtype).eps  # of what should be 0, beside 1
    for n in range(m):
        left = (torch.linalg.vector_norm(r, dim=1) > noise).nonzero()[:, 0]
        if len(left) < len(rows):
            rows, r = rows[left], r[left]
            for part in slices(len(left), 16):  # in place: a basis is only ever moved down
                Q[part] = Q[left[part]]
        if not len(rows):
            return
        best = best_atoms(atoms, r, C, tops)
        t = _unit(atoms.T[best])
        q = _orthogonal(Q[:len(rows)], n, t.clone())
        norm = torch.linalg.vector_norm(q, dim=1, keepdim=True)
        ends = ((t * r).sum(1).abs() <= noise) | (norm[:, 0] <= noise * math.sqrt(d))
        order[rows, n] = best.masked_fill(ends, -1)
        q /= norm
        Q[:len(rows), n] = q
        r -= (q * r).sum(1, keepdim=True) * q
        r[ends] = 0  # so that the next step leaves these units out


def _unit(X: Tensor) -> Tensor:
    """Rows over their norms, which in float32 might overflow."""
    return (X.double() / or_one(torch.linalg.vector_norm(X, dim=1, keepdim=True, dtype=torch.float64))).to(X.dtype)


def _orthogonal(Q: Tensor, n: int, t: Tensor) -> Tensor:
    """t [U, d] less its projection on the first n of Q [U, m, d], in place: Gram-Schmidt, twice."""
    for part in slices(len(t), at_hand(Q.nbytes, Q.device, CACHED // 2) // max(1, n * t.shape[1] * t.itemsize)) if n else ():
        basis, v = Q[part, :n], t[part, None]
        for _ in range(2):
            v -= (v @ basis.mT) @ basis  # rows times matrices: columns take eight times as long
    return t
