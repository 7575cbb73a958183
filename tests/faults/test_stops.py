"""Ctrl-C and SIGTERM end a run with one sentence, and the command that it prints goes on."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest

from neuronym.runs.folders import ROOT
from neuronym.runs.listing import find_runs
from tests.helpers.faults import places, SMALL
from tests.helpers.nursery import tables

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("number", STATUS)
def test_a_stopped_run_goes_on(number, undisturbed, tmp_path, trial, trials, monkeypatch):
    if number not in trials([signal.SIGTERM], STATUS):
        pytest.skip("in the longer form: make faults; tests/runs stops a shorter notebook by both")
    given, wanted = SMALL["labelling"], undisturbed("labelling").tables
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    dice = random.Random(int(number))
    for i in range(trials(1, 4)):
        with trial(f"{number.name} in labelling, taken up by the command it prints"):
            env = os.environ | places(tmp_path / str(i))
            process = subprocess.Popen(
                [sys.executable, "-m", "neuronym", "labelling", *words],
                cwd=ROOT,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
            next(line for line in process.stdout if line.startswith("run "))  # start_run has spoken
            kernels = psutil.Process(process.pid).children(recursive=True)
            time.sleep(dice.uniform(0, 2))
            process.send_signal(number)
            said = process.communicate(timeout=120)[1]
            assert process.returncode == STATUS[number], said
            assert "Traceback" not in said
            last = said.splitlines()[-1]
            stopped, _, again = last.partition(": ")
            assert stopped == "labelling stopped; the same command goes on from the caches"
            assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in kernels)
            monkeypatch.setenv("NEURONYM_RESULTS", env["NEURONYM_RESULTS"])
            assert [run.state for run in find_runs()] == ["stopped"]
            call = [sys.executable, "-m", *shlex.split(again)]
            assert subprocess.run(call, cwd=ROOT, env=env, capture_output=True).returncode == 0
            assert tables(tmp_path / str(i) / "results", "labelling") == wanted
            assert [run.state for run in find_runs()] == ["done"]
