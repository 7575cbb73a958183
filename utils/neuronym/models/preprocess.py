"""From a PIL picture to a network's input: the text that identifies a preprocessing, and which part is seen.

Preprocess       short side, centre crop, mean and standard deviation
MICRO            that of the microworld's networks
AsInput          any preprocessing, with what it gives as a tensor [C, H, W]
as_input         what a preprocessing gives -> Tensor [C, H, W]
preprocess_text  canonical text of any preprocessing, free of memory addresses: part of a cache's key
seen             what a network sees of a picture, as a picture
seen_of          the same as a box, measured: where a preprocessing takes its pixels from
seen_mask        the same of a true mask
fit_mask         a true mask cropped and scaled to given sizes
sides_of         height and width of a size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuronym.common.checks import check_positive_int
from neuronym.common.types import Box
from neuronym.models.identity import identity_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
LARGE = 2**22  # pixels of a resized picture above which only what the crop leaves is made
SIZE = 375  # of a picture that is cropped, in pixels
PICTURES = ("pixel_values", "image", "images", "input", "x")  # where a table has the picture
MOST_CHANNELS = 4  # of a picture in a table or array, told from its sides


@dataclass(frozen=True)
class Preprocess:
    """PIL picture -> [3, crop, crop]: short side to `resize`, centre crop, values to [0, 1], minus mean, by
    std; to the bit what torchvision's functions give, whose import takes two seconds.

    Of a picture so thin that it would have more than LARGE pixels in between (1 x 4,000 pixels would be 256 x
    1,024,000), only the part that the crop leaves is resized: the same values, within a grey level.
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, image: Image.Image) -> Tensor:
        image = image.convert("RGB")
        size = tuple(int(self.resize * side / min(image.size)) for side in image.size)
        left, top = (int(round((side - self.crop) / 2)) for side in size)
        filtered = Image.Resampling[self.interpolation.upper()]
        if size != image.size and size[0] * size[1] > LARGE:
            image, left, top = _resized_part(image, size, filtered, (left, top), self.crop)
        elif size != image.size:
            image = image.resize(size, filtered)
        image = image.crop((left, top, left + self.crop, top + self.crop))  # black beyond the edges
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return x.sub_(mean).div_(std)


def _resized_part(
    image: Image.Image, size: tuple[int, int], filtered: int, corner: tuple[int, int], crop: int
) -> tuple[Image.Image, int, int]:
    """What of image.resize(size) lies in the crop of side `crop` at `corner`, and the crop's corner in it."""
    inside, edges, left_out = [], [], []
    for start, side, old in zip(corner, size, image.size):
        low, high = max(0, start), min(side, start + crop)
        scale = old / side
        reach = int(4 * max(scale, 1)) + 1  # pixels that a filter reads beyond the edge, at the most
        first = max(0, int(low * scale) - reach)
        last = min(old, int(high * scale) + 1 + reach)
        inside.append((first, last))
        edges.append((low * scale - first, min(high * scale, old) - first, high - low))
        left_out.append(start - low)
    (left, right), (top, bottom) = inside
    part = image.crop((left, top, right, bottom))  # so that numbers of single precision are exact enough
    (x0, x1, width), (y0, y1, height) = edges
    return part.resize((width, height), filtered, (x0, y0, x1, y1)), *left_out


MICRO_SIZE = 64
MICRO = Preprocess(MICRO_SIZE, MICRO_SIZE, "bicubic", HALF, HALF)


@dataclass(frozen=True)
class AsInput:
    """A preprocessing of any kind as one that gives a tensor [C, H, W]."""

    inner: Callable[[Image.Image], object]

    def __call__(self, image: Image.Image) -> Tensor:
        return as_input(self.inner(image))


def as_input(given: object) -> Tensor:
    """What a preprocessing gives as a tensor [C, H, W]: of a table its pixel_values, of a batch of one its
    picture; arrays become tensors.

    Errors: ValueError for anything else.
    """
    x = given
    if hasattr(x, "keys"):
        found = [key for key in PICTURES if key in x] or [
            k for k in x if isinstance(x[k], Tensor | np.ndarray)
        ]
        x = x[found[0]] if found else x
    if isinstance(x, list | tuple) and len(x) == 1:
        x = x[0]
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        x = torch.from_numpy(np.ascontiguousarray(x))
    if isinstance(x, Tensor) and x.ndim == 4 and len(x) == 1:
        x = x[0]
    if not isinstance(x, Tensor) or x.ndim != 3:
        what = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        keys = f" with {', '.join(map(str, x))}" if hasattr(x, "keys") else ""
        raise ValueError(f"a preprocess gives a Tensor [C, H, W], got {what}{keys}; end it with ToTensor()")
    if x.shape[0] > MOST_CHANNELS >= x.shape[2]:
        raise ValueError(
            f"a preprocess gives a Tensor [C, H, W], got shape {tuple(x.shape)}, channels last; end it with "
            "permute(2, 0, 1)"
        )
    return x if x.is_floating_point() else x.float()


def preprocess_text(preprocess: Callable) -> str:
    """One line that stands for a preprocessing in a cache's spec: our own by its numbers, any other by its
    name and a hash of its code, its state and all that these read (`neuronym.models.identity`).

    A preprocessing that holds what cannot be identified (an open file, a lock) has another text in every
    process.
    """
    if type(preprocess) is AsInput:
        preprocess = preprocess.inner
    if type(preprocess) is Preprocess:
        return repr(preprocess)
    name = getattr(preprocess, "__qualname__", None) or type(preprocess).__qualname__
    return f"{name.replace('<', '').replace('>', '')} {identity_of(preprocess, f'the preprocessing {name}')}"


def seen(
    preprocess: Callable[[Image.Image], Tensor],
    image: Image.Image,
    ends: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = None,
) -> Image.Image:
    """The image as the network gets it, in RGB, for any preprocessing that ends in a scale and a shift per
    channel: of more than three channels the first three, of fewer the first in grey.

    What it makes of black and of white pictures of the same size tells scale and shift, so they can be
    undone. Where it makes the same of both (a depth, edges), the values go from their least to their largest.
    `ends` keeps what becomes of black and white for each size, where many pictures are looked at.
    """
    kept = {} if ends is None else ends
    if image.size not in kept:
        plain = (Image.new("RGB", image.size, colour) for colour in ("#000000", "#ffffff"))
        kept[image.size] = tuple(preprocess(one).float() for one in plain)
    x, (black, white) = preprocess(image).float(), kept[image.size]
    count = 3 if len(x) > 2 else 1
    x, span, black = x[:count], (white - black)[:count], black[:count]
    if bool((span.abs() > 1e-6).any()):
        values = (x - black) / span.where(span.abs() > 1e-6, torch.ones_like(span))
    else:
        values = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6)
    shown = (values.clamp(0, 1) * 255).round().byte().expand(3, -1, -1)
    return Image.fromarray(shown.permute(1, 2, 0).cpu().numpy())


def seen_of(preprocess: Callable[[Image.Image], Tensor], size: int = SIZE) -> Box:
    """The part of a picture of size x size that a preprocessing leaves, from what becomes of two ramps of
    grey.

    Errors: ValueError unless it resizes and crops, so that columns and rows stay in line and evenly spaced.
    """
    black, white = (
        preprocess(Image.new("RGB", (size, size), grey)).double() for grey in ("#000000", "#ffffff")
    )
    # rows differ by up to one grey level, so that the rounding of pixels averages out
    ramp = (np.linspace(0, 254, size) + np.linspace(0, 1, size)[:, None]).round().astype(np.uint8)
    sides = []
    for axis, grey in ((1, ramp), (0, ramp.T)):
        x = preprocess(Image.fromarray(np.ascontiguousarray(grey)).convert("RGB")).double()
        tells = ((white - black).abs() > 1e-6).flatten(1).all(1)  # not a channel that is full or empty
        level = ((x - black) / (white - black))[tells].mean((0, 2 - axis)).numpy() * 255  # [w] or [h]
        place = (level - 0.5) / 254 * (size - 1)  # the column or row of the picture that is there
        steps, inner = (
            np.arange(len(place)),
            slice(len(place) // 8, len(place) - len(place) // 8),
        )  # filters blur rims
        fits = len(steps) > 1 and np.isfinite(place).all()
        slope, start = np.polyfit(steps[inner], place[inner], 1) if fits else (0.0, 0.0)
        if slope <= 0 or np.abs(start + slope * steps - place)[inner].max() > max(2, slope):
            raise ValueError(
                "field 'seen' is where a preprocessing takes its pixels from, and this one does not only "
                "resize and crop; pass field='whole'"
            )
        sides.append([round(start + slope * end + 0.5) for end in (-0.5, len(place) - 0.5)])
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def seen_mask(preprocess: Callable[[Image.Image], Tensor], mask: np.ndarray) -> np.ndarray:
    """A true mask [h, w] of a picture as the network sees it: `fit_mask` by the sizes that the preprocessing
    tells. Where it tells none, or changes nothing, the whole mask.

    The sizes are read, not measured as in `seen_of`, which may be a pixel off: labels must not be.
    """
    resize, crop = _told_sizes(preprocess)
    if crop is None or (mask.shape[0] == mask.shape[1] and resize == crop):
        return mask
    return fit_mask(mask, crop, resize).numpy()


def fit_mask(mask: np.ndarray | Tensor, size: int | tuple[int, int], resize: int | None = None) -> Tensor:
    """A mask [h, w] as a network sees its picture -> bool [H, W]; labels by nearest neighbour, never mixed.

    An int is the geometry of `Preprocess(resize, crop)`: short side to `resize` (default: size, as CLIP
    does), the long side in proportion, then the central size x size; what the crop cuts off a long photo
    counts in no metric. (H, W) stretches the whole mask instead, as the released evaluation does with labels,
    though it crops the pictures.
    """
    from torchvision.transforms import functional as T
    from torchvision.transforms import InterpolationMode

    labels = torch.as_tensor(mask)
    if labels.ndim != 2 or not labels.numel():
        raise ValueError(f"expected a mask [h, w], not empty, got {list(labels.shape)}")
    height, width = sides_of(size)
    picture = Image.fromarray((labels != 0).byte().cpu().numpy())
    if not isinstance(size, Integral):
        if resize is not None:
            raise ValueError(
                f"resize goes with one side to crop to, got resize {resize} and size {tuple(size)}"
            )
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    else:
        check_positive_int("resize", size if resize is None else resize)
        picture = T.resize(picture, size if resize is None else resize, InterpolationMode.NEAREST)
        picture = T.center_crop(picture, size)
    return torch.from_numpy(np.array(picture, dtype=bool)).to(labels.device)


def sides_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of one side of a square, or of both; ValueError for what is neither."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size is one side of a square or (H, W), got {size}")
    for side in sides:
        check_positive_int("size", side)
    return sides


def _told_sizes(preprocess: Callable) -> tuple[int | None, int | None]:
    """Short side and central crop of a preprocessing; None and None where it does not tell both."""
    preprocess = preprocess.inner if isinstance(preprocess, AsInput) else preprocess
    steps = {
        type(step).__name__: getattr(step, "size", None)
        for step in getattr(preprocess, "transforms", None) or []
    }
    resize = getattr(preprocess, "resize", getattr(preprocess, "resize_size", steps.get("Resize")))
    crop = getattr(preprocess, "crop", getattr(preprocess, "crop_size", steps.get("CenterCrop")))
    resize = resize[0] if isinstance(resize, (list, tuple)) and len(resize) == 1 else resize
    crop = crop[0] if isinstance(crop, (list, tuple)) and len(set(crop)) == 1 else crop
    return (resize, crop) if isinstance(resize, int) and isinstance(crop, int) else (None, None)
