"""Files that try to run code when they are read: none runs, whatever its name ends in."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neuronym import cache
from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.tasks import load_masks
from neuronym.models.captioners import load_captioner
from neuronym.models.clips import load_clip
from neuronym.models.llms import load_llm
from neuronym.models.sentences import load_sentence_encoder
from neuronym.models.targets import load_target
from neuronym.models.weights import read_weights
from neuronym.runs.command import resolve
from neuronym.similarity.labels import read_labels

KIND = "files that try to run code"
SUFFIXES = (
    ".pt",
    ".pth",
    ".bin",
    ".ckpt",
    ".tar",
    ".npy",
    ".npz",
    ".safetensors",
    ".parquet",
    ".json",
    ".csv",
)
SUFFIXES += (".h5", ".mat", ".txt", ".jsonl", ".gguf", ".pkl", "")


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def _pickle(canary: Path) -> bytes:
    return pickle.dumps({"state_dict": Hostile(canary)})


def _torch_zip(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2), "more": Hostile(canary)}, file)
    return file.getvalue()


def _torch_old(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2), "more": Hostile(canary)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _numpy(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Hostile(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def _numpy_zip(canary: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=np.array([Hostile(canary)], dtype=object))
    return file.getvalue()


FORMS = {
    "pickle": _pickle,
    "torch": _torch_zip,
    "torch of before 1.6": _torch_old,
    "npy": _numpy,
    "npz": _numpy_zip,
}


def readers(file: Path) -> list:
    """Everything of this package that reads a file which a user names."""
    return [
        lambda: read_weights(file),
        lambda: load_target(f"torchvision:resnet18@{file}"),
        lambda: load_clip(f"openai:ViT-B/32@{file}"),
        lambda: load_clip(f"microworld:rn@{file.parent}"),
        lambda: load_concepts(f"file:{file}"),
        lambda: load_masks(f"gtsegs:{file}"),
        lambda: load_llm(f"gguf:{file}"),
        lambda: read_labels(file),
        lambda: resolve("labelling", [("concepts", f"file:{file}")]),
        lambda: resolve("labelling", [("probe", f"folder:{file.parent}")]),
        lambda: resolve("describe_and_dissect", [("transcript", str(file))]),
    ]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", FORMS)
def test_pickles_under_every_name(form, tmp_path, trial, trials):
    for suffix in trials(SUFFIXES[:: len(FORMS) - 1], SUFFIXES):
        with trial(KIND):
            canary, folder = tmp_path / f"ran{suffix}", tmp_path / f"of{suffix}"
            folder.mkdir()
            file = folder / f"target_resnet{suffix}"
            file.write_bytes(FORMS[form](canary))
            for read in readers(file):
                try:
                    read()
                except Exception as error:
                    said = str(error)
                    assert len(said) < 1500 and "\x1b" not in said
                assert not canary.exists(), f"{form} in {file.name} ran"


def test_a_pickle_in_the_cache_is_no_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "cache"))
    made = cache.array("test", {"of": 1}, lambda: np.arange(3.0))
    file = Path(made.filename)
    file.write_bytes(_numpy(tmp_path / "ran"))
    assert cache.load("test", {"of": 1}) is None and not (tmp_path / "ran").exists()


class Scripted(nn.Module):
    """A module whose archive says what is done when it is unpickled."""

    def __init__(self, place: str):
        super().__init__()
        self.register_buffer("weight", torch.ones(2))
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.place, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.weight = state[0]
        self.place = state[1]
        self.training = state[2]
        torch.from_file(state[1], True, 4).fill_(1.0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_an_archive_is_read_without_running_it(suffix, tmp_path, monkeypatch):
    """`__setstate__` of a TorchScript archive, and a pickle in one that names a function of Python's."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"a user's own file.")
    archive = tmp_path / f"archive{suffix}"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("archive/data.pkl", _pickle(tmp_path / "ran"))
        made.writestr("archive/constants.pkl", pickle.dumps((Hostile(tmp_path / "ran"),)))
        made.writestr("archive/code/__torch__.py", "import os\nos.mkdir('ran')\n")
        made.writestr("archive/version", "3\n")
    for read in (lambda: read_weights(archive), lambda: load_clip(f"openai:ViT-B/32@{archive}")):
        with pytest.raises(ValueError):
            read()
    assert not (tmp_path / "ran").exists()
    hostile = tmp_path / f"hostile{suffix}"
    torch.jit.script(Scripted(str(victim))).save(str(hostile))
    victim.write_bytes(b"a user's own file.")
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("an archive was run"))
    for read in (lambda: read_weights(hostile), lambda: load_clip(f"openai:ViT-B/32@{hostile}")):
        with pytest.raises(ValueError) as refused:
            read()
        assert len(str(refused.value).splitlines()) == 1
    assert victim.read_bytes() == b"a user's own file."


CODE = "import pathlib\npathlib.Path({!r}).mkdir()\nclass Model:\n    pass\n"


@pytest.mark.parametrize("load", ["clip", "llm", "captioner", "sentences"])
def test_code_in_a_folder_of_hugging_face_is_not_run(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "own.py").write_text(CODE.format(str(tmp_path / "ran")))
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
    own = {"model_type": "own", "auto_map": dict.fromkeys(names, "own.Model"), "architectures": ["Model"]}
    for file in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        (folder / file).write_text(json.dumps(own))
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")
    reads = {
        "clip": lambda: load_clip(f"hf:{folder}"),
        "llm": lambda: load_llm(f"hf:{folder}"),
        "captioner": lambda: load_captioner(f"blip:{folder}"),
        "sentences": lambda: load_sentence_encoder(f"st:{folder}"),
    }
    with pytest.raises((ValueError, FileNotFoundError, KeyError)) as refused:
        reads[load]()
    assert not (tmp_path / "ran").exists() and "\n" not in str(refused.value)
    assert "y/N" not in str(refused.value)
