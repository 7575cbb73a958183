"""A network of the user's own, by package.module:function.

own_target    name -> what the function returns, called as in the folder of the command
own_function  the function itself
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from neuronym.common.checks import unknown
from neuronym.common.types import Target


def own_target(name: str, known: Sequence[str] = ()) -> Target | tuple:
    """Call a user's `package.module:function` as in the folder of the command: its modules come first and
    relative paths start there.
    """
    with _at_home() as here:
        found = own_function(name, known)
        with _no_exit(name):
            made = found()
    if here not in sys.path:  # last: what a forward pass imports is found, and ours is not hidden
        sys.path.append(here)
    if isinstance(made, Target):
        return made
    made = made if isinstance(made, tuple) else (made,)
    if not (len(made) in (1, 2) and isinstance(made[0], nn.Module) and all(callable(part) for part in made)):
        raise ValueError(
            f"{name} must return a Module, (Module, preprocess) or Target, got "
            f"({', '.join(type(part).__name__ for part in made)})"
        )
    return made


def own_function(name: str, known: Sequence[str] = ()) -> Callable:
    """What a user's `package.module:function` names; KeyError when there is no such module or function,
    ValueError for one that takes arguments and for what is Python's own.
    """
    module_name, _, function = name.partition(":")
    with _at_home() as here:
        try:
            importlib.invalidate_caches()
            with _no_exit(name):
                module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and f"{module_name}.".startswith(f"{error.name}."):
                raise unknown(
                    "target", name, [*known, f"package.module:function importable from {here}"]
                ) from error
            raise
    if not callable(getattr(module, function, None)):
        raise unknown(
            f"function in {module_name}", function, [k for k, v in vars(module).items() if callable(v)]
        )
    found, file = getattr(module, function), getattr(module, "__file__", None)
    theirs = module_name.partition(".")[0] in sys.stdlib_module_names
    if theirs and not (file and Path(file).is_relative_to(here)):
        raise ValueError(
            f"a target is made by a function of yours, got '{name}' of Python's own library; name one of a "
            f"file in {here}, as my_networks:build"
        )
    needed = _needed(found)
    if needed:
        raise ValueError(
            f"the function of a target takes no arguments, '{name}' needs {', '.join(needed)}; write a "
            "function that calls it and returns the network"
        )
    return found


@contextmanager
def _no_exit(name: str) -> Iterator[None]:
    """ValueError in place of the exit() of a user's code, which would end the run without a word."""
    try:
        yield
    except SystemExit as error:
        raise ValueError(
            f"{name} must return a network, and called exit({'' if error.code is None else repr(error.code)})"
            "; raise an error there, or put what runs as a script under if __name__ == '__main__'"
        ) from error


def _needed(function: Callable) -> list[str]:
    """Arguments that a function must be given; none where it does not tell."""
    try:
        given = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return []
    named = [one for one in given if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return [one.name for one in named if one.default is one.empty]


@contextmanager
def _at_home() -> Iterator[str]:
    """Work in the folder of the command, whose modules come first; the runner has moved to the repository."""
    here, before = os.environ.get("NEURONYM_FROM") or os.getcwd(), os.getcwd()
    sys.path.insert(0, here)
    try:
        os.chdir(here)
        yield here
    finally:
        os.chdir(before)
        sys.path.remove(here)
