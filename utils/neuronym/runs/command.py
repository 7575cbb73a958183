"""`neuronym NOTEBOOK -p key value ...`: run a notebook headless, as JupyterLab would.

Names and values are checked before anything heavy is imported. The executed notebook, its parameters,
metrics, tables, figures and seconds by phase end in one folder named by the parameters; what was computed
before comes from the cache.

main      the command line
resolve   key and value texts -> what is set, and all parameters
execute   one notebook through papermill
phases    seconds of each cell of an executed notebook that has a name
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuronym.common.checks import unknown, UnknownName
from neuronym.runs.parameters import from_text, read_parameters
from neuronym.runs.run import notebook_path, notebooks_dir, results_dir, ROOT, run_folder, shown

NAMED = "# papermill_description="  # first line of a cell, before its name
DRAWN = "<Figure size", "<IPython.core.display.Image"  # how a picture looks as plain text


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 when a notebook failed, 2 when the command was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](*arguments[1:])
    parser = argparse.ArgumentParser(prog="neuronym", description="Run a notebook of this repository.")
    parser.add_argument("notebook", nargs="?", help="its name without .ipynb, or all")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        dest="values",
        help="set a parameter; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="list the notebooks, or the parameters of one")
    parser.add_argument("--force", action="store_true", help="empty the run folder first")
    options = parser.parse_args(arguments)
    try:
        if options.list or not options.notebook:
            _list(options.notebook)
            return 0 if options.list else 2
        if options.notebook == "all":
            names = sorted(p.stem for p in notebooks_dir().glob("*.ipynb"))
        else:
            names = [options.notebook]
        planned = {name: resolve(name, options.values) for name in names}
    except (KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = {}
    for name in names:
        rows[name] = execute(name, *planned[name], force=options.force)
        if rows[name]["error"] and "KeyboardInterrupt" in rows[name]["error"]:
            break
    if options.notebook == "all":
        print(f"\n{'notebook':<24}{'seconds':>9}{'peak MB':>10}")
        for name, row in rows.items():
            print(f"{name:<24}{row['seconds']:>9.1f}{row['peak_mb'] or '-':>10}  {row['error'] or 'done'}")
    return int(any(row["error"] for row in rows.values()))


def resolve(notebook: str, values: list[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is set and the full parameters, from key and value texts; KeyError or ValueError with the valid
    ones.
    """
    known = read_parameters(notebook_path(notebook))
    listing = "\n  ".join(["", f"parameters of {notebook}:", *map(str, known.values())])
    for key, _ in values:
        if key not in known:
            raise UnknownName(f"{unknown(f'parameter of {notebook}', key, known)}{listing}")
    try:
        overrides = {key: from_text(known[key], text) for key, text in values}
    except ValueError as error:
        raise ValueError(f"{error}{listing}") from None
    return overrides, {name: parameter.default for name, parameter in known.items()} | overrides


def execute(
    notebook: str, overrides: dict[str, Any], params: dict[str, Any], force: bool = False
) -> dict[str, Any]:
    """Run one notebook through papermill into its run folder.

    Returns seconds, peak_mb (None when unknown) and error (None when it is done).
    """
    started, folder, error = time.perf_counter(), run_folder(notebook, params), None
    if (
        force and (folder / "params.json").is_file() and results_dir() in folder.parents
    ):  # only ever a run folder
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done").unlink(missing_ok=True)
    print(f"== {notebook}", flush=True)
    with _this_interpreter(), _live_output():
        import papermill  # here: it takes a second, and reads the kernels' paths

        try:
            papermill.execute_notebook(
                _literally(notebook_path(notebook)),
                _literally(folder / "notebook.ipynb"),
                overrides,
                kernel_name="python3",
                cwd=ROOT,
                log_output=True,
                progress_bar=False,
                start_timeout=300,
            )
        except papermill.PapermillExecutionError as failure:
            whole = f"{failure.ename}: {failure.evalue}"
            error = whole.splitlines()[0]
            where = f"cell {failure.cell_index} ({_title(failure.source)})"
            print(f"{notebook} failed in {where}: {whole}", file=sys.stderr)
        except KeyboardInterrupt:
            error = "KeyboardInterrupt; the same command goes on from the caches"
            print(f"{notebook} stopped: {error}", file=sys.stderr)
        except Exception as failure:  # a kernel that died or never started: any class, several libraries
            error = f"{type(failure).__name__}: {failure}".splitlines()[0]
            print(f"{notebook} failed: {error}", file=sys.stderr)
    metrics, done = folder / "metrics.json", (folder / "done").exists()
    measured = json.loads(metrics.read_text()) if done else {}
    if not error and not done:
        error = "ended without finish_run"
        print(f"{notebook} {error}", file=sys.stderr)
    if done:
        with open(folder / "phases.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("phase", "seconds"), *phases(folder / "notebook.ipynb").items()]
            )
    if error:
        print(f"executed notebook: {shown(folder / 'notebook.ipynb')}", file=sys.stderr, flush=True)
    else:
        print(f"run folder: {shown(folder)}")
        print("\n".join(f"  {name}: {value}" for name, value in measured.items()), flush=True)
    return {"seconds": time.perf_counter() - started, "peak_mb": measured.get("peak_mb"), "error": error}


def phases(executed: Path) -> dict[str, float]:
    """Seconds of each cell that `# papermill_description=NAME` names, in order, from what papermill noted of
    its run.
    """
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    took = {
        _title("".join(cell["source"])): cell["metadata"].get("papermill", {}).get("duration")
        for cell in cells
        if "".join(cell["source"]).startswith(NAMED)
    }
    return {name: round(seconds, 3) for name, seconds in took.items() if seconds is not None}


def _list(notebook: str | None) -> None:
    """Print the notebooks with their questions, or the parameters of one."""
    if notebook and notebook != "all":
        print("\n".join(map(str, read_parameters(notebook_path(notebook)).values())))
        return
    for path in sorted(notebooks_dir().glob("*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        print(f"{path.stem:<24}{first.strip().splitlines()[0].lstrip('# ') if first.strip() else ''}")
    print("usage: neuronym NOTEBOOK -p key value ...   (NOTEBOOK --list: its parameters)")


def _layers(target: str = "microworld:resnet") -> int:
    """`neuronym layers TARGET`: the layers of a network with their kinds, units and shapes."""
    from neuronym.hooks import list_layers
    from neuronym.models.targets import load_target

    network = load_target(target)
    for layer in list_layers(network.model, network.example):
        print(f"{layer.name:<40} {layer.kind:<24} {layer.units:>6}  {str(layer.shape):<18} {layer.layout}")
    return 0


def _cache() -> int:
    """`neuronym cache`: what is stored, and what is wrong with it."""
    from neuronym.cache import entries, verify

    for entry in entries():
        print(f"{entry['kind']:<18} {entry['key']}  {entry['bytes'] / 1e6:>9.1f} MB  {entry['info']}")
    print("\n".join(verify()) or "every entry is as it was written")
    return 0


COMMANDS = {"layers": _layers, "cache": _cache}


def _literally(path: Path) -> str:
    """A path as papermill takes it: braces doubled, for it formats paths with the parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _title(source: str) -> str:
    """The name a cell gives itself, or its first line of code."""
    lines = source.strip().splitlines() or [""]
    return lines[0].removeprefix(NAMED)


@contextmanager
def _this_interpreter():
    """Let the kernel name python3 mean the running interpreter, whatever is registered on this machine."""
    from ipykernel.kernelspec import write_kernel_spec

    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(
            Path(folder) / "kernels" / "python3",
            overrides={
                "argv": [
                    sys.executable,
                    "-m",
                    "ipykernel_launcher",
                    "--log-level=CRITICAL",
                    "-f",
                    "{connection_file}",
                ]
            },
        )
        changed = {
            "JUPYTER_PATH": os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")])),
            "NEURONYM_HEADLESS": "1",
            "NEURONYM_FROM": os.getcwd(),
        }
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def _live_output():
    """Print what the notebook prints while it runs, as plain text: stdout and tables to stdout, stderr to
    stderr.
    """

    class Plain(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.funcName == "log_output_message" and not text.startswith(DRAWN):
                print(
                    text,
                    end="" if text.endswith("\n") else "\n",
                    flush=True,
                    file=sys.stdout if record.levelno < logging.WARNING else sys.stderr,
                )

    logger, handler = logging.getLogger("papermill"), Plain(logging.INFO)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
