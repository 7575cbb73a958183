"""D_probe: images in a fixed order, with an identity that depends on their content and not on where they are.

Probe              N images with ids, labels, a fingerprint and, of the microworld, scenes
load_probe         probing set by name, several joined by "+", or a list of files or pictures
checked_probe      rows of a probing set -> Probe, every file decoded once
probe_from_scenes  microworld scenes chosen by their seeds
probe_from_images  pictures in memory
subset             some images of a probe
batches            preprocessed batches in order, each image decoded once
thumbnails         small square pictures for figures
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from neuronym.common.subsets import evenly_spaced
from neuronym.datasets.images import check_shape, examine, read_image, READER
from neuronym.datasets.probe_sets import list_images, Row, shown_name
from neuronym.microworld import world
from neuronym.microworld.world import Scene

if TYPE_CHECKING:
    from torch import Tensor

BATCHES_AHEAD = 2
LISTED = 20  # skipped files that are told by name
REMEMBERED = 8192  # scenes, of about 2 kB
DECODED_AT_ONCE = 32  # pictures that `held` decodes before it looks at their bytes


@dataclass(frozen=True, eq=False)
class Probe:
    """Images in a fixed order; made by `load_probe`."""

    name: str
    ids: list[str]  # one per image, independent of where the files are
    labels: list[str | None] | None  # class folder or class name per image; None when there are none at all
    fingerprint: str  # of the content, in order
    skipped: list[tuple[str, str]]  # (id, reason) of the images left out by on_error="skip"
    items: list[Path | int | np.ndarray] = field(repr=False)  # a file, a scene's seed, or pixels [h, w, 3]

    @property
    def N(self) -> int:
        return len(self.items)

    def __len__(self) -> int:
        return self.N

    def image(self, i: int) -> Image.Image:
        """Image i as 8-bit RGB."""
        item = self.items[i]
        if isinstance(item, Path):
            return read_image(item)
        return Image.fromarray(item) if isinstance(item, np.ndarray) else _render(item)

    def scene(self, i: int) -> Scene:
        """The microworld scene that image i shows; a ValueError for an image of another kind."""
        if not isinstance(self.items[i], int):
            raise ValueError(f"only microworld images have a scene; image {i} is {self.ids[i]}")
        return _scene(self.items[i])

    def told_skipped(self) -> str:
        """Lines that name the first LISTED images left out, and why, and how many more; "" without any."""
        lines = [f"  {id}: {reason}" for id, reason in self.skipped[:LISTED]]
        more = len(self.skipped) - len(lines)
        lines += [f"  ... and {more} more"] if more else []
        return "\n".join([f"{len(self.skipped)} images left out:", *lines] if lines else [])

    @cached_property
    def scenes(self) -> list[Scene] | None:
        """What is in the images: the microworld scene of each, or None where any is a photo."""
        known = all(isinstance(item, int) for item in self.items)
        return [self.scene(i) for i in range(self.N)] if known else None


def load_probe(
    images: str | Sequence[Path | str | Image.Image],
    limit: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
    progress: Callable[[Iterable, int, str], Iterable] | None = None,
) -> Probe:
    """Load a probing set: "microworld:500", "folder:/photos", "broden", "folder:/a+folder:/b+cifar100_val";
    or your own list of files or of PIL pictures.

    A "+" joins sets only where the name of a set follows, so paths may contain it; a path that contains, say,
    "+broden" is put in double quotes. Relative paths start at the repository root. `limit` takes that many
    images spread evenly over the whole set; `seed` chooses other microworld scenes.

    Every file is decoded once to see whether it can be read, and the result remembered
    (`neuronym.datasets.images.examine`). With on_error="raise" all defective files are listed in one
    ValueError; with "skip" they are left out, and listed in `skipped`; they count towards `limit`. Unknown
    sets raise a KeyError, missing data a FileNotFoundError.

    >>> load_probe("microworld:500", limit=3).N
    3
    """
    if isinstance(images, Probe):
        return images
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', got {on_error!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is at least 1 image, or None for all, got {limit}")
    N = 0 if isinstance(images, str) else len(images)
    if N and all(isinstance(one, Image.Image) for one in images):
        return probe_from_images([images[i] for i in evenly_spaced(min(limit or N, N), N)])
    rows = list_images(images, seed) if isinstance(images, str) else _files(images)
    name = images if isinstance(images, str) else f"{len(rows)} files"
    rows = [rows[i] for i in evenly_spaced(min(limit or len(rows), len(rows)), len(rows))]
    return checked_probe(name, rows, on_error, progress)


def checked_probe(
    name: str,
    rows: Sequence[Row],
    on_error: str = "raise",
    progress: Callable[[Iterable, int, str], Iterable] | None = None,
) -> Probe:
    """The probe of some rows of `list_images`; see `load_probe` for what is checked and raised."""
    seen = iter(examine([row.item for row in rows if isinstance(row.item, Path)], progress))
    checked = [(row, *(next(seen) if isinstance(row.item, Path) else ("", None))) for row in rows]
    skipped = [(row.id, defect) for row, _, defect in checked if defect]
    if skipped and on_error == "raise":
        raise ValueError(
            f"{len(skipped)} of {len(rows)} images of '{name}' cannot be used; repair or remove them, or "
            "pass on_error='skip':\n" + "\n".join(f"  {id}: {defect}" for id, defect in skipped)
        )
    good = [(row, sha) for row, sha, defect in checked if not defect]
    if not good:
        raise ValueError(
            f"none of the {len(skipped)} images of '{name}' can be read; "
            f"the first, {skipped[0][0]}: {skipped[0][1]}"
        )
    labels = [row.label for row, _ in good]
    return Probe(
        name,
        [row.id for row, _ in good],
        labels if any(labels) else None,
        _fingerprint(good),
        skipped,
        [row.item for row, _ in good],
    )


def _files(files: Sequence[Path | str]) -> list[Row]:
    """Rows of image files in the order given; their ids are what tells their paths apart."""
    strange = [one for one in files if not isinstance(one, str | Path)]
    if strange or not len(files):
        got = f"a {type(strange[0]).__name__} in the list" if strange else "an empty list"
        raise ValueError(f"images are the name of a set, or a list of files or of PIL pictures, got {got}")
    paths = [Path(os.path.expanduser(one)).absolute() for one in files]
    absent = [path for path in paths if not os.path.lexists(path)]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(paths)} image files are not there, the first {absent[0]}"
        )
    top = Path(os.path.commonpath([path.parent for path in paths]))
    ids = [path.relative_to(top).as_posix() for path in paths]
    return [Row(id, shown_name(id), None, path) for id, path in zip(ids, paths)]


def probe_from_scenes(name: str, seeds: Sequence[int], labels: Sequence[str] | None = None) -> Probe:
    """The microworld scenes of the given seeds, with a label for each if there are any."""
    labels = list(labels or [None] * len(seeds))
    rows = [
        Row(f"microworld {world.VERSION}", f"{seed}", label, seed)
        for seed, label in zip(seeds, labels, strict=True)
    ]
    return Probe(
        name,
        [row.id for row in rows],
        labels if any(labels) else None,
        _fingerprint([(row, "") for row in rows]),
        [],
        list(seeds),
    )


def probe_from_images(pictures: Sequence[Image.Image]) -> Probe:
    """Pictures in memory, known by their pixels; ValueError without any, for what is no picture, and for
    shapes that `check_shape` refuses.
    """
    if not len(pictures) or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise ValueError(
            f"expected PIL pictures, at least one, got {len(pictures)}: "
            f"{', '.join(sorted({type(picture).__name__ for picture in pictures})) or 'none'}"
        )
    for picture in pictures:
        check_shape(picture.size)
    pixels = [np.asarray(picture.convert("RGB")) for picture in pictures]
    content = hashlib.sha256()
    for picture in pixels:
        content.update(f"{picture.shape}".encode() + picture.tobytes())
    return Probe(
        f"{len(pixels)} pictures",
        [f"{i:05d}" for i in range(len(pixels))],
        None,
        f"pictures {content.hexdigest()[:32]}",
        [],
        pixels,
    )


def subset(probe: Probe, rows: Sequence[int]) -> Probe:
    """Some images of a probe, in the order given."""
    some = replace(
        probe,
        ids=[probe.ids[i] for i in rows],
        items=[probe.items[i] for i in rows],
        skipped=[],
        labels=None if probe.labels is None else [probe.labels[i] for i in rows],
        fingerprint=f"{probe.fingerprint} {list(rows)}",
    )
    if scenes := vars(probe).get("scenes"):  # described once: drawing a scene's words anew takes .1 ms
        vars(some)["scenes"] = [scenes[i] for i in rows]
    return some


def held(probe: Probe, memory: int) -> Probe:
    """The same probe, for several passes: pictures are decoded now, as many as so many bytes hold."""
    room, items, workers = memory, list(probe.items), min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(workers) as pool:
        for rows in range(0, probe.N, DECODED_AT_ONCE):
            some = range(rows, min(rows + DECODED_AT_ONCE, probe.N))
            for i, pixels in zip(some, pool.map(lambda i: np.asarray(probe.image(i)), some)):
                room -= pixels.nbytes
                if room < 0:
                    return replace(probe, items=items)
                items[i] = pixels
    return replace(probe, items=items)


def batches(
    probe: Probe,
    preprocesses: Sequence[Callable[[Image.Image], Tensor]],
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield (rows, [X [b, 3, H, W] per preprocess]) from image `start` to the last, in order.

    Each image is decoded once for all preprocesses. With `workers` threads the next two batches are prepared
    while the caller computes; batch size, start and workers do not change an image's values. `pin` puts the
    batches into memory from which a GPU copies while it computes. An error names its image.
    """
    import torch  # here: names of probing sets are checked without

    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    if not 0 <= start <= probe.N:
        raise ValueError(f"start lies within 0 and N = {probe.N}, got {start}")
    preprocesses = list(preprocesses)
    spans = [slice(i, min(i + batch_size, probe.N)) for i in range(start, probe.N, batch_size)]

    def prepare(i: int) -> list[Tensor]:
        try:
            image = probe.image(i)
            return [_checked(preprocess(image.copy())) for preprocess in preprocesses]
        except Exception as error:
            error.add_note(f"while preparing image {i}, {probe.ids[i]}")
            raise

    def stack(span: slice, images: list[list[Tensor]]) -> tuple[slice, list[Tensor]]:
        for column, sizes in enumerate(zip(*([tuple(x.shape) for x in image] for image in images))):
            if len(set(sizes)) > 1:
                raise ValueError(
                    f"preprocess {column} has to give one size, got {sorted(set(sizes))} between "
                    f"{probe.ids[span.start]} and {probe.ids[span.stop - 1]}"
                )
        return span, [_stacked(column, pin) for column in zip(*images)]

    if workers < 1:
        for span in spans:
            yield stack(span, [prepare(i) for i in range(span.start, span.stop)])
        return
    # with teams of their own the workers would crowd out the caller's, which then sleeps and wakes at every
    # operation
    threads, waiting = torch.get_num_threads(), deque()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def collect(span: slice, images: list[Future]) -> tuple[slice, list[Tensor]]:
        return stack(span, [image.result() for image in images])

    try:
        for span in spans:
            images = [pool.submit(prepare, i) for i in range(span.start, span.stop)]
            waiting.append(
                pool.submit(collect, span, images)
            )  # waits only for images that were begun before it
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # for threads yet to come: the caller's own number has not changed


def thumbnails(probe: Probe, indices: Iterable[int], size: int) -> list[Image.Image]:
    """The central squares of the given images at size x size (`preprocess.seen` shows what a network sees of
    them).
    """
    return [ImageOps.fit(probe.image(int(i)), (size, size), Image.Resampling.BICUBIC) for i in indices]


def _stacked(images: Sequence[Tensor], pin: bool) -> Tensor:
    """[3, H, W] each -> [b, 3, H, W]."""
    import torch

    if not pin:
        return torch.stack(images)
    return torch.stack(
        images, out=torch.empty(len(images), *images[0].shape, dtype=images[0].dtype, pin_memory=True)
    )


def _checked(x: Tensor) -> Tensor:
    from torch import Tensor

    if not (isinstance(x, Tensor) and x.ndim == 3):
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"a preprocess gives a Tensor [3, H, W], got {found}")
    return x


@lru_cache(maxsize=REMEMBERED)
def _scene(seed: int) -> Scene:
    """Drawn once for a probing set and all its parts."""
    return world.scene(seed)


def _render(seed: int) -> Image.Image:
    from neuronym.microworld import render

    return render.render(_scene(seed))


def _fingerprint(rows: list[tuple[Row, str]]) -> str:
    """Hash of (row, content hash) in order: relative paths and contents; of scenes the world's version and
    the seeds.

    A few rendered pictures are hashed too: they catch a renderer, or a Pillow, that draws otherwise under one
    version.
    """
    seeds = [row.item for row, _ in rows if isinstance(row.item, int)]
    drawn = {seeds[i] for i in (0, len(seeds) // 2, -1)} if seeds else set()
    digest = hashlib.sha256(f"reader {READER}\n".encode())
    for row, sha in rows:
        what = [row.key, sha]
        if isinstance(row.item, int):
            what += [row.item] + [
                hashlib.sha256(_render(seed).tobytes()).hexdigest() for seed in drawn & {row.item}
            ]
        digest.update(json.dumps(what).encode() + b"\n")  # JSON escapes names that are no valid text
    return digest.hexdigest()[:32]
