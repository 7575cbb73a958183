"""neuronym.models.weights: reading files, and loading them into networks."""

from __future__ import annotations

import argparse
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neuronym.common.checks import import_extra, missing
from neuronym.common.files import digest
from neuronym.models.identity import weights_key
from neuronym.models.weights import (
    is_file_or_seed,
    is_torchscript,
    load_into,
    random_seed,
    random_start,
    read_weights,
)


def net(**options):
    with random_start(3):
        body = [nn.Conv2d(3, 5, 3, **options), nn.BatchNorm2d(5), nn.GELU(), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(5, 7)).eval()


class Classifier(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 2, 1), nn.Linear(2, num_classes)


def test_digest_keeps_texts_apart():
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")


@pytest.mark.parametrize("old_format", [False, True])
def test_state_dicts_are_read_unwrapped_and_without_dataparallel(tmp_path, old_format):
    state = net().state_dict()
    wrapped = {
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "arch": "x",
        "epoch": 3,
        "best_prec1": 54.7,
    }
    torch.save(wrapped, tmp_path / "a.pth.tar", _use_new_zipfile_serialization=not old_format)
    assert weights_key(read_weights(tmp_path / "a.pth.tar")) == weights_key(state)


def test_safetensors_and_torchscript_are_read(tmp_path):
    model = net()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 3, 3)), tmp_path / "a.pt")
    torch.save(model.state_dict(), tmp_path / "b.pt")
    assert is_torchscript(tmp_path / "a.pt") and not is_torchscript(tmp_path / "b.pt")
    assert {weights_key(read_weights(tmp_path / n)) for n in ("a.safetensors", "a.pt", "b.pt")} == {
        weights_key(model)
    }


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: path.write_bytes(pickle.dumps(Trap(), 2)), "not a file of weights"),
        (lambda path: torch.save({"a": torch.zeros(2), "b": Trap()}, path), "not a file of weights"),
        (lambda path: path.write_bytes(b"hello"), "not a file of weights"),
        (lambda path: path.write_bytes(b""), "not a file of weights"),
        (lambda path: torch.save(net(), path), "not a file of weights"),
        (lambda path: torch.save({"epoch": 3}, path), "no tensors by name"),
        (lambda path: torch.save(torch.zeros(2), path), "no tensors by name"),
    ],
)
def test_files_that_are_no_weights_are_refused_and_not_run(tmp_path, write, message):
    write(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "a.pt")


def test_torn_safetensors_and_absent_files(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="a.safetensors is not a file of weights"):
        read_weights(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        read_weights(tmp_path / "b.safetensors")


def test_random_start_is_seeded_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    a, b, c = (load_into(Classifier, chosen) for chosen in ("none", "random:0", "random:1"))
    assert weights_key(a) == weights_key(b) != weights_key(c)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (
        random_seed("IMAGENET1K_V1") is None and random_seed("random") == 0 and random_seed("random:7") == 7
    )
    with pytest.raises(ValueError, match="random:0"):
        random_seed("random:x")


def test_a_file_brings_its_number_of_classes(tmp_path):
    torch.save(Classifier(11).state_dict(), tmp_path / "a.pt")
    assert load_into(Classifier, str(tmp_path / "a.pt")).head.out_features == 11
    torch.save(net().state_dict(), tmp_path / "b.pt")
    with pytest.raises(
        ValueError, match=r"b.pt differs from Classifier in \d+ of 4 tensors \(.*name the network"
    ):
        load_into(Classifier, str(tmp_path / "b.pt"))


def test_what_is_missing_is_said_in_one_sentence():
    assert (
        str(missing("weights of x", "http://a/x.pt", "/b/x.pt", "X_DIR to /b"))
        == "weights of x not found; download http://a/x.pt to /b/x.pt, or set X_DIR to /b"
    )
    with pytest.raises(
        ModuleNotFoundError, match="'timm:x' needs the optional package timmm; pip install timmm"
    ):
        import_extra("timmm_is_not_a_package", "timmm", "timm:x")


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "kind",
    [
        "torch.compile",
        "compiled in DataParallel",
        "Lightning",
        "model_state_dict",
        "net",
        "teacher",
        "averaged",
        "a backbone",
        "nested",
        "params",
        "checkpoint",
    ],
)
def test_checkpoints_of_wrappers_and_trainers(tmp_path, kind):
    state = net().state_dict()
    saved = {
        "torch.compile": under("_orig_mod.", state),
        "compiled in DataParallel": under("module._orig_mod.", state),
        "Lightning": {"state_dict": under("model.", state), "epoch": 3},
        "model_state_dict": {"model_state_dict": state, "optimizer": {"lr": 0.1}},
        "net": {"net": state, "acc": 0.9},
        "teacher": {"student": {}, "teacher": under("module.backbone.", state)},
        "averaged": {**under("module.", state), "n_averaged": torch.tensor(3)},
        "a backbone": under("backbone.", state),
        "nested": {"model": {"state_dict": state}},
        "params": {"params": {}, "params_ema": state},
        "checkpoint": {"checkpoint": {"weights": state}},
    }[kind]
    torch.save(saved, tmp_path / "w.CKPT")
    assert weights_key(read_weights(tmp_path / "w.CKPT")) == weights_key(state)


def test_a_network_is_found_beside_what_training_needs(tmp_path):
    """Under a prefix of one's own, a loss beside it; of two networks neither is chosen."""
    state, file = Classifier(11).state_dict(), tmp_path / "w.pt"
    other = {name: value + 1 for name, value in state.items()}
    torch.save({**under("student.", state), "loss.weight": torch.ones(3)}, file)
    with pytest.warns(
        UserWarning, match=r"its 4 tensors under 'student.', not 1 others \(such as loss.weight"
    ):
        assert weights_key(load_into(Classifier, str(file)).state_dict()) == weights_key(state)
    torch.save({**under("encoder_q.", state), **under("encoder_k.", other)}, file)
    with pytest.raises(ValueError, match="holds 2 networks, under encoder_k. and encoder_q.; save one"):
        load_into(Classifier, str(file))


def test_of_weights_and_their_average_it_is_said_which_was_taken(tmp_path, recwarn):
    state, file = net().state_dict(), tmp_path / "w.pt"
    average = {name: value + 1 for name, value in state.items()}
    loss = {"loss": {"weight": torch.ones(3)}, "optimizer": {"state": {}}, "epoch": 3}
    torch.save({"state_dict": state, **loss}, file)
    read_weights(file)
    assert not recwarn.list
    torch.save({"state_dict_ema": average, "state_dict": state, **loss}, file)
    with pytest.warns(
        UserWarning,
        match=f"the {len(state)} tensors under 'state_dict', not those under 'state_dict_ema'; for these "
        r"save them alone, as torch.save\(checkpoint\['state_dict_ema'\], path\)$",
    ):
        assert weights_key(read_weights(file)) == weights_key(state)


def test_what_else_a_checkpoint_holds_is_said_in_one_line(tmp_path):
    torch.save({"model": net().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match="it holds argparse.Namespace, which is code and is not unpickled; save"
    ) as found:
        read_weights(tmp_path / "w.pth")
    assert "\n" not in str(found.value) and "\x1b" not in str(found.value)
    torch.save({"stats": {"a": [1]}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no tensors by name; it has stats; save one"):
        read_weights(tmp_path / "w.pth")


class Scripted(nn.Module):
    """A module whose archive runs code when torch unpickles it, with shared, nested and odd tensors."""

    def __init__(self):
        super().__init__()
        self.conv, self.sizes, self.scale = nn.Conv2d(3, 4, 3), [1, 2], 0.5
        self.register_buffer("turned", torch.arange(6, dtype=torch.float16).view(2, 3).t())
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, x):
        return self.conv(x) * self.scale

    @torch.jit.export
    def __getstate__(self):
        return (self.conv.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        raise RuntimeError("code of the archive ran")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_archives_are_read_and_not_run(tmp_path):
    for i, module in enumerate((net(), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).half())):
        torch.jit.script(module).save(tmp_path / f"{i}.pt")
        state, read = module.state_dict(), read_weights(tmp_path / f"{i}.pt")
        assert set(read) == set(state) and all(
            torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in state.items()
        )
    torch.jit.script(Scripted()).save(tmp_path / "own.pt")
    with pytest.raises(Exception, match="code of the archive ran"):
        torch.jit.load(tmp_path / "own.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_weights(tmp_path / "own.pt")


def test_files_of_weights_in_any_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.ckpt", "MODEL.PTH", "plain"):
        torch.save(net().state_dict(), name)
        assert is_file_or_seed(name) and is_file_or_seed(f"./{name}")
    assert not is_file_or_seed("IMAGENET1K_V1")


def test_counters_of_batches_may_be_missing(tmp_path):
    state = {k: v for k, v in net().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    loaded = load_into(lambda num_classes=7: net(), str(tmp_path / "old.pth")).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_archives_that_run_code_when_torch_reads_them_do_not(tmp_path):
    class Writer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.file = str(tmp_path / "written.pt")

        def forward(self, x):
            return x * self.weight

        @torch.jit.export
        def __getstate__(self):
            return (self.weight, self.file, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
            self.weight, self.file, self.training = state[0], state[1], state[2]
            torch.save(state[0], state[1])

    torch.jit.script(Writer()).save(tmp_path / "own.pt")
    torch.jit.load(tmp_path / "own.pt")
    assert (tmp_path / "written.pt").exists()  # what it does to those who let it
    (tmp_path / "written.pt").unlink()
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_weights(tmp_path / "own.pt")
    torch.jit.script(net()).save(tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w") as bad:
        for entry in plain.namelist():
            planted = pickle.dumps(Planted(tmp_path / "written.pt"), 2)
            bad.writestr(entry, planted if entry.endswith("/data.pkl") else plain.read(entry))
    with pytest.raises(ValueError, match="it holds io.open, which is code and is not unpickled"):
        read_weights(tmp_path / "b.pt")
    assert not (tmp_path / "written.pt").exists()


def test_a_file_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(net().state_dict(), "of_this_folder.CKPT")
    assert weights_key(read_weights("of_this_folder.CKPT")) == weights_key(net())
    with pytest.raises(FileNotFoundError, match="no weights file at /.*absent.pth"):
        read_weights("absent.pth")
