"""What a network or a preprocessing computes, as a hash: the same in every process, another when anything it
reads differs.

identity     hash of a module: tensors, attributes, hooks, code of its classes and of what that code reads
identity_of  hash of any object, and where in it something could not be identified
weights_key  hash of a state dict's tensors by name, type, shape and bytes

An object is walked like a pickle would be, and nothing is run: tensors and arrays by their bytes, containers
by what they hold, functions by compiled code, defaults, closures and the globals they read (functions,
classes and values, to any depth), objects by class and state. Code is taken without comments, docstrings,
names of files and line numbers, so that a file may be moved or commented. What comes from an installed
package is known by its name, and by that package's version (torch, torchvision, numpy, Pillow and the
standard library by name alone).
"""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import logging
import os
import re
import secrets
import sys
import sysconfig
import types
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import PurePath

import numpy as np
import torch
from torch import nn, Tensor

UNVERSIONED = ("torch", "torchvision", "numpy", "PIL")  # a result is not thrown away for an update of these
OURS = "neuronym"  # known by its code wherever it is installed
INSTALLED = tuple(
    {os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("purelib", "platlib", "stdlib")}
)
# of a module's state: what does not enter a forward pass in evaluation mode
PASSING = frozenset(
    """training _backward_hooks _backward_pre_hooks _is_full_backward_hook _non_persistent_buffers_set
    _state_dict_hooks _state_dict_pre_hooks _load_state_dict_pre_hooks _load_state_dict_post_hooks
    _forward_hooks_always_called _compiled_call_impl""".split()
)
# where a Hugging Face folder was loaded from: a folder may be moved
ORIGIN = frozenset(("name_or_path", "_name_or_path", "_commit_hash", "_attn_implementation_autoset"))
# of a class: what says nothing of what it does
SILENT = frozenset(
    """__module__ __doc__ __dict__ __weakref__ __qualname__ __annotations__ __firstlineno__
    __static_attributes__ __abstractmethods__ _abc_impl __annotate__ __annotate_func__ __annotations_cache__
    __parameters__ __orig_bases__""".split()
)
SIMPLE = (int, float, complex, str, bytes, bytearray, bool, type(None), type(...), type(NotImplemented))
PROCESS = secrets.token_hex(8)


def identity(module: nn.Module, only: Collection[str] | None = None, *extra: str) -> str:
    """16 hex for what a module computes. `only` restricts it to some of its top-level parts (one tower of a
    CLIP) and the module's own code and plain attributes; `extra` texts are hashed along.

    Where something in it cannot be identified (a lock, an open file), the hash is of this process alone, so
    that nothing it names is found by another, and a warning says what it was.
    """
    walk = _Walk()
    if only is None:
        walk.of(module, type(module).__name__)
    else:
        walk.klass(type(module))
        own = vars(module)
        plain = {k: v for k, v in own.items() if isinstance(v, SIMPLE) and k not in PASSING | ORIGIN}
        walk.of(plain, type(module).__name__)
        for table in ("_parameters", "_buffers", "_modules"):
            parts = {k: v for k, v in own.get(table, {}).items() if k in only}
            walk.of(parts, table)
    for text in extra:
        walk.of(text, "extra")
    return walk.key(type(module).__name__)


def identity_of(thing: object, name: str = "") -> str:
    """16 hex for any object, as `identity`; `name` is what a warning calls it."""
    walk = _Walk()
    walk.of(thing, name or type(thing).__name__)
    return walk.key(name or type(thing).__name__)


def weights_key(weights: Mapping[str, Tensor] | nn.Module) -> str:
    """16 hex of SHA-256 over the sorted (name, dtype, shape, bytes) of a state dict or module, on the
    CPU, uncast.
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


class _Walk:
    """One walk over an object: what it met goes into a hash, each object once, later by its number."""

    def __init__(self):
        self.hash = hashlib.sha256()
        self.met: dict[int, tuple[int, object]] = {}  # the object is kept, so that its id stays its own
        self.unknown: list[str] = []

    def key(self, name: str) -> str:
        if self.unknown:
            shown = ", ".join(self.unknown[:3]) + (
                f" and {len(self.unknown) - 3} more" if len(self.unknown) > 3 else ""
            )
            warnings.warn(
                f"what {name} computes cannot be told from {shown}; its results are kept for this process "
                "alone; make it of tensors, numbers, texts and functions to have them cached",
                stacklevel=4,
            )
            self.put("process", PROCESS)
        return self.hash.hexdigest()[:16]

    def put(self, tag: str, *texts: str | bytes) -> None:
        """A tag and texts, each with its length, so that no two lists of them run together."""
        for text in (tag, *texts):
            data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            self.hash.update(b"%d:" % len(data))
            self.hash.update(data)

    def of(self, thing: object, path: str) -> None:
        """Any object; `path` says where it stands, for the warning."""
        if isinstance(thing, SIMPLE) and type(thing) in SIMPLE:
            self.put(type(thing).__name__, thing if isinstance(thing, bytes) else repr(thing))
            return
        if id(thing) in self.met:
            self.put("met", str(self.met[id(thing)][0]))
            return
        self.met[id(thing)] = len(self.met), thing
        try:
            self._any(thing, path)
        except RecursionError:
            self._opaque(thing, path)

    def _any(self, thing: object, path: str) -> None:
        if isinstance(thing, Tensor):
            self._tensor(thing, path)
        elif isinstance(thing, np.ndarray | np.generic):
            self._array(np.asarray(thing), path)
        elif isinstance(thing, type):
            self.klass(thing)
        elif isinstance(thing, enum.Enum):
            self.put("enum", type(thing).__name__, thing.name)
        elif isinstance(thing, types.FunctionType):
            self._function(thing, path)
        elif isinstance(thing, types.MethodType):
            self.put("method", thing.__func__.__name__)
            self.of(thing.__self__, f"{path}.__self__")
            self.of(thing.__func__, path)
        elif isinstance(thing, functools.partial):
            self.put("partial")
            self._each((thing.func, thing.args, thing.keywords), path)
        elif isinstance(thing, types.ModuleType):
            self.put("module", thing.__name__)
        elif isinstance(thing, torch.jit.ScriptModule):
            self._script(thing, path)
        elif isinstance(thing, nn.Module):
            self._module(thing, path)
        elif isinstance(thing, torch.Generator):
            self.of(thing.get_state(), path)
        elif isinstance(
            thing, torch.dtype | torch.device | torch.layout | torch.memory_format | slice | range | PurePath
        ):
            self.put(type(thing).__name__, str(thing))
        elif isinstance(thing, re.Pattern):
            self.put("pattern", repr((thing.pattern, thing.flags)))
        elif isinstance(thing, logging.Logger):
            self.put("logger")  # it computes nothing
        elif isinstance(thing, Mapping) and not hasattr(thing, "__dict__") or type(thing) is dict:
            self.put(type(thing).__name__, str(len(thing)))
            for key, value in thing.items():
                self.of(key, f"{path} key")
                self.of(value, f"{path}[{key!r}]" if isinstance(key, str | int) else path)
        elif isinstance(thing, list | tuple) and not hasattr(thing, "__dict__"):
            self.put(type(thing).__name__, str(len(thing)))
            self._each(thing, path)
        elif isinstance(thing, set | frozenset):
            self.put(type(thing).__name__, *sorted(identity_of(one, path) for one in thing))
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, staticmethod | classmethod):
            self.of(thing.__func__, path)
        elif isinstance(thing, property):
            self.put("property")
            self._each((thing.fget, thing.fset), path)
        elif isinstance(thing, functools.cached_property):
            self.of(thing.func, path)
        elif _by_name(thing):
            self.put("named", getattr(thing, "__module__", "") or "", thing.__qualname__)
        else:
            self._object(thing, path)

    def _each(self, things, path: str) -> None:
        for i, one in enumerate(things):
            self.of(one, f"{path}[{i}]")

    def _tensor(self, x: Tensor, path: str) -> None:
        self.put("tensor", str(x.dtype), str(list(x.shape)), str(x.layout))
        if x.is_meta:
            raise ValueError(f"{path} is on the meta device and has no values; load weights into it first")
        x = x.detach()
        if x.is_quantized:
            per_channel = x.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
            scale = (
                (x.q_per_channel_scales(), x.q_per_channel_zero_points())
                if per_channel
                else (x.q_scale(), x.q_zero_point())
            )
            self._each(scale, path)
            x = x.int_repr()
        if x.layout is not torch.strided:
            x = x.coalesce() if x.layout is torch.sparse_coo else x
            parts = (x.indices(), x.values()) if x.layout is torch.sparse_coo else (x.to_dense(),)
            self._each(parts, path)
            return
        x = x.cpu().contiguous()
        x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.resolve_neg()
        self.hash.update(x.reshape(-1).view(torch.uint8).numpy().data)

    def _array(self, x: np.ndarray, path: str) -> None:
        self.put("array", str(x.dtype), str(x.shape))
        if x.dtype.hasobject:
            self._each(x.ravel().tolist(), path)
        else:
            self.hash.update(np.ascontiguousarray(x).tobytes())

    def _module(self, module: nn.Module, path: str) -> None:
        """A network: its class, and all of its state that a forward pass may read, hooks in their order
        included.
        """
        self.put("nn.Module")
        self.klass(type(module))
        for name, value in vars(module).items():
            if name in PASSING or name in ORIGIN or _empty(value):
                continue
            self.put(name)
            if "_hooks" in name and isinstance(value, Mapping):
                self._each(value.values(), f"{path}.{name}")  # keys count hooks since the process began
            elif name in ("_parameters", "_buffers", "_modules"):
                for key, part in value.items():
                    self.put(key)
                    self.of(part, f"{path}.{key}")
            else:
                self.of(value, f"{path}.{name}")

    def _script(self, module: torch.jit.ScriptModule, path: str) -> None:
        """A scripted or traced network, by what it would save: code, constants, attributes and tensors."""
        file = io.BytesIO()
        try:
            torch.jit.save(module, file)
        except RuntimeError:
            self._opaque(module, path)
            return
        self.put("script")
        with zipfile.ZipFile(file) as archive:
            for entry in sorted(archive.namelist()):
                name = entry.partition("/")[2]
                if not name.endswith(".debug_pkl") and not name.startswith(
                    ".data/"
                ):  # lines of source; a random id
                    self.put(name, archive.read(entry))

    def _function(self, function: types.FunctionType, path: str) -> None:
        """Compiled code, defaults, closure, attributes, and the globals that the code reads."""
        if _installed(function.__module__):
            self.put("named", *_named(function.__module__, function.__qualname__))
            return
        self.put("function")
        self._code(function.__code__, doc=function.__doc__)
        self._each((function.__defaults__, function.__kwdefaults__, vars(function) or None), path)
        for cell in function.__closure__ or ():
            try:
                self.of(cell.cell_contents, f"{path} closure")
            except ValueError:  # not filled yet
                self.put("empty cell")
        names = _names(function.__code__)
        for name in sorted(names & function.__globals__.keys()):
            self.put(name)
            self._global(function.__globals__[name], names, name)

    def _global(self, value: object, names: set[str], path: str) -> None:
        """What a function reads from its module; of another module of the user's, the attributes whose
        names the code has.
        """
        if not isinstance(value, types.ModuleType) or _installed(value.__name__):
            self.of(value, path)
            return
        if id(value) in self.met and self.met[id(value)][1] is names:
            return
        self.put("module of the user's")
        for name in sorted(names & vars(value).keys()):
            self.put(name)
            inner = vars(value)[name]
            if inner is not value:
                self._global(inner, names, f"{path}.{name}")

    def _code(self, code: types.CodeType, doc: str | None = None) -> None:
        """Code without file, lines and docstring."""
        kinds = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0x2F)
        self.put("code", repr(kinds), code.co_code, code.co_exceptiontable, repr(code.co_names))
        for i, value in enumerate(code.co_consts):
            if isinstance(value, types.CodeType):
                self._code(value)
            elif isinstance(value, frozenset):
                self.put("set", *sorted(map(repr, value)))
            elif not (i == 0 and type(value) is type(doc) and value == doc):
                self.put("constant", repr(value))

    def klass(self, cls: type) -> None:
        """A class: of an installed package by name, of the user's by all it defines, bases included."""
        if id(cls) in self.met and self.met[id(cls)][1] is cls and self.met[id(cls)][0] < 0:
            self.put("met class", cls.__name__)
            return
        self.met[id(cls)] = -1, cls
        if _installed(cls.__module__):
            self.put("class", *_named(cls.__module__, cls.__qualname__))
            return
        self.put("class", cls.__name__)
        for base in cls.__bases__:
            self.klass(base)
        for name, value in sorted(vars(cls).items()):
            if name in SILENT or isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
                continue
            self.put(name)
            self.of(value, f"{cls.__name__}.{name}")

    def _object(self, thing: object, path: str) -> None:
        """Any other object: its class and its state, which is __dict__ and __slots__, or what pickle
        would keep.
        """
        cls = type(thing)
        state = {k: v for k, v in getattr(thing, "__dict__", {}).items() if k not in ORIGIN}
        for base in cls.__mro__:
            slots = vars(base).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(thing, name):
                    state[name] = getattr(thing, name)
        reduced = None
        if not state or _installed(cls.__module__):  # state that Python code may not see, or must not keep
            try:
                scripted = isinstance(thing, torch.ScriptObject)
                reduced = (thing.__getstate__(),) if scripted else thing.__reduce_ex__(4)[1:]
            except Exception:  # whatever an object answers that is made to be in one process only
                self._opaque(thing, path)
                return
        if state:
            self.put("object")
            self.klass(cls)
            self.of(state, path)
            if isinstance(thing, dict | list | tuple):
                base = next(kind for kind in (dict, list, tuple) if isinstance(thing, kind))
                self.of(base(thing), path)
            return
        self.put("reduced")
        self.klass(cls)
        for part in reduced[:4]:
            self.of(list(part) if hasattr(part, "__next__") else part, path)

    def _opaque(self, thing: object, path: str) -> None:
        self.unknown.append(f"{path} ({type(thing).__name__})")


def _installed(module: str | None) -> bool:
    """Whether a module belongs to Python or to an installed package, and not to the user or to this
    package.
    """
    top = (module or "builtins").partition(".")[0]
    if top == OURS:
        return False
    if top in sys.stdlib_module_names or top == "builtins":
        return top not in ("__main__",)
    loaded = sys.modules.get(module or "") or sys.modules.get(top)
    file = getattr(loaded, "__file__", None)
    if file is None:
        return getattr(loaded, "__spec__", None) is not None and not hasattr(loaded, "__path__")
    return os.path.realpath(file).startswith(INSTALLED)


@functools.lru_cache(maxsize=256)
def _version(top: str) -> str:
    from importlib import metadata

    if top in UNVERSIONED or top in sys.stdlib_module_names:
        return ""
    given = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(given, str):
        return given
    try:
        return metadata.version(top.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return ""


def _named(module: str | None, name: str) -> tuple[str, str, str]:
    """Module, name and version of what an installed package defines."""
    return module or "", name, _version((module or "builtins").partition(".")[0])


def _by_name(thing: object) -> bool:
    """Functions written in C, and what only a name tells."""
    kinds = (
        types.BuiltinFunctionType,
        types.MethodDescriptorType,
        types.WrapperDescriptorType,
        types.MethodWrapperType,
    )
    return isinstance(thing, kinds) or (
        hasattr(thing, "__qualname__") and callable(thing) and not hasattr(thing, "__dict__")
    )


def _names(code: types.CodeType) -> set[str]:
    """Names that code, and code inside it, reads."""
    found = set(code.co_names)
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            found |= _names(value)
    return found


def _empty(value: object) -> bool:
    return isinstance(value, dict) and not value
