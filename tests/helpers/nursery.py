"""Runs of notebooks that begin at once and can be killed: children of a process that has imported it all.

Nursery   starts runs, waits for them
tables    what a run says, bit by bit
main      the process itself
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from neuronym.runs.folders import notebook_path, ROOT

IMPORTED = ("labelling", "describe_and_dissect", "second_order", "evaluation", "trust")
COSTS = ("seconds", "peak_mb", "answers_")  # metrics that a resumed run may have others of


class Nursery:
    """A process whose children run the cells of notebooks; `begin` gives a pid, `wait` its exit status.

    A child that a signal ended has that signal's number, negative, as its status.
    """

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.nursery"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def begin(self, notebook: str, params: dict, log: Path, load_only: bool = False, **env: str) -> int:
        asked = {"notebook": notebook, "params": params, "log": str(log), "env": env, "load": load_only}
        return self._ask(asked)

    def wait(self, pid: int) -> int:
        return self._ask({"wait": pid})

    def run(self, notebook: str, params: dict, log: Path, load_only: bool = False, **env: str) -> int:
        return self.wait(self.begin(notebook, params, log, load_only, **env))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def _ask(self, asked: dict) -> int:
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def tables(results: Path, notebook: str) -> dict[str, bytes]:
    """Every table of the one run of a notebook among `results`, and its metrics without what they cost."""
    (folder,) = (results / notebook).iterdir()
    assert (folder / "done").exists()
    found = {file.name: file.read_bytes() for kind in ("csv", "parquet") for file in folder.glob(f"*.{kind}")}
    for timed in ("phases.csv", "seconds_by_layer.csv"):
        found.pop(timed, None)
    metrics = json.loads((folder / "metrics.json").read_text())
    kept = {name: value for name, value in metrics.items() if not name.startswith(COSTS)}
    return found | {"metrics": json.dumps(kept).encode()}


def main() -> None:
    """Read requests from stdin, one a line, and answer each with a number."""
    import matplotlib

    matplotlib.use("agg")
    for notebook in IMPORTED:
        exec(_imports(notebook), {})
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            number = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            number = os.fork()
            if number == 0:
                _child(**asked)
        print(number, file=replies, flush=True)


def _cells(notebook: str) -> list[dict]:
    cells = json.loads(notebook_path(notebook).read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def _imports(notebook: str) -> str:
    return "".join(_cells(notebook)[1]["source"]).partition("\nrun = ")[0]


def _child(notebook: str, params: dict, log: str, env: dict, load: bool) -> None:
    """Run the cells of a notebook, or those alone that load, with what they print in `log`; figures are made
    and not saved.
    """
    import traceback

    import matplotlib.pyplot as plt

    from neuronym.figures import style

    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number in (1, 2):
            os.dup2(file, number)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= {"NEURONYM_HEADLESS": "1", **env}
        style.present = lambda *figures, **how: plt.close("all")
        if load:
            from neuronym.runs.checks import check_networks
            from neuronym.runs.parameters import read_parameters

            check_networks(read_parameters(notebook_path(notebook)), params)
        left = {"__name__": "__main__"}
        for cell in _cells(notebook):
            source = "".join(cell["source"])
            title = source.partition("\n")[0].rpartition("=")[2]
            given = "parameters" in cell["metadata"].get("tags", ())
            if load and not given and not title.startswith(("Setup", "Load")):
                continue
            exec(compile(source, f"{notebook}: {title}", "exec"), left)
            left |= params if given else {}
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
