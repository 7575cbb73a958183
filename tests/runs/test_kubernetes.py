"""The profile of Kubernetes, with a kubectl that runs jobs on this machine: what is asked for, and a job that
is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from neuronym.runs.folders import ROOT
from tests.helpers.notebooks import write_notebook
from tests.runs.test_sweep import began, CELLS

PROFILE = ROOT / "profiles" / "kubernetes"
# keeps a job as NAME.json, its process as NAME.pid and its exit status as NAME.rc
KUBECTL = """#!{python}
import json, os, subprocess, sys
from pathlib import Path
import psutil

jobs = Path({jobs!r})
verb, name = sys.argv[1], sys.argv[2].removeprefix("job.batch/")
if verb == "create":
    job = json.load(sys.stdin)
    name = job["metadata"]["generateName"] + str(len(list(jobs.glob("*.json"))))
    (jobs / (name + ".json")).write_text(json.dumps(job))
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    call = ["sh", "-c", '"$@"; echo $? > ' + str(jobs / (name + ".rc")), "sh", *command]
    none = subprocess.DEVNULL
    process = subprocess.Popen(call, stdin=none, stdout=none, stderr=none, start_new_session=True)
    (jobs / (name + ".pid")).write_text(str(process.pid))
    print("job.batch/" + name)
elif verb == "get" and (jobs / (name + ".json")).exists():
    ended, pid = jobs / (name + ".rc"), int((jobs / (name + ".pid")).read_text())
    if ended.exists():
        print(":1/" if ended.read_text().strip() == "0" else ":/1", end="")
    else:
        alive = psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        print(":/" if alive else ":/1", end="")
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """The folder of its jobs; kubectl is found first."""
    (tmp_path / "bin").mkdir()
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    file = tmp_path / "bin" / "kubectl"
    file.write_text(KUBECTL.format(python=sys.executable, jobs=str(jobs)))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"IMAGE": "some/image", "CLAIM": "claim", "MOUNT": str(tmp_path)}.items():
        monkeypatch.setenv(f"NEURONYM_{name}", value)
    return jobs


def submitted(tmp_path, resources: dict) -> subprocess.CompletedProcess:
    script = tmp_path / "job.sh"
    properties = {"threads": 2, "resources": {"mem_mb": 3000, "runtime": 15} | resources}
    script.write_text(f"#!/bin/sh\n# properties = {json.dumps(properties)}\ntrue\n")
    return subprocess.run([PROFILE / "submit", script], capture_output=True, text=True)


def status(name: str) -> str:
    return subprocess.run([PROFILE / "status", name], capture_output=True, text=True).stdout.strip()


def test_a_job_asks_for_what_its_row_says(kubectl, tmp_path):
    assert submitted(tmp_path, {}).stdout == "job.batch/neuronym-0\n"
    job = json.loads((kubectl / "neuronym-0.json").read_text())
    assert job["spec"]["activeDeadlineSeconds"] == 900 and job["spec"]["backoffLimit"] == 0
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "some/image" and container["command"] == ["sh", str(tmp_path / "job.sh")]
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "3000Mi"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "claim"}
    assert {"name": "NEURONYM_CACHE", "value": str(tmp_path / "cache")} in container["env"]
    assert submitted(tmp_path, {"gpu": 1}).returncode == 0
    job = json.loads((kubectl / "neuronym-1.json").read_text())
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "3000Mi", "nvidia.com/gpu": "1"}


def test_what_is_not_set_is_said(kubectl, tmp_path, monkeypatch):
    monkeypatch.delenv("NEURONYM_CLAIM")
    done = submitted(tmp_path, {})
    assert done.returncode == 1 and "needs 'NEURONYM_CLAIM'; set it as" in done.stderr


def test_how_a_job_stands(kubectl, tmp_path):
    (kubectl / "a.json").touch()
    (kubectl / "a.pid").write_text(str(os.getpid()))
    assert status("job.batch/a") == "running"
    (kubectl / "a.rc").write_text("0\n")
    assert status("job.batch/a") == "success"
    (kubectl / "a.rc").write_text("137\n")
    assert status("job.batch/a") == "failed" and status("job.batch/gone") == "failed"
    (tmp_path / "bin" / "kubectl").write_text("#!/bin/sh\nexit 1\n")
    assert status("job.batch/a") == "running"  # nobody answers


def script(job) -> str:
    """What a job runs; "" of one that is done, whose script Snakemake has removed."""
    pod = json.loads(job.with_suffix(".json").read_text())["spec"]["template"]["spec"]
    file = Path(pod["containers"][0]["command"][1])
    return file.read_text() if file.exists() else ""


def test_a_sweep_whose_job_is_killed_is_done_by_another(folder, kubectl, tmp_path):
    """Snakemake learns of the kill by `status`, and submits the row again."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    write_notebook(folder, cells=CELLS)
    profile, results = tmp_path / "profile", tmp_path / "results"
    shutil.copytree(PROFILE, profile)
    with open(profile / "config.yaml", "a", encoding="utf-8") as config:
        config.write("seconds-between-status-checks: 1\n")
    results.mkdir()
    (results / "hold").touch()
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("runs:\n  - {notebook: toy, parameters: {top_k: [1, 8]}, memory: 10}\n")
    call = [sys.executable, "-m", "neuronym", "sweep", str(sweep), "--profile", str(profile)]
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(call, stdout=log, stderr=log)
    end = time.monotonic() + 240
    while not (results / "began").exists() or "8" not in (results / "began").read_text().split():
        assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.1)
    (killed,) = (path for path in kubectl.glob("*.pid") if "-p top_k 8" in script(path))
    job = psutil.Process(int(killed.read_text()))
    for one in [job, *job.children(recursive=True)]:
        one.kill()
    (results / "hold").unlink()
    assert process.wait(240) == 0, (tmp_path / "log").read_text()
    assert began(tmp_path) == {1: 1, 8: 2} and len(list(kubectl.glob("*.json"))) == 3
    assert {path.read_text().strip() for path in kubectl.glob("*.rc")} == {"0"}
