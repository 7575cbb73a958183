"""Which axis of an activation holds its units, and where its positions lie in the picture.

LAYOUTS       where a layout has its batch and its units
axes_of       the same of one layout
LayerInfo     what is known of one layer: name, kind, units, layout and the grid of its positions
Seen          what one module gave in a few passes
Findings      what the modules so far have told about the network
layer_of      Seen -> LayerInfo, or the words that say why it cannot be recorded
layouts_from  what a user says about layouts, as {glob: layout}

    conv [B, K, h, w]   nhwc [B, h, w, K]   tokens [B, T, K]   tokens_first [T, B, K]   conv1d [B, K, L]
    fc [B, K]

Layouts are found out: by the type of a module, by which axes change with the size of the picture, and by
where a change at the picture's upper or lower edge arrives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

LAYOUTS = {
    "fc": (2, 0, 1),
    "tokens": (3, 0, 2),
    "tokens_first": (3, 1, 2),
    "conv1d": (3, 0, 1),
    "conv": (4, 0, 1),
    "nhwc": (4, 0, 3),
}
"""layout -> number of axes, batch axis, unit axis."""
POSITION_AXES = {
    "fc": (),
    "tokens": (1,),
    "tokens_first": (0,),
    "conv1d": (2,),
    "conv": (2, 3),
    "nhwc": (1, 2),
}
"""layout -> axes of positions."""
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Upsample,
    nn.Unfold,
    nn.Fold,
    nn.ChannelShuffle,
)
_UNITS_LAST = (
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.RNNBase,
    nn.Embedding,
)


def axes_of(layout: str) -> tuple[int, int, int]:
    """Number of axes, batch axis and unit axis of a layout; ValueError for one that does not exist."""
    if layout not in LAYOUTS:
        raise ValueError(f"a layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout]


@dataclass(frozen=True)
class LayerInfo:
    """One layer: dotted name, class name, number of units, output shape without the batch axis, layout; and
    where its positions are tokens, the grid (rows, columns) of those that are patches of the picture, and the
    first of them: before it are class, distillation and register tokens.
    """

    name: str
    kind: str
    units: int
    shape: tuple[int, ...]
    layout: str
    grid: tuple[int, int] | None = None
    start: int = 0


@dataclass
class Seen:
    """Shapes that a module gave for two images, for three, and for two of another size, once each time it
    ran; of an output with three axes, for each axis the positions at which a change of the picture's upper
    and lower edge arrives; the module inside whose very output it gives.
    """

    two: list = field(default_factory=list)
    three: list = field(default_factory=list)
    other: list = field(default_factory=list)
    edges: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    inner: str | None = None


@dataclass
class Findings:
    """What the modules that finished before have told: maps of convolutions, the latest first; the grid and
    first patch of each number of tokens (None: they are in another order); token layers' widths.
    """

    picture: tuple[int, int]
    given: Mapping[str, str]
    maps: list[tuple[int, int]] = field(default_factory=list)
    grids: dict[int, tuple[tuple[int, int], int] | None] = field(default_factory=dict)
    counts: set[int] = field(default_factory=set)
    widths: set[int] = field(default_factory=set)
    layers: dict[str, LayerInfo] = field(default_factory=dict)
    before: LayerInfo | None = None

    def add(self, layer: LayerInfo) -> None:
        self.layers[layer.name] = self.before = layer
        if layer.layout in ("conv", "nhwc"):
            axes = [axis - 1 for axis in POSITION_AXES[layer.layout]]
            size = tuple(layer.shape[axis] for axis in axes)
            self.maps = [size, *(other for other in self.maps if other != size)]
        elif layer.layout in ("tokens", "tokens_first") and layer.shape[0] not in self.widths - self.counts:
            self.counts.add(layer.shape[0])
            self.widths.add(layer.units)


def layer_of(name: str, module: nn.Module, seen: Seen, findings: Findings) -> LayerInfo | str:
    """The layer that a module is, as `findings` tell so far; or the words that say why it cannot be recorded.

    Errors: ValueError for a layout that the user gave and that does not fit.
    """
    if len(seen.two) != 1 or len(seen.three) != 1:
        return f"runs {max(len(seen.two), len(seen.three))} times in one forward pass (a shared module)"
    two, three = seen.two[0], seen.three[0]
    if two is None or three is None:
        return "returns no float tensor"
    axes = [axis for axis, (a, b) in enumerate(zip(two, three)) if a != b]
    if len(axes) != 1 or len(two) != len(three) or (two[axes[0]], three[axes[0]]) != (2, 3):
        return f"has no batch axis of its own: two images give shape {list(two)}, three give {list(three)}"
    batch = axes[0]
    fitting = [layout for layout, (count, axis, _) in LAYOUTS.items() if (count, axis) == (len(two), batch)]
    given = next((layout for glob, layout in findings.given.items() if glob and matches(name, glob)), None)
    if given is not None and given not in fitting:
        raise ValueError(
            f"layout '{given}' does not fit '{name}', which gives shape {list(two)} for two images; "
            f"possible: {', '.join(fitting) or 'none'}"
        )
    if not fitting:
        return f"has no known layout: two images give shape {list(two)}"
    heads = _between_tokens(two, findings) if len(two) == 4 and given is None else ""
    if heads:
        return heads
    layout = given or (fitting[0] if len(fitting) == 1 else _told(module, two, seen, findings))
    layout = layout or (findings.given.get("") if findings.given.get("") in fitting else None)
    if layout is None:
        shapes = " or ".join(f"'{one}'" for one in fitting)
        return (
            f"gives shape {list(two)} for two images, and nothing tells which axis holds its units; say "
            f"layout={shapes}"
        )
    units, shape = two[LAYOUTS[layout][2]], two[:batch] + two[batch + 1 :]
    grid = _grid(layout, two, seen, findings) if layout in ("tokens", "tokens_first", "conv1d") else None
    return LayerInfo(name, type(module).__name__, units, shape, layout, *(grid or (None, 0)))


def layouts_from(given: str | Mapping[str, str] | None) -> dict[str, str]:
    """{glob: layout} of what a user says: "conv1d" for whatever is not told otherwise (the empty glob),
    "mix*=conv1d, stages.**=nhwc" for layers by name, or such a table.

    Errors: ValueError for an unknown layout.
    """
    if not given:
        return {}
    pairs = given.items() if isinstance(given, Mapping) else _pairs(given)
    found = {}
    for glob, layout in pairs:
        if layout not in LAYOUTS:
            raise ValueError(
                f"a layout is one of {', '.join(LAYOUTS)}, got {layout!r}; write layout='conv1d', or by "
                "layers 'mix*=conv1d, stages.**=nhwc'"
            )
        found[glob] = layout
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name fits a glob: `*` and `?` stay within one part, `**` crosses dots, [0-9] is one of
    a set.
    """
    words = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    parts = re.split(r"(\*\*|\*|\?|\[[\w-]+\])", pattern)
    regex = "".join(
        words.get(part, part if part.startswith("[") and part.endswith("]") else re.escape(part))
        for part in parts
    )
    return re.fullmatch(regex, name) is not None


def _pairs(text: str) -> list[tuple[str, str]]:
    parts = [part.strip().rpartition("=") for part in text.split(",") if part.strip()]
    return [(glob.strip(), layout.strip()) for glob, _, layout in parts]


def _told(module: nn.Module, two: tuple, seen: Seen, findings: Findings) -> str | None:
    """The layout of an output with three or four axes, batch first; None where nothing tells it."""
    first, last = ("conv1d", "tokens") if len(two) == 3 else ("conv", "nhwc")
    if isinstance(module, _CHANNELS_FIRST):
        return first
    if isinstance(module, _UNITS_LAST) or _normalises_last(module):
        mixes = last == "tokens" and two[1] in findings.widths and two[1] not in findings.counts
        return first if mixes and two[2] in findings.counts else last  # a product over the patches
    inner = findings.layers.get(seen.inner)
    if inner is not None and inner.shape == two[1:]:
        return inner.layout
    other = seen.other[0] if len(seen.other) == 1 and seen.other[0] else two
    if len(other) == len(two):
        changed = {axis for axis in range(1, len(two)) if other[axis] != two[axis]}
        ends = (1 in changed, len(two) - 1 in changed)
        if any(ends) and not all(ends):
            return last if ends[0] else first
    return _told_of_three(two, seen, findings) if last == "tokens" else _told_of_four(two, findings)


def _normalises_last(module: nn.Module) -> bool:
    """Whether a norm is of one axis, the last (subclasses may permute inside)."""
    return type(module) in (nn.LayerNorm, nn.RMSNorm) and len(module.normalized_shape) == 1


def _told_of_three(two: tuple, seen: Seen, findings: Findings) -> str | None:
    if (two[1] == 1) != (two[2] == 1):
        return "tokens" if two[1] == 1 else "conv1d"
    local = {axis: _apart(seen.edges[axis], two[axis]) for axis in (1, 2) if axis in seen.edges}
    if local.get(1) != local.get(2):
        return "tokens" if local.get(1) else "conv1d"
    patches = findings.counts | {h * w for h, w in findings.maps}
    patches |= {h * w for h, w in _thinned(findings.maps)}
    if (two[1] in patches) != (two[2] in patches):
        return "tokens" if two[1] in patches else "conv1d"
    before = findings.before
    if before is not None and before.shape == two[1:] and before.layout in ("tokens", "conv1d"):
        return before.layout
    return None


def _told_of_four(two: tuple, findings: Findings) -> str:
    """By the aspect ratio of the map; a square of units takes the layout of the same shape before it."""
    height, width = findings.picture
    conv, nhwc = (abs(math.log(h / w * width / height)) for h, w in (two[2:], two[1:3]))
    if abs(conv - nhwc) > 1e-9:
        return "conv" if conv < nhwc else "nhwc"
    before = findings.before
    same = before is not None and before.shape == two[1:] and before.layout in ("conv", "nhwc")
    return before.layout if same else "conv"


def _between_tokens(two: tuple, findings: Findings) -> str:
    """Words for what an attention has inside: values from token to token, or units split between heads."""
    _, a, b, c = two
    pairs = [(x, y) for x, y in ((b, c), (a, b)) if x == y and x in findings.counts]
    if pairs and pairs[0] not in findings.maps:
        return f"gives values from token to token, shape {list(two)} for two images, and no units"
    if (b in findings.counts and a * c in findings.widths) or (
        a in findings.counts and b * c in findings.widths
    ):
        return f"gives units split between heads, shape {list(two)} for two images"
    return ""


def _grid(layout: str, two: tuple, seen: Seen, findings: Findings) -> tuple[tuple[int, int], int] | None:
    """The grid of the patches among the positions of a layer and the first of them; None where they are no
    patches, or in no order that a map has.
    """
    axis = POSITION_AXES[layout][0]
    count = two[axis]
    run = _run(seen.edges[axis], count) if layout != "tokens_first" and axis in seen.edges else None
    found = _laid_out(run, seen.edges[axis], findings) if run else "unknown"
    if found == "unknown" and count in findings.grids:
        return findings.grids[count]
    if found == "unknown":
        found = _counted(count, findings)
        if found is None:
            return None
    findings.grids[count] = found
    return found


def _run(edges: tuple[list[int], list[int]], count: int) -> tuple[int, int] | None:
    """First and last position that the picture's upper and lower edge reach; None where they reach all or
    nothing.
    """
    upper, lower = edges
    if not upper or not lower or max(len(upper), len(lower)) >= count or min(upper) > max(lower):
        return None
    return min(upper[0], lower[0]), max(upper[-1], lower[-1])


def _apart(edges: tuple[list[int], list[int]], count: int) -> bool:
    """Whether the upper and the lower edge reach different positions."""
    upper, lower = edges
    return _run(edges, count) is not None and 2 * len({*upper} & {*lower}) <= min(len(upper), len(lower))


def _laid_out(
    run: tuple[int, int], edges: tuple[list[int], list[int]], findings: Findings
) -> tuple[tuple[int, int], int] | None | str:
    """Grid and first patch of the positions first .. last, row after row; None for another order, in which an
    edge of the picture reaches more than a half; "unknown" where it does not tell.
    """
    (first, last), (upper, lower) = run, edges
    patches = last - first + 1
    known = [*findings.maps, *_thinned(findings.maps)]
    fitting = [(h, w) for h, w in known if h * w == patches]
    if len(upper) > patches / 2:  # mixed already, but for what is not of the picture
        return (fitting[0], first) if fitting else "unknown"
    for h, w in fitting:
        half = (h + 1) // 2 * w
        if upper[-1] - first < half and last - lower[0] < half:
            return (h, w), first
    if max(upper[-1] - upper[0], lower[-1] - lower[0]) > patches / 2:
        return None
    row = len(upper)
    if (
        not findings.maps
        and upper == list(range(first, first + row))
        and len(lower) == row
        and patches % row == 0
    ):
        return (patches // row, row), first
    return None if fitting else "unknown"


def _counted(count: int, findings: Findings) -> tuple[tuple[int, int], int] | None:
    """Grid and first patch by numbers alone: patches as many as the latest map has, the last ones."""
    if count == 1:
        return (1, 1), 0
    for h, w in findings.maps:
        if h * w == count:
            return (h, w), 0
    if count in findings.widths:  # a product over the patches: these are units
        return None
    prefix = [grid[1] for grid in findings.grids.values() if grid is not None and grid[1]]
    for most in (*prefix, None):
        for h, w in findings.maps:
            extra = count - h * w
            if extra == most if most is not None else 0 < extra <= h * w:
                return (h, w), extra
    if findings.maps and None not in findings.grids.values():
        for h, w in _thinned(findings.maps):
            if h * w == count:
                return (h, w), 0
    if findings.maps:
        return None
    height, width = findings.picture  # without a convolution: a grid as the picture is, or that and a token
    for extra in (0, 1):
        h = math.isqrt((count - extra) * height // width)
        if h and (count - extra) % h == 0 and h * width == (count - extra) // h * height:
            return (h, (count - extra) // h), extra
    return None


def _thinned(maps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Grids of every second and every fourth patch."""
    return [(-(-h // step), -(-w // step)) for step in (2, 4) for h, w in maps]
