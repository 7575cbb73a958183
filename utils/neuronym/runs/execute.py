"""One notebook through papermill into its run folder.

execute      start its kernel, which checks what is left to check; run it; keep what it printed and took
phases       seconds of each cell of an executed notebook that has a name
spelled_out  the command that runs a notebook with some values
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from neuronym.common.locks import waited
from neuronym.runs.folders import make_folder, notebook_path, PACKAGE, results_dir, ROOT
from neuronym.runs.run import ENDS, run_folder

NAMED = "# papermill_description="  # first line of a cell, before its name
DRAWN = "<Figure size", "<IPython.core.display.Image"  # how a picture looks as plain text
UNUSED = "rfc3987_syntax", "pyarrow"  # imported by papermill where installed, and of no use here
START = (  # a Ctrl-C is the command's until the process is a kernel
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path.insert(0, {!r}); "
    "from neuronym.runs.kernel import main; main(*sys.argv[1:])"
)
SAVED_EVERY = 5.0
COLOURS = re.compile(r"\x1b\[[\d;]*m")
BEFORE = "Setup", "Load"  # how cells are named that only look at what is set
FRAME = re.compile(r"^\s*File (\S.*?)(?::\d+|\((?:\d+)\)|, line \d+)", re.MULTILINE)  # of a traceback
SENTENCES = (  # errors that say what is wrong with a parameter
    "UnknownName",
    "KeyError",
    "LookupError",
    "ValueError",
    "OSError",
    "FileNotFoundError",
    "NotADirectoryError",
    "IsADirectoryError",
    "PermissionError",
    "ImportError",
    "ModuleNotFoundError",
)


class Refused(Exception):
    """What is wrong with a command, in one sentence; nothing has been run, and no folder made."""


def execute(
    notebook: str, overrides: dict[str, Any], params: dict[str, Any], force: bool = False
) -> dict[str, Any]:
    """Run one notebook through papermill into its run folder.

    Returns seconds, peak_mb (None when unknown), error (None when it is done), status (that of the command)
    and stopped (by Ctrl-C or SIGTERM). While another process runs the same, this one waits.
    """
    started, folder = time.perf_counter(), run_folder(notebook, params)
    new, failure = not folder.exists(), None
    print(f"== {notebook}", flush=True)
    with ExitStack() as held:
        try:
            with _interruptible(), _kernel(notebook, params) as (manager, verdict), _live_output():
                papermill = _papermill()
                verdict()
                held.enter_context(_alone(folder))
                new = not folder.exists()
                _make_ready(folder, force)
                held.enter_context(_saved_seldom(papermill))
                papermill.execute_notebook(
                    _literally(notebook_path(notebook)),
                    _literally(folder / "notebook.ipynb"),
                    overrides,
                    kernel_name="python3",
                    km=manager,
                    cwd=ROOT,
                    log_output=True,
                    progress_bar=False,
                    start_timeout=300,
                )
        except (Exception, KeyboardInterrupt) as raised:  # a kernel that died, or never started: any class
            failure = raised
        row = {
            "seconds": time.perf_counter() - started,
            "peak_mb": None,
            "error": None,
            "status": 0,
            "stopped": False,
        }
        ended = failure is None or getattr(failure, "ename", "") == "DryRun"  # which ends after its plan
        if ended and (folder / "done").exists():
            return row | {"peak_mb": _close(folder)["peak_mb"]}
        return row | _report(notebook, overrides, folder, failure, new)


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


def _make_ready(folder: Path, force: bool) -> None:
    """Make the run folder, emptied where that is asked, and take the marks of earlier runs off it."""
    if force and (folder / "params.json").is_file() and results_dir() in folder.parents:
        shutil.rmtree(folder)  # only ever a run folder
    try:
        make_folder(folder)
    except PermissionError as error:
        raise Refused(str(error)) from None
    for marker in ENDS:
        (folder / marker).unlink(missing_ok=True)


def _close(folder: Path) -> dict[str, Any]:
    """Write the seconds by phase of a run that is done, print where it is, and return its metrics."""
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    with open(folder / "phases.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("phase", "seconds"), *phases(folder / "notebook.ipynb").items()]
        )
    print(f"run folder: {folder}")
    print("\n".join(f"  {name}: {value}" for name, value in measured.items()), flush=True)
    return measured


def _report(
    notebook: str, overrides: dict[str, Any], folder: Path, failure: BaseException | None, new: bool
) -> dict[str, Any]:
    """Say why a run is not done, in the last line; mark its folder, or remove it where nothing was begun."""
    if isinstance(failure, Refused):
        return _refuse(str(failure))
    status, stopped = 1, isinstance(failure, KeyboardInterrupt)
    if not stopped and _before_work(failure):
        sentence = COLOURS.sub("", failure.evalue)
        if new:
            _remove(folder)
        else:  # of a run that went further once
            (folder / "failed").write_text(f"{sentence}\n", encoding="utf-8")
        return _refuse(sentence)
    if stopped:
        silent = logging.CRITICAL + 1  # tasks whose kernel has gone would say so after the last line
        logging.getLogger("asyncio").setLevel(silent)
        warnings.filterwarnings("ignore", message="coroutine ", category=RuntimeWarning)  # so would these
        status = 128 + (signal.SIGTERM if failure.args else signal.SIGINT)  # as shells say it
        error = "stopped"
        said = f"stopped; the same command goes on from the caches: {spelled_out(notebook, overrides)}"
    elif failure is None:
        said = error = "ended without finish_run"
    elif hasattr(failure, "ename"):  # papermill's PapermillExecutionError
        whole = f"{failure.ename}: {failure.evalue}"
        error = whole.splitlines()[0]
        said = f"failed in cell {failure.cell_index} ({_title(failure.source)}): {whole}"
    else:
        error = (f"{type(failure).__name__}: {failure}".splitlines() or [""])[0]
        said = f"failed: {error}"
    if new and not (folder / "params.json").exists() and (stopped or _in_start_run(failure)):
        _remove(folder)
    if (folder / "notebook.ipynb").exists():
        print(f"executed notebook: {folder / 'notebook.ipynb'}", file=sys.stderr)
    if folder.exists():
        with suppress(OSError):  # a full disk: the reason is said, if not kept
            (folder / ("stopped" if stopped else "failed")).write_text(f"{error}\n", encoding="utf-8")
    print(f"{notebook} {said}", file=sys.stderr, flush=True)
    return {"error": error, "status": status, "stopped": stopped}


def spelled_out(notebook: str, overrides: dict[str, Any]) -> str:
    """The command that runs a notebook with these values, as a shell takes it."""
    words = [word for name, value in overrides.items() for word in ("-p", name, _text(value))]
    return shlex.join(["neuronym", notebook, *words])


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _refuse(sentence: str) -> dict[str, Any]:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return {"error": sentence, "status": 2, "stopped": False}


def _remove(folder: Path) -> None:
    """Remove a run folder in which nothing was begun."""
    shutil.rmtree(folder, ignore_errors=True)


def _before_work(failure: BaseException | None) -> bool:
    """Whether a notebook failed over what is set, in a cell that comes before all work, and the sentence that
    says so is this package's.
    """
    if getattr(failure, "ename", "") not in SENTENCES:
        return False
    lines = COLOURS.sub("", "\n".join(getattr(failure, "traceback", None) or []))
    last = ([""] + FRAME.findall(lines))[-1]
    ours = Path(last).expanduser().is_relative_to(PACKAGE)
    return ours and _title(failure.source).startswith(BEFORE)


def _in_start_run(failure: BaseException | None) -> bool:
    """Whether a notebook failed in start_run, before any work."""
    lines = "\n".join(getattr(failure, "traceback", None) or [])
    return re.search(r"\bin start_run\(", COLOURS.sub("", lines)) is not None


def _literally(path: Path) -> str:
    """A path as papermill takes it: braces doubled, for it formats paths with the parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _title(source: str) -> str:
    """The name a cell gives itself, or its first line of code."""
    lines = source.strip().splitlines() or [""]
    return lines[0].removeprefix(NAMED)


def _papermill() -> ModuleType:
    """papermill, without what its import would wait for and nobody uses here; the kernel starts meanwhile."""
    absent = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # None: importing it is an ImportError, which papermill expects
    try:
        import papermill
    finally:
        for name in absent:
            del sys.modules[name]
    return papermill


@contextmanager
def _saved_seldom(papermill: ModuleType) -> Iterator[None]:
    """Write the executed notebook every SAVED_EVERY seconds at most, in place of twice a cell: with pictures
    in it that is seconds, for which the kernel waits. papermill writes it at the end in any case.
    """
    manager = papermill.engines.NotebookExecutionManager
    written = manager.save

    def save(self: Any, **more: Any) -> None:
        since = (self.now() - self.last_save_time).total_seconds()
        if since >= SAVED_EVERY or not (self.output_path and Path(self.output_path).exists()):
            written(self, **more)

    manager.save = save
    try:
        yield
    finally:
        manager.save = written


@contextmanager
def _kernel(notebook: str, params: dict[str, Any]) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Start the running interpreter as a kernel, whatever is registered on this machine; yields its manager
    and a function that waits for what it finds wrong, and raises Refused.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_core.utils import run_sync

    from neuronym.runs.kernel import ASKED, VERDICT

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        asked = {"notebook": notebook, "params": params}
        (folder / ASKED).write_text(json.dumps(asked), encoding="utf-8")
        start = [sys.executable, "-c", START.format(str(PACKAGE.parent)), temporary]
        options = ["-f", "{connection_file}", "--log-level=CRITICAL", "--HistoryManager.hist_file=:memory:"]
        spec = {"argv": start + options, "display_name": "neuronym", "language": "python"}
        (folder / "neuronym").mkdir()
        (folder / "neuronym" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        known = KernelSpecManager(kernel_dirs=[temporary], ensure_native_kernel=False)
        manager = AsyncKernelManager(kernel_name="neuronym", kernel_spec_manager=known)
        told = {"NEURONYM_HEADLESS": "1", "NEURONYM_FROM": os.getcwd()}
        # threads that spin long while they wait slow a run on a busy machine down several times; a short
        # while (libgomp's own for more threads than processors) spares a quiet one a tenth of the time
        spared = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

        def verdict() -> None:
            file = folder / VERDICT
            while not file.exists():
                if not run_sync(manager.is_alive)() and not file.exists():
                    raise RuntimeError("the kernel's process ended before it was a kernel")
                time.sleep(0.02)
            if said := file.read_text(encoding="utf-8"):
                raise Refused(said)

        stopped = False
        try:
            run_sync(manager.start_kernel)(cwd=str(ROOT), env=spared | os.environ | told)
            yield manager, verdict
        except KeyboardInterrupt:  # asked to end, a kernel goes on for seconds, and asks servers meanwhile
            stopped = True
            raise
        finally:
            run_sync(manager.shutdown_kernel)(now=stopped)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a run folder for the block: of processes with the same parameters one works, the others wait."""
    said = f"another process runs the same into {folder}; this one waits for it"
    with ExitStack() as held:
        try:
            make_folder(folder.parent)
            held.enter_context(waited(folder.with_name(f".{folder.name}.lock"), 0.2, said))
        except PermissionError as error:
            raise Refused(str(error)) from None
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""

    def stop(number: int, frame) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _live_output() -> Iterator[None]:
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
