"""Notebooks run as by hand, and what they print."""

from __future__ import annotations

import json
import subprocess
import sys

from neuronym.runs.folders import results_dir, ROOT
from neuronym.similarity.labels import read_labels


def run(*words, module="neuronym", cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=600
    )


def parts(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (p.parent for p in results_dir().glob("labelling/*/metrics.json"))
    return folder, json.loads((folder / "metrics.json").read_text()), read_labels(folder / "labels.parquet")
