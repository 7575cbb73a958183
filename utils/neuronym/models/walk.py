"""A walk over an object and all that it reads: what it meets goes into a hash, each object once.

Walk  the walk; `of` takes an object, `key` gives the hash and warns of what could not be identified

What is met again goes in by the number it had, a class by its name, so that cycles end.
"""

from __future__ import annotations

import collections
import ctypes
import enum
import functools
import hashlib
import logging
import secrets
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import nn, Tensor

from neuronym.common.files import sha256
from neuronym.models.packages import (
    by_name,
    imports_in,
    installed,
    is_packaged,
    is_there,
    named,
    names_read,
    ours,
    replaced,
)
from neuronym.models.values import (
    array_parts,
    code_parts,
    script_parts,
    state_of,
    tells_its_state,
    tensor_parts,
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
    __parameters__ __orig_bases__ _autograd_function_id _value2member_map_""".split()
)
# of a tensor: marks of whoever loaded it
MARKS = frozenset(("_is_hf_initialized", "persistent"))
HOOKS = ("_forward_pre_hooks", "_forward_hooks")  # of every module, where they are global
# built-in types whose content is beside the attributes that a subclass adds
CONTENT = (dict, list, tuple, str, bytes, bytearray, float, int, complex, collections.deque)
SIMPLE = (int, float, complex, str, bytes, bytearray, bool, type(None), type(...), type(NotImplemented))
LOCKS = type(threading.Lock()), type(threading.RLock())
PROCESS = secrets.token_hex(8)


class Walk:
    """One walk over an object: what it met goes into a hash, each object once, later by its number."""

    def __init__(self):
        self.hash = hashlib.sha256()
        self.met: dict[int, tuple[int, object]] = {}  # the object is kept, so that its id stays its own
        self.classes: dict[str, list[type]] = {}  # met, by name
        self.within: set[tuple[int, int]] = set()  # modules and names that are being looked through
        self.looked: set[int] = set()  # installed modules and classes, looked through for what replaces them
        self.unknown: list[str] = []

    def key(self, name: str) -> str:
        for place in (torch, torch.nn.functional, Tensor):
            self._replaced(place)
        for table in HOOKS:
            hooks = getattr(nn.modules.module, f"_global{table}")
            if hooks:
                self.put(f"global{table}")
                self._each(hooks.values(), table)
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

    def _apart(self, thing: object, path: str) -> str:
        """The hash of one of several things that have no order."""
        walk = Walk()
        walk.of(thing, path)
        return walk.key(path)

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
            if isinstance(thing, type):
                self.klass(thing)
            else:
                self.put("met", str(self.met[id(thing)][0]))
            return
        self.met[id(thing)] = len(self.met), thing
        try:
            self._any(thing, path)
        except RecursionError:
            self._opaque(thing, path)

    def _any(self, thing: object, path: str) -> None:
        if isinstance(thing, Tensor):
            self._parts(tensor_parts(thing, path), path)
            self._more(thing, (Tensor, nn.Parameter, nn.Buffer), path, MARKS)
        elif isinstance(thing, np.ndarray | np.generic):
            self._parts(array_parts(np.asarray(thing)), path)
            if isinstance(thing, np.ndarray):
                self._more(thing, (np.ndarray, np.memmap), path)
        elif isinstance(thing, type):
            self.klass(thing)
        elif isinstance(thing, enum.Enum):
            self.put("enum", type(thing).__name__, str(thing.name))
            if not installed(type(thing).__module__):
                self.klass(type(thing))
                self.of(thing.value, path)
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
            if installed(thing.__name__) or ours(thing.__name__):
                self.put("module", thing.__name__)
            else:
                self._whole_module(thing, path)
        elif isinstance(thing, torch.jit.ScriptModule | torch.jit.ScriptFunction):
            parts = script_parts(thing)
            self._opaque(thing, path) if parts is None else self._parts(parts, path)
        elif isinstance(thing, nn.Module):
            self._module(thing, path)
        elif isinstance(thing, torch.Generator):
            self.of(thing.get_state(), path)
        elif isinstance(
            thing, torch.dtype | torch.device | torch.layout | torch.memory_format | slice | range | PurePath
        ):
            self.put(type(thing).__name__, str(thing))
        elif type(thing).__name__ == "Pattern" and type(thing).__module__ in ("re", "_regex"):
            lists = [(k, sorted(words)) for k, words in sorted(getattr(thing, "named_lists", {}).items())]
            self.put("pattern", repr((thing.pattern, thing.flags, *lists)))
        elif isinstance(thing, (logging.Logger, *LOCKS)):
            self.put(type(thing).__name__)  # it computes nothing
        elif isinstance(thing, types.UnionType | types.GenericAlias):
            self.put("annotation", repr(thing))
        elif isinstance(thing, weakref.ref):
            self.put("weakref")
            self.of(thing(), path)
        elif isinstance(thing, memoryview):
            self.of(thing.tobytes(), path)
        elif isinstance(thing, np.ufunc) and getattr(np, thing.__name__, None) is thing:
            self.put("ufunc", thing.__name__)
        elif isinstance(thing, ctypes.CDLL):
            self._opaque(thing, path)
        elif isinstance(thing, Mapping) and not hasattr(thing, "__dict__") or type(thing) is dict:
            self.put(type(thing).__name__, str(len(thing)))
            if isinstance(thing, collections.defaultdict):
                self.of(thing.default_factory, path)
            for key, value in thing.items():
                self.of(key, f"{path} key")
                self.of(value, f"{path}[{key!r}]" if isinstance(key, str | int) else path)
        elif isinstance(thing, list | tuple) and not hasattr(thing, "__dict__"):
            self.put(type(thing).__name__, str(len(thing)))
            self._each(thing, path)
            self._more(thing, (list, tuple), path)
        elif isinstance(thing, set | frozenset):
            self.put(type(thing).__name__, *sorted(self._apart(one, path) for one in thing))
            self._more(thing, (set, frozenset), path)
        elif isinstance(thing, types.CodeType):
            self._parts(code_parts(thing), path)
        elif isinstance(thing, staticmethod | classmethod):
            self.of(thing.__func__, path)
        elif isinstance(thing, property):
            self.put("property")
            self._each((thing.fget, thing.fset), path)
        elif isinstance(thing, functools.cached_property):
            self.of(thing.func, path)
        elif by_name(thing):
            self._native(thing, path)
        else:
            self._object(thing, path)

    def _each(self, things, path: str) -> None:
        for i, one in enumerate(things):
            self.of(one, f"{path}[{i}]")

    def _parts(self, parts: Sequence, path: str) -> None:
        """Tags and bytes go into the hash, other things are walked."""
        for part in parts:
            if isinstance(part, tuple):
                self.put(*part)
            elif isinstance(part, bytes | memoryview):
                self.hash.update(part)
            else:
                self._each(part, path)

    def _more(self, thing: object, plain: tuple[type, ...], path: str, marks: Collection[str] = ()) -> None:
        """What a subclass of the user's defines, and the attributes that stand beside a thing's content."""
        cls = type(thing)
        if cls not in plain and not installed(cls.__module__):
            self.klass(cls)
        state = {name: value for name, value in getattr(thing, "__dict__", {}).items() if name not in marks}
        if state and cls is not np.memmap:  # whose attributes say where the file lies
            self.of(state, path)

    def _native(self, thing: object, path: str) -> None:
        """What is written in C: its name, what it is bound to, and the file where it is the user's."""
        module = getattr(thing, "__module__", "") or ""
        self.put("named", module, thing.__qualname__)
        owner = getattr(thing, "__self__", None)
        bound = not isinstance(owner, types.ModuleType | type | None) and "pybind11" not in str(type(owner))
        if bound and type(owner).__name__ != "PyCapsule":
            self.of(owner, f"{path}.__self__")
        elif isinstance(owner, type) and not installed(owner.__module__):
            self.klass(owner)
        if module and not installed(module):
            file = getattr(sys.modules.get(module), "__file__", None)
            self.put("file", sha256(Path(file))) if file else self._opaque(thing, path)

    def _module(self, module: nn.Module, path: str) -> None:
        """A network: its class, and all of its state that a forward pass may read, hooks in their order
        included.
        """
        self.put("nn.Module")
        state, cls = vars(module), type(module)
        if cls.__name__ == "OptimizedModule" and "_orig_mod" in module._modules:  # of torch.compile
            state = {name: value for name, value in state.items() if name == "_modules" or name in HOOKS}
        elif isinstance(module, torch.fx.GraphModule):
            state = {name: value for name, value in state.items() if name not in ("_graph", "meta")}
            self._each([[n.op, str(n.args), str(n.kwargs), n.target] for n in module.graph.nodes], path)
        else:
            self.klass(cls)
        if not all(is_packaged(f) or ours(f.__module__) for f in (cls.train, cls.eval)):
            self.put("training", str(module.training))  # which such a network may keep
        for name, value in state.items():
            if name in PASSING or name in ORIGIN or _empty(value):
                continue
            self.put(name)
            if name.endswith("_with_kwargs") and isinstance(value, Mapping):
                order = list(vars(module).get(name.removesuffix("_with_kwargs"), ()))
                self.put("positions", repr([order.index(key) for key in value if key in order]))
            elif "_hooks" in name and isinstance(value, Mapping):
                self._each(value.values(), f"{path}.{name}")  # keys count hooks since the process began
            elif name in ("_parameters", "_buffers", "_modules"):
                for key, part in value.items():
                    self.put(key)
                    self.of(part, f"{path}.{key}")
            else:
                self.of(value, f"{path}.{name}")

    def patches(self, state: Mapping, path: str) -> None:
        """Hooks on a module, and functions that stand in its state where a method would."""
        for name, value in state.items():
            if name in HOOKS and value:
                self.put(name)
                self._each(value.values(), f"{path}.{name}")
            elif isinstance(value, types.FunctionType | types.MethodType):
                self.put(name)
                self.of(value, f"{path}.{name}")

    def _function(self, function: types.FunctionType, path: str) -> None:
        """Compiled code, defaults, closure, attributes, and the globals that the code reads."""
        compiled = vars(function).get("_torchdynamo_orig_callable")
        if compiled is not None:
            self.of(compiled, path)
            return
        if is_packaged(function):
            self.put("named", *named(function.__module__, function.__qualname__))
            self._around(sys.modules.get(function.__module__))
            if "<locals>" in function.__code__.co_qualname:  # one of many that a function of theirs makes
                self.put("made", function.__name__)
                self._each((function.__defaults__, function.__kwdefaults__), path)
                self._closure(function, set(), path)
            return
        self.put("function")
        self._parts(code_parts(function.__code__, function.__doc__), path)
        names, known = names_read(function.__code__), function.__globals__
        given = (function.__defaults__, function.__kwdefaults__, vars(function) or None)
        self._each(given, path)
        modules = [
            value for some in given[:2] for value in _values(some) if isinstance(value, types.ModuleType)
        ]
        self._closure(function, names, path)
        for name in sorted(names & known.keys()):
            if not name.startswith("__"):  # what a module says of itself
                self.put(name)
                self._global(known[name], names, name)
        modules += () if ours(known.get("__name__")) else imports_in(function)
        for module in modules:
            self._global(module, names, path)

    def _closure(self, function: types.FunctionType, names: set[str], path: str) -> None:
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not filled yet
                self.put("empty cell")
                continue
            if isinstance(value, types.ModuleType):
                self.put("module", value.__name__)
                self._global(value, names, path)
            else:
                self.of(value, f"{path} closure")

    def _global(self, value: object, names: set[str], path: str) -> None:
        """What a function reads from its module; of another module of the user's, the attributes whose
        names the code has.
        """
        if not isinstance(value, types.ModuleType) or installed(value.__name__):
            self.of(value, path)
            self._replaced(value if isinstance(value, types.ModuleType) else None)
            return
        if (id(value), id(names)) in self.within:
            return
        self.within.add((id(value), id(names)))
        self.put("module of the user's")
        for name in sorted(names & vars(value).keys()):
            if name.startswith("__"):
                continue
            self.put(name)
            inner = vars(value)[name]
            if inner is not value:
                self._global(inner, names, f"{path}.{name}")
        self.within.remove((id(value), id(names)))

    def _whole_module(self, module: types.ModuleType, path: str) -> None:
        """A module of the user's that is held as a value, by all that it defines: who reads what is not
        known.
        """
        self.put("module held")
        for name, value in sorted(vars(module).items()):
            if not name.startswith("__") and not isinstance(value, types.ModuleType):
                self.put(name)
                self.of(value, f"{path}.{name}")

    def _around(self, module: types.ModuleType | None) -> None:
        """What the user has put into a package's module, and into those of that package that it reads."""
        top = module.__name__.partition(".")[0] if module else ""
        for part in [module, *(vars(module).values() if module and id(module) not in self.looked else ())]:
            if isinstance(part, types.ModuleType) and part.__name__.partition(".")[0] == top:
                self._replaced(part)

    def _replaced(self, place: types.ModuleType | type | None) -> None:
        """What the user has put in place of functions of an installed module or class."""
        if place is None or id(place) in self.looked:
            return
        self.looked.add(id(place))
        for name, value in replaced(place):
            self.put("replaced", place.__name__, name)
            self.of(value, f"{place.__name__}.{name}")

    def klass(self, cls: type) -> None:
        """A class: of an installed package by name, of the user's by all it defines, bases included."""
        alike = self.classes.setdefault(cls.__name__, [])
        if cls in alike:
            self.put("met class", cls.__name__, *([str(alike.index(cls))] if alike[0] is not cls else []))
            return
        alike.append(cls)
        self.met[id(cls)] = -1, cls
        if installed(cls.__module__) and is_there(cls):
            self.put("class", *named(cls.__module__, cls.__qualname__))
            for base in cls.__mro__[:-1]:
                if not installed(base.__module__):  # in a class that a package made around the user's
                    self.klass(base)
                self._replaced(base)
            self._around(sys.modules.get(cls.__module__))
            return
        self.put("class", cls.__name__)
        if not installed(type(cls).__module__):
            self.klass(type(cls))
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
        state = {k: v for k, v in state_of(thing).items() if k not in ORIGIN}
        reduced, tells = None, installed(cls.__module__) and tells_its_state(cls)
        if not state or installed(cls.__module__):  # state that Python code may not see, or must not keep
            try:
                scripted = isinstance(thing, torch.ScriptObject)
                reduced = (thing.__getstate__(),) if scripted else thing.__reduce_ex__(4)
                reduced = (reduced,) if isinstance(reduced, str) else reduced if scripted else reduced[1:]
            except Exception:  # whatever an object answers that is made to be in one process only
                self._opaque(thing, path)
                return
        if state and (not tells or isinstance(reduced[0], str)):
            self.put("object")
            self.klass(cls)
            self.of(state, path)
            base = next((kind for kind in CONTENT if isinstance(thing, kind)), None)
            if base is not None:
                self.of(base(thing), path)
            return
        self.put("reduced")
        self.klass(cls)
        for part in reduced[:4]:
            self.of(list(part) if hasattr(part, "__next__") else part, path)

    def _opaque(self, thing: object, path: str) -> None:
        self.unknown.append(f"{path} ({type(thing).__name__})")


def _empty(value: object) -> bool:
    return type(value) in (dict, collections.OrderedDict) and not value


def _values(given: tuple | dict | None) -> list:
    """Defaults, positional or by name, as a list."""
    return list(given.values() if isinstance(given, dict) else given or ())
