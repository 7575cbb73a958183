"""Pictures as numbers that an optimiser can change: what it turns, and the picture that comes of it.

PictureStatistics   mean colour, colour matrix and spectrum of real pictures
picture_statistics  the same of pictures [N, 3, H, W]
AsShown             a picture in [0, 1] -> a network's input, with nothing resized or cropped
as_shown            the same, read off any preprocessing
Parametrisation     numbers to turn, what makes pictures of them, and a good step of the optimiser
pixels, fourier, maco   the three kinds
PARAMETRISATIONS    name -> kind
from_pictures       numbers of `fourier` that give pictures one has
frequencies         of a picture's discrete Fourier transform

Colours and spectrum come from the images at hand, so nothing is downloaded and pictures look like these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuronym.common.types import Target

START = 0.01  # standard deviation of what `pixels` and `fourier` begin with
RGB = 3
STEEP = 4.0  # of the squash: slope 1 in the middle, so that pictures keep their contrast


@dataclass(frozen=True, eq=False)
class PictureStatistics:
    """Of pictures in [0, 1]: mean [3], colours [3, 3] (the symmetric root of the covariance of pixels, so
    that colours @ y has it where y is white), spectrum [3, H, W // 2 + 1] (magnitudes of the decorrelated
    pictures, whose inverse transform with any phases has variance 1).
    """

    mean: Tensor
    colours: Tensor
    spectrum: Tensor


def picture_statistics(pictures: Tensor) -> PictureStatistics:
    """Colour and spectrum of pictures [N, 3, H, W] in [0, 1]; the spectrum is the mean magnitude (Fel et al.
    2023, MACO, section 3.1), without the mean of the picture, scaled to variance 1 per channel.

    Errors: ValueError unless there is a picture, in colour.
    """
    if pictures.ndim != 4 or not len(pictures) or pictures.shape[1] != RGB:
        raise ValueError(f"statistics are of pictures [N, 3, H, W], at least one, got {list(pictures.shape)}")
    mean = pictures.mean((0, 2, 3))
    centred = pictures - mean[:, None, None]
    flat = centred.transpose(0, 1).flatten(1)  # [3, N H W]
    values, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    root = values.clamp_min(1e-6).sqrt()  # grey pictures have directions without any variance
    colours = vectors * root @ vectors.T
    white = torch.einsum("ij,njhw->nihw", vectors / root @ vectors.T, centred)
    magnitude = torch.fft.rfft2(white, norm="ortho").abs().mean(0)
    magnitude[:, 0, 0] = 0
    back = _energy(magnitude, pictures.shape[3]) / (pictures.shape[2] * pictures.shape[3])
    return PictureStatistics(mean, colours, magnitude / back.clamp_min(1e-12).sqrt()[:, None, None])


@dataclass(frozen=True)
class AsShown:
    """A picture in [0, 1] as a network's input: value * scale + shift per channel, sides as they are."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    size: tuple[int, int]  # height, width

    def __call__(self, image: Image.Image) -> Tensor:
        if (image.height, image.width) != self.size:
            raise ValueError(
                f"a picture for this network has {self.size[1]} x {self.size[0]} pixels, got {image.width} x "
                f"{image.height}; resize it"
            )
        x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div(255)
        return self.input_of(x[None])[0]

    def input_of(self, pictures: Tensor) -> Tensor:
        """[n, 3, H, W] in [0, 1] -> the network's input, with gradients."""
        scale, shift = (pictures.new_tensor(values)[:, None, None] for values in (self.scale, self.shift))
        return pictures * scale + shift


def as_shown(target: Target) -> AsShown:
    """What a target's preprocessing does to values, from what it makes of black and of white.

    Errors: ValueError for a network whose input has not three channels, or is no scale and shift of them.
    """
    channels, *size = target.example.shape[1:]
    if channels != RGB:
        raise ValueError(
            f"a picture has three channels, the input of {target.name} has {channels}; wrap the network in a "
            "module that makes its input from RGB"
        )
    black, grey, white = (target.preprocess(Image.new("RGB", (size[1], size[0]), c)) for c in GREYS)
    scale, shift = white - black, black
    straight = (grey - black - scale * (128 / 255)).abs().max() <= 1e-2 * scale.abs().max()
    flat = max(float((x - x[:, :1, :1]).abs().max()) for x in (black, white)) <= 1e-4
    if not (straight and flat and bool((scale.abs() > 1e-6).all())):
        raise ValueError(
            f"pictures are made for a preprocessing that scales and shifts each channel, and that of "
            f"{target.name} does more; move its other steps into the network"
        )
    return AsShown(tuple(scale[:, 0, 0].tolist()), tuple(shift[:, 0, 0].tolist()), tuple(size))


GREYS = ("#000000", "#808080", "#ffffff")


@dataclass(frozen=True)
class Parametrisation:
    """`numbers` [n, ...] to turn, `picture` of them -> [n, 3, H, W] in [0, 1], `rate` a good step of Adam."""

    numbers: Tensor
    picture: Callable[[Tensor], Tensor]
    rate: float


def pixels(n: int, statistics: PictureStatistics, size: tuple[int, int], generator: torch.Generator):
    """Every pixel by itself, around the mean colour."""
    noise = _normal((n, RGB, *size), statistics.mean, generator) * START

    def picture(numbers: Tensor) -> Tensor:
        return squash(numbers + statistics.mean[:, None, None])

    return Parametrisation(noise, picture, 0.02)


def fourier(
    n: int,
    statistics: PictureStatistics,
    size: tuple[int, int],
    generator: torch.Generator,
    decay: float = 1.0,
):
    """Real and imaginary part of the Fourier transform of decorrelated colours, frequency f scaled by
    1 / max(f, 1 / max(H, W)) ** decay (Olah et al. 2017, "preconditioning"): numbers [n, 3, H, W // 2 + 1,
    2].
    """
    scale = fourier_scale(size, decay).to(statistics.mean)
    numbers = _normal((n, RGB, *scale.shape, 2), statistics.mean, generator) * START

    def picture(numbers: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(numbers.contiguous()) * scale
        return _recoloured(torch.fft.irfft2(spectrum, s=size, norm="ortho"), statistics)

    return Parametrisation(numbers, picture, 0.02)


def maco(n: int, statistics: PictureStatistics, size: tuple[int, int], generator: torch.Generator):
    """The phase alone, the magnitude is that of real pictures (Fel et al. 2023): numbers [n, 3, H, W // 2 +
    1] in radians.
    """
    shape = (n, *statistics.spectrum.shape)
    phase = torch.rand(shape, generator=generator).to(statistics.mean) * (2 * torch.pi)

    def picture(numbers: Tensor) -> Tensor:
        spectrum = torch.polar(statistics.spectrum.expand_as(numbers), numbers)
        return _recoloured(torch.fft.irfft2(spectrum, s=size, norm="ortho"), statistics)

    return Parametrisation(phase, picture, 0.1)


PARAMETRISATIONS = {"pixels": pixels, "fourier": fourier, "maco": maco}


def from_pictures(pictures: Tensor, statistics: PictureStatistics, decay: float = 1.0) -> Tensor:
    """Numbers of `fourier` that give the pictures [n, 3, H, W] in [0, 1] back, but for values within .01 of
    black and white.
    """
    size = tuple(pictures.shape[2:])
    x = torch.logit(pictures.clamp(0.01, 0.99)) / STEEP + 0.5 - statistics.mean[:, None, None]
    white = torch.einsum("ij,njhw->nihw", torch.linalg.inv(statistics.colours), x)
    spectrum = torch.fft.rfft2(white, norm="ortho") / fourier_scale(size, decay).to(x)
    return torch.view_as_real(spectrum).contiguous()


def frequencies(size: tuple[int, int]) -> Tensor:
    """Length of the frequency, in cycles a pixel, of each entry of rfft2: [H, W // 2 + 1]."""
    vertical, horizontal = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])
    return (vertical.square() + horizontal.square()).sqrt()


def fourier_scale(size: tuple[int, int], decay: float) -> Tensor:
    """1 / max(f, 1 / max(H, W)) ** decay of every frequency f: [H, W // 2 + 1]."""
    return frequencies(size).clamp_min(1 / max(size)).pow(-decay)


def squash(x: Tensor) -> Tensor:
    """Into (0, 1), .5 to .5 with slope 1 there: 1 / (1 + exp(-4 (x - .5)))."""
    return torch.sigmoid(STEEP * (x - 0.5))


def _recoloured(white: Tensor, statistics: PictureStatistics) -> Tensor:
    """Decorrelated pictures [n, 3, H, W] in the colours of real ones."""
    coloured = torch.einsum("ij,njhw->nihw", statistics.colours, white)
    return squash(coloured + statistics.mean[:, None, None])


def _energy(magnitude: Tensor, width: int) -> Tensor:
    """Sum of squares over the whole spectrum of which rfft2 keeps half: [3, H, W // 2 + 1] -> [3]."""
    twice = torch.full((magnitude.shape[2],), 2.0, dtype=magnitude.dtype)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    return (magnitude.square() * twice.to(magnitude.device)).sum((1, 2))


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(like)
