"""neuronym.models.walk: of two networks of the user's that differ in one thing, whatever it is and wherever
it stands, no two have one hash; what changes nothing leaves it.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neuronym.models.identity import identity, identity_of

HEAD = """
import array, collections, ctypes, dataclasses, decimal, enum, functools, io, operator, random, sys, types
import typing, weakref
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
"""
# what the network holds, what stands above it in its module; @@ is what differs: .1 and .6
HELD = {
    "array of objects": ("np.array([@@, 'a'], dtype=object)", ""),
    "structured array": ("np.array([(@@, 1)], dtype=[('a', float), ('b', int)])", ""),
    "masked array": ("np.ma.array([1, 2], mask=[@@ > .5, False])", ""),
    "attribute of an array": (
        "made()",
        "class A(np.ndarray): pass\ndef made():\n    a = np.zeros(3).view(A)\n    a.k = @@\n    return a",
    ),
    "factory of a defaultdict": ("collections.defaultdict(lambda: @@)", ""),
    "order of a dict": ("dict([('a', 1), ('b', 2)][:: 1 if @@ > .5 else -1])", ""),
    "deque with an attribute": (
        "D([@@])",
        "class D(collections.deque):\n    def __init__(s, x):\n        super().__init__(x)\n        s.a = 1",
    ),
    "set with an attribute": (
        "D(@@)",
        "class D(set):\n    def __init__(s, x):\n        super().__init__([1])\n        s.a = x",
    ),
    "method of a set": ("D([1])", "class D(set):\n    def k(s): return @@"),
    "float with an attribute": ("D(@@)", "class D(float):\n    def __init__(s, x): s.a = 1"),
    "text with an attribute": ("D('@@')", "class D(str):\n    def __init__(s, x): s.a = 1"),
    "method of a float": ("D(1)", "class D(float):\n    def k(s): return @@"),
    "property of a named tuple": (
        "P(1)",
        "class P(typing.NamedTuple):\n    x: int\n    @property\n    def k(s): return @@",
    ),
    "value of a named tuple": ("P(@@)", "P = collections.namedtuple('P', 'x')"),
    "chain map": ("collections.ChainMap({}, {'a': @@})", ""),
    "value of an enum": ("E.A", "class E(enum.Enum):\n    A = @@\n    B = 7"),
    "method of an enum": ("E.A", "class E(enum.Enum):\n    A = 1\n    def k(s): return @@"),
    "flags": ("E.A | E.B", "class E(enum.Flag):\n    A = 1\n    B = int(20 * @@)"),
    "default of a dataclass": ("D()", "@dataclasses.dataclass\nclass D:\n    k: float = @@"),
    "factory of a dataclass": (
        "D()",
        "@dataclasses.dataclass\nclass D:\n    k: list = dataclasses.field(default_factory=lambda: [@@])",
    ),
    "dataclass with slots": (
        "D(@@)",
        "@dataclasses.dataclass(frozen=True, slots=True)\nclass D:\n    k: float",
    ),
    "private slots": (
        "D(@@)",
        "class D:\n    __slots__ = ('__a', 'b')\n    def __init__(s, a):\n        s.__a = a\n        s.b = 1",
    ),
    "inherited class attribute": ("D()", "class B:\n    k = @@\nclass D(B): pass"),
    "constant in a property": ("D()", "class D:\n    @property\n    def k(s): return K\nK = @@"),
    "descriptor": (
        "D()",
        "class S:\n    def __init__(s, v): s.v = v\n    def __get__(s, i, o): return s.v\n"
        "class D:\n    k = S(@@)",
    ),
    "metaclass": (
        "D()",
        "class M(type):\n    @property\n    def k(cls): return @@\nclass D(metaclass=M): pass",
    ),
    "partial method": (
        "D()",
        "class D:\n    def of(s, v): return v\n    k = functools.partialmethod(of, @@)",
    ),
    "default by keyword": ("f", "def f(*, v=@@): return v"),
    "default of a class method": ("D", "class D:\n    @classmethod\n    def k(cls, v=@@): return v"),
    "remembered function": ("f", "@functools.lru_cache\ndef f(): return @@"),
    "function by type": (
        "f",
        "@functools.singledispatch\ndef f(x): return 1.\n@f.register\ndef _(x: int): return @@",
    ),
    "constant of a generator": ("f", "def f():\n    yield @@"),
    "case": ("f", "def f(x):\n    match x:\n        case 2: return @@"),
    "attribute of a function": ("f", "def f(): pass\nf.k = @@"),
    "list that a function filled": ("lambda: K[0]", "K = []\ndef fill(): K.append(@@)\nfill()"),
    "decorated": (
        "f",
        "def twice(g):\n    @functools.wraps(g)\n    def h(): return @@ * g()\n    return h\n"
        "@twice\ndef f(): return 1",
    ),
    "decorated by torch": ("f", "@torch.no_grad()\ndef f(): return @@"),
    "wraps a function of torch's": ("f", "@functools.wraps(F.relu)\ndef f(x): return @@ * F.relu(x)"),
    "function without a module": ("f", "ns = dict()\nexec('def f(): return @@', ns)\nf = ns['f']"),
    "code without source": ("types.FunctionType(compile('@@', 'x', 'eval'), dict())", ""),
    "class that says it is torch's": (
        "D()",
        "class D:\n    __module__ = 'torch.nn.modules.activation'\n    k = @@",
    ),
    "globals by text": ("lambda: globals()['K']", "K = @@"),
    "bound method of a dict": ("dict(a=@@).get", ""),
    "bound operator": ("(@@).__abs__", ""),
    "bound method of an array": ("np.array([@@]).max", ""),
    "bound method of a tensor": ("torch.tensor(@@).item", ""),
    "item getter": ("operator.itemgetter(@@)", ""),
    "weak reference": (
        "ref",
        "class W:\n    def __init__(s, v): s.v = v\nkept = W(@@)\nref = weakref.ref(kept)",
    ),
    "memory view": ("memoryview(b'@@')", ""),
    "array": ("array.array('f', [@@])", ""),
    "decimal": ("decimal.Decimal('@@')", ""),
    "random numbers": ("random.Random('@@')", ""),
    "random numbers of numpy": ("np.random.default_rng(int(@@ * 10))", ""),
    "file in memory": ("io.BytesIO(b'@@')", ""),
    "C number": ("ctypes.c_float(@@)", ""),
    "function of numpy": ("[np.arctan if @@ > .5 else np.arctanh]", ""),
    "function made by torch": ("F.max_pool2d if @@ > .5 else F.adaptive_max_pool2d", ""),
    "operator of torch": ("torch.ops.aten.relu if @@ > .5 else torch.ops.aten.tanh", ""),
    "method of tensors": ("torch.Tensor.relu if @@ > .5 else torch.Tensor.tanh", ""),
    "scripted function": ("torch.jit.script(f)", "def f(x: torch.Tensor):\n    return torch.relu(x) * @@"),
    "compiled function": ("torch.compile(lambda x: @@ * x, backend='eager')", ""),
    "function with a gradient": (
        "A.apply",
        "class A(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x): return @@ * x",
    ),
    "mapped function": ("torch.vmap(lambda x: @@ * x)", ""),
    "attribute of a parameter": ("p", "p = nn.Parameter(torch.ones(1))\np.k = @@"),
    "attribute of a tensor": (
        "t",
        "class T(torch.Tensor): pass\nt = torch.zeros(1).as_subclass(T)\nt.k = @@",
    ),
    "method of a tensor": (
        "t",
        "class T(torch.Tensor):\n    def k(s): return @@\nt = torch.zeros(1).as_subclass(T)",
    ),
    "nested tensor": ("torch.nested.nested_tensor([torch.tensor([@@]), torch.ones(2)])", ""),
    "classes in a list": ("[nn.ReLU, nn.Tanh, nn.ReLU if @@ > .5 else nn.Tanh]", ""),
    "traced part": (
        "torch.fx.symbolic_trace(P())",
        "class P(nn.Module):\n    def forward(s, x): return x * @@",
    ),
    "compiled part": (
        "torch.compile(P(), backend='eager')",
        "class P(nn.Module):\n    def forward(s, x): return x * @@",
    ),
    "parallel part": ("nn.DataParallel(P())", "class P(nn.Module):\n    def forward(s, x): return x * @@"),
    "flag of a part that keeps it": (
        "p",
        "class P(nn.Module):\n    def train(s, mode=True): return s\np = P()\np.training = @@ > .5",
    ),
    "part that a package wrapped": (
        "p",
        "import torch.nn.utils.parametrize as P\nclass Same(nn.Module):\n    def forward(s, w): return w\n"
        "class Own(nn.Module):\n    def __init__(s):\n        super().__init__()\n"
        "        s.w = nn.Parameter(torch.ones(1))\n    def forward(s, x): return @@ * s.w * x\n"
        "p = Own()\nP.register_parametrization(p, 'w', Same())",
    ),
}
# what the network calls, what stands above it, the user's other files
CALLED = {
    "module as an attribute": ("h", "import other as h", {"other.py": "def f(): return K\nK = @@"}),
    "module in a list": ("[h]", "import other as h", {"other.py": "K = @@"}),
    "module in a closure": (
        "build()",
        "def build():\n    import other\n    return lambda: other.K",
        {"other.py": "K = @@"},
    ),
    "module as a default": ("f", "import other\ndef f(h=other): return h.K", {"other.py": "K = @@"}),
    "import inside": ("f", "def f():\n    from other import K\n    return K", {"other.py": "K = @@"}),
    "import of a module inside": (
        "f",
        "def f():\n    import other\n    return other.k()",
        {"other.py": "K = @@\ndef k(): return K"},
    ),
    "import from a package inside": (
        "f",
        "def f():\n    from parts_of_a_test.sub import k\n    return k()",
        {"parts_of_a_test/__init__.py": "", "parts_of_a_test/sub.py": "K = @@\ndef k(): return K"},
    ),
    "relative import inside": (
        "k",
        "from parts_of_a_test.sub import k",
        {
            "parts_of_a_test/__init__.py": "",
            "parts_of_a_test/sub.py": "def k():\n    from . import const\n    return const.K",
            "parts_of_a_test/const.py": "K = @@",
        },
    ),
    "import by text": (
        "f",
        "import importlib\ndef f(): return importlib.import_module('other').K",
        {"other.py": "K = @@"},
    ),
    "attribute by text": ("f", "import other\ndef f(): return getattr(other, 'K')", {"other.py": "K = @@"}),
    "modules that import each other": (
        "lambda: other.f()",
        "import other",
        {
            "other.py": "import more\ndef f(): return more.g()\nK = @@",
            "more.py": "import other\ndef g(): return other.K",
        },
    ),
    "modules in a circle": (
        "lambda: other.more.other.K",
        "import other",
        {"other.py": "import more\nK = @@", "more.py": "import other"},
    ),
    "five levels": (
        "a",
        "from other import a",
        {
            "other.py": "import more\ndef a(): return more.a()",
            "more.py": "from third import a as z\ndef a(): return z()",
            "third.py": "import fourth as q\ndef a(): return q.C().x()",
            "fourth.py": "from fifth import K\nclass C:\n    def x(self): return K['a'][0]",
            "fifth.py": "K = {'a': [@@]}",
        },
    ),
    "two classes of one name": (
        "[other.B(), more.B(), (other if @@ > .5 else more).B()]",
        "import other, more",
        {"other.py": "class B:\n    def k(s): return 1", "more.py": "class B:\n    def k(s): return 2"},
    ),
}
NAMES = ("network_of_a_test", "other", "more", "third", "fourth", "fifth", "parts_of_a_test")


@pytest.fixture
def key_of_source(tmp_path, monkeypatch):
    """The hash of the network that a folder of the user's makes: source of what it holds, and other files."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def key(held, above, files, value):
        for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
            del sys.modules[name]
        made = (
            f"class Net(nn.Module): pass\ndef make():\n    net = Net()\n    net.held = {held}\n    return net"
        )
        for name, text in {"network_of_a_test.py": f"{HEAD}{above}\n{made}", **files}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text.replace("@@", value))
        for folder in tmp_path.rglob("__pycache__"):
            shutil.rmtree(folder)
        importlib.invalidate_caches()
        return identity(importlib.import_module("network_of_a_test").make())

    yield key
    for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
        del sys.modules[name]


@pytest.mark.parametrize("what", [*HELD, *CALLED])
@pytest.mark.filterwarnings("error:what Net computes", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_one_difference_is_another_hash(key_of_source, what):
    held, above, *files = HELD.get(what) or CALLED[what]
    first, second, again = (key_of_source(held, above, dict(*files), value) for value in (".1", ".6", ".1"))
    assert first == again != second


@pytest.mark.parametrize(
    "above",
    [
        "def f(x):  # it says @@\n    return x",
        "NOT_READ = @@\ndef f(x): return x",
        "def f(x):\n    '''It says @@.'''\n    return x",
        "import logging\nlog = logging.getLogger('@@')\ndef f(x):\n    log.debug(x)\n    return x",
        "import os\ndef f(x):\n    return os.path.dirname(__file__) and x  # @@",
        "for _ in range(int(@@ * 10)):\n    class B(torch.autograd.Function): pass\n"
        "class A(torch.autograd.Function): pass\ndef f(x): return A.apply(x)",
    ],
)
def test_what_changes_nothing_leaves_the_hash(key_of_source, above):
    assert len({key_of_source("f", above, {}, value) for value in (".1", ".6")}) == 1


def test_a_moved_folder_leaves_the_hash(key_of_source, tmp_path, monkeypatch):
    source = "import os\ndef f(x):\n    return os.path.dirname(__file__) and x"
    here = key_of_source("f", source, {}, "")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "network_of_a_test.py", tmp_path / "elsewhere")
    del sys.modules["network_of_a_test"]
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert identity(importlib.import_module("network_of_a_test").make()) == here


def doubled(x, inplace=False):
    return 2 * torch.relu(x)


PATCHES = {
    "function that is called": (F, "relu", doubled),
    "function that a layer calls": (F, "hardtanh", doubled),
    "function of torch": (torch, "tanh", doubled),
    "method of tensors": (torch.Tensor, "relu", doubled),
    "method of a layer": (nn.ReLU6, "forward", lambda self, x: 2 * x),
    "method of a base": (nn.modules.conv._ConvNd, "extra", lambda self: 2),
    "method of every module": (nn.Module, "extra", lambda self: 2),
    "function by another of torch": (F, "relu", torch.tanh),
    "method by another layer's": (nn.ReLU6, "forward", nn.Tanh.forward),
}


@pytest.mark.parametrize("what", PATCHES)
def test_what_the_user_puts_in_a_package_s_place(what, monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6())
    before = identity(model)
    with monkeypatch.context() as patch:
        patch.setattr(*PATCHES[what], raising=False)
        assert identity(model) != before
    assert identity(model) == before


def test_what_stands_in_the_module_of_a_preprocessing_s_class(monkeypatch):
    from torchvision import transforms
    from torchvision.transforms import functional

    steps = transforms.Compose([transforms.Resize(8), transforms.ToTensor()])
    before = identity_of(steps)
    for place, name in ((functional, "to_tensor"), (transforms.ToTensor, "__call__")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, doubled)
            assert identity_of(steps) != before


def test_hooks_of_all_modules_and_which_hook_takes_keywords():
    model = nn.Sequential(nn.Linear(2, 2))
    before = identity(model)
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        handle = register(doubled)
        assert identity(model) != before
        handle.remove()
    assert identity(model) == before
    keys = set()
    for first in (True, False):
        model = nn.Sequential(nn.Linear(2, 2))
        model.register_forward_hook(doubled, with_kwargs=first)
        model.register_forward_hook(functools.partial(doubled), with_kwargs=not first)
        keys.add(identity(model))
    assert len(keys) == 2


def test_one_tower_has_the_hooks_and_patches_of_the_whole():
    def tower(change):
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
        nn.init.ones_(model[0].weight)
        change(model)
        return identity(model, {"0"})

    changes = (
        lambda model: None,
        lambda model: model.register_forward_hook(doubled),
        lambda model: setattr(model, "forward", doubled),
    )
    assert len({tower(change) for change in changes}) == 3


@pytest.mark.parametrize(
    "made",
    [
        lambda: (x for x in [1]),
        lambda: np.frompyfunc(abs, 1, 1),
        lambda: importlib.import_module("ctypes").CDLL(None),
        lambda: open(__file__),
        lambda: importlib.import_module("sqlite3").connect(":memory:"),
    ],
)
def test_what_only_one_process_knows_is_said_once(made):
    model = nn.Sequential()
    model.held = thing = made()
    with pytest.warns(
        UserWarning, match="cannot be told from Sequential.held.*for this process alone"
    ) as said:
        identity(model)
    assert len(said) == 1
    getattr(thing, "close", lambda: None)()


def test_pictures_that_a_preprocessing_holds():
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys = [
            identity_of(functools.partial(doubled, Image.new("RGB", (4, 4), c)))
            for c in ("red", "tan", "red")
        ]
    assert keys[0] == keys[2] != keys[1]


def test_patterns_of_the_package_regex_are_told_as_those_of_python():
    """Tokenizers hold them, open_clip's among them."""
    regex = pytest.importorskip("regex")
    assert (
        identity_of(regex.compile("a.6"))
        == identity_of(regex.compile("a.6"))
        != identity_of(regex.compile("a.1"))
    )
    some, other = (regex.compile(r"\L<words>", words=words) for words in (["a", "b"], ["a", "c"]))
    assert identity_of(some) != identity_of(other)
