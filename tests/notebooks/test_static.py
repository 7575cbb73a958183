"""What every committed notebook must look like, read without running it; and that the reader finds faults."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from neuronym.runs.folders import ROOT
from neuronym.runs.parameters import read_parameters
from neuronym.similarity.scores import SIMILARITIES

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ALWAYS = {"smoke": False, "device": "auto", "seed": 0, "run_name": ""}
TAKEN_BY_START_RUN = {"memory", "device", "seed", "run_name"}
FORBIDDEN_CALLS = {"eval", "exec", "chdir", "os.chdir", "empty_cache"}
ABSOLUTE = re.compile(r"(/[\w.-]+|~/|~$|[A-Za-z]:[\\/])")
LONGEST, WIDEST = 40, 110  # lines of a cell, characters of a line
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
GROUPS = ["# What one changes", "# The fine print"]


def problems(path: Path) -> list[str]:
    """Rules that a notebook breaks, one sentence each."""
    book = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in code]
    found = []
    if [cell["cell_type"] for cell in book["cells"][:1]] != ["markdown"]:
        found.append("does not open with a question in prose")
    if book["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("kernel is not python3")
    for i, (cell, source) in enumerate(zip(code, sources)):
        if cell["outputs"] or cell["execution_count"] is not None:
            found.append(f"code cell {i} has outputs or an execution count")
        if len(source.splitlines()) > LONGEST and "parameters" not in cell["metadata"].get("tags", []):
            found.append(f"code cell {i} has {len(source.splitlines())} lines, at most {LONGEST}")
        wide = [line for line in source.splitlines() if len(line) > WIDEST]
        if wide and "parameters" not in cell["metadata"].get("tags", []):
            found.append(f"code cell {i} has a line of {len(wide[0])} characters, at most {WIDEST}")
        found += [f"code cell {i}: {fault}" for fault in _faults(source)]
    return found + _parameter_problems(path, code, sources)


def _parameter_problems(path: Path, code: list[dict], sources: list[str]) -> list[str]:
    tagged = [i for i, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
    if tagged != [0]:
        return [f"expected one cell tagged parameters, the first code cell; got {tagged}"]
    try:
        known = read_parameters(path)
    except (ValueError, SyntaxError) as error:
        return [str(error)]
    found = [
        f"parameter '{name}' must be there with default {value!r}"
        for name, value in ALWAYS.items()
        if name not in known or known[name].default != value
    ]
    groups = [line for line in sources[0].splitlines() if line.startswith("#")]
    if groups != GROUPS:
        found.append(f"parameters cell: its groups are {' and '.join(GROUPS)}, got {groups}")
    for line in sources[0].splitlines():
        if not line.strip() or line in GROUPS:
            continue
        if not re.fullmatch(r"\w+ = .+?\s+# type: [\w|\[\]]+  # \S.*", line):
            found.append(f"parameters cell: not `name = literal  # type: T  # help`: {line}")
        if re.sub('"[^"]*"', "", line).count("=") != 1:  # papermill --help-notebook leaves such a line out
            found.append(f"parameters cell: more than one '=': {line}")
    later = [_tree(source) for source in sources[1:]]
    calls = [node for tree in later for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if f"start_run('{path.stem}', globals())" not in map(ast.unparse, calls):
        found.append(f'does not call start_run("{path.stem}", globals())')
    if not any(ast.unparse(call.func) == "finish_run" for call in calls):
        found.append("does not call finish_run")
    used = {
        node.id
        for tree in later
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    used |= {
        node.slice.value
        for tree in later
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "run.params"
        and isinstance(node.slice, ast.Constant)
    }
    return found + [
        f"parameter '{name}' is never used" for name in known if name not in used | TAKEN_BY_START_RUN
    ]


def _tree(source: str) -> ast.Module:
    """The syntax tree of a cell; what is not Python (shell escapes, magics) is reported by `_faults`."""
    return ast.parse("\n".join(line for line in source.splitlines() if line.lstrip()[:1] not in ("!", "%")))


def _faults(source: str) -> list[str]:
    """What a cell may not do."""
    found = [
        f"shell escape or magic: {line.strip()}"
        for line in source.splitlines()
        if line.lstrip()[:1] in ("!", "%")
    ]
    for node in ast.walk(_tree(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append(f"defines '{node.name}'; it belongs into utils")
        elif isinstance(node, ast.Call) and (
            ast.unparse(node.func) in FORBIDDEN_CALLS or ast.unparse(node.func).endswith(".empty_cache")
        ):
            found.append(f"calls {ast.unparse(node.func)}")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            found.append("touches sys.path")
        elif (
            isinstance(node, COMPREHENSIONS)
            and sum(isinstance(n, COMPREHENSIONS) for n in ast.walk(node)) > 1
        ):
            found.append(f"a comprehension inside a comprehension: {ast.unparse(node)[:60]}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ABSOLUTE.match(node.value):
            found.append(f"absolute path {node.value!r}")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_reads_the_same_parameters(path):
    from papermill import inspect_notebook

    ours, theirs = read_parameters(path), inspect_notebook(path)
    readable = {
        name: p for name, p in ours.items() if "=" not in str(p.default)
    }  # papermill leaves others out
    assert {name: p.type for name, p in readable.items()} == {
        name: p["inferred_type_name"] for name, p in theirs.items()
    }


GOOD = """# What one changes
smoke = False  # type: bool  # small
device = "auto"  # type: str  # where
seed = 0  # type: int  # of all
# The fine print
run_name = ""  # type: str  # folder
top_k = 5  # type: int|None  # labels"""
START = 'from neuronym.runs.run import finish_run, start_run\nrun = start_run("made", globals())'
USE = "finish_run(run, {'k': 1 if smoke else top_k})"


def write(
    folder, parameters=GOOD, cells=(START, USE), kernel="python3", prose=True, tags=("parameters",), ran=False
):
    """A notebook made of these cells."""
    code = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    code[0].metadata["tags"] = list(tags)
    if ran:
        code[1]["execution_count"] = 3
    opening = [nbformat.v4.new_markdown_cell("# Why?")] if prose else []
    book = nbformat.v4.new_notebook(cells=opening + code)
    book.metadata["kernelspec"] = {"name": kernel, "display_name": kernel}
    nbformat.write(book, folder / "made.ipynb")
    return folder / "made.ipynb"


def test_a_good_notebook_has_no_problems(tmp_path):
    assert problems(write(tmp_path)) == []
    plain = "model.eval()\nx = run.params['top_k']\nf = lambda y: y / 2"
    assert problems(write(tmp_path, cells=(START, plain, USE))) == []


HOME = "/" + "home/me/photos"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kernel": "mine"}, "kernel is not python3"),
        ({"prose": False}, "does not open with a question"),
        ({"tags": ()}, "expected one cell tagged parameters"),
        ({"ran": True}, "execution count"),
        (
            {"parameters": GOOD.replace("seed = 0", "sed = 0")},
            "parameter 'seed' must be there with default 0",
        ),
        (
            {"parameters": GOOD.replace("seed = 0", "seed = 1")},
            "parameter 'seed' must be there with default 0",
        ),
        ({"parameters": GOOD + "\nderived = top_k"}, "expected `name = literal"),
        ({"parameters": "import os\n" + GOOD}, "expected `name = literal"),
        ({"parameters": GOOD + "\nk = 3"}, "not `name = literal  # type: T  # help`: k = 3"),
        ({"parameters": GOOD + "\nk = 3  # type: int"}, "not `name = literal  # type: T  # help`"),
        ({"parameters": GOOD + "\nk = 3  # type: int  # k = 3"}, "more than one '='"),
        ({"parameters": GOOD + "\nk = 3  # type: int  # unused"}, "parameter 'k' is never used"),
        ({"cells": ("import utils", USE)}, "does not call start_run"),
        ({"cells": (START.replace("made", "other"), USE)}, "does not call start_run"),
        ({"cells": (START, "print(smoke, top_k)")}, "does not call finish_run"),
        ({"cells": (START, USE, "def f():\n    pass")}, "defines 'f'"),
        ({"cells": (START, USE, "class C:\n    pass")}, "defines 'C'"),
        ({"cells": (START, USE, "x = [[j for j in i] for i in 'ab']")}, "a comprehension inside a"),
        ({"cells": (START, USE, "x = " + " + ".join(["1"] * 40))}, "a line of 161 characters"),
        ({"parameters": GOOD.replace("# The fine print", "")}, "its groups are # What one changes and"),
        ({"cells": (START, USE, "eval('1')")}, "calls eval"),
        ({"cells": (START, USE, "import os\nos.chdir('..')")}, "calls os.chdir"),
        ({"cells": (START, USE, "import torch\ntorch.cuda.empty_cache()")}, "calls torch.cuda.empty_cache"),
        ({"cells": (START, USE, "import sys\nsys.path.append('..')")}, "touches sys.path"),
        ({"cells": (START, USE, "!pip install x")}, "shell escape or magic: !pip"),
        ({"cells": (START, USE, "%cd ..")}, "shell escape or magic"),
        ({"cells": (START, USE, f"x = {HOME!r}")}, f"absolute path '{HOME}'"),
        ({"cells": (START, USE, "x = f'" + HOME + "/{smoke}'")}, "absolute path"),
        ({"cells": (START, USE, "x = 'C:\\\\data'")}, "absolute path"),
        ({"cells": (START, USE, "x = 0\n" * 41)}, "has 41 lines, at most 40"),
    ],
)
def test_a_bad_notebook_is_caught(tmp_path, changes, message):
    found = problems(write(tmp_path, **changes))
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_similarity_may_be_every_function(path):
    known = read_parameters(path)
    assert "similarity" not in known or known["similarity"].choices == tuple(SIMILARITIES)
