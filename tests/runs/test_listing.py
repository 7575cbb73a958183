"""The lists of notebooks and of runs."""

from __future__ import annotations

import json
import os

from neuronym.runs.command import main
from neuronym.runs.folders import notebooks_dir
from neuronym.runs.listing import find_runs, notebooks, ORDER
from neuronym.runs.run import finish_run, start_run
from tests.helpers.notebooks import values, write_notebook


def test_notebooks_come_in_the_order_to_read_them_with_question_and_time():
    rows = notebooks()
    names = [name for name, *_ in rows]
    assert names[: len(ORDER)] == [name for name in ORDER if name in names] and names[0] == "labelling"
    assert sorted(names) == sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))
    assert all(question.endswith("?") and time for _, question, time in rows)


def test_unknown_notebooks_come_last_and_need_no_time(folder):
    for name in ("zebra", "trust", "ant"):
        write_notebook(folder, name)
    assert notebooks() == [(name, "Does it run?", "") for name in ("trust", "ant", "zebra")]


def test_runs_are_listed_with_state_and_what_was_set(toy, capsys):
    assert main(["runs"]) == 0 and capsys.readouterr().out == ""
    finish_run(start_run("toy", values(top_k=7)), {})
    failed, open_, ended = (start_run("toy", values(top_k=k)).dir for k in (8, 9, 10))
    (failed / "failed").write_text("ValueError: x")
    env = json.loads((ended / "env.json").read_text())
    (ended / "env.json").write_text(json.dumps(env | {"process": 2**22 + 1}))
    found = {run.set_to["top_k"]: run for run in find_runs()}
    assert {k: run.state for k, run in found.items()} == {
        7: "done",
        8: "failed",
        9: "running",
        10: "unfinished",
    }
    assert found[9].folder == open_ and found[9].notebook == "toy" and len(found) == 4
    capsys.readouterr()
    assert main(["runs", "toy"]) == 0
    said = capsys.readouterr().out
    assert f"running     toy  top_k=9\n    Does it run?\n    {open_}\n" in said
    assert main(["runs", "other"]) == 0 and capsys.readouterr().out == ""


def test_a_number_given_to_another_process_is_not_the_run(toy):
    run = start_run("toy", values())
    env = json.loads((run.dir / "env.json").read_text())
    (run.dir / "env.json").write_text(json.dumps(env | {"started": "2020-01-01T00:00:00+00:00"}))
    assert env["process"] == os.getpid() and find_runs()[0].state == "unfinished"


def test_a_run_of_a_notebook_that_is_gone_or_broken_is_listed(toy):
    run = start_run("toy", values(top_k=7))
    toy.unlink()
    (run.dir / "env.json").write_text("{")
    (found,) = find_runs()
    assert found.state == "unfinished" and found.set_to == run.params
