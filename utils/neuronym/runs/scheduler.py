"""The rows of a sweep, run: by Snakemake where it is installed, else by a pool of processes on this machine.

sweep     `neuronym sweep FILE [-c N] [-n] [--profile FOLDER]`
run_rows  rows at most so many at once, each when all that it waits for is done
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neuronym.runs.folders import make_folder, results_dir, ROOT
from neuronym.runs.sweep import read_sweep, ready, Step

POLL = 0.2  # seconds between two looks at what runs
PATIENCE = 20  # seconds that a run has to end by itself once it is asked to


def sweep(*words: str) -> int:
    """Check a sweep file and run what of it is not done; 0 when all is, 1 when a run failed, 130 when it was
    stopped.
    """
    options = _parser().parse_args(words)
    rows = read_sweep(options.file)
    left = [row for row in rows if not ready(row)]
    print(f"{options.file}: {len(rows)} rows, {len(rows) - len(left)} done already, {len(left)} to run")
    if options.dry_run:
        print("\n".join(f"  {row.name}\n    neuronym {' '.join(row.words)}" for row in left))
        return 0
    logs = make_folder(results_dir() / "sweeps")
    if importlib.util.find_spec("snakemake") is None or options.pool:
        if options.profile:
            raise ValueError("a profile is Snakemake's: pip install -e '.[workflow]', or leave out --profile")
        return run_rows(rows, options.cores, logs)
    if not left:
        return 0
    return _snakemake(options.file, options.cores, options.profile, logs)


def run_rows(rows: Sequence[Step], cores: int, logs: Path, say: Callable[[str], None] = print) -> int:
    """Run rows, `cores` at once and no more than this machine has memory for; what is done is left as it is,
    and a row whose forerunner failed is left out. Each prints into a file of `logs`.
    """
    limit = max([_memory(), *(row.memory for row in rows)])
    waiting, running, failed = list(rows), {}, set()
    began, total = time.monotonic(), len(rows)
    done = 0
    with _asked_to_stop() as signals:
        while (waiting or running) and not signals:
            for row, process in list(running.items()):
                if process.poll() is not None:
                    del running[row]
                    if process.returncode == 0 and row.done.exists():
                        done += 1
                        say(f"{done}/{total} after {time.monotonic() - began:.0f} s: {row.name}")
                    else:
                        failed.add(row.done)
                        say(f"failed: {row.name}: {_last_line(logs / f'{row.rule}.log')}")
            for row in list(waiting):
                if failed & set(row.after):
                    waiting.remove(row)
                    failed.add(row.done)
                    say(f"left out, for what it waits for failed: {row.name}")
                elif _blocked(row, waiting, running):
                    continue
                elif ready(row):
                    waiting.remove(row)
                    done += 1
                elif len(running) < cores and sum(r.memory for r in running) + row.memory <= limit:
                    waiting.remove(row)
                    running[row] = _start(row, logs, cores)
            if running:
                time.sleep(POLL)
        _stop(list(running.values()))
    if signals:
        say(f"stopped, {done} of {total} rows are done; the same command goes on")
        return 128 + signals[0]
    if failed:
        say(f"{len(failed)} of {total} rows are not done; what they printed is in {logs}")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neuronym sweep", description="Run the runs of a YAML file.")
    parser.add_argument("file", help="the sweep, such as data/sweeps/microworld.yaml")
    parser.add_argument("-c", "--cores", type=_count, default=os.cpu_count() or 1, help="rows at once")
    parser.add_argument("-n", "--dry-run", action="store_true", help="check all, and list what would run")
    parser.add_argument("--profile", default="", help="Snakemake's, such as profiles/slurm")
    parser.add_argument("--pool", action="store_true", help="without Snakemake, on this machine")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of rows from 1, got {text!r}")
    return int(text)


def _snakemake(file: str, cores: int, profile: str, logs: Path) -> int:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--config", f"sweep={Path(file).resolve() if Path(file).is_file() else file}"]
    # a run that is started twice waits for itself: Snakemake's lock, which a kill leaves, is not needed
    command += ["--directory", str(logs), "--nolock", "--profile", str(ROOT / (profile or "profiles/local"))]
    command += [] if profile else ["--cores", str(cores), "--resources", f"mem_mb={_memory()}"]
    with _asked_to_stop() as signals:
        # in a session of its own, whose processes are asked to stop once and together
        process = subprocess.Popen(command, env=_environment(cores), start_new_session=True)
        while process.poll() is None and not signals:
            time.sleep(POLL)
        if signals and process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.wait()
    return 128 + signals[0] if signals else int(process.returncode != 0)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """The signals to stop that have come so far. An exception in their place could come while a process is
    being started, which then nobody would stop.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield signals
        return
    numbers = signal.SIGINT, signal.SIGTERM
    before = {number: signal.signal(number, lambda got, _: signals.append(got)) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _blocked(row: Step, waiting: list[Step], running: dict[Step, subprocess.Popen]) -> bool:
    """Whether something that the row waits for is still to come."""
    left = {other.done for other in [*waiting, *running]}
    return any(path in left for path in row.after)


def _start(row: Step, logs: Path, cores: int) -> subprocess.Popen:
    row.done.parent.mkdir(parents=True, exist_ok=True)
    with open(logs / f"{row.rule}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "neuronym", *row.words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(cores),
            start_new_session=True,  # a Ctrl-C is this process's, which then ends them one by one
        )


def _environment(cores: int) -> dict[str, str]:
    """Rows at once share the machine's threads."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // cores))} | os.environ


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    end = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _memory() -> int:
    """Megabytes of this machine."""
    import psutil

    return psutil.virtual_memory().total // 2**20


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it printed nothing"
