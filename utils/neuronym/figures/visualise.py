"""Synthesised pictures, always beside real ones.

picture_cards   for each unit its picture, where the gradient worked, its top real pictures, the columns
picture_rows    rows of pictures with names: parametrisations, or photos before and after
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from neuronym.figures.style import as_written, COLOURS, DPI

TILE, GAP, TEXT_ROOM, FOOT = (
    150,
    8,
    330,
    40,
)  # pixels: picture, space around it, texts beside it, line below all
APART = 28  # between what was made and what is real


@as_written
def picture_cards(cards: Sequence[Mapping], columns: int = 2) -> Figure:
    """A figure of cards beside and below one another: title, label, made (picture, and the same by alpha),
    real (top pictures, as many in every card) and lines of text.
    """
    reals = max(len(card["real"]) for card in cards)
    width, height = TEXT_ROOM + (2 + reals) * (TILE + GAP) + APART, TILE + 2 * GAP
    columns = min(columns, len(cards))
    rows = -(-len(cards) // columns)
    page = Image.new("RGB", (width * columns, height * rows), "white")
    fig = plt.figure(figsize=(page.width / DPI, (page.height + FOOT) / DPI))
    for i, card in enumerate(cards):
        left, top = i % columns * width, i // columns * height
        tiles = [*card["made"], *card["real"]]
        for j, tile in enumerate(tiles):
            x = left + TEXT_ROOM + j * (TILE + GAP) + (APART - GAP if j >= len(card["made"]) else 0)
            page.paste(_fitted(tile), (x, top + GAP))
        at = {"va": "top", "parse_math": False}
        x, y = (left + GAP) / page.width, 1 - (top + GAP) / (page.height + FOOT)
        line = 25 / (page.height + FOOT)
        fig.text(x, y, card["title"], fontsize=6.5, weight="bold", **at)
        fig.text(x, y - line, card["label"], fontsize=6.5, color=COLOURS[0], **at)
        for k, text in enumerate(card["lines"]):
            fig.text(x, y - (2.1 + 0.9 * k) * line, text, fontsize=5.2, color=".35", **at)
    ax = fig.add_axes((0, FOOT / (page.height + FOOT), 1, page.height / (page.height + FOOT)))
    ax.axis("off")
    ax.set_zorder(-1)
    ax.imshow(np.asarray(page.convert("RGBA")), interpolation="none", aspect="auto")
    note = (
        "left two: synthesised, and where the gradient worked; right: the real pictures that excite it most"
    )
    fig.text(
        GAP / page.width, 0.3 * FOOT / (page.height + FOOT), note, fontsize=5.5, color=".35", va="bottom"
    )
    return fig


@as_written
def picture_rows(rows: Mapping[str, Sequence[Image.Image]], titles: Sequence[str] = ()) -> Figure:
    """Rows of pictures, the name of each at its left, titles above the columns."""
    count = max(map(len, rows.values()))
    side, room, head = TILE, 190, 56 if titles else 0
    page = Image.new("RGB", (room + count * (side + GAP), head + len(rows) * (side + GAP)), "white")
    fig = plt.figure(figsize=(page.width / DPI, page.height / DPI))
    for i, (name, pictures) in enumerate(rows.items()):
        top = head + i * (side + GAP)
        for j, picture in enumerate(pictures):
            page.paste(_fitted(picture), (room + j * (side + GAP), top))
        y = 1 - (top + side / 2) / page.height
        fig.text((room - GAP) / page.width, y, name, fontsize=6.5, ha="right", va="center", parse_math=False)
    for j, title in enumerate(titles):
        x = (room + j * (side + GAP) + side / 2) / page.width
        y = 1 - (head - 6) / page.height
        fig.text(x, y, title, fontsize=4.6, ha="center", va="bottom", parse_math=False)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.axis("off")
    ax.set_zorder(-1)
    ax.imshow(np.asarray(page.convert("RGBA")), interpolation="none", aspect="auto")
    return fig


def _fitted(picture: Image.Image) -> Image.Image:
    """TILE pixels wide and high, on white where it is transparent; small ones keep their pixels."""
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    kept = Image.Resampling.NEAREST if picture.width < 100 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((TILE, TILE), kept)
