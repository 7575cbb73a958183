"""Preprocessing with an identity: from a PIL picture to a tensor, and the text that stands for it in a cache's spec.

Preprocess   short side, centre crop, mean and standard deviation
describe     canonical text of any preprocessing, free of memory addresses
seen         the picture that is left of an image after it: cropped and scaled as the network gets it
"""
from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from neuronym.models.weights import ADDRESS, digest, source_of

IMAGENET_MEAN, IMAGENET_STD = (.485, .456, .406), (.229, .224, .225)
CLIP_MEAN, CLIP_STD = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)
HALF = (.5, .5, .5)


@dataclass(frozen=True)
class Preprocess:
    """PIL picture -> [3, crop, crop]: short side to `resize`, centre crop, values to [0, 1], minus mean, by std."""
    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as T

        image = T.resize(image.convert("RGB"), self.resize, InterpolationMode(self.interpolation))
        return T.normalize(T.to_tensor(T.center_crop(image, self.crop)), self.mean, self.std)


def describe(preprocess: Callable) -> str:
    """Canonical one-line text of a preprocessing: the same in every process, different when its code is.

    Functions count by qualified name and code. Errors: ValueError for an object that prints nothing but its address.
    """
    steps = getattr(preprocess, "transforms", None)
    if isinstance(steps, (list, tuple)):
        return f"{type(preprocess).__name__}({', '.join(describe(step) for step in steps)})"
    if hasattr(preprocess, "lambd"):
        return f"{type(preprocess).__name__}({describe(preprocess.lambd)})"
    if isinstance(preprocess, partial):
        return f"partial({describe(preprocess.func)}, {preprocess.args}, {preprocess.keywords})"
    if inspect.ismethod(preprocess):
        return f"{describe(preprocess.__self__)}.{describe(preprocess.__func__)}"
    if inspect.isroutine(preprocess):
        return f"{preprocess.__module__}.{preprocess.__qualname__}#{digest(source_of(preprocess))[:8]}"
    if type(preprocess).__repr__ is object.__repr__:
        raise ValueError("a preprocessing must have a text that tells it from others, got "
                         f"{type(preprocess).__name__}, which prints only its address; use torchvision transforms, a "
                         "function, or give its class a __repr__")
    return ADDRESS.sub("", re.sub(r"\s+", " ", repr(preprocess)))


def seen(preprocess: Callable[[Image.Image], Tensor], image: Image.Image) -> Image.Image:
    """The image as the network gets it, for any preprocessing that ends in a scale and a shift per channel.

    What it makes of black and of white pictures of the same size tells scale and shift, so they can be undone.
    """
    x, black, white = (preprocess(Image.new("RGB", image.size, c) if c else image).float() for c in (None, "#000000", "#ffffff"))
    span = white - black
    values = (x - black) / span.where(span.abs() > 1e-6, torch.ones_like(span))
    return Image.fromarray((values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
