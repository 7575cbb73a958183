"""What may be set in a notebook: the cell tagged `parameters`, read and checked without running anything.

A line of that cell is `name = literal  # type: T  # help`, where T is int, float, bool, str, list[T] or dict,
                                        or
several of them joined by `|` (None included), and a help text may end in `choices: a|b|c`, `at least N`
or `kinds: a|b|module:function`, or `kinds: targets` for a row of `neuronym.runs.kinds`: what may stand before
the colon of a name (a kind with a colon stands for any of its form).

Parameter          name, type, default, help, choices of one parameter
read_parameters    all parameters of a notebook file
from_text          a value written on the command line
check              a value set in a notebook or given by papermill
injected           the names that papermill assigned in this kernel
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronym.common.checks import unknown
from neuronym.runs.kinds import KINDS

COMMENT = re.compile(r"#\s*type:\s*(?P<type>[^#]+?)\s*(?:#\s*(?P<help>.*))?$")
CHOICES = re.compile(r"choices:\s*(?P<names>[\w:.+-]+(?:\|[\w:.+-]+)*)")
NAMED_KINDS = re.compile(r"kinds:\s*(?P<names>[\w:.]+(?:\|[\w:.]+)*)$")
LEAST = re.compile(r"at least (-?\d+)$")
SCALARS = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "None": type(None)}
LIST = re.compile(r"list\[(.+)\]")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook; `type` is the text after `# type:`, or that of the default."""

    name: str
    type: str
    default: Any
    help: str = ""
    choices: tuple[str, ...] = ()
    least: int | None = None
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.type} = {self.default!r}" + (f"  {self.help}" if self.help else "")


def read_parameters(path: Path) -> dict[str, Parameter]:
    """Parameters of a notebook file by name, in the order of its parameters cell; {} when it has no such
    cell.

    Raises ValueError when the cell holds anything but `name = literal` lines of a known type.
    """
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", ())]
    source = "".join(tagged[0]["source"]) if tagged else ""
    comments = {
        t.start[0]: t.string
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body:
        where = f"parameters cell of {Path(path).name}, line {node.lineno}"
        try:
            (target,), default = node.targets, ast.literal_eval(node.value)
            name = target.id
        except (AttributeError, ValueError):
            form = "`name = literal  # type: T  # help`"
            raise ValueError(f"{where}: expected {form}, got {ast.unparse(node)!r}") from None
        written = COMMENT.match(comments.get(node.end_lineno, ""))
        kind = written["type"] if written else type(default).__name__.replace("NoneType", "None")
        for one in _alternatives(kind):
            if (LIST.fullmatch(one) or [one, one])[1] not in SCALARS and one != "list":
                raise ValueError(
                    f"{where}: unknown type '{one}'; known: {', '.join(SCALARS)}, list[...], joined by |"
                )
        text = (written["help"] or "").strip() if written else ""
        choices, least, kinds = CHOICES.search(text), LEAST.search(text), NAMED_KINDS.search(text)
        found[name] = Parameter(
            name,
            kind,
            default,
            text,
            tuple(choices["names"].split("|")) if choices else (),
            int(least[1]) if least else None,
            _kinds(kinds["names"]) if kinds else (),
        )
    return found


def from_text(parameter: Parameter, text: str) -> Any:
    """The value meant by `-p name text`: a Python literal of the declared type; a str is taken as it is
    written.
    """
    kinds = _alternatives(parameter.type)
    bracketed = text.lstrip().startswith(("[", "("))
    for kind in kinds:
        if kind == "str" or "str" in kinds and kind.startswith("list") and not bracketed:
            continue  # where a str will do, a,b is one
        try:
            return check(parameter, _convert(_literal(text, kind), kind))
        except TypeError:
            continue
    if "str" not in kinds:
        raise _ill_typed(parameter, text)
    return check(parameter, text)


def check(parameter: Parameter, value: Any) -> Any:
    """The value in its declared type (an int becomes a float where one is declared); ValueError when it has
    another.
    """
    value = list(value) if isinstance(value, tuple) else value
    kinds = _alternatives(parameter.type)
    for kind in sorted(kinds, key=lambda k: SCALARS.get(k) is not type(value)):  # int|float keeps 3 an int
        try:
            value = _convert(value, kind)
            break
        except TypeError:
            continue
    else:
        raise _ill_typed(parameter, value)
    given = value if isinstance(value, list) else [value]
    if parameter.kinds and value != parameter.default and not _of_kind(str(value), parameter.kinds):
        raise ValueError(
            f"parameter '{parameter.name}': {unknown('kind', re.split('[:+]', str(value))[0], parameter.kinds)}"
        )
    if parameter.least is not None and any(
        isinstance(v, (int, float)) and v < parameter.least for v in given
    ):
        raise ValueError(f"parameter '{parameter.name}' must be at least {parameter.least}, got {value!r}")
    wrong = [v for v in given if parameter.choices and v is not None and str(v) not in parameter.choices]
    if wrong:
        choices = ", ".join(parameter.choices)
        raise ValueError(f"parameter '{parameter.name}' must be one of {choices}, got {wrong[0]!r}")
    return value


def injected(namespace: dict) -> set[str]:
    """Names assigned by the cell that papermill adds after the parameters cell, from the kernel's own input
    history.
    """
    cells = [source for source in namespace.get("In", ()) if str(source).startswith("# Parameters\n")]
    return {
        t.id
        for source in cells
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for t in node.targets
        if isinstance(t, ast.Name)
    }


def _kinds(names: str) -> tuple[str, ...]:
    """The kinds of a list a|b, or of a row of the table of kinds."""
    return KINDS.get(names) or tuple(names.split("|"))


def _of_kind(value: str, kinds: tuple[str, ...]) -> bool:
    first, colon, rest = re.match(
        r"\s*([^:+\s]*)(:?)(.*)", value, re.DOTALL
    ).groups()  # "+" joins probing sets
    own = any(":" in kind for kind in kinds) and all(
        part.isidentifier() for part in [*first.split("."), rest]
    )
    return first in kinds or bool(colon) and own


def _alternatives(kind: str) -> list[str]:
    """'int|None' -> ['int', 'None']; a | inside brackets does not split."""
    return [k.strip() for k in re.split(r"\|(?![^\[]*\])", kind)]


def _literal(text: str, kind: str) -> Any:
    """The text as a Python literal, with two shorthands: true and false, and a,b,c for a list."""
    inner = LIST.fullmatch(kind)
    if inner and not text.lstrip().startswith(("[", "(")):
        parts = [part.strip() for part in text.split(",")]
        return parts if inner[1] == "str" else [_literal(part, inner[1]) for part in parts]
    try:
        return ast.literal_eval((text.capitalize() if kind == "bool" else text).strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise TypeError(f"no literal: {text}") from None


def _convert(value: Any, kind: str) -> Any:
    """The value as `kind`; TypeError when it is something else. A bool is no int, NaN and infinity are no
    floats.
    """
    inner = LIST.fullmatch(kind)
    if inner or kind == "list":
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return [_convert(v, inner[1]) for v in value] if inner else list(value)
    if kind == "float" and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind != "float" and type(value) is SCALARS[kind]:
        return value
    raise TypeError


def _ill_typed(parameter: Parameter, value: Any) -> ValueError:
    return ValueError(
        f"parameter '{parameter.name}' must be {parameter.type}, got {value!r} "
        f"(default {parameter.default!r}{'; ' + parameter.help if parameter.help else ''})"
    )
