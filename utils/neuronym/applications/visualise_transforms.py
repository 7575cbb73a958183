"""What a picture must stand: each step of the optimiser sees it shifted, turned, larger or smaller, in crops,
under noise, so that no single grid of pixels can please the network.

Transforms   how much of each
transformed  pictures -> views of them
NONE         pictures as they are
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neuronym.common.checks import check_number


@dataclass(frozen=True)
class Transforms:
    """`jitter` as a share of the side to either side; `smallest` to `largest` share of the side that a crop
    shows, which is enlarged to the whole; `rotate` degrees to either side; `noise` sd in full scale.

    Errors: ValueError for a number outside its limits.
    """

    jitter: float = 0.06
    smallest: float = 0.8
    largest: float = 1.1
    rotate: float = 10.0
    noise: float = 0.02

    def __post_init__(self):
        check_number("jitter", self.jitter, 0, 1)
        check_number("smallest", self.smallest, 0.05, 4)
        check_number("largest", self.largest, self.smallest, 4)
        check_number("rotate", self.rotate, 0, 180)
        check_number("noise", self.noise, 0, 1)

    @property
    def moves(self) -> bool:
        """Whether a view lies elsewhere than the picture."""
        return (self.jitter, self.smallest, self.largest, self.rotate) != (0, 1, 1, 0)


NONE = Transforms(0, 1, 1, 0, 0)


def transformed(
    pictures: Tensor, views: int, transforms: Transforms, generators: Sequence[torch.Generator]
) -> Tensor:
    """`views` of each picture, one after another: [n, 3, H, W] -> [n views, 3, H, W], bilinear, mirrored
    beyond the edges.

    Each picture has a generator of its own, so that it does not matter which others are made beside it.
    """
    x = pictures.repeat_interleave(views, 0)
    if transforms.moves:
        draws = torch.cat([torch.rand(views, 6, generator=one) for one in generators])
        maps = affine_maps(draws, transforms, tuple(x.shape[2:])).to(x)
        grid = F.affine_grid(maps, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    if transforms.noise:
        noise = torch.cat([torch.randn((views, *x.shape[1:]), generator=one) for one in generators])
        x = x + noise.to(x) * transforms.noise
    return x


def affine_maps(draws: Tensor, transforms: Transforms, size: tuple[int, int]) -> Tensor:
    """Draws [n, 6] from 0 to 1 -> maps [n, 2, 3] from a view's coordinates, -1 to 1, to the picture's.

    A view of a share s of the side lies anywhere within the picture (centre up to 1 - s off the middle), and
    up to `jitter` sides further off.
    """
    side = transforms.smallest + draws[:, 0] * (transforms.largest - transforms.smallest)
    angle = torch.deg2rad((2 * draws[:, 1] - 1) * transforms.rotate)
    room = (1 - side).clamp_min(0)[:, None]
    shift = (2 * draws[:, 2:4] - 1) * (2 * transforms.jitter) + (2 * draws[:, 4:6] - 1) * room
    cos, sin = side * angle.cos(), side * angle.sin()
    ratio = size[0] / size[1]
    across = torch.stack([cos, -sin * ratio, shift[:, 0]], 1)
    down = torch.stack([sin / ratio, cos, shift[:, 1]], 1)
    return torch.stack([across, down], 1)
