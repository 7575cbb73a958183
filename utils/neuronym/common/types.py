"""What all rooms speak of: a network, a CLIP, a box, a device, what shows progress and what answers.

Box       left, top, right, bottom in pixels; right and bottom are the first ones outside
Target    a network whose neurons are to be named
Clip      an image-text model
Device    where something is computed; None for where the model is
Progress  (items, their number, what they are) -> the items, shown as they pass
Answer    what a model gave: its text, what it cost, and why it is none
Ask       messages and settings -> Answer
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn, Tensor

Box = tuple[int, int, int, int]


@dataclass
class Target:
    """A network whose neurons are to be named; `layers` are suggestions, the last one its output layer."""

    name: str
    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]  # PIL RGB -> [3, H, W]
    preprocess_spec: str
    classes: list[str] | None  # names of the output layer's units
    weights_key: str  # stands for all that the network computes: weights, structure, code
    layers: tuple[str, ...]
    example: Tensor  # [1, C, H, W]
    layouts: dict[str, str] = field(default_factory=dict)  # what the user said (`layouts.layouts_from`)
    channels_last: bool = True  # whether pictures may pass in that order of memory, faster on CPUs
    trial: Any = None  # what a few passes told (`trials.Trial`), so that they are not run again


@dataclass
class Clip:
    """An image-text model. Embeddings are unit rows, float32, on the model's device, independent of batch and
    order.

    Texts longer than the tower's context are cut at its end, the end token kept; the microworld's are
    refused.
    """

    name: str
    encode_image: Callable[[Tensor], Tensor]  # [n, 3, H, W] -> [n, d]
    encode_text: Callable[[Sequence[str]], Tensor]  # m texts -> [m, d]
    preprocess: Callable[[Image.Image], Tensor]  # PIL RGB -> [3, H, W]
    preprocess_spec: str
    weights_key: str  # the image side: weights, structure, code
    text_key: str  # the text side, with its tokenizer
    d: int
    logit_scale: float
    activation: str  # "QuickGELU", "GELU" or "-"
    model: nn.Module | None
    channels_last: bool = True  # as of a Target
    reads: Callable[[str], str] = str  # a text -> what of it the tower understands, "" where it says nothing


class Answer(NamedTuple):
    """What a model gave; tokens are None where nobody counted them.

    `fault` says why it is no answer: "cut" at its last token or inside a thought, "empty", "refused" by the
    model or "filtered" by its server; "" for an answer. `sent` tells what of the request the server took
    only otherwise: {"seed": "left out"}.
    """

    text: str
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    fault: str = ""
    sent: dict[str, str] | None = None


Device = str | torch.device | None
Progress = Callable[[Iterable, int, str], Iterable]
Ask = Callable[..., Answer]
