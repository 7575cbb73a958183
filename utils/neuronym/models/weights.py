"""Weights on disk, how they get into a network, and what identifies the network they make.

read_weights      safetensors, state dict or TorchScript file -> {name: tensor}, without unpickling anything
                  else
load_into         a network with weights from a file, or random ones
random_seed       the seed in "random:SEED"
random_start      seed the building of a network
weights_key       hash of tensors by name, type, shape and bytes
identity          hash of what a module computes: its tensors, its structure and the code of its own classes
digest            hash of texts
source_of         text of a class or function that changes with it
missing           the one sentence for weights that are not there
import_extra      an optional package, or the sentence that says how to get it
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import CodeType

import torch
from torch import nn, Tensor

from neuronym.common.files import digest
from neuronym.runs.folders import data_dir, from_root

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_LIBRARIES = (
    "torch.",
    "torchvision.",
    "builtins.",
)  # their classes are known by name; others are hashed by source


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name onto the CPU: `.safetensors`, a TorchScript archive, or a state dict saved by
    torch.

    A checkpoint that keeps its tensors under "state_dict" or "model" is unwrapped, and "module." (left by
    DataParallel) is taken off the names. Only tensors and plain containers are unpickled. A relative path
    starts at the repository root. Errors: FileNotFoundError, ValueError.
    """
    path = from_root(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    try:
        weights = _read(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a file of weights (.safetensors, or torch.save(model.state_dict(), path)): "
            f"{reason}"
        ) from error
    while isinstance(weights, Mapping):
        inner = next(
            (weights[k] for k in ("state_dict", "model") if isinstance(weights.get(k), Mapping)), None
        )
        if inner is None:
            break
        weights = inner
    if not isinstance(weights, Mapping) or not any(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"{path} holds no tensors by name; save one with torch.save(model.state_dict(), path)"
        )
    weights = {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    wrapped = all(name.startswith("module.") for name in weights)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in weights.items()}


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
        or chosen.endswith((".pt", ".pth", ".tar", ".safetensors", ".bin"))
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


@contextmanager
def random_start(seed: int) -> Iterator[None]:
    """Seed the CPU's generator for the block and put its state back afterwards (building a network draws from
    it).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def weights_key(weights: Mapping[str, Tensor] | nn.Module) -> str:
    """16 hex of SHA-256 over the sorted (name, dtype, shape, bytes) of a state dict or module, on the CPU,
    uncast.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    found = hashlib.sha256()
    for name in sorted(tensors):
        if not isinstance(
            tensors[name], Tensor
        ):  # get_extra_state of some modules; not tensors, and not needed
            continue
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def identity(module: nn.Module, only: Collection[str] | None = None, *extra: str) -> str:
    """16 hex for what a module computes: `weights_key`, structure and numbers of its parts, code of its own
    classes.

    Weights alone do not tell QuickGELU from GELU, or one stride or number of heads from another. `only`
    restricts it to some top-level names (one tower of a CLIP); `extra` texts are hashed along.
    """

    def wanted(name: str) -> bool:
        return only is None or name.partition(".")[0] in only

    tensors = {name: value for name, value in module.state_dict().items() if wanted(name)}
    parts = {name: part for name, part in module.named_modules() if wanted(name)}
    classes = {cls for part in [module, *parts.values()] for cls in type(part).__mro__}
    code = sorted(source_of(cls) for cls in classes if not f"{cls.__module__}.".startswith(_LIBRARIES))
    structure = [f"{name}: {_structure(part)}" for name, part in sorted(parts.items())]
    return digest(weights_key(tensors), *structure, *code, *extra)


def source_of(thing: Callable | type) -> str:
    """Text that changes when a class or function does: a class's source, a function's compiled code and plain
    values.

    Two lambdas on one line share their source, and a function may get its numbers from outside itself.
    """
    if inspect.isclass(thing):
        try:
            return _class_source(thing)
        except (OSError, TypeError, KeyError):  # typed into a notebook, or written in C
            return f"{thing.__qualname__} {[source_of(v) for v in vars(thing).values() if inspect.isfunction(v)]}"
    if not inspect.isfunction(getattr(thing, "__func__", thing)):  # a bound method shows its function
        return thing.__qualname__
    outer = inspect.getclosurevars(thing)
    values = {
        k: v
        for k, v in {**outer.globals, **outer.nonlocals}.items()
        if isinstance(v, (int, float, str, tuple))
    }
    return f"{thing.__qualname__} {_compiled(thing.__code__)} {ADDRESS.sub('', repr(sorted(values.items())))}"


def _read(path: Path):
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    if is_torchscript(path):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    return torch.load(path, map_location="cpu", weights_only=True)


def _structure(part: nn.Module) -> str:
    """Class and numbers of one module (attention does not print its heads), and its text if it has no
    children.
    """
    numbers = {
        k: v
        for k, v in sorted(vars(part).items())
        if isinstance(v, (int, float)) and k != "training" and k[0] != "_"
    }
    leaf = next(part.children(), None) is None
    return f"{type(part).__name__} {numbers} {ADDRESS.sub('', repr(part)) if leaf else ''}"


def _class_source(cls: type) -> str:
    """What `inspect.getsource` gives, which parses a class's whole file anew each time; KeyError when it is
    not there.
    """
    file = inspect.getsourcefile(cls)
    linecache.checkcache(file)
    lines = linecache.getlines(file, vars(sys.modules[cls.__module__]))
    first, last, column = _class_lines("".join(lines))[cls.__qualname__]
    for i, line in enumerate(lines[last:], last + 1):  # comments that go on where the last statement ends
        if line.strip() and not line.lstrip().startswith("#"):
            break
        last = i if line.strip() and len(line) - len(line.lstrip()) >= column else last
    return "".join(lines[first:last])


@lru_cache(maxsize=8)
def _class_lines(text: str) -> dict[str, tuple[int, int, int]]:
    """First line, line behind the last, and column of the body of each class of a file; of equal names the
    first.
    """
    found: dict[str, tuple[int, int, int]] = {}
    waiting = [("", ast.parse(text))]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, ast.ClassDef):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            if name not in found or start < found[name][0]:
                found[name] = start, node.end_lineno, node.body[0].col_offset
        inside = f"{name}.<locals>" if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else name
        waiting += [
            (
                ".".join(filter(None, [inside, child.name]))
                if hasattr(child, "name") and isinstance(child, ast.stmt)
                else inside,
                child,
            )
            for child in ast.iter_child_nodes(node)
        ]
    return found


def _compiled(code: CodeType) -> str:
    """Compiled code as text, free of file names, line numbers and the arbitrary order of sets."""
    constants = [
        _compiled(value)
        if isinstance(value, CodeType)
        else sorted(map(repr, value))
        if isinstance(value, frozenset)
        else repr(value)
        for value in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


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
