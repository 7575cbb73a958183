"""Some of many, spread evenly, so that what stands in order (folders, classes, layers) is in every part.

evenly_spaced  n of N
split_evenly   two parts: most for naming, a share held out
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def evenly_spaced(n: int, N: int) -> list[int]:
    """n of the numbers 0 .. N - 1 at even steps, ascending, the first of them 0.

    Errors: ValueError unless n is from 0 to N.
    """
    if not 0 <= n <= N:
        raise ValueError(f"n of N are chosen, n from 0 to {N}, got {n}")
    return [i * N // n for i in range(n)]


def split_evenly(N: int, share: float) -> tuple[Tensor, Tensor]:
    """Indices of the images for naming and of the `share` held out, which are spread evenly over all N.

    Errors: ValueError when either part would be empty.
    """
    import torch  # here: names and paths are checked before it is imported

    if not 0 < share < 1 or not 1 <= (n := round(N * share)) < N:
        raise ValueError(
            "a share of the images, above 0 and below 1, is held out and leaves both parts some, got "
            f"{share} "
            f"of {N} images"
        )
    held = torch.zeros(N, dtype=torch.bool)
    held[evenly_spaced(n, N)] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)
