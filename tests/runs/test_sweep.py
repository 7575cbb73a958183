"""Sweeps: grids, what is refused before anything starts, and what a pool, Snakemake and a cluster do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

from neuronym.runs.collect import collect_runs
from neuronym.runs.command import main
from neuronym.runs.folders import ROOT
from neuronym.runs.scheduler import run_rows
from neuronym.runs.sweep import read_sweep, ready
from tests.helpers.notebooks import write_notebook

# draws, and waits where a file says so: `top_k` 7 fails, `top_k` 8 waits for a file to go
CELLS = [
    "import os, time\nopen(os.environ['NEURONYM_RESULTS'] + '/began', 'a').write(f'{top_k}\\n')",
    "if top_k == 7:\n    raise RuntimeError('seven')",
    "while top_k == 8 and os.path.exists(os.environ['NEURONYM_RESULTS'] + '/hold'):\n    time.sleep(0.05)",
    "finish_run(run, {'x': top_k * 2, 'deep': {'y': len(method)}})",
]


@pytest.fixture
def sweep(folder, tmp_path):
    """Write a sweep file of toy notebooks; (tmp_path / "results") is there."""
    write_notebook(folder, cells=CELLS)
    (tmp_path / "results").mkdir()

    def write(text: str):
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return path

    return write


def began(tmp_path):
    """How many times a run began, by its top_k."""
    lines = (tmp_path / "results" / "began").read_text().split()
    return {int(k): lines.count(k) for k in set(lines)}


def test_a_grid_is_every_value_with_every_other_and_equal_rows_are_one(sweep):
    rows = read_sweep(
        sweep(
            "defaults: {memory: 100}\n"
            "runs:\n"
            "  - {notebook: toy, name: a, minutes: 5, "
            "parameters: {top_k: [1, 2], method: [wpmi, soft_wpmi]}}\n"
            "  - {notebook: toy, name: b, parameters: {method: wpmi, top_k: 2}, after: a, memory: 300}\n"
        )
    )
    assert [dict(zip(row.words[2::3], row.words[3::3])) for row in rows] == [
        {"top_k": "1", "method": "wpmi"},
        {"top_k": "1", "method": "soft_wpmi"},
        {"top_k": "2", "method": "wpmi"},
        {"top_k": "2", "method": "soft_wpmi"},
    ]
    assert [(row.memory, row.minutes) for row in rows] == [(100, 5), (100, 5), (300, 60), (100, 5)]


@pytest.mark.parametrize(
    "text, said",
    [
        ("runs: []", "at least one run"),
        ("runs: [{parameters: {}}]", "needs a 'notebook:'"),
        ("- a: [", "must be YAML"),
        ("run: [{notebook: toy}]\nruns: [{notebook: toy}]", "no key of sweep.yaml 'run'; nearest: runs"),
        ("runs: [{notebook: toy, memry: 3}]", "nearest: memory"),
        ("runs: [{notebook: toy, memory: 4 GB}]", "'memory' must be a whole number"),
        ("runs: [{notebook: toy, gpus: -1}]", "'gpus' must be a whole number"),
        ("runs: [{notebook: toy, parameters: [a]}]", "'parameters' must be names and values"),
        ("runs: [{notebook: tou}]", "no notebook 'tou'; nearest: toy"),
        ("runs: [{notebook: toy, parameters: {topk: 3}}]", "no parameter of toy 'topk'; nearest: top_k"),
        (
            "runs: [{notebook: toy, parameters: {top_k: [3, many]}}]",
            "run 1 (toy, top_k many): parameter 'top_k'",
        ),
        ("runs: [{notebook: toy, after: [tea]}]", "no run to wait for 'tea'"),
        (
            "runs: [{notebook: toy, name: a, after: b}, {notebook: toy, name: b, after: a}]",
            "in a circle: a, b",
        ),
        ("runs: [{notebook: toy, shard: 2}]", "toy has no probe, clip, pooling"),
        ("runs: [{notebook: toy, parameters: {method: best}}]", "must be one of wpmi, soft_wpmi, got 'best'"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_starts(sweep, tmp_path, capsys, text, said):
    assert main(["sweep", str(sweep(text)), "--pool"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "results" / "toy").exists()


def test_a_sweep_that_is_not_there(capsys):
    assert main(["sweep", "nowhere.yaml"]) == 2
    assert "there is no" in capsys.readouterr().err


def test_a_pool_keeps_going_resumes_and_leaves_out_what_waits_for_a_failure(sweep, tmp_path):
    path = sweep(
        "runs:\n"
        "  - {notebook: toy, name: first, parameters: {top_k: [1, 7]}, memory: 10}\n"
        "  - {notebook: toy, name: later, parameters: {top_k: 3}, after: first, memory: 10}\n"
        "  - {notebook: toy, name: free, parameters: {top_k: 4}, memory: 10}\n"
    )
    said = []
    rows = read_sweep(path, networks=False)
    assert run_rows(rows, 2, tmp_path / "results", said.append) == 1
    assert [ready(row) for row in rows] == [True, False, True, False]  # 1, 7, 4 and the one that waits
    assert any("failed" in line and "seven" in line for line in said)
    assert any("left out" in line for line in said)
    run_rows(rows, 2, tmp_path / "results", said.append)
    assert began(tmp_path) == {1: 1, 7: 2, 4: 1}


def test_a_pool_runs_a_row_again_when_what_it_waits_for_is_newer(sweep, tmp_path):
    path = sweep(
        "runs:\n  - {notebook: toy, name: a, parameters: {top_k: 1}}\n"
        "  - {notebook: toy, name: b, parameters: {top_k: 2}, after: [a]}\n"
    )
    first, second = rows = read_sweep(path, networks=False)
    assert run_rows(rows, 1, tmp_path / "results", lambda line: None) == 0
    later = second.done.stat().st_mtime_ns + 10**9
    os.utime(first.done, ns=(later, later))
    assert run_rows(rows, 1, tmp_path / "results", lambda line: None) == 0
    assert began(tmp_path) == {1: 1, 2: 2}


def killed_in_the_middle(call, tmp_path, env):
    """Start a sweep whose run of top_k 8 waits, kill it and all its processes, and let the run go."""
    (tmp_path / "results" / "hold").touch()
    process = subprocess.Popen(call, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = tmp_path / "results" / "began"
    end = time.monotonic() + 120
    while not (file.exists() and "8" in file.read_text().split()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    ours = psutil.Process(process.pid)
    for one in [*ours.children(recursive=True), ours]:
        one.kill()
    process.wait()
    (tmp_path / "results" / "hold").unlink()


TWO = "runs:\n  - {notebook: toy, parameters: {top_k: [1, 8]}, memory: 10}\n"


def test_a_killed_sweep_goes_on(sweep, tmp_path):
    call = [sys.executable, "-m", "neuronym", "sweep", str(sweep(TWO)), "-c", "1", "--pool"]
    killed_in_the_middle(call, tmp_path, dict(os.environ))
    assert subprocess.run(call, capture_output=True).returncode == 0
    assert began(tmp_path) == {1: 1, 8: 2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_stops_its_runs(sweep, tmp_path, number):
    (tmp_path / "results" / "hold").touch()
    call = [sys.executable, "-m", "neuronym", "sweep", str(sweep(TWO)), "-c", "2", "--pool"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    file = tmp_path / "results" / "began"
    while not (file.exists() and "8" in file.read_text().split()):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    left, until = children, time.time() + 20  # a kernel ends by itself, soon after who started it
    while left and time.time() < until:
        left = [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.05)
    assert not left
    assert "the same command goes on" in process.stdout.read()


snakemake = pytest.mark.skipif(
    shutil.which("snakemake", path=os.path.dirname(sys.executable)) is None,
    reason="needs snakemake: pip install -e '.[workflow]'",
)


@snakemake
def test_snakemake_does_the_same_after_a_kill_and_an_edited_file(sweep, tmp_path):
    path = sweep(TWO)
    call = [sys.executable, "-m", "neuronym", "sweep", str(path), "-c", "1"]
    killed_in_the_middle(call, tmp_path, dict(os.environ))
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path.write_text(TWO.replace("memory: 10", "memory: 20, minutes: 7"))
    again = subprocess.run(call, capture_output=True, text=True)
    assert again.returncode == 0 and "2 done already" in again.stdout
    assert began(tmp_path)[8] == 2 and began(tmp_path)[1] <= 2


SUBMIT = """#!{python}
import subprocess, sys
log = open({log!r}, "a")
log.write("job\\n")
log.close()
none = subprocess.DEVNULL
subprocess.Popen(["sh", sys.argv[-1]], stdout=none, stderr=none, start_new_session=True)
print(1)
"""


@snakemake
def test_jobs_of_a_cluster_run_the_rows(sweep, tmp_path):
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    path = sweep("runs:\n  - {notebook: toy, parameters: {top_k: [1, 2, 7]}, memory: 10}\n")
    submit, log = tmp_path / "submit", tmp_path / "jobs"
    submit.write_text(SUBMIT.format(python=sys.executable, log=str(log)))
    submit.chmod(0o755)
    call = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--config",
        f"sweep={path}",
    ]
    call += ["--directory", str(tmp_path), "--executor", "cluster-generic", "--jobs", "2", "--keep-going"]
    call += [
        "--cluster-generic-submit-cmd",
        str(submit),
        "--rerun-triggers",
        "mtime",
        "--seconds-between-status-checks",
        "1",
    ]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1  # of the failing one
    assert began(tmp_path) == {1: 1, 2: 1, 7: 1} and log.read_text().count("job") == 3
    table = collect_runs(["toy/*"])
    assert dict(zip(table["top_k"], table["done"])) == {1: True, 2: True, 7: False}


@snakemake
@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_a_profile_plans_every_row(sweep, tmp_path, profile):
    if profile == "slurm":
        pytest.importorskip("snakemake_executor_plugin_slurm")
    path = sweep("runs:\n  - {notebook: toy, parameters: {top_k: [1, 2, 3]}, gpus: 1}\n")
    call = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "-n",
        "--quiet",
        "rules",
    ]
    call += [
        "--profile",
        str(ROOT / "profiles" / profile),
        "--config",
        f"sweep={path}",
        "--directory",
        tmp_path,
    ]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^total +4$", done.stdout + done.stderr, re.MULTILINE
    )  # three runs and what asks for all


def test_runs_as_one_table(sweep, tmp_path, capsys):
    rows = read_sweep(
        sweep("runs: [{notebook: toy, parameters: {top_k: [1, 2], layers: x}}]"), networks=False
    )
    assert run_rows(rows, 2, tmp_path / "results", print) == 0
    table = collect_runs([str(tmp_path / "results" / "*" / "*")])
    assert table["x"].tolist() == [2, 4] and table["deep.y"].tolist() == [4, 4]
    assert table["layers"].tolist() == [json.dumps(["x"])] * 2
    for name in ("t.csv", "t.parquet"):
        assert main(["collect", "toy/*", str(tmp_path / name)]) == 0
    assert pd.read_parquet(tmp_path / "t.parquet")["top_k"].tolist() == [1, 2]
    assert main(["collect", "nothing/*"]) == 2
    assert "no run matches nothing/*" in capsys.readouterr().err
