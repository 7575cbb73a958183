"""neuronym.models.identity: what a network or a preprocessing reads changes its hash, and nothing else does;
the hash is the same in every process.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import hashlib
import importlib
import shutil
import subprocess
import sys
import textwrap
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from neuronym.activations import unit_activations
from neuronym.datasets.probe import load_probe
from neuronym.hooks import resolve_layers
from neuronym.models.identity import identity, identity_of, weights_key
from neuronym.models.preprocess import preprocess_text
from neuronym.models.targets import load_target
from neuronym.models.weights import random_start
from neuronym.runs.folders import ROOT


def net(**options):
    with random_start(3):
        body = [nn.Conv2d(3, 5, 3, **options), nn.BatchNorm2d(5), nn.GELU(), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(5, 7)).eval()


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
    for other in (
        {**state, "x": torch.zeros(0)},
        {**state, "0.bias": state["0.bias"] + 1e-7},
        {**state, "0.bias": state["0.bias"].double()},
        {**state, "0.bias": state["0.bias"][None]},
    ):
        assert weights_key(other) != key


def test_structure_that_weights_do_not_tell():
    same = identity(net())
    assert (
        same == identity(net()) == identity(net().train()) == identity(copy.deepcopy(net()))
        and len(same) == 16
    )
    assert identity(net().requires_grad_(False)) == same
    gelu, stride = net(), net(stride=2)
    gelu[2] = nn.ReLU()
    assert weights_key(gelu) == weights_key(net()) == weights_key(stride)
    assert len({same, identity(gelu), identity(stride), identity(net(), None, "extra")}) == 4
    heads = [nn.Sequential(nn.MultiheadAttention(8, n)) for n in (2, 4)]
    heads[1].load_state_dict(heads[0].state_dict())
    assert identity(heads[0]) != identity(heads[1])


def test_one_side_ignores_the_other():
    model, other = net(), net()
    other[4].weight.data += 1
    assert identity(model, {"0", "1"}) == identity(other, {"0", "1"})
    assert identity(model, {"4"}) != identity(other, {"4"})
    assert identity(model, {"0"}) != identity(model, {"0", "1"})


class Colour(enum.Enum):
    RED, BLUE = 1, 2


@dataclasses.dataclass
class Options:
    slope: float
    names: list


class Slots:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


def scaled(factor):
    return lambda x: x * factor


PAIRS = {
    "float": (0.0, 0.5),
    "text": ("relu", "tanh"),
    "function": (F.relu, F.tanh),
    "lambda": (lambda x: x, lambda x: x + 1),
    "closure": (scaled(1), scaled(2)),
    "partial": (
        functools.partial(F.leaky_relu, negative_slope=0.1),
        functools.partial(F.leaky_relu, negative_slope=0.2),
    ),
    "list": ([0.0, 1.0], [0.0, 2.0]),
    "tuple": ((1, "a"), (1, "b")),
    "dict": ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}),
    "set": ({"a", "b"}, {"a", "c"}),
    "tensor": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-7])),
    "array": (np.zeros(3), np.ones(3)),
    "dtype": (torch.float32, torch.float16),
    "enum": (Colour.RED, Colour.BLUE),
    "dataclass": (Options(0.1, ["a"]), Options(0.1, ["b"])),
    "slots": (Slots(1), Slots(2)),
    "namespace": (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
    "int and float": (1, 1.0),
    "bool and int": (True, 1),
    "list and tuple": ([1], (1,)),
    "none": (None, 0),
    "generator": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "class": (nn.ReLU, nn.Tanh),
    "nested module in a list": ([nn.Linear(2, 2, bias=False)], [nn.Linear(2, 3, bias=False)]),
    "bytes": (b"a", b"b"),
    "complex tensor": (torch.tensor([1 + 1j]), torch.tensor([1 + 2j])),
    "sparse tensor": (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_attributes_of_any_type_and_depth(kind):
    first, second = PAIRS[kind]

    def holding(value, depth):
        model = net()
        model.given = value if depth == 0 else {"deep": [types.SimpleNamespace(x=(value,))]}
        return model

    for depth in (0, 1):
        keys = [identity(holding(value, depth)) for value in (first, second, first)]
        assert keys[0] == keys[2] != keys[1]


def test_buffers_hooks_and_patched_methods():
    keys = {identity(net())}

    def changed(change):
        model = net()
        change(model)
        keys.add(identity(model))

    changed(lambda m: m[0].register_buffer("shift", torch.ones(1), persistent=False))
    changed(lambda m: m[0].register_buffer("shift", torch.zeros(1), persistent=False))
    changed(lambda m: m[0].register_forward_hook(lambda module, inputs, output: 2 * output))
    changed(lambda m: m[0].register_forward_hook(lambda module, inputs, output: 3 * output))
    changed(lambda m: m.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)))
    changed(lambda m: setattr(m, "forward", lambda x: x))
    changed(lambda m: setattr(m[0], "forward", types.MethodType(lambda self, x: x, m[0])))
    changed(lambda m: m[1].running_mean.add_(1))
    assert len(keys) == 9
    again = net()
    handle = again.register_forward_hook(print)
    handle.remove()
    assert identity(again) == identity(net())


def test_quantised_and_scripted_networks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [nn.Sequential(nn.Linear(4, 3)) for _ in range(2)]
        quantised = [torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, dtype=torch.qint8) for m in made]
        scripted = [torch.jit.script(m) for m in made]
        traced = [torch.jit.trace(m, torch.zeros(1, 4)) for m in made]
    for pair in (quantised, scripted, traced):
        first, second = map(identity, pair)
        assert first == identity(pair[0]) != second
    assert identity(quantised[0]) == identity(copy.deepcopy(quantised[0]))


NET = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
{extra}
class Net(nn.Module):
    def __init__(self, given=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        {init}
    def forward(self, x):
        return self.last({through}.mean((2, 3)))
def prepare(image):
    x = torch.tensor(np.asarray(image.convert("RGB").resize((32, 32))))
    x = x.permute(2, 0, 1).float() / 255
    return {prepared}
def make():
    return {made}, prepare
"""
HELPER = {
    "extra": "def act(x): return deeper(x)\ndef deeper(x): return F.relu(x)",
    "through": "act(self.conv(x))",
}
CODE = {  # the first network, what changes
    "float attribute": (
        {
            "init": "self.given = given",
            "through": "F.leaky_relu(self.conv(x), self.given)",
            "made": "Net(0.)",
        },
        {"made": "Net(.5)"},
    ),
    "function attribute": (
        {"init": "self.given = given", "through": "self.given(self.conv(x))", "made": "Net(F.relu)"},
        {"made": "Net(F.tanh)"},
    ),
    "function that is called": (
        HELPER,
        {"extra": HELPER["extra"].replace("deeper(x)", "F.tanh(deeper(x))", 1)},
    ),
    "function that a function calls": (HELPER, {"extra": HELPER["extra"].replace("F.relu", "F.tanh")}),
    "module constant": (
        {"extra": "SLOPE = 0.", "through": "F.leaky_relu(self.conv(x), SLOPE)"},
        {"extra": "SLOPE = .5"},
    ),
    "module list": (
        {"extra": "S = [.0]", "through": "F.leaky_relu(self.conv(x), S[0])"},
        {"extra": "S = [.5]"},
    ),
    "constant of another class": (
        {"extra": "class C: slope = 0.", "through": "F.leaky_relu(self.conv(x), C.slope)"},
        {"extra": "class C: slope = .5"},
    ),
    "default of a function": (
        {"extra": "def act(x, slope=0.): return F.leaky_relu(x, slope)", "through": "act(self.conv(x))"},
        {"extra": "def act(x, slope=.5): return F.leaky_relu(x, slope)"},
    ),
    "hook": (
        {},
        {
            "extra": "def hooked(n):\n    n.conv.register_forward_hook(lambda m, i, o: 2 * o)\n    return n",
            "made": "hooked(Net())",
        },
    ),
    "preprocessing's number": ({"extra": "M = .5", "prepared": "x - M"}, {"extra": "M = .25"}),
    "preprocessing's tensor": (
        {"extra": "M = torch.full((3, 1, 1), .5)", "prepared": "x - M"},
        {"extra": "M = torch.full((3, 1, 1), .25)"},
    ),
    "preprocessing's function": (
        {"extra": "def scale(x): return x", "prepared": "scale(x)"},
        {"extra": "def scale(x): return 2 * x"},
    ),
}


def code(**parts):
    plain = {"extra": "", "init": "pass", "through": "F.relu(self.conv(x))", "made": "Net()", "prepared": "x"}
    return NET.format(**plain | parts)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the user's, and what loads their network from a source that stands in it."""
    monkeypatch.setenv("NEURONYM_FROM", str(tmp_path))

    def load(source, name="own_network_of_a_test"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return load_target(f"{name}:make")

    return load


@pytest.mark.parametrize("what", CODE)
def test_activations_after_a_change_are_those_of_the_changed_network(folder, what):
    first, change = CODE[what]
    probe, passed = load_probe("microworld:6"), []
    for source in (code(**first), code(**first | change)):
        target = folder(source)
        Q = unit_activations(target, probe, resolve_layers(target.model, "last", target.example))["last"]
        with torch.no_grad():
            plain = target.model(torch.stack([target.preprocess(probe.image(i)) for i in range(len(probe))]))
        torch.testing.assert_close(Q, plain, rtol=1e-4, atol=1e-5)
        passed.append((target.weights_key, target.preprocess_spec))
    assert passed[0] != passed[1]


def test_comments_docstrings_lines_and_places_do_not_matter(folder):
    source = code(**HELPER)
    keys = {folder(source).weights_key}
    said = source.replace("def forward", "# a comment\n\n    def forward").replace(
        "return deeper(x)", "\n    '''What it does.'''\n    return deeper(x)"
    )
    assert said != source
    keys.add(folder(said).weights_key)
    keys.add(folder(source, name="moved_network_of_a_test").weights_key)
    assert len(keys) == 1


def test_constants_of_a_neighbouring_module(folder, tmp_path):
    keys = []
    for slope in (0.0, 0.5, 0.0):
        (tmp_path / "settings_of_a_test.py").write_text(f"SLOPE = {slope}\nOTHER = {len(keys)}\n")
        sys.modules.pop("settings_of_a_test", None)
        made = {"extra": "import settings_of_a_test as settings"}
        keys.append(folder(code(through="F.leaky_relu(self.conv(x), settings.SLOPE)", **made)).weights_key)
    assert keys[0] == keys[2] != keys[1]


def test_the_same_in_another_process():
    call = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from torchvision import transforms as T; from neuronym.models.identity import identity_of; "
        "from neuronym.models.targets import load_target; "
        "print(load_target('microworld:resnet', suggest=False).weights_key, "
        "identity_of([{'a', 'b', 3}, T.Compose([T.Resize(8), T.Lambda(lambda x: 2 * x)])]))",
    ]
    said = {
        subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)
    }
    assert len(said) == 1


def test_what_cannot_be_identified_is_of_this_process_and_said(tmp_path):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.draws = (i for i in range(3))

    said = r"what Drawing computes cannot be told from Drawing.draws \(generator\)"
    with pytest.warns(UserWarning, match=said):
        here = identity(Drawing())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert identity(Drawing()) == here
    with open(tmp_path / "f", "w") as file, pytest.warns(UserWarning, match="kept for this process alone"):
        identity_of({"log": file}, "mine")


def test_locks_and_annotations_are_identified():
    given = types.SimpleNamespace(lock=threading.RLock(), kinds=[int | None, list[int]])
    other = types.SimpleNamespace(lock=threading.RLock(), kinds=[int | str, list[int]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert identity_of(given, "mine") == identity_of(given, "mine") != identity_of(other, "mine")


def test_cycles_and_sharing_end():
    model = net()
    model.parent = [model]
    assert identity(model) == identity(copy.deepcopy(model)) != identity(net())
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.warns(UserWarning, match="cannot be told from"):
        identity_of(deep)


class Brighter(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, image):
        return transforms.functional.to_tensor(image) * self.factor


def test_preprocessings_of_every_kind():
    kinds = [Brighter(1.0), Brighter(2.0), scaled(1), scaled(2), functools.partial(scaled(1), 3)]
    kinds += [transforms.Compose([transforms.Resize(n), transforms.Lambda(scaled(n))]) for n in (8, 9)]
    kinds += [Brighter(1.0).forward, Brighter(2.0).forward]
    texts = [preprocess_text(one) for one in kinds]
    assert len(set(texts)) == len(kinds) and not any("0x" in text for text in texts)
    assert texts[0] == preprocess_text(Brighter(1.0)) and texts[0].startswith("Brighter ")
    assert texts[3] == preprocess_text(scaled(2))


def test_tensors_without_values_are_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="on the meta device and has no values; load weights into it first"):
        identity(model)
