"""neuronym.models.weights: reading files, hashing tensors, and an identity that sees what tensors do not
tell.
"""

from __future__ import annotations

import hashlib
import inspect
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neuronym.common.checks import import_extra, missing
from neuronym.common.files import digest
from neuronym.models.weights import (
    identity,
    is_torchscript,
    load_into,
    random_seed,
    random_start,
    read_weights,
    source_of,
    weights_key,
)


def net(**options):
    with random_start(3):
        body = [nn.Conv2d(3, 5, 3, **options), nn.BatchNorm2d(5), nn.GELU(), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(5, 7)).eval()


class Classifier(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 2, 1), nn.Linear(2, num_classes)


def test_key_is_the_hash_of_sorted_names_types_shapes_and_bytes():
    tensors = {"b": torch.arange(3), "a": torch.tensor([[1.5, -2]], dtype=torch.float16)}
    a, b = tensors["a"].numpy().tobytes(), tensors["b"].numpy().tobytes()
    text = b"a torch.float16 [1, 2] " + a + b"b torch.int64 [3] " + b
    assert weights_key(tensors) == hashlib.sha256(text).hexdigest()[:16]


def test_key_depends_on_values_types_names_and_shapes_only():
    model = net()
    key = weights_key(model)
    state = model.state_dict()
    assert weights_key(dict(reversed(state.items()))) == key == weights_key(model.train())
    assert (
        weights_key({k: v.clone().t().contiguous().t() if v.dim() == 2 else v for k, v in state.items()})
        == key
    )
    assert weights_key({"0": torch.tensor(1.0, dtype=torch.bfloat16)}) != weights_key(
        {"0": torch.tensor(1.0)}
    )
    for other in (
        {**state, "x": torch.zeros(0)},
        {**state, "0.bias": state["0.bias"] + 1e-7},
        {**state, "0.bias": state["0.bias"].double()},
        {**state, "0.bias": state["0.bias"][None]},
    ):
        assert weights_key(other) != key


def test_identity_sees_structure_that_weights_do_not_tell():
    same = identity(net())
    assert same == identity(net()) == identity(net().train()) and len(same) == 16
    gelu, stride = net(), net(stride=2)
    gelu[2] = nn.ReLU()
    assert weights_key(gelu) == weights_key(net()) == weights_key(stride)
    assert len({same, identity(gelu), identity(stride), identity(net(), None, "extra")}) == 4


def test_identity_sees_heads_and_own_code():
    def attention(heads):
        with random_start(0):
            return nn.Sequential(nn.MultiheadAttention(8, heads))

    assert weights_key(attention(2)) == weights_key(attention(4))
    assert identity(attention(2)) != identity(attention(4))

    class Plus(nn.Module):
        def forward(self, x):
            return x + 1

    class Minus(nn.Module):
        def forward(self, x):
            return x - 1

    Minus.__qualname__ = Minus.__name__ = "Plus"
    assert identity(nn.Sequential(Plus())) != identity(nn.Sequential(Minus()))


FILE = '''import functools


def outer():
    class Inner:  # not the one below
        x = 1
    return Inner


class Inner:
    """Text."""

    @staticmethod
    def f():
        class Deep:
            pass
        return Deep

    class Nested(dict):
        y = 2
        # the end of Nested

    # the end of Inner
# a comment on its own


@functools.total_ordering
class Decorated:
    def __lt__(self, other): return True


if True:
    class Inside: pass
'''


def test_source_of_a_class_is_what_inspect_finds(tmp_path, monkeypatch):
    (tmp_path / "own_classes.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    import own_classes as own

    classes = [
        own.Inner,
        own.Inner.Nested,
        own.Inner.f(),
        own.outer(),
        own.Decorated,
        own.Inside,
        nn.Linear,
        nn.Module,
    ]
    assert [source_of(cls) for cls in classes] == [inspect.getsource(cls) for cls in classes]
    (tmp_path / "own_classes.py").write_text(FILE.replace("class Inner:\n", "class Inner:\n    new = 0\n"))
    assert "new = 0" in source_of(own.Inner)  # read anew when the file changes
    made = type("Made", (), {"f": lambda self: 3})
    assert "Made" in source_of(made) and source_of(made) == source_of(type("Made", (), {"f": lambda self: 3}))
    assert source_of(int).startswith("int")


def test_identity_of_one_side_ignores_the_other():
    model, other = net(), net()
    other[4].weight.data += 1
    assert identity(model, {"0", "1"}) == identity(other, {"0", "1"})
    assert identity(model, {"4"}) != identity(other, {"4"})
    assert identity(model, {"0"}) != identity(model, {"0", "1"})


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
