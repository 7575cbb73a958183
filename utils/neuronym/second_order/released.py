"""What released code does otherwise, made on purpose, so that its effect can be measured.

with_plain_gelu   a CLIP whose text tower has GELU where it was trained with QuickGELU (second_order_lens, text scripts)
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn, Tensor

from neuronym.models.clips import Clip
from neuronym.models.weights import digest

IMAGE_PARTS = ("visual", "vision_model")


def with_plain_gelu(clip: Clip) -> Clip:
    """The same CLIP, texts embedded with GELU in place of QuickGELU; images as they were. ValueError if it has none."""
    places = [] if clip.model is None else [name for name, part in clip.model.named_modules()
                                            if "QuickGELU" in type(part).__name__ and name.split(".")[0] not in IMAGE_PARTS]
    if not places:
        raise ValueError(f"plain GELU can only take the place of QuickGELU, which the text tower of clip '{clip.name}' lacks")

    def encode_text(texts: Sequence[str]) -> Tensor:
        with _swapped(clip.model, places):
            return clip.encode_text(texts)

    return replace(clip, encode_text=encode_text, text_key=digest(clip.text_key, "plain GELU"))


@contextmanager
def _swapped(model: nn.Module, places: Sequence[str]) -> Iterator[None]:
    """GELU at the given places of the model, for the block."""
    parents = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in places}
    before = {name: model.get_submodule(name) for name in places}
    try:
        for parent, child in parents.values():
            setattr(parent, child, nn.GELU())
        yield
    finally:
        for name, (parent, child) in parents.items():
            setattr(parent, child, before[name])
