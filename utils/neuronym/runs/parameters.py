"""What may be set in a notebook: the cell tagged `parameters`, read and checked without running anything.

A line of that cell is `name = literal  # type: T  # help`, where T is int, float, bool, str, list[T] or dict,
                                        or
several of them joined by `|` (None included), and a help text may end in `choices: a|b|c`, `at least N`
or `kinds: a|b|module:function`, or `kinds: targets` for a row of `neuronym.runs.kinds`: what may stand before
the colon of a name (a kind with a colon stands for any of its form).
A str whose help says "separated by commas", or that shows values such as `a,b`, also takes a list; null
stands for None where that is allowed, else for "" where the help says what empty means, else for the default.

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
from collections.abc import Mapping
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
GLOB = re.compile(r"\[(?:.-.|\d)+\]")  # [0-9] of a layer's name is no list
NULL = ("null", "~")


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

    @property
    def commas(self) -> bool:
        """Whether it is a str that holds several values, separated by commas."""
        return "str" in _alternatives(self.type) and bool(
            re.search(r"separated by commas|\w,\w", f"{self.default} {self.help}")
        )

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
        if name in found:
            raise ValueError(f"{where}: {name} is there twice; each parameter has a name of its own")
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
    """The value meant by `-p name text`: a Python or YAML literal of the declared type; a str is taken as it
    is written.
    """
    kinds = _alternatives(parameter.type)
    if text.strip() in NULL:
        return check(parameter, None)
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
    """The value in its declared type (an int becomes a float where one is declared, a list a str with commas
    where that is meant); ValueError when it has another.
    """
    kinds = _alternatives(parameter.type)
    value = list(value) if isinstance(value, tuple) else value
    if value is None and "None" not in kinds:
        value = "" if "str" in kinds and "empty" in parameter.help else parameter.default
    if parameter.commas:
        value = _joined(value)
    for kind in sorted(kinds, key=lambda k: SCALARS.get(k) is not type(value)):  # int|float keeps 3 an int
        try:
            value = _convert(value, kind)
            break
        except TypeError:
            continue
    else:
        raise _ill_typed(parameter, value)
    if value == "" and parameter.default not in ("", None) and "empty" not in parameter.help:
        raise ValueError(
            f"parameter '{parameter.name}' must not be empty (default {parameter.default!r}"
            f"{'; ' + parameter.help if parameter.help else ''})"
        )
    given = value if isinstance(value, list) else [value]
    if parameter.kinds and value != parameter.default and value is not None:
        for one in filter(None, value.split(",") if parameter.commas else [str(value)]):
            if not _of_kind(one, parameter.kinds):
                raise ValueError(f"parameter '{parameter.name}': {_no_kind(parameter, one.strip())}")
    if parameter.least is not None and any(
        isinstance(v, (int, float)) and v < parameter.least for v in given
    ):
        raise ValueError(f"parameter '{parameter.name}' must be at least {parameter.least}, got {value!r}")
    wrong = [v for v in given if parameter.choices and v is not None and str(v) not in parameter.choices]
    if wrong:
        choices = ", ".join(parameter.choices)
        raise ValueError(f"parameter '{parameter.name}' must be one of {choices}, got {wrong[0]!r}")
    return value


def differing(known: Mapping[str, Parameter], params: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not the defaults, in the order of the parameters cell."""
    return {name: params[name] for name, p in known.items() if name in params and params[name] != p.default}


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
        r"\s*([^:+@\s]*)(:?)(.*)", value, re.DOTALL
    ).groups()  # "+" joins probing sets
    own = any(":" in kind for kind in kinds) and all(
        part.isidentifier() for part in [*first.split("."), rest]
    )
    return first in kinds or bool(colon) and own


def _no_kind(parameter: Parameter, value: str) -> str:
    """What is said of a name without a known kind: how it is written if it is known, else the nearest."""
    from neuronym.runs.spelling import spelled

    written = spelled(parameter.name, value, parameter.kinds)
    if written:
        return f"a name begins with its kind, got '{value}'; write {written}"
    return str(unknown("kind", re.split("[:+]", value)[0], parameter.kinds))


def _alternatives(kind: str) -> list[str]:
    """'int|None' -> ['int', 'None']; a | inside brackets does not split."""
    return [k.strip() for k in re.split(r"\|(?![^\[]*\])", kind)]


def _literal(text: str, kind: str) -> Any:
    """The text as a Python literal, with two shorthands: true and false, and a,b,c for a list; or as YAML's
    [a, b].
    """
    inner = LIST.fullmatch(kind)
    if inner and not text.lstrip().startswith(("[", "(")):
        parts = [part.strip() for part in text.split(",")]
        return parts if inner[1] == "str" else [_literal(part, inner[1]) for part in parts]
    try:
        return ast.literal_eval((text.capitalize() if kind == "bool" else text).strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if inner and text.rstrip().endswith("]"):
            return [part if inner[1] == "str" else _literal(part, inner[1]) for part in _yaml_list(text)]
        raise TypeError(f"no literal: {text}") from None


def _joined(value: Any) -> Any:
    """A list, or the text of one, as its items with commas between them; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\s*\[.*\]\s*", value) and not GLOB.fullmatch(value.strip()):
        value = _yaml_list(value)
    if isinstance(value, list) and all(type(one) in (str, int, float) for one in value):
        return ",".join(str(one).strip() for one in value)
    return value


def _yaml_list(text: str) -> list[str]:
    """ "[conv1, 'fc']" -> ["conv1", "fc"]; TypeError when it is no flat list."""
    import yaml

    try:
        found = yaml.load(text, Loader=yaml.BaseLoader)  # of this loader every scalar is a text
    except yaml.YAMLError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise TypeError(f"no list: {text}")
    return found


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
