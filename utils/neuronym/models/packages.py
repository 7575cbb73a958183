"""Whose code it is: that of an installed package, known by name and version, or the user's, known by what it
does.

installed    whether a module belongs to Python or to an installed package
ours         whether a module is of this package
named        module, name and version of what an installed package defines
is_there     whether a class stands where it says that it does
by_name      whether a thing is written in C, so that its name is all there is
is_packaged  whether a function is one that an installed package defines
replaced     functions of an installed module or class that the user has put there
names_read   names that code reads
imports_in   modules that code imports when it runs

A function may call itself another's: `functools.wraps` copies name and module. So it belongs to the module
whose globals it reads.
"""

from __future__ import annotations

import dis
import functools
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import types
from collections.abc import Iterator
from importlib import metadata

from neuronym.common.files import digest

UNVERSIONED = ("torch", "torchvision", "numpy", "PIL")  # a result is not thrown away for an update of these
BY_VERSION = frozenset(
    """timm transformers open_clip clip diffusers efficientnet_lite_pytorch tokenizers
    sentence_transformers""".split()
)  # a version of these is one code; that of any other package may be a copy of what its owner works on
OURS = "neuronym"  # known by its code wherever it is installed
INSTALLED = tuple(
    {os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("purelib", "platlib", "stdlib")}
)
SITES = frozenset(("site-packages", "dist-packages"))  # of another user's or another Python's, too
LOOKS_UP = frozenset("getattr globals vars eval exec attrgetter __dict__ import_module __import__".split())


def installed(module: str | None) -> bool:
    """Whether a module belongs to Python or to an installed package, and not to the user or to this
    package.
    """
    top = (module or "builtins").partition(".")[0]
    if top == OURS:
        return False
    if top in sys.stdlib_module_names or top == "builtins":
        return top not in ("__main__",)
    loaded = [sys.modules[name] for name in (module, top) if name in sys.modules]
    files = [getattr(one, "__file__", None) for one in loaded]  # none of a part that is written in C
    if any(files):
        return _within_packages(next(filter(None, files)))
    origins = {getattr(getattr(one, "__spec__", None), "origin", "") for one in loaded}
    return not origins.isdisjoint(("built-in", "frozen"))


def ours(module: str | None) -> bool:
    """Whether a module is of this package."""
    return (module or "").partition(".")[0] == OURS


@functools.lru_cache(maxsize=4096)
def _within_packages(file: str) -> bool:
    file = os.path.realpath(file)
    return file.startswith(INSTALLED) or not SITES.isdisjoint(file.split(os.sep))


@functools.lru_cache(maxsize=256)
def _version(top: str) -> str:
    if top in UNVERSIONED or top in sys.stdlib_module_names:
        return ""
    given = getattr(sys.modules.get(top), "__version__", None)
    try:
        found = metadata.distribution(top.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return given if isinstance(given, str) else ""
    version = given if isinstance(given, str) else found.version
    files = None if top in BY_VERSION else found.read_text("RECORD")  # hashes of all that was installed
    return f"{version} {digest(files)}" if files else version


def named(module: str | None, name: str) -> tuple[str, str, str]:
    """Module, name and version of what an installed package defines."""
    return module or "", name, _version((module or "builtins").partition(".")[0])


def is_there(cls: type) -> bool:
    """Whether a class stands where it says that it does, in its module under its name."""
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is cls or "<locals>" in cls.__qualname__


def by_name(thing: object) -> bool:
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


def is_packaged(function: types.FunctionType) -> bool:
    """Whether an installed package defines a function, by what it calls itself and by the globals it
    reads.
    """
    home = function.__globals__.get("__name__")
    return bool(home) and home != "builtins" and installed(function.__module__) and installed(home)


def replaced(place: types.ModuleType | type) -> Iterator[tuple[str, object]]:
    """Name and value of the functions of an installed module or class that are not its own: the user's, or
    another of the package's under this name.
    """
    for name, value in sorted(vars(place).items()):
        function = _function_of(value)
        kind = type(function)  # isinstance would ask the value itself, and deprecated ones of torch's warn
        if issubclass(kind, types.FunctionType):
            home = function.__globals__.get("__name__")
            if not home or not installed(home) and not ours(home):
                yield name, function
                continue
        elif not issubclass(kind, types.BuiltinFunctionType):
            continue
        if isinstance(place, type):
            own = getattr(function, "__qualname__", "").rpartition(".")[0]
            other = own not in ("", place.__qualname__) and name == "forward" and "<locals>" not in own
        else:
            same = function.__name__.replace("_", "") == name.replace("_", "")
            other = place.__name__ in ("torch", "torch.nn.functional") and name[0] != "_" and not same
        if other:
            yield name, function


def _function_of(value: object) -> object:
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def names_read(code: types.CodeType) -> set[str]:
    """Names that code, and code inside it, reads; words of its texts where it looks things up by text."""
    found, texts = _names(code)
    if found & LOOKS_UP:
        found |= {word for text in texts for word in re.findall(r"[^\W\d]\w*", text)}
    return found


def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    found, texts = set(code.co_names), set()
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            inner, more = _names(value)
            found |= inner
            texts |= more
        elif isinstance(value, str):
            texts.add(value)
    return found, texts


def imports_in(function: types.FunctionType) -> list[types.ModuleType]:
    """The user's modules that a function imports when it runs: imported here, as it would. What cannot be
    imported, and what is installed, is left out.
    """
    package = function.__globals__.get("__package__") or ""
    found = {}
    for name in sorted(_imported(function.__code__, package)):
        if not name or _is_installed(name.partition(".")[0]):
            continue
        try:
            found[name] = importlib.import_module(name)
        except Exception:  # of an optional part, perhaps: whatever a module raises when it is imported
            continue
    return list(found.values())


def _imported(code: types.CodeType, package: str) -> set[str]:
    """Full names of modules that code imports, by statement or by text."""
    found = set()
    if "IMPORT_NAME" in {dis.opname[op] for op in set(code.co_code[::2])}:
        before: list[dis.Instruction] = []
        for step in dis.get_instructions(code):
            if step.opname == "IMPORT_NAME":
                level, chosen = (one.argval for one in before[-2:])
                name = "." * level + step.argval
                try:
                    name = importlib.util.resolve_name(name, package) if level else name
                except ImportError:  # relative, outside of a package
                    continue
                found.add(name)
                if level and chosen:  # from . import part
                    found |= {f"{name}.{part}" for part in chosen if part != "*"}
            before.append(step)
    names, texts = set(code.co_names), {value for value in code.co_consts if isinstance(value, str)}
    if names & {"import_module", "__import__"}:
        found |= {text for text in texts if all(part.isidentifier() for part in text.split("."))}
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            found |= _imported(value, package)
    return found


def _is_installed(top: str) -> bool:
    """Whether a module that may not be loaded yet is installed, ours, or not there at all."""
    if top == OURS or top in sys.stdlib_module_names or top in sys.modules and installed(top):
        return True
    if top in sys.modules:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return True
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    return spec is None or any(place and _within_packages(place) for place in places)
