"""Lines of text that cost little where a figure becomes pixels.

Line   one line of text from its baseline, in a figure's own coordinates

matplotlib draws a text letter by letter, and measures it before: of a figure of cards, which has hundreds of
lines, that is most of the time. Pillow draws a line at once, from the same font file. Everywhere else, in PDF
and SVG, a line is a text as matplotlib writes it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image, ImageDraw, ImageFont

ROOM_AROUND = 2  # pixels around a line: what letters reach beyond their boxes when they are smoothed


class Line(Text):
    """One line of text from its baseline; what is not left to right, or not in the first of its fonts, is
    drawn by matplotlib.
    """

    def draw(self, renderer: RendererBase) -> None:
        font = self._font() if isinstance(renderer, RendererAgg) else None
        if font is None:
            super().draw(renderer)
        elif self.get_visible() and self.get_text():
            x, y = self._place()
            left, top, right, bottom = font.getbbox(self.get_text(), anchor="ls")
            column, row = int(x + left) - ROOM_AROUND, y - int(bottom) - ROOM_AROUND  # of the lower left
            width, height = (int(length) + 2 * ROOM_AROUND + 1 for length in (right - left, bottom - top))
            mask = Image.new("L", (width, height))
            place = x - column, row + height - y
            ImageDraw.Draw(mask).text(place, self.get_text(), fill=255, font=font, anchor="ls")
            letters = np.empty((height, width, 4), np.uint8)
            letters[:] = np.rint(255 * np.array(to_rgba(self.get_color())))
            letters[..., 3] = np.asarray(mask)
            gc = renderer.new_gc()
            renderer.draw_image(gc, column, row, letters[::-1])  # renderers draw from below
            gc.restore()
        self.stale = False

    def get_window_extent(self, renderer: RendererBase | None = None, dpi: float | None = None) -> Bbox:
        font = self._font() if dpi is None else None
        if font is None:
            return super().get_window_extent(renderer, dpi)
        x, y = self._place()
        _, top, right, bottom = font.getbbox(self.get_text(), anchor="ls")
        return Bbox.from_extents(x, y - bottom, x + right, y - top)

    def _place(self) -> tuple[float, int]:
        """Where the line begins, in pixels from below; its letters stand on whole ones."""
        x, y = self.get_transform().transform(self.get_position())
        return x, round(y)

    def _font(self) -> ImageFont.FreeTypeFont | None:
        """The font at the size of the figure's pixels, where it has all that is written, from left to right
        without shaping.
        """
        first = self.get_fontproperties().copy()
        first.set_family(first.get_family()[:1])
        file = font_manager.findfont(first)
        known = font_manager.get_font(file)
        for letter in self.get_text():
            plain = " " <= letter <= "\u024f" or letter in "…✓✗"
            if not plain or not known.get_char_index(ord(letter)):
                return None
        size = self.get_fontsize() * self.get_figure(root=True).dpi / 72
        return _opened(str(file), size, getattr(file, "face_index", 0))


@lru_cache(maxsize=32)
def _opened(file: str, size: float, index: int) -> ImageFont.FreeTypeFont:
    """A font of one size; opening it takes longer than drawing a line."""
    return ImageFont.truetype(file, size, index)
