"""How one execution of a notebook begins and ends.

Run, start_run, finish_run   one execution: checked parameters, its folder, device, seed
run_folder                   the folder that belongs to a set of parameters
software, git_state          what a result was computed with
progress                     says how far a loop is

`neuronym NOTEBOOK -p key value` executes a notebook (see runs/execute.py). Nothing here imports torch before
the parameters are known to be right.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TYPE_CHECKING

from neuronym.common.checks import unknown
from neuronym.runs.folders import (
    chosen_device,
    make_folder,
    notebook_path,
    other_clone,
    PACKAGE,
    results_dir,
    ROOT,
    shown,
)
from neuronym.runs.parameters import check, differing, injected, read_parameters

if TYPE_CHECKING:
    import torch

NOT_HASHED = ("device", "batch_size", "memory", "run_name")  # they do not change what is computed
ENDS = ("done", "failed", "stopped")  # empty files, or of one line, that say how a run ended
PLAIN = ("target", "clip", "probe", "concepts")  # their values say by themselves what they are of
LONGEST = 80  # characters of a folder's name, before the hash
PACKAGES = ("torch", "torchvision", "numpy", "transformers", "openai-clip", "papermill")


@dataclass
class Run:
    """One execution of a notebook."""

    notebook: str
    params: dict[str, Any]
    dir: Path
    figures: Path
    tables: Path
    interactive: bool
    device: torch.device
    generator: torch.Generator
    seed: int
    memory: int  # bytes: the parameter `memory`, where 0 is a share of what is free
    started: float = field(repr=False)


def start_run(notebook: str, namespace: dict) -> Run:
    """Check the parameters found in `namespace` (a notebook's globals()) and put them there as declared, make
    the run folder, say what will be run.

    Raises KeyError for a notebook, parameter or name that does not exist, ValueError for an ill-typed one or
    a set-up that cannot succeed, FileNotFoundError, PermissionError for results that cannot be written; all
    of them before any work, and before there is a folder.
    """
    started = time.perf_counter()
    known = read_parameters(notebook_path(notebook))
    for name in sorted(injected(namespace) - set(known)):  # papermill itself only warns of these
        raise unknown(f"parameter of {notebook}", name, known)
    missing = [name for name in known if name not in namespace]
    if missing:
        raise ValueError(f"no value for {', '.join(missing)} of {notebook}; run the parameters cell first")
    params = {name: check(parameter, namespace[name]) for name, parameter in known.items()}
    if not _headless():  # else the command has done so
        from neuronym.runs.checks import check_setup

        check_setup(known, params)
    namespace.update(params)

    import torch

    from neuronym.common.memory import machine_budget

    device = chosen_device(params.get("device", "auto"))
    seed, memory = params.get("seed", 0), machine_budget(device, params.get("memory", 0))
    folder = run_folder(notebook, params)
    make_folder(folder / "figures")
    for marker in ENDS:
        (folder / marker).unlink(missing_ok=True)
    _write_json(folder / "params.json", params)
    _write_json(
        folder / "env.json",
        {
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "process": os.getpid(),
            "host": platform.node(),
            "package": str(PACKAGE),
            "python": platform.python_version(),
            "platform": platform.platform(),
            **software(),
            "git": git_state(),
            "device": str(device),
            "device_name": _device_name(device),
            "threads": torch.get_num_threads(),
            "memory": memory,
            "seed": seed,
        },
    )
    run = Run(
        notebook,
        params,
        folder,
        folder / "figures",
        folder,
        _interactive(namespace),
        device,
        torch.Generator().manual_seed(seed),
        seed,
        memory,
        started,
    )
    if shell := namespace.get("get_ipython", lambda: None)():  # what cells leave behind would add up
        shell.events.register("post_run_cell", _after_cell)
    _say_start(run, differing(known, params))
    return run


def finish_run(run: Run, metrics: dict) -> Path:
    """Write metrics.json (with seconds and peak memory) and the done marker; return the run folder.

    Raises ValueError, and marks nothing as done, when a metric is NaN or infinite.
    """
    metrics = {str(name): _finite(str(name), value) for name, value in metrics.items()}
    cost = {"seconds": round(time.perf_counter() - run.started, 2), "peak_mb": peak_mb()}
    if run.device.type == "cuda":
        import torch

        cost["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated(run.device) / 2**20, 1)
    taken = sorted(set(cost) & set(metrics))
    if taken:
        raise ValueError(
            f"metrics named {', '.join(taken)} are measured by finish_run; give yours another name"
        )
    _write_json(run.dir / "metrics.json", {**metrics, **cost})
    (run.dir / "done").touch()
    print(
        f"{run.notebook} done in {cost['seconds']:.1f} s, peak {cost['peak_mb']:.0f} MB: {shown(run.dir)}",
        flush=True,
    )
    return run.dir


def run_folder(notebook: str, params: dict) -> Path:
    """results/<notebook>/<run_name, or what differs from the defaults>-<8 hex>: the same for the same
    parameters, whatever the device.
    """
    hashed = {name: value for name, value in params.items() if name not in NOT_HASHED}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]
    set_to = differing(read_parameters(notebook_path(notebook)), hashed)
    slug = params.get("run_name") or "-".join(_told(name, value) for name, value in set_to.items())
    return results_dir() / notebook / f"{_slug(slug) or 'defaults'}-{digest}"


def software() -> dict[str, str | None]:
    """Versions of the packages that results depend on; None where one is not installed."""
    import importlib.metadata  # takes as long as all else here

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def git_state() -> dict[str, Any]:
    """Commit of this repository and whether tracked files differ from it; None where git cannot say."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    try:  # getrusage also counts what the parent held when it forked
        return round(int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024, 1)
    except (OSError, TypeError):
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _after_cell(_: object) -> None:
    from neuronym.common.memory import give_back, MEMORY

    give_back(MEMORY // 8)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:LONGEST].rstrip("-")


def _told(name: str, value: Any) -> str:
    """A parameter as a run's folder tells it: its name and value, of a path the last part."""
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    values = value if isinstance(value, (list, tuple)) else [value]
    text = "-".join(str(one).rstrip("/").split("/")[-1] for one in values) or "none"
    return text if name in PLAIN else f"{name}-{text}"


def _say_start(run: Run, set_to: dict[str, Any]) -> None:
    """Print the parameters, where the results go and whose code runs."""
    lines = {name: repr(value) + " (set)" * (name in set_to) for name, value in run.params.items()}
    if "device" in lines:
        lines["device"] += f" -> {run.device}"
    if "memory" in lines:
        lines["memory"] += f" -> {run.memory // 2**20} MiB"
    lines |= {"run": str(run.dir), "package": str(PACKAGE)}
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {text}" for name, text in lines.items()), flush=True)
    here = Path(os.environ.get("NEURONYM_FROM") or os.getcwd())
    if other := other_clone(here):
        print(
            f"note: {here} belongs to {other}, and the code that runs is that of {ROOT}; "
            f"pip install -e {other} makes it the other's",
            flush=True,
        )


def _device_name(device: torch.device) -> str:
    import torch

    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )


def _interactive(namespace: dict) -> bool:
    """Whether somebody is looking: a live kernel that neither the runner nor a parameterized papermill run
    started.
    """
    return "get_ipython" in namespace and not injected(namespace) and not _headless()


def _headless() -> bool:
    return os.environ.get("NEURONYM_HEADLESS") == "1"


def _finite(name: str, value: Any) -> Any:
    """A metric as JSON; ValueError when it, or a number inside it, is NaN or infinite."""
    if isinstance(value, dict):
        return {str(k): _finite(f"{name}.{k}", v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_finite(f"{name}[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"metrics must be finite numbers, '{name}' is {value}; the run is not marked as done"
        )
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"metrics must be numbers or text, '{name}' is a {type(value).__name__}")


def _write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def progress(items: Iterable, total: int | None = None, text: str = "") -> Iterator:
    """Pass `items` through and say how far it is: a widget bar when interactive, else a line after ten
    seconds, then ever rarer.
    """
    if not os.environ.get("NEURONYM_HEADLESS") and "ipykernel" in sys.modules:
        from tqdm.auto import tqdm

        yield from tqdm(items, total=total, desc=text)
        return
    total = total if total is not None else len(items) if hasattr(items, "__len__") else None
    began = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= max(10, (now - began) / 10):  # a run of an hour prints some 40 lines
            said = now
            left = f", {(now - began) / done * (total - done):.0f} s left" if total else ""
            print(f"{text}: {done}/{total or '?'} after {now - began:.0f} s{left}", flush=True)
