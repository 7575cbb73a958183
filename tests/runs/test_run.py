"""Folders, start_run and finish_run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from neuronym.runs.folders import (
    cache_dir,
    data_dir,
    folder_or_id,
    from_root,
    notebooks_dir,
    other_clone,
    results_dir,
    ROOT,
)
from neuronym.runs.run import finish_run, run_folder, start_run
from tests.helpers.notebooks import CELL, values


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    for variable, function, default in [
        ("NEURONYM_DATA", data_dir, "data"),
        ("NEURONYM_CACHE", cache_dir, "data/cache"),
        ("NEURONYM_RESULTS", results_dir, "results"),
        ("NEURONYM_NOTEBOOKS", notebooks_dir, "notebooks"),
    ]:
        monkeypatch.setenv(variable, str(tmp_path / "x"))
        assert function() == (tmp_path / "x").resolve()
        monkeypatch.delenv(variable)
        assert function() == ROOT / default


def env_said(capsys, run):
    """Whether start_run said what was set, where the results go and whose code runs."""
    said = capsys.readouterr().out
    lines = ["top_k     7 (set)", f"run       {run.dir}", f"package   {ROOT / 'utils' / 'neuronym'}"]
    return all(line in said.splitlines() for line in lines)


def test_start_and_finish_leave_a_complete_folder(toy, tmp_path, capsys):
    run = start_run("toy", values(top_k=7, device="cpu"))
    assert run.params["top_k"] == 7 and run.seed == 0 and run.device.type == "cpu" and not run.interactive
    assert run.figures.is_dir() and run.tables == run.dir and run.dir.parent == tmp_path / "results" / "toy"
    assert run.dir.name.startswith("top_k-7-") and env_said(capsys, run)
    assert json.loads((run.dir / "params.json").read_text()) == run.params
    env = json.loads((run.dir / "env.json").read_text())
    assert env["torch"] and env["seed"] == 0 and set(env["git"]) == {"commit", "dirty"}
    assert not (run.dir / "done").exists()
    assert finish_run(run, {"accuracy": np.float32(0.5), "by_layer": {"a": np.arange(2)}}) == run.dir
    metrics = json.loads((run.dir / "metrics.json").read_text())
    assert metrics["accuracy"] == 0.5 and metrics["by_layer"] == {"a": [0, 1]} and metrics["peak_mb"] > 1
    assert (run.dir / "done").exists()
    start_run("toy", values(top_k=7, device="cpu"))
    assert not (run.dir / "done").exists()  # a run that started again is not done


def test_the_generator_is_the_only_thing_seeded(toy):
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (torch.rand(3, generator=start_run("toy", values(seed=4)).generator) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"top_k": "five"}, ValueError, "'top_k' must be int, got 'five'"),
        ({"top_k": True}, ValueError, "'top_k' must be int"),
        ({"seed": 1.0}, ValueError, "'seed' must be int"),
        ({"target": 5}, ValueError, "'target' must be str, got 5"),
        ({"layers": "a"}, ValueError, r"'layers' must be list\[str\]"),
        ({"layers": [1]}, ValueError, r"'layers' must be list\[str\]"),
        ({"lam": float("nan")}, ValueError, "'lam' must be float"),
        ({"method": "cosine"}, ValueError, "one of wpmi, soft_wpmi"),
        ({"device": "warp"}, ValueError, "device is auto, cpu, cuda or cuda:N, got 'warp'"),
        (
            {"In": ["", "top_k = 5", "# Parameters\ntop_kk = 5\n"]},
            KeyError,
            "no parameter of toy 'top_kk'; nearest: top_k",
        ),
    ],
)
def test_bad_parameters_stop_a_notebook_before_any_work(toy, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        start_run("toy", values(**changes))
    assert not list(tmp_path.glob("results/**/params.json"))


def test_missing_values_and_unknown_notebooks_are_said(toy):
    with pytest.raises(ValueError, match="no value for seed of toy; run the parameters cell first"):
        start_run("toy", {k: v for k, v in values().items() if k != "seed"})
    with pytest.raises(KeyError, match="no notebook 'tooy'; nearest: toy"):
        start_run("tooy", values())


def test_own_variables_of_an_interactive_kernel_are_no_parameters(toy):
    history = ["", CELL, "scratch = 5", "# Parameters of my own\nother = 1"]
    run = start_run("toy", values(scratch=5, In=history, Out={}, get_ipython=lambda: None))
    assert run.interactive and "scratch" not in run.params


def test_the_folder_depends_on_the_parameters_alone(toy):
    base = run_folder("toy", values())
    assert base.name.startswith("defaults-")
    assert run_folder("toy", dict(reversed(values().items()))) == base
    assert run_folder("toy", values(device="cuda")) == base
    for change in [{"smoke": True}, {"seed": 1}, {"top_k": 6}, {"layers": ["b", "a"]}, {"limit": 3}]:
        assert run_folder("toy", values(**change)).name[-8:] != base.name[-8:]
    named = run_folder("toy", values(run_name="../My run!"))
    assert named.parent == base.parent and named.name == f"my-run-{base.name[-8:]}"


@pytest.mark.parametrize(
    "changes, begins",
    [
        ({"target": "folder:a/B c/"}, "b-c-"),
        ({"smoke": True, "target": "x"}, "smoke-x-"),
        ({"layers": ["b", "c"], "limit": 3}, "limit-3-layers-b-c-"),
        ({"lam": 0.5}, "lam-0-5-"),
        ({"method": "soft_wpmi"}, "method-soft_wpmi-"),
    ],
)
def test_the_folder_tells_what_differs_from_the_defaults(toy, changes, begins):
    assert run_folder("toy", values(**changes)).name.startswith(begins)


def test_values_go_back_into_the_notebook_as_declared(toy):
    namespace = values(lam=2, layers=("a",), limit=None)
    run = start_run("toy", namespace)
    assert namespace["layers"] == ["a"] and type(namespace["lam"]) is float
    assert {name: namespace[name] for name in run.params} == run.params


def test_results_that_cannot_be_written_are_one_sentence(toy, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEURONYM_RESULTS", str(tmp_path / "file" / "results"))
    with pytest.raises(PermissionError, match="results must be writable, .*; set NEURONYM_RESULTS"):
        start_run("toy", values())


def test_another_clone_is_told(toy, tmp_path, monkeypatch, capsys):
    file = tmp_path / "clone" / "utils" / "neuronym" / "runs" / "run.py"
    file.parent.mkdir(parents=True)
    file.touch()
    (tmp_path / "clone" / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "clone" / "notebooks")
    start_run("toy", values())
    assert (
        f"belongs to {tmp_path / 'clone'}, and the code that runs is that of {ROOT}"
        in capsys.readouterr().out
    )
    assert other_clone(ROOT / "notebooks") is None and other_clone(tmp_path) is None


def test_paths_start_at_the_repository(tmp_path, monkeypatch):
    from neuronym.models.transcripts import open_transcript
    from neuronym.models.weights import read_weights

    monkeypatch.chdir(tmp_path)
    assert from_root("a/b") == ROOT / "a/b" and from_root(tmp_path) == tmp_path
    assert open_transcript("answers.jsonl").path == ROOT / "answers.jsonl"
    assert read_weights("data/microworld/clip_rn.safetensors")
    assert folder_or_id("notebooks") == str(ROOT / "notebooks") and folder_or_id("org/name") == "org/name"


@pytest.mark.parametrize(
    "metrics, message",
    [
        ({"a": float("nan")}, "'a' is nan"),
        ({"a": {"b": [1, np.inf]}}, r"'a.b\[1\]' is inf"),
        ({"a": np.array([np.nan])}, "is nan"),
        ({"a": object()}, "'a' is a object"),
        ({"seconds": 3}, "measured by finish_run"),
    ],
)
def test_metrics_that_are_no_numbers_are_refused(toy, metrics, message):
    run = start_run("toy", values())
    with pytest.raises(ValueError, match=message):
        finish_run(run, metrics)
    assert not (run.dir / "done").exists() and not (run.dir / "metrics.json").exists()
