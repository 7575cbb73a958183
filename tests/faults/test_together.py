"""Several processes at once: on one entry of the cache, on one run folder, on one transcript."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from neuronym import cache
from neuronym.runs.folders import ROOT
from tests.helpers.faults import answers, counting, places, SMALL
from tests.helpers.notebooks import command
from tests.helpers.nursery import tables


@pytest.mark.parametrize("notebook", SMALL)
def test_three_runs_of_one_notebook_on_one_cache(notebook, nursery, tmp_path, trial, trials, monkeypatch):
    """Each has its own results; the cache and the transcript's server are shared."""
    if notebook not in trials(["labelling"], list(SMALL)):
        pytest.skip("in the longer form: make faults")
    with trial("three runs side by side, cold cache"), counting(delay=0.02) as (server, key):
        shared = {"NEURONYM_CACHE": str(tmp_path / "cache")}
        pids = {}
        for i in range(3):
            (tmp_path / str(i)).mkdir()
            where = places(tmp_path / str(i)) | shared | key
            pids[i] = nursery.begin(notebook, SMALL[notebook], tmp_path / str(i) / "log", **where)
        for i, pid in pids.items():
            assert nursery.wait(pid) == 0, (tmp_path / str(i) / "log").read_text()[-1500:]
        first, *others = (tables(tmp_path / str(i) / "results", notebook) for i in range(3))
        assert all(other == first for other in others)
        monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "cache"))
        assert cache.entries() and not cache.verify()
        assert not list((tmp_path / "cache").rglob("*.partial*"))


def test_runs_with_other_parameters_share_what_is_equal(nursery, tmp_path, trial, monkeypatch):
    """Three runs of one results folder, two of them with other labels per unit."""
    with trial("three different runs side by side, cold cache"):
        pids = []
        for top_k in (1, 3, 5):
            given = SMALL["labelling"] | {"top_k": top_k, "run_name": f"k{top_k}"}
            pids.append(nursery.begin("labelling", given, tmp_path / f"log{top_k}", **places(tmp_path)))
        assert [nursery.wait(pid) for pid in pids] == [0, 0, 0]
        folders = sorted((tmp_path / "results" / "labelling").iterdir())
        ranks = [set((folder / "labels.csv").read_text().split("\n", 2)[0].split(",")) for folder in folders]
        assert len(folders) == 3 and all("rank" in columns for columns in ranks)
        best = []
        for folder in folders:
            lines = (folder / "top_images.csv").read_text().splitlines()
            best.append(lines[0])
        assert len(set(best)) == 1
        monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "cache"))
        assert not cache.verify()


def test_commands_with_the_same_parameters(tmp_path, trial, trials):
    """One works in the run folder, the others wait for it, and all are done."""
    words = [word for name, value in SMALL["labelling"].items() for word in ("-p", name, value)]
    many = trials(2, 3)
    with trial("equal commands side by side, one run folder"), ThreadPoolExecutor(many) as pool:
        done = list(pool.map(lambda _: command("labelling", *words, **places(tmp_path)), range(many)))
        assert not any(one.returncode for one in done), [one.stderr[-500:] for one in done]
        assert sum("this one waits for it" in one.stdout for one in done) == many - 1
        (folder,) = (path for path in (tmp_path / "results" / "labelling").iterdir() if path.is_dir())
        assert (folder / "done").exists() and json.loads((folder / "notebook.ipynb").read_text())
        assert not list(folder.parent.glob(".*.lock"))


ENTRY = """
import sys, time
import numpy as np
from neuronym import cache
rows = np.arange(4000, dtype=np.float32).reshape(40, 100)
with cache.writer("test", {"of": "two"}, rows.shape, np.float32) as out:
    for i in range(out.start, 40, 4):
        out.write(i, rows[i:i+4])
        time.sleep(0.01)
print(float(np.abs(np.asarray(cache.load("test", {"of": "two"})) - rows).max()))
"""


def test_processes_on_one_entry(tmp_path, trial, trials):
    for i in range(trials(1, 5)):
        with trial("processes that write one cache entry"):
            env = {**places(tmp_path / str(i)), "PYTHONPATH": str(ROOT / "utils")}
            made = [
                subprocess.Popen([sys.executable, "-c", ENTRY], env=env, stdout=subprocess.PIPE, text=True)
                for _ in range(2)
            ]
            assert [float(one.communicate()[0]) for one in made] == [0.0] * 2
            (folder,) = (tmp_path / str(i) / "cache" / "test").iterdir()
            assert sorted(path.name for path in folder.iterdir()) == ["data.npy", "meta.json"]
            assert np.load(folder / "data.npy").shape == (40, 100)


def test_two_processes_on_one_transcript_ask_nothing_twice(nursery, tmp_path, trial):
    """The same run twice, at once, over one file of answers."""
    with trial("two runs at once on one transcript"), counting(delay=0.05) as (server, key):
        pids = []
        for name in ("one", "two"):
            given = SMALL["describe_and_dissect"] | {"run_name": name}
            where = places(tmp_path) | key
            pids.append(nursery.begin("describe_and_dissect", given, tmp_path / name, **where))
        assert [nursery.wait(pid) for pid in pids] == [0, 0], (tmp_path / "one").read_text()[-800:]
        kept = [line["key"] for line in answers(tmp_path / "results") if line["kind"] == "llm"]
        assert len(kept) == len(set(kept)) == len({prompt for _, prompt in server.came})
        assert not server.twice(), (
            f"{sum(server.twice().values())} requests for {len(server.twice())} prompts"
        )
