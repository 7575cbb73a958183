"""Every notebook runs to its end in smoke mode, through the same command as by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from neuronym.runs.folders import ROOT
from tests.helpers.features import written

LAYERS = {  # that smoke takes by itself; features of a layer are named beside them
    "trust": "layer4,fc",
    "evaluation": "fc",
    "describe_and_dissect": "layer4,fc",
    "visualisation": "layer4",
    "editing": "layer2,layer3,layer4",
}
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def check_run(folder: Path) -> dict:
    """A finished run folder: every file is there and no metric is NaN or infinite; returns the metrics."""
    assert {"notebook.ipynb", "params.json", "env.json", "metrics.json", "done"} <= {
        p.name for p in folder.iterdir()
    }
    numbers = []
    metrics = json.loads(
        (folder / "metrics.json").read_text(),
        parse_float=lambda text: numbers.append(float(text)),
        parse_constant=lambda text: numbers.append(float(text)),
    )
    assert metrics and all(map(math.isfinite, numbers))
    assert json.loads((folder / "params.json").read_text())["smoke"] is True
    return metrics


def past_run(folder: Path, params: dict, metrics: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "done").touch()


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_runs(notebook, tmp_path, request):
    call = [sys.executable, "-m", "neuronym", notebook, "-p", "smoke", "True", "-p", "device", "cpu"]
    if notebook in LAYERS:
        call += ["-p", "layers", f"{LAYERS[notebook]},layer4@sae:{written(tmp_path, 192)}"]
    if notebook == "evaluation":  # with a sentence encoder in test_evaluation.py
        call += ["-p", "sentences", ""]
    if notebook == "data_analysis":  # reads published files, which only this notebook needs
        call += ["-p", "folder", str(request.getfixturevalue("shared") / "published")]
    if notebook == "sweep":
        for i, target in enumerate(("microworld:resnet", "microworld:vit", "microworld:vit")):
            past_run(
                tmp_path / "results" / "labelling" / str(i),
                {"target": target, "seed": i},
                {"precision": i / 4},
            )
        call += ["-p", "against", "target", "-p", "group", ""]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (folder,) = (tmp_path / "results" / notebook).iterdir()
    check_run(folder)
    if notebook in LAYERS:  # features are called by their file's short name, wherever layers are
        tables = [path.read_text(encoding="utf-8") for path in folder.glob("*.csv")]
        assert any("layer4@sae:a192" in table for table in tables)
        assert not any(str(tmp_path) in table for table in tables)
