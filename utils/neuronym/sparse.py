"""Sparse autoencoders: features of a layer's activations, one safetensors file each, units like any other.

SparseAutoencoder  encode and decode, of four kinds
Encoding           which kind, and its conventions
save_sae           module -> FILE.safetensors, its conventions as JSON in the file's header
load_sae           the same read back
loaded_sae         the same for those who only read it, from disk once
FeatureLayer       "layer4@sae:topk", a name that is short and knows its file
short_names        names with files -> such names, as long as tells them apart
split_name         "layer4@sae:FILE" -> ("layer4", "FILE")
features_key       hash of the file that a layer's name means
features_of        output of a layer -> features in the same layout
reconstruction_of  output of a layer as its features decode to
with_features      output of a layer whose features were changed
pooled_features    one value an image and feature, a few images at a time
check_fits         refuses an autoencoder that is of another layer

    NAME@sae:FILE | features of a sparse autoencoder, which `neuronym.sae.published` converts from others'
                    files | layer4@sae:runs/topk.safetensors

With x [d] a position's activations, x' = scaled(x) - b_dec (where it is subtracted) and
pre = x' W_enc + b_enc, features z [D] are: relu max(pre, 0); topk the k largest of max(pre, 0); batchtopk and
jumprelu max(pre, 0) where pre > threshold. A reconstruction is z W_dec + b_dec, scaled back (Bricken 2023;
Gao 2024; Bussmann 2024; Rajamanoharan 2024).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open, SafetensorError
from safetensors.torch import save_file
from torch import nn, Tensor

from neuronym.common.checks import check_positive_int
from neuronym.common.files import sha256
from neuronym.common.memory import MEMORY, slices
from neuronym.layouts import LayerInfo, LAYOUTS
from neuronym.runs.folders import from_root

AT_FILE = "@sae:"
ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
SCALINGS = ("none", "constant_norm", "layer_norm")
FORMAT = "neuronym sparse autoencoder 1"
COPIES = 4  # of a block of features, at the most, while it is made and pooled
EPS = 1e-5  # added to the standard deviation by layer_norm


@dataclass(frozen=True)
class Encoding:
    """How features are made: `activation` one of ACTIVATIONS, `k` of topk and of batchtopk's training,
    `subtract` b_dec before encoding, `signed` topk without max(pre, 0), `scaling` of each position: none,
    constant_norm (length sqrt d) or layer_norm (mean 0, unbiased deviation 1).
    """

    activation: str = "relu"
    k: int = 0
    subtract: bool = True
    signed: bool = False
    scaling: str = "none"


class SparseAutoencoder(nn.Module):
    """W_enc [d, D], b_enc [D], W_dec [D, d], b_dec [d] and, of batchtopk and jumprelu, threshold [] or [D].

    In training mode batchtopk keeps the k n largest values of n positions; in evaluation mode those above the
    threshold, so that features of an image do not depend on others. Errors: ValueError for shapes and
    conventions that do not go together.
    """

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        encoding: Encoding,
        threshold: Tensor | None = None,
    ):
        super().__init__()
        _check(W_enc, b_enc, W_dec, b_dec, encoding, threshold)
        self.encoding = encoding
        for name, value in (("W_enc", W_enc), ("b_enc", b_enc), ("W_dec", W_dec), ("b_dec", b_dec)):
            setattr(self, name, nn.Parameter(value.detach().clone()))
        self.register_buffer("threshold", None if threshold is None else threshold.detach().clone())

    @property
    def d(self) -> int:
        """Width of the layer that it is of."""
        return len(self.W_enc)

    @property
    def D(self) -> int:
        """Number of features."""
        return self.W_enc.shape[1]

    def pre_activations(self, x: Tensor) -> Tensor:
        """What features are made of: x [..., d] -> [..., D]."""
        shift, scale = self._scaling(x)
        x = (x - shift) * scale
        return (x - self.b_dec if self.encoding.subtract else x) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Features: x [..., d] -> z [..., D]."""
        pre, how = self.pre_activations(x), self.encoding
        z = pre if how.signed else pre.relu()
        if how.activation == "topk":
            best = z.topk(how.k, dim=-1)
            return torch.zeros_like(z).scatter(-1, best.indices, best.values)
        if how.activation == "batchtopk" and self.training:
            count = min(how.k * z.numel() // self.D, z.numel())
            best = z.flatten().topk(count)
            return torch.zeros_like(z).flatten().scatter(0, best.indices, best.values).view_as(z)
        if how.activation in ("batchtopk", "jumprelu"):
            self.check_alone()
            return z * (pre > self.threshold)
        return z

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Reconstruction: z [..., D] -> [..., d]; x is what was encoded, which `scaling` needs."""
        out = z @ self.W_dec + self.b_dec
        if self.encoding.scaling == "none":
            return out
        if x is None:
            raise ValueError(f"scaling {self.encoding.scaling} is undone by what was encoded; pass x")
        shift, scale = self._scaling(x)
        return out / scale + shift

    def check_alone(self, file: str = "") -> None:
        """ValueError where features of an image would depend on the other images of its batch."""
        if self.encoding.activation == "batchtopk" and self.threshold is None:
            raise ValueError(
                f"batchtopk without a threshold would make features of an image depend on its batch"
                f"{f', in {file}' if file else ''}; train it, or convert its file with threshold=NUMBER"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of x [..., d]."""
        return self.decode(self.encode(x), x)

    def _scaling(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        if self.encoding.scaling == "constant_norm":
            tiny = torch.finfo(x.dtype).tiny
            return 0.0, self.d**0.5 / x.norm(dim=-1, keepdim=True).clamp(min=tiny)
        if self.encoding.scaling == "layer_norm":
            return x.mean(-1, keepdim=True), 1 / (x.std(-1, keepdim=True) + EPS)
        return 0.0, 1.0


def save_sae(sae: SparseAutoencoder, file: str | Path, notes: dict | None = None) -> Path:
    """Write one safetensors file: float32 tensors, and the conventions with `notes` as JSON in its header."""
    path = from_root(file)
    if path.suffix != ".safetensors":
        raise ValueError(f"a sparse autoencoder is kept as FILE.safetensors, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().float().contiguous() for name, value in sae.state_dict().items()}
    said = {"format": FORMAT, "encoding": asdict(sae.encoding), "notes": notes or {}}
    partial = path.with_name(f"{path.name}.part")
    # one entry: safetensors writes several in any order, and the bytes are the file's identity
    save_file(tensors, partial, {"sae": json.dumps(said, sort_keys=True)})
    partial.replace(path)
    return path


def load_sae(file: str | Path) -> SparseAutoencoder:
    """The autoencoder of a file that `save_sae` wrote, in evaluation mode on the CPU, without gradients.

    Errors: FileNotFoundError; ValueError for a file of another kind.
    """
    path = _existing(file)
    try:
        with safe_open(path, "pt") as content:
            said = json.loads((content.metadata() or {}).get("sae", "{}"))
            if said.get("format") != FORMAT:
                raise ValueError("it is of another format")
            tensors = {name: content.get_tensor(name) for name in content.keys()}
        encoding = Encoding(**{field.name: said["encoding"][field.name] for field in fields(Encoding)})
        sae = SparseAutoencoder(encoding=encoding, **tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no sparse autoencoder of this package ({error}); convert others' files with "
            "neuronym.sae.published.convert(FILE, OUT)"
        ) from error
    return sae.eval().requires_grad_(False)


def loaded_sae(file: str | Path) -> SparseAutoencoder:
    """`load_sae`, of a file that has not changed since from memory: hooks are set for every few images. Not
    to be changed.
    """
    path = _existing(file)
    state = path.stat()
    return _loaded(str(path), state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(maxsize=2)
def _loaded(path: str, changed: int, size: int, inode: int) -> SparseAutoencoder:
    return load_sae(path)


class FeatureLayer(str):
    """The name of a layer of features in tables and on pages, "layer4@sae:topk" of .../topk.safetensors,
    which keeps the file that hooks read; equal to the same text.
    """

    file: str

    def __new__(cls, text: str, file: str = ""):
        name = super().__new__(cls, text)
        name.file = file
        return name


def short_names(names: Iterable[str]) -> dict[str, str]:
    """{name: name as tables have it}: of NAME@sae:FILE a `FeatureLayer` with the last part of FILE, without
    its suffix, and with as many parts before it as tell different files apart; others as they are.

    >>> short_names(["fc", "layer4@sae:runs/a/topk.safetensors"])
    {'fc': 'fc', 'layer4@sae:runs/a/topk.safetensors': 'layer4@sae:topk'}
    """
    parts = {name: split_name(name) for name in names}
    paths = {file: from_root(file).resolve().with_suffix("").parts for _, file in parts.values() if file}
    found = {}
    for name, (layer, file) in parts.items():
        if not file or isinstance(name, FeatureLayer):
            found[name] = name
            continue
        own, others = paths[file], {path for path in paths.values() if path != paths[file]}
        count = 1
        while count < len(own) and any(path[-count:] == own[-count:] for path in others):
            count += 1
        found[name] = FeatureLayer(f"{layer}{AT_FILE}{'/'.join(own[-count:])}", file)
    return found


def split_name(name: str) -> tuple[str, str]:
    """Layer and file of a name, "" for a layer of the network itself."""
    layer, _, file = name.partition(AT_FILE)
    return layer, name.file if isinstance(name, FeatureLayer) else file


def features_key(name: str) -> str:
    """16 hex of the file's content that a layer's name means, "" for a layer of the network itself."""
    file = split_name(name)[1]
    return sha256(_existing(file))[:16] if file else ""


def check_fits(sae: SparseAutoencoder, layer: LayerInfo, file: str) -> None:
    """ValueError unless an autoencoder is of a layer's width, on the axis that its shape tells, and says by
    itself which features an image has.
    """
    sae.check_alone(file)
    if sae.d != layer.units:
        raise ValueError(
            f"{file} is of activations of width {sae.d}, layer '{layer.name}' has {layer.units} units; name "
            "the layer that it was trained on"
        )
    axes, batch_axis, unit_axis = LAYOUTS[layer.layout]
    shape = list(layer.shape)
    shape.insert(batch_axis, 0)
    if len(shape) != axes or _unit_axis(shape, sae.d) != unit_axis:
        raise ValueError(
            f"layer '{layer.name}' of shape {list(layer.shape)} has two axes of length {sae.d}, of which its "
            "units are not the one that is taken; name another layer"
        )


def features_of(sae: SparseAutoencoder, output: Tensor) -> Tensor:
    """Features of a layer's output, in its layout with D for the units' axis, float32."""
    axis = _unit_axis(output.shape, sae.d)
    with torch.autocast(output.device.type, enabled=False):
        return sae.encode(output.movedim(axis, -1).to(sae.W_enc.dtype)).movedim(-1, axis)


def reconstruction_of(sae: SparseAutoencoder, output: Tensor) -> Tensor:
    """A layer's output as its features decode to, in its layout and type."""
    axis = _unit_axis(output.shape, sae.d)
    with torch.autocast(output.device.type, enabled=False):
        return sae(output.movedim(axis, -1).to(sae.W_enc.dtype)).movedim(-1, axis).to(output.dtype)


def with_features(sae: SparseAutoencoder, output: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A layer's output moved by what a change of its features decodes to; what they do not explain stays."""
    axis = _unit_axis(output.shape, sae.d)
    with torch.autocast(output.device.type, enabled=False):
        x = output.movedim(axis, -1).to(sae.W_enc.dtype)
        moved = [sae.decode(z.movedim(axis, -1), x) for z in (after, before)]
        return output + (moved[0] - moved[1]).movedim(-1, axis).to(output.dtype)


def pooled_features(
    sae: SparseAutoencoder,
    output: Tensor,
    layout: str,
    pool: Callable[[Tensor, int], Tensor],
    memory: int = MEMORY,
) -> Tensor:
    """pool(features, images) of a layer's output, as many images at a time as `memory` holds features of:
    [B, D]. One image at least, for which 16 bytes a position and feature are needed.
    """
    _, batch_axis, _ = LAYOUTS[layout]
    count = output.shape[batch_axis]
    positions = output.numel() // (count * sae.d)
    step = memory // (COPIES * 4 * positions * sae.D)
    parts = []
    for rows in slices(count, step):
        part = output.narrow(batch_axis, rows.start, rows.stop - rows.start)
        parts.append(pool(features_of(sae, part), rows.stop - rows.start))
    return torch.cat(parts)


def _unit_axis(shape: list[int] | torch.Size, d: int) -> int:
    """The axis of length d where units stand first: the last, but of maps the second."""
    axes = {2: (1,), 3: (2, 1), 4: (1, 3)}.get(len(shape), ())
    for axis in axes:
        if shape[axis] == d:
            return axis
    raise ValueError(f"features are of activations of width {d}, got an output of shape {list(shape)}")


def _existing(file: str | Path) -> Path:
    path = from_root(file)
    if not path.is_file():
        raise FileNotFoundError(f"no sparse autoencoder at {path}; name a file as layer4@sae:FILE")
    return path


def _check(
    W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, how: Encoding, threshold: Tensor | None
) -> None:
    shapes = [list(value.shape) for value in (W_enc, b_enc, W_dec, b_dec)]
    d, D = shapes[0] if len(shapes[0]) == 2 else (0, 0)
    if not d or not D or shapes[1:] != [[D], [D, d], [d]]:
        raise ValueError(
            f"W_enc [d, D], b_enc [D], W_dec [D, d] and b_dec [d] go together, got shapes {shapes}"
        )
    if how.activation not in ACTIVATIONS or how.scaling not in SCALINGS:
        raise ValueError(
            f"an autoencoder is {', '.join(ACTIVATIONS)} with scaling {', '.join(SCALINGS)}, got "
            f"{how.activation!r} and {how.scaling!r}"
        )
    if how.activation in ("topk", "batchtopk"):
        check_positive_int("k", how.k, D, f"the {D} features")
    if how.signed and how.activation != "topk":
        raise ValueError(f"topk alone may keep negative values, got signed {how.activation}")
    if how.activation == "jumprelu" and threshold is None:
        raise ValueError("jumprelu has a threshold, got none")
    if threshold is not None and list(threshold.shape) not in ([], [D]):
        raise ValueError(f"a threshold is one number or one a feature, got shape {list(threshold.shape)}")
    values = (W_enc, b_enc, W_dec, b_dec) + (() if threshold is None else (threshold,))
    if not all(value.is_floating_point() and torch.isfinite(value).all() for value in values):
        raise ValueError("tensors of an autoencoder are finite floats, got others; is the file whole?")
