"""Notebooks executed through the runner and through plain papermill."""

from __future__ import annotations

import datetime
import json
import re
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import psutil
import pytest

from neuronym.runs.execute import _saved_seldom, phases, SAVED_EVERY
from neuronym.runs.folders import ROOT
from neuronym.runs.listing import find_runs
from tests.helpers.notebooks import CELL, command, write_notebook


def test_a_notebook_runs_to_its_folder_and_again_with_the_same_numbers(toy, tmp_path):
    done = command("toy", "-p", "top_k", "9", "-p", "target", "5")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results" / "toy").iterdir()
    assert {p.name for p in folder.iterdir()} == {
        "notebook.ipynb",
        "params.json",
        "env.json",
        "metrics.json",
        "phases.csv",
        "done",
        "figures",
    }
    assert re.fullmatch(r"phase,seconds\nDraw,\d+\.\d+\n", (folder / "phases.csv").read_text())
    params, first = (json.loads((folder / f"{n}.json").read_text()) for n in ("params", "metrics"))
    assert params["top_k"] == 9 and params["target"] == "5"
    assert (
        f"x {first['x']}" in done.stdout
        and f"  x: {first['x']}" in done.stdout
        and str(folder) in done.stdout
    )
    assert json.loads((folder / "notebook.ipynb").read_text())["metadata"]["papermill"]["parameters"] == {
        "top_k": 9,
        "target": "5",
    }
    (folder / "old.csv").touch()
    again = command("toy", "-p", "top_k", "9", "-p", "target", "5", "--force")
    assert (
        again.returncode == 0
        and list(folder.parent.iterdir()) == [folder]
        and not (folder / "old.csv").exists()
    )
    second = json.loads((folder / "metrics.json").read_text())
    assert {k: first[k] for k in ("x", "top_k")} == {k: second[k] for k in ("x", "top_k")}


def test_phases_are_the_named_cells_that_ran(tmp_path):
    named = [
        nbformat.v4.new_code_cell(f"# papermill_description={name}\nx = 1")
        for name in ("Load", "Score", "Close")
    ]
    for cell, duration in zip(named, (1.23456, 0.0, None)):
        cell.metadata["papermill"] = {"duration": duration}
    other = nbformat.v4.new_code_cell("y = 2", metadata={"papermill": {"duration": 5.0}})
    prose = nbformat.v4.new_markdown_cell("# papermill_description=Words")
    nbformat.write(
        nbformat.v4.new_notebook(cells=[prose, named[0], other, *named[1:]]), tmp_path / "ran.ipynb"
    )
    assert list(phases(tmp_path / "ran.ipynb").items()) == [("Load", 1.235), ("Score", 0.0)]


def test_a_failure_keeps_the_notebook_and_all_goes_on(toy, folder, tmp_path):
    raising = "# papermill_description=Break\nraise RuntimeError('a\\nb')"
    for name, cell in [
        ("bad", raising),
        ("dies", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
        ("open", "pass"),
    ]:
        write_notebook(folder, name, set_up=cell)
    done = command("all", "-p", "smoke", "True")
    assert done.returncode == 1
    assert "bad failed in cell 3 (Break): RuntimeError: a\n" in done.stderr and "DeadKernel" in done.stderr
    (kept,) = (tmp_path / "results/bad").glob("*/notebook.ipynb")
    assert (
        str(kept) in done.stderr and "RuntimeError" in kept.read_text() and "IPKernelApp" not in done.stderr
    )
    rows = {line.split()[0]: line for line in done.stdout.split("peak MB")[-1].splitlines() if line.strip()}
    assert list(rows) == ["bad", "dies", "open", "toy"] and rows["toy"].endswith("done")
    assert "RuntimeError" in rows["bad"] and "ended without finish_run" in rows["open"]
    assert next((tmp_path / "results/toy").iterdir()).name.startswith("smoke-")


def test_the_running_interpreter_is_the_kernel_and_output_is_live(folder, tmp_path, monkeypatch):
    wrong = tmp_path / "home" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    (wrong / "kernel.json").write_text(
        '{"argv": ["no-such-python"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "home"))
    seen = "{'python': sys.executable, 'cwd': os.getcwd(), 'looked_at': run.interactive}"
    write_notebook(
        folder, cells=["import os, sys, time\nprint('first')\ntime.sleep(3)", f"finish_run(run, {seen})"]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "neuronym", "toy"], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    lines = [(line.strip(), time.perf_counter()) for line in process.stdout]
    assert process.wait() == 0
    assert lines[-1][1] - dict(reversed(lines))["first"] > 2  # it was there long before the end
    (metrics,) = (json.loads(path.read_text()) for path in (tmp_path / "results/toy").glob("*/metrics.json"))
    assert (metrics["python"], metrics["cwd"], metrics["looked_at"]) == (sys.executable, str(ROOT), False)


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["-p", "top_k", "9"], 0, ""),
        (["-p", "top_kk", "9"], 1, "no parameter of toy 'top_kk'; nearest: top_k"),
    ],
)
def test_plain_papermill_works_and_refuses_what_it_only_warns_of(toy, tmp_path, arguments, status, message):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(toy),
            str(tmp_path / "out.ipynb"),
            *arguments,
            "--no-progress-bar",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status and message in done.stderr, done.stderr
    assert len(list(tmp_path.glob("results/toy/*/done"))) == (status == 0)


def test_a_mistake_that_start_run_finds_leaves_no_folder(toy, folder, tmp_path):
    wrong = 'from neuronym.runs.run import start_run\nrun = start_run("toy", globals() | {"top_k": "x"})'
    write_notebook(folder, "wrong", set_up=wrong)
    done = command("wrong")
    assert done.returncode == 1 and not list(tmp_path.glob("results/wrong/*"))
    assert "ValueError: parameter 'top_k' must be int, got 'x'" in done.stderr.splitlines()[-1]


def test_what_a_loading_cell_refuses_is_one_sentence_without_a_folder(folder, tmp_path):
    ours = (
        "# papermill_description=Load\nfrom neuronym.common.units import choose_units\nchoose_units('x', 3)"
    )
    write_notebook(folder, cells=[ours])
    done = command("toy")
    assert done.returncode == 2 and not list((tmp_path / "results" / "toy").iterdir())
    assert done.stderr == "error: units are all, a count, ids:3,17,42, ids:0-9 or label:dog, got 'x'\n"
    for cell in (ours.replace("Load", "Score"), "# papermill_description=Load\nraise ValueError('theirs')"):
        write_notebook(folder, cells=[cell])
        done = command("toy", "--force")
        assert done.returncode == 1 and "toy failed in cell 3" in done.stderr.splitlines()[-1]
    write_notebook(folder, cells=[ours])
    assert command("toy").returncode == 2
    (kept,) = (path for path in (tmp_path / "results" / "toy").iterdir() if path.is_dir())
    assert (kept / "failed").read_text().startswith("units are all"), "a folder of an earlier run stays"


def test_equal_commands_wait_for_one_another(folder, tmp_path):
    count = "import os, time\nfrom pathlib import Path\nhere = Path(run.dir).parent / 'here'\n"
    count += "here.mkdir()\ntime.sleep(1)\nhere.rmdir()\nfinish_run(run, {})"
    write_notebook(folder, cells=[count])
    call = [sys.executable, "-m", "neuronym", "toy"]
    made = [subprocess.Popen(call, cwd=ROOT, text=True, stdout=subprocess.PIPE) for _ in range(2)]
    said = [one.communicate(timeout=120)[0] for one in made]
    assert [one.returncode for one in made] == [0, 0]
    assert sum("another process runs the same into" in text for text in said) == 1
    assert [path.name[:8] for path in (tmp_path / "results" / "toy").iterdir()] == ["defaults"]


def test_a_failure_is_marked_and_said_last(folder, tmp_path):
    write_notebook(folder, cells=["raise RuntimeError('broken')"])
    done = command("toy")
    (kept,) = (tmp_path / "results" / "toy").iterdir()
    assert (kept / "failed").read_text() == "RuntimeError: broken\n" and (kept / "params.json").exists()
    assert done.stderr.splitlines()[-1].startswith("toy failed in cell 3 (raise RuntimeError('broken'))")
    write_notebook(folder, cells=["finish_run(run, {})"])
    assert command("toy").returncode == 0
    assert (kept / "done").exists() and not (kept / "failed").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_once_and_leaves_no_kernel(folder, tmp_path, number, status):
    write_notebook(folder, cells=["import os, time\nprint('pid', os.getpid())\ntime.sleep(60)"])
    process = subprocess.Popen(
        [sys.executable, "-m", "neuronym", "toy", "-p", "target", "a b", "-p", "limit", "~"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    kernel = next(int(line.split()[1]) for line in process.stdout if line.startswith("pid "))
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status
    again = "neuronym toy -p target 'a b' -p limit null"
    assert said.splitlines()[-1] == f"toy stopped; the same command goes on from the caches: {again}"
    assert "Traceback" not in said and len(said.splitlines()) == 2
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE
    (kept,) = (tmp_path / "results" / "toy").iterdir()
    assert not (kept / "failed").exists() and not (kept / "done").exists()
    assert [run.state for run in find_runs()] == ["stopped"]


def test_nothing_is_said_after_a_stop():
    """Calls to the kernel that nobody waits for any more would warn when they are thrown away."""
    code = (
        "from pathlib import Path\nfrom neuronym.runs.execute import _report\nasync def call(): pass\n"
        "_report('toy', {}, Path('/none'), KeyboardInterrupt('SIGTERM'), False)\ncall()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "toy stopped; the same command goes on from the caches: neuronym toy\n"


def test_results_that_cannot_be_written_end_the_command(toy, tmp_path):
    (tmp_path / "file").touch()
    done = command("toy", NEURONYM_RESULTS=str(tmp_path / "file"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: results must be writable, ")


def test_papermills_own_lists_and_nulls_are_taken(folder, tmp_path):
    cell = CELL.replace(
        'target = "micro:a"', 'shown = "a,b"  # type: str  # separated by commas\ntarget = "micro:a"'
    )
    write_notebook(folder, cells=["finish_run(run, {'shown': shown, 'k': top_k})"], parameters=cell)
    call = [sys.executable, "-m", "papermill", str(folder / "toy.ipynb"), str(tmp_path / "out.ipynb")]
    more = ["-y", "{shown: [conv1, fc], top_k: null, layers: [b]}", "--no-progress-bar"]
    done = subprocess.run([*call, *more], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (metrics,) = (json.loads(path.read_text()) for path in (tmp_path / "results/toy").glob("*/metrics.json"))
    assert metrics["shown"] == "conv1,fc" and metrics["k"] == 5


def test_modules_in_the_folder_of_the_command_are_in_nobodys_way(toy, tmp_path):
    place = tmp_path / "place"
    (place / "utils").mkdir(parents=True)
    for name in ("papermill", "yaml", "models", "errors", "utils/__init__", "utils/models"):
        (place / f"{name}.py").write_text("raise RuntimeError('not mine')\n")
    done = command("toy", "-p", "layers", "[a, b]", cwd=place)
    assert done.returncode == 0, done.stderr


def test_the_executed_notebook_is_written_seldom(tmp_path):
    file, before = tmp_path / "notebook.ipynb", papermill.engines.NotebookExecutionManager.save
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    notebook.metadata["papermill"] = {}
    manager = papermill.engines.NotebookExecutionManager(notebook, str(file), progress_bar=False)
    with _saved_seldom(papermill):
        manager.save()
        written = file.read_text(encoding="utf-8")
        notebook.cells[0].source = "2"
        manager.save()
        assert file.read_text(encoding="utf-8") == written
        manager.last_save_time -= datetime.timedelta(seconds=SAVED_EVERY)
        manager.save()
        assert file.read_text(encoding="utf-8") == written.replace('"1"', '"2"') != written
    assert papermill.engines.NotebookExecutionManager.save is before
