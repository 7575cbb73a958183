"""How long does labelling take, phase by phase, the first time and when everything is cached?

    python benchmarks/labelling.py [-p key value ...] [--csv FILE]

Runs notebooks/labelling.ipynb headless twice with an empty cache and results folder of its own, and prints
the seconds of each phase of both runs, their sums, and the work of each: what it took from `start_run` to
`finish_run`, that is without the kernel's start and the imports of the first cell, and less what loading the
networks imports (torchvision and clip, timed in an interpreter of their own). Parameters are passed on, such
as -p limit 1000.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from similarity import write_table

IMPORTS = (
    "import time, torch; start = time.perf_counter(); import torchvision, clip; "
    "print(time.perf_counter() - start)"
)
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        dest="values",
        help="a parameter of the notebook; may be repeated",
    )
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    values = [word for pair in args.values for word in ("-p", *pair)]
    with tempfile.TemporaryDirectory() as folder:
        runs = [labelling(values, Path(folder)) for _ in range(2)]
    imports = float(
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", IMPORTS], capture_output=True, text=True, check=True
        ).stdout
    )
    print(f"{'seconds':24}{'first':>9}{'second':>9}")
    table = {phase: [run[phase] for run in runs] for phase in runs[0]}
    table["less imports in Load"] = [run["work"] - imports for run in runs]
    for phase, (first, second) in table.items():
        print(f"{phase:24}{first:9.2f}{second:9.2f}")
    rows = [
        {"seconds": phase, "first": f"{first:.1f}", "from the cache": f"{second:.1f}"}
        for phase, (first, second) in table.items()
    ]
    write_table(rows, args.csv)


def labelling(values: list[str], folder: Path) -> dict[str, float]:
    """Seconds of one run by phase, and of the whole."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "neuronym", "labelling", *values],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ
        | {"NEURONYM_CACHE": str(folder / "cache"), "NEURONYM_RESULTS": str(folder / "results")},
    )
    whole = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    (result,) = (folder / "results" / "labelling").iterdir()
    rows = [line.split(",") for line in (result / "phases.csv").read_text(encoding="utf-8").splitlines()[1:]]
    took = {phase: float(seconds) for phase, seconds in rows}
    return took | {
        "all phases": sum(took.values()),
        "with start and end": whole,
        "work": json.loads((result / "metrics.json").read_text())["seconds"],
    }


if __name__ == "__main__":
    main()
