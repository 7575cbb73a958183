"""Weights on disk, how they get into a network, and what identifies the network they make.

read_weights        safetensors, state dict or TorchScript file -> {name: tensor}, without unpickling anything
                    else
is_torchscript      whether a file is a TorchScript archive
is_file_or_seed     whether a name asks for a file or for random weights
random_seed         the seed in "random:SEED"
NO_CODE             option of transformers and diffusers: nothing that ships beside weights is run
load_into           a network with weights from a file, or random ones
random_start        seed the building of a network
tokenizer_key       what stands for a Hugging Face tokenizer
microworld_weights  tensors of a network of the microworld
quiet_transformers  transformers' loading bar silenced

    NAME             | its pretrained weights, from the cache of its package or the network |
                       torchvision:resnet50
    NAME@MEMBER      | pretrained weights by their name, of torchvision alone |
                       torchvision:resnet50@IMAGENET1K_V2
    NAME@FILE        | a state dict, checkpoint, TorchScript archive or .safetensors; nothing in it is run,
                       and the network gets the file's number of classes | timm:resnet18@runs/best.pt
    NAME@random:SEED | random weights, the same for the same SEED | torchvision:resnet18@random:0
    NAME@none        | random weights, as random:0 | timm:resnet18@none
"""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn, Tensor

from neuronym.common.files import digest
from neuronym.runs.folders import data_dir, from_root

UNDER = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "teacher",
    "ema_state_dict",
    "model_ema",
    "params_ema",
    "params",
    "weights",
    "checkpoint",
)
STORAGES = {  # how archives name the types of their tensors
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
NO_CODE = {"trust_remote_code": False}  # of a folder or hub: what it ships beside weights is never run
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")  # of wrappers, on every name


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name onto the CPU: `.safetensors`, a TorchScript archive, or a state dict saved by
    torch.

    A checkpoint that keeps its tensors under a key of UNDER is unwrapped, and prefixes that a wrapper left on
    all names (PREFIXES, in any order) are taken off. Only tensors and plain containers are unpickled, and
    nothing in an archive is run. A relative path starts at the repository root or, where no such file is
    there, in the current folder. Errors: FileNotFoundError; ValueError that says what else the file holds.
    """
    here, path = Path(os.path.expanduser(path)), from_root(path)
    path = here.absolute() if here.is_file() and not path.is_file() else path
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    try:
        weights = _read(path)
    except Exception as error:  # what a reader raises over a file that is none of its kind may be anything
        raise ValueError(
            f"{path} is not a file of weights (.safetensors, or torch.save(model.state_dict(), path)): "
            f"{_reason(error)}"
        ) from error
    while isinstance(weights, Mapping):
        key = next((k for k in UNDER if isinstance(weights.get(k), Mapping)), None)
        if key is None:
            break
        _say_which(path, weights, key)
        weights = weights[key]
    if not isinstance(weights, Mapping) or not any(isinstance(v, Tensor) for v in weights.values()):
        keys = (
            f"; it has {', '.join(map(str, list(weights)[:5]))}"
            if isinstance(weights, Mapping) and weights
            else ""
        )
        raise ValueError(
            f"{path} holds no tensors by name{keys}; save one with torch.save(model.state_dict(), path)"
        )
    weights = {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    weights.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _say_which(path: Path, checkpoint: Mapping, taken: str) -> None:
    """Warn where a checkpoint holds other tensors by name beside those taken, at least half as many, as an
    average of the weights beside them.
    """
    count = {
        key: sum(isinstance(value, Tensor) for value in one.values())
        for key, one in checkpoint.items()
        if isinstance(one, Mapping)
    }
    others = [str(key) for key, n in count.items() if key != taken and 0 < count[taken] <= 2 * n]
    if others:
        warnings.warn(
            f"{path}: loaded are the {count[taken]} tensors under '{taken}', not those under "
            f"{' and '.join(repr(other) for other in others)}; for these save them alone, as "
            f"torch.save(checkpoint[{others[0]!r}], path)",
            stacklevel=3,
        )


def _reason(error: Exception) -> str:
    """What a reader of files says, in one line without colours; for objects beside tensors, which and
    what to do.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    found = re.search(r"(?:GLOBAL|Unsupported (?:class|global):?(?: GLOBAL)?) (\S+)", text)
    if found:
        return (
            f"it holds {found[1].rstrip('.')}, which is code and is not unpickled; save the state dict "
            "inside it "
            "alone, as torch.save(checkpoint['model'], path)"
        )
    told = re.search(r"WeightsUnpickler error: (.*)", text)  # behind a page of advice
    said = (told[1] if told else text).strip()
    foreign = isinstance(error, (LookupError, TypeError, AttributeError)) and not isinstance(error, KeyError)
    return "it is damaged, or of another kind" if foreign or not said else said.splitlines()[0]


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI ships CLIP (a zip with code beside the tensors)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def is_file_or_seed(chosen: str) -> bool:
    """Whether the part of a name behind "@" asks for a file or for random weights, rather than for weights by
    name.
    """
    return (
        chosen in ("none", "random")
        or chosen.startswith("random:")
        or "/" in chosen
        or os.sep in chosen
        or chosen.lower().endswith((".pt", ".pth", ".tar", ".ckpt", ".safetensors", ".bin"))
        or from_root(chosen).is_file()
        or os.path.isfile(os.path.expanduser(chosen))  # `read_weights` will say where it looks
    )


def random_seed(chosen: str) -> int | None:
    """Seed of "random:SEED", "random" or "none" (both 0); None for anything else."""
    word, _, seed = chosen.partition(":")
    if word not in ("random", "none"):
        return None
    if not (seed or "0").isdecimal():
        raise ValueError(f"random weights take a whole number as seed, got '{chosen}'; write random:0")
    return int(seed or 0)


def load_into(build: Callable[..., nn.Module], chosen: str) -> nn.Module:
    """build() with random weights ("none", "random:SEED") or those of a file, whose number of classes it
    gets.

    Errors: FileNotFoundError, ValueError for weights that are no such network's.
    """
    seed = random_seed(chosen)
    if seed is not None:
        with random_start(seed):
            return build()
    weights = read_weights(chosen)
    with random_start(0):
        model = build()
        weights = _of_the_network(chosen, weights, model)
        head = [name for name, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1]
        classes = weights[f"{head}.weight"].shape[0] if f"{head}.weight" in weights else 0
        model = (
            build(num_classes=classes)
            if classes not in (0, model.get_submodule(head).weight.shape[0])
            else model
        )
    # heads that serve training only may be absent or left over
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    differ = [
        name
        for name in wanted.keys() | weights.keys()
        if not name.lower().startswith("aux")
        and not (name.endswith("num_batches_tracked") and name not in weights)  # of before PyTorch 0.4.1
        and wanted.get(name) != getattr(weights.get(name), "shape", None)
    ]
    if differ:
        raise ValueError(
            f"weights must fit the network they are loaded into; {chosen} differs from "
            f"{type(model).__name__} in {len(differ)} of {len(wanted)} tensors "
            f"({', '.join(sorted(differ)[:3])}); name the network it is of"
        )
    model.load_state_dict({name: value for name, value in weights.items() if name in wanted}, strict=False)
    return model


def _of_the_network(chosen: str, weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights, or those under the one prefix of their names that has all of a network's: a trainer's
    loss or a momentum encoder stands beside them. ValueError where several prefixes have.
    """
    wanted = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    some = next(iter(wanted), None)
    if some is None or wanted <= weights.keys():
        return weights
    prefixes = {name.removesuffix(some) for name in weights if name.endswith(f".{some}")}
    whole = sorted(p for p in prefixes if all(f"{p}{name}" in weights for name in wanted))
    if len(whole) > 1:
        raise ValueError(
            f"{chosen} holds {len(whole)} networks, under {' and '.join(whole)}; save one of them alone, "
            "with names without that prefix"
        )
    if not whole:
        return weights
    kept = {name: value for name, value in weights.items() if name.startswith(whole[0])}
    beside = [name for name in weights if name not in kept]
    warnings.warn(
        f"{chosen}: loaded are its {len(kept)} tensors under '{whole[0]}'"
        + (f", not {len(beside)} others (such as {beside[0]})" if beside else ""),
        stacklevel=3,
    )
    return {name.removeprefix(whole[0]): value for name, value in kept.items()}


@contextmanager
def random_start(seed: int) -> Iterator[None]:
    """Seed the CPU's generator for the block and put its state back afterwards (building a network draws from
    it).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _read(path: Path):
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    if is_torchscript(path):
        return _tensors_of_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _tensors_of_archive(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive by name; its code is not run, its modules become plain
    tables.

    torch.jit.load would run what the archive says an object does when it is unpickled (`__setstate__`).
    """
    with zipfile.ZipFile(path) as archive:
        top = next(name for name in archive.namelist() if name.endswith("/data.pkl")).rpartition("data.pkl")[
            0
        ]
        storages: dict[str, torch.UntypedStorage] = {}

        def storage(saved: tuple) -> tuple[torch.UntypedStorage, torch.dtype]:
            _, dtype, key, _, _ = saved
            if key not in storages:
                data = bytearray(archive.read(f"{top}data/{key}"))
                storages[key] = (
                    torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
                    if data
                    else torch.UntypedStorage(0)
                )
            return storages[key], dtype

        root = _ArchiveReader(io.BytesIO(archive.read(f"{top}data.pkl")), storage).load()
    found: dict[str, Tensor] = {}
    waiting = [("", root)]
    while waiting:
        name, part = waiting.pop()
        if isinstance(part, Tensor):
            found[name] = part
        elif isinstance(part, _Scripted):
            waiting += [(f"{name}.{key}" if name else key, value) for key, value in part.state.items()]
    return found


class _Scripted:
    """A module of an archive: its attributes by name."""

    def __init__(self):
        self.state: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def _tensor(saved: tuple[torch.UntypedStorage, torch.dtype], offset: int, size, stride, *rest) -> Tensor:
    storage, dtype = saved
    return torch.empty(0, dtype=dtype).set_(storage, offset, torch.Size(size), tuple(stride))


class _ArchiveReader(pickle.Unpickler):
    """Unpickles tensors, tables and numbers; every class of the archive's own becomes a `_Scripted`, all else
    is refused.
    """

    KNOWN = {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.jit._pickle", "restore_type_tag"): lambda value, kind: value,
        ("torch.jit._pickle", "build_intlist"): list,
        ("torch.jit._pickle", "build_doublelist"): list,
        ("torch.jit._pickle", "build_boollist"): list,
        ("torch.jit._pickle", "build_tensorlist"): list,
    }

    def __init__(self, file: io.BytesIO, storage: Callable):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str):
        if (module, name) in self.KNOWN:
            return self.KNOWN[module, name]
        if module.split(".")[0] == "__torch__":
            return _Scripted
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, saved: tuple):
        return self._storage(saved)


def tokenizer_key(tokenizer) -> str:
    """16 hex that stand for a Hugging Face tokenizer: all of a fast one's rules, else its vocabulary and
    settings.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        return digest(tokenizer.backend_tokenizer.to_str())
    settings = {
        k: v
        for k, v in tokenizer.init_kwargs.items()
        if isinstance(v, (bool, int, str)) and "/" not in str(v)
    }
    return digest(
        type(tokenizer).__name__, repr(sorted(tokenizer.get_vocab().items())), repr(sorted(settings.items()))
    )


def microworld_weights(name: str, folder: str = "") -> dict[str, Tensor]:
    """Tensors of <name>.safetensors in data/microworld or another folder; FileNotFoundError says how to get
    them.
    """
    file = (from_root(folder) if folder else data_dir() / "microworld") / f"{name}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(
            f"microworld weights not found at {file}; they come with the repository (git checkout "
            "data/microworld), notebooks/microworld.ipynb retrains them, NEURONYM_DATA moves data/"
        )
    return read_weights(file)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' loading bar for the block; a notebook has its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
