"""Small notebooks to run, and the command in a process of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import nbformat

from neuronym.runs.folders import ROOT

CELL = """smoke = False        # type: bool  # small sizes
device = "auto"      # type: str  # auto, cpu, cuda
seed = 0             # type: int  # of every random choice
run_name = ""        # type: str  # instead of the names in the folder
target = "micro:a"   # type: str  # network with a '#' and a = in its help
top_k = 5            # type: int  # labels per unit
lam = 1.0            # type: float  # weight of the prior
limit = None         # type: int|None  # images
layers = ["a", "b"]  # type: list[str]  # layers
method = "wpmi"      # type: str  # similarity; choices: wpmi|soft_wpmi"""
SET_UP = 'from neuronym.runs.run import finish_run, start_run\nrun = start_run("toy", globals())'


def write_notebook(folder, name="toy", cells=(), parameters=CELL, set_up=SET_UP):
    """A notebook with a parameters cell, the call of start_run, and the given code cells."""
    code = [nbformat.v4.new_code_cell(source) for source in (parameters, set_up, *cells)]
    code[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Does it run?\n\nA toy."), *code])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(exist_ok=True)
    nbformat.write(book, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def values(**changes):
    """The globals of a kernel in which the parameters cell ran, then `changes`."""
    namespace = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(CELL).body}
    return namespace | changes


def command(*arguments, cwd=ROOT, **env):
    """Run the command line in a process of its own."""
    call = [sys.executable, "-m", "neuronym", *map(str, arguments)]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, env=os.environ | env)
