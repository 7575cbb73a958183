"""Weights on disk, how they get into a network, and what identifies the network they make.

read_weights      safetensors, state dict or TorchScript file -> {name: tensor}, without unpickling anything
                  else
load_into         a network with weights from a file, or random ones
random_seed       the seed in "random:SEED"
random_start      seed the building of a network
missing           the one sentence for weights that are not there
import_extra      an optional package, or the sentence that says how to get it
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn, Tensor

from neuronym.common.files import digest
from neuronym.runs.run import data_dir


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name onto the CPU: `.safetensors`, a TorchScript archive, or a state dict saved by
    torch.

    A checkpoint that keeps its tensors under "state_dict" or "model" is unwrapped, and "module." (left by
    DataParallel) is taken off the names. Only tensors and plain containers are unpickled. Errors:
    FileNotFoundError, ValueError.
    """
    path = Path(path).expanduser()
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
    file = (Path(folder).expanduser() if folder else data_dir() / "microworld") / f"{name}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(
            f"microworld weights not found at {file}; they come with the repository (git checkout "
            "data/microworld), notebooks/microworld.ipynb retrains them, NEURONYM_DATA moves data/"
        )
    return read_weights(file)
