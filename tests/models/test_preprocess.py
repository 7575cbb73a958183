"""neuronym.models.preprocess: values equal to openai-clip's and torchvision's, and texts that identify code,
not addresses.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.models import ResNet18_Weights

from neuronym.common.checks import openai_package
from neuronym.models import preprocess
from neuronym.models.preprocess import (
    as_input,
    AsInput,
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    Preprocess,
    preprocess_text,
    seen,
    seen_of,
)


def picture(width=43, height=31, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def test_equals_openai_clip():
    ours, theirs = Preprocess(24, 24, "bicubic", CLIP_MEAN, CLIP_STD), openai_package().clip._transform(24)
    for image in (picture(), picture(31, 43), picture(24, 24), picture(mode="L"), picture(7, 90)):
        assert torch.equal(ours(image), theirs(image))


def test_equals_torchvision():
    torch.testing.assert_close(
        Preprocess(256, 224)(picture()), ResNet18_Weights.IMAGENET1K_V1.transforms()(picture())
    )


def test_identity_of_size_is_kept():
    image = picture(64, 64)
    x = Preprocess(64, 64, "bicubic", HALF, HALF)(image)
    torch.testing.assert_close(x, torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1)


SIZE = 3


def by_global(image):
    return image.resize((SIZE, SIZE))


def by_closure(size):
    def preprocess(image):
        return image.resize((size, size))

    return preprocess


class Silent:
    def __call__(self, image):
        return image


def test_texts_tell_code_values_and_settings_apart(monkeypatch):
    known = [
        Preprocess(8, 8),
        Preprocess(9, 8),
        Preprocess(8, 8).__call__,
        by_global,
        by_closure(1),
        by_closure(2),
        partial(by_global, 1),
        T.Resize(3),
        T.Compose([T.Resize(3), T.ToTensor()]),
        T.Compose([T.Resize(4), T.ToTensor()]),
        T.Compose([T.Lambda(lambda x: x + 1)]),
        T.Compose([T.Lambda(lambda x: x + 2)]),
    ]
    texts = [preprocess_text(p) for p in known]
    assert len(set(texts)) == len(texts) and not any("0x" in t or "\n" in t for t in texts)
    monkeypatch.setitem(globals(), "SIZE", 4)
    assert preprocess_text(by_global) != texts[3]


def test_texts_are_the_same_in_another_process():
    code = (
        "from neuronym.common.checks import openai_package; "
        "from neuronym.models.preprocess import preprocess_text; "
        "print(preprocess_text(openai_package().clip._transform(24)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other == preprocess_text(openai_package().clip._transform(24))


def test_an_object_without_text_is_known_by_its_state_and_code():
    louder = Silent()
    louder.volume = 3
    texts = {
        preprocess_text(one)
        for one in (Silent(), louder, T.Compose([T.Resize(3), Silent()]), Silent().__call__)
    }
    assert len(texts) == 4 and preprocess_text(Silent()) in texts


def test_seen_is_what_the_crop_leaves_in_its_own_colours():
    from PIL import Image, ImageDraw

    from neuronym.models.preprocess import Preprocess, seen

    image = Image.new("RGB", (400, 400), (200, 30, 90))
    ImageDraw.Draw(image).rectangle((0, 0, 399, 20), fill=(0, 255, 0))
    shown = seen(Preprocess(256, 224), image)  # ImageNet's mean and std; 25 pixels of each side are cut off
    assert shown.size == (224, 224) and shown.getpixel((112, 0)) == (200, 30, 90)
    whole = seen(Preprocess(64, 64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), image)
    assert whole.getpixel((32, 0))[1] > 200 and whole.getpixel((32, 40)) == (200, 30, 90)


@pytest.mark.parametrize("size", [(3, 7), (64, 64), (65, 99), (375, 250), (17, 500)])
@pytest.mark.parametrize(
    "preprocess",
    [Preprocess(64, 64, "bicubic"), Preprocess(73, 64), Preprocess(33, 50), Preprocess(32, 31, "nearest")],
)
def test_values_are_torchvisions_to_the_bit(size, preprocess):
    from torchvision.transforms import functional as T
    from torchvision.transforms import InterpolationMode

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    resized = T.resize(image, preprocess.resize, InterpolationMode(preprocess.interpolation))
    wanted = T.to_tensor(T.center_crop(resized, preprocess.crop))
    assert torch.equal(preprocess(image), T.normalize(wanted, preprocess.mean, preprocess.std))


@pytest.mark.parametrize(
    "mode, shown",
    [("L", (118, 118, 118)), ("RGB", (200, 100, 0)), ("RGBA", (200, 100, 0)), ("LA", (118,) * 3)],
)
def test_what_is_seen_of_one_to_four_channels(mode, shown):
    from torchvision import transforms as T

    count = len(Image.new(mode, (1, 1)).getbands())
    half = T.Normalize([0.5] * count, [0.25] * count)
    way = T.Compose([T.Lambda(lambda image: image.convert(mode)), T.Resize((28, 28)), T.ToTensor(), half])
    seen_one = seen(way, Image.new("RGB", (40, 40), (200, 100, 0)))
    assert seen_one.mode == "RGB" and seen_one.size == (28, 28) and seen_one.getpixel((3, 3)) == shown
    assert seen_of(way, 40) == (0, 0, 40, 40)


def test_what_is_seen_where_black_and_white_are_one():
    def edges(image):
        x = torch.from_numpy(np.array(image.convert("L"))).float()
        return (x[:, 1:] - x[:, :-1]).abs()[None]

    picture = Image.fromarray(np.repeat(np.uint8([[0, 0, 90, 90]]), 3, 0)).convert("RGB")
    assert [seen(edges, picture).getpixel((i, 1)) for i in range(3)] == [(0,) * 3, (255,) * 3, (0,) * 3]


class Batch(dict):
    """As Hugging Face's BatchFeature: a table that is no plain one."""


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(3, 4, 5),
        torch.ones(1, 3, 4, 5),
        np.ones((3, 4, 5), np.float32),
        np.ones((1, 3, 4, 5), np.uint8),
        [np.ones((3, 4, 5))],
        {"pixel_values": torch.ones(1, 3, 4, 5), "pixel_mask": torch.zeros(1, 4, 5)},
        Batch(pixel_values=[np.ones((3, 4, 5), np.float32)]),
        {"image": torch.ones(3, 4, 5)},
        {"other": torch.ones(3, 4, 5)},
    ],
)
def test_what_a_preprocessing_gives_becomes_a_tensor(given):
    x = AsInput(lambda image: given)(None)
    assert x.shape == (3, 4, 5) and x.is_floating_point() and bool((x == 1).all())


@pytest.mark.parametrize(
    "given, message",
    [
        (torch.ones(2, 3, 4, 5), r"got shape \(2, 3, 4, 5\)"),
        (np.ones((224, 224, 3)), r"shape \(224, 224, 3\), channels last; end it with permute"),
        (Image.new("RGB", (3, 3)), "got Image; end it with ToTensor"),
        ({"words": "a"}, "got dict with words"),
        (None, "got NoneType"),
    ],
)
def test_what_else_it_gives_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        as_input(given)


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (900, 3), (40, 4000), (331, 2)])
@pytest.mark.parametrize("numbers", [(64, 56), (64, 80), (30, 56), (64, 64)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_thin_pictures_are_resized_where_they_are_cropped(monkeypatch, size, numbers, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    one = Preprocess(*numbers, interpolation, (0, 0, 0), (1, 1, 1))
    found = []
    for limit in (2**40, 0):
        monkeypatch.setattr(preprocess, "LARGE", limit)
        found.append(one(Image.fromarray(pixels)))
    assert found[0].shape == found[1].shape == (3, numbers[1], numbers[1])
    assert float((found[0] - found[1]).abs().max()) <= 1.001 / 255


def test_thin_pictures_take_little_memory():
    resized, resize = [], Image.Image.resize

    def noted(self, size, *more):
        resized.append(size)
        return resize(self, size, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", noted)
        Preprocess(256, 224)(Image.new("RGB", (40_000, 1)))
    assert resized == [(224, 224)]
