"""Runs that SIGKILL ends at any moment, and that the same command takes up again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from neuronym.runs.folders import ROOT
from tests.helpers.faults import answers, counting, places, SMALL
from tests.helpers.nursery import tables

LATE = 0.5  # seconds in which an answer that went out is in the transcript


@pytest.mark.parametrize("notebook", SMALL)
def test_a_killed_run_is_taken_up_bit_by_bit(notebook, nursery, undisturbed, tmp_path, trial, trials):
    """The tables are those of a run that nobody disturbed, and what was answered is not asked again."""
    whole = undisturbed(notebook)
    wanted = whole.tables
    dice = random.Random(f"kills of {notebook}")
    for i in range(trials(2, 10)):
        with trial(f"SIGKILL in {notebook}, taken up again"), counting(delay=0.02) as (server, key):
            killed = tmp_path / f"killed {i}"
            killed.mkdir()
            log, where = killed / "log", places(killed) | key
            pid = nursery.begin(notebook, SMALL[notebook], log, **where)
            time.sleep(dice.uniform(0.02, 0.95) * whole.took)
            os.kill(pid, signal.SIGKILL)
            at = time.monotonic()
            ended = nursery.wait(pid)
            assert ended in (-signal.SIGKILL, 0), log.read_text()
            kept = {
                json.dumps(line["request"]["messages"])
                for line in answers(killed / "results")
                if line["kind"] == "llm"
            }
            sent = {prompt for when, prompt in server.answered if when < at - LATE}
            before = len(server.came)
            assert nursery.run(notebook, SMALL[notebook], log, **where) == 0, log.read_text()
            assert tables(killed / "results", notebook) == wanted
            again = [prompt for _, prompt in server.came[before:]]
            assert not sent & set(again), "an answer that had come was paid again"
            assert not kept & {json.dumps(json.loads(prompt)["messages"]) for prompt in again}
            assert len(again) == len(set(again))


def test_the_command_is_killed_with_its_kernel(tmp_path, trial, undisturbed):
    """The same through the real command, whose processes all die at once."""
    words = [word for name, value in SMALL["labelling"].items() for word in ("-p", name, str(value))]
    call = [sys.executable, "-m", "neuronym", "labelling", *words]
    env = os.environ | places(tmp_path)
    with trial("SIGKILL of the command and its kernel, run again"):
        process = subprocess.Popen(call, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        next(line for line in process.stdout if line.startswith("run "))  # start_run has spoken
        alive = psutil.Process(process.pid).children(recursive=True)
        for one in [*alive, process]:
            one.kill()
        process.communicate()
        assert subprocess.run(call, cwd=ROOT, env=env, capture_output=True).returncode == 0
        assert tables(tmp_path / "results", "labelling") == undisturbed("labelling").tables
