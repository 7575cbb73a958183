"""Parameters, run folders, and notebooks executed through the runner and through plain papermill."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest

from neuronym.runs.command import main, phases
from neuronym.runs.parameters import check, from_text, Parameter, read_parameters
from neuronym.runs.run import (
    cache_dir,
    data_dir,
    finish_run,
    notebooks_dir,
    results_dir,
    ROOT,
    run_folder,
    start_run,
)

CELL = """smoke = False        # type: bool  # small sizes
device = "auto"      # type: str  # auto, cpu, cuda
seed = 0             # type: int  # of every random choice
run_name = ""        # type: str  # instead of the names in the folder
target = "micro:a"   # type: str  # network with a '#' and a = in its help
top_k = 5            # type: int  # labels per unit
lam = 1.0            # type: float  # weight of the prior
limit = None         # type: int|None  # images
layers = ["a", "b"]  # type: list[str]  # layers
method = "wpmi"      # type: str  # similarity; choices: wpmi|soft_wpmi"""
SET_UP = 'from neuronym.runs.run import finish_run, start_run\nrun = start_run("toy", globals())'


def write_notebook(folder, name="toy", cells=(), parameters=CELL, set_up=SET_UP):
    """A notebook with a parameters cell, the call of start_run, and the given code cells."""
    code = [nbformat.v4.new_code_cell(source) for source in (parameters, set_up, *cells)]
    code[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Does it run?\n\nA toy."), *code])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(exist_ok=True)
    nbformat.write(book, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of notebooks in place of the repository's."""
    monkeypatch.setenv("NEURONYM_NOTEBOOKS", str(tmp_path / "books"))
    return tmp_path / "books"


@pytest.fixture
def toy(folder):
    """A notebook that draws one number."""
    draw = "# papermill_description=Draw\nimport torch\nx = torch.rand(1, generator=run.generator).item()\nprint('x', x)"
    return write_notebook(folder, cells=[draw, "finish_run(run, {'x': x, 'top_k': top_k})"])


def values(**changes):
    """The globals of a kernel in which the parameters cell ran, then `changes`."""
    namespace = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(CELL).body}
    return namespace | changes


def command(*arguments):
    """Run the command line in a process of its own."""
    call = [sys.executable, "-m", "neuronym", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True)


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


def test_parameters_are_read_with_types_defaults_and_help(toy):
    known = read_parameters(toy)
    assert list(known) == [
        "smoke",
        "device",
        "seed",
        "run_name",
        "target",
        "top_k",
        "lam",
        "limit",
        "layers",
        "method",
    ]
    assert {n: p.default for n, p in known.items()} == values()
    assert known["limit"] == Parameter("limit", "int|None", None, "images")
    assert known["target"].help == "network with a '#' and a = in its help"
    assert known["method"].choices == ("wpmi", "soft_wpmi")


@pytest.mark.parametrize(
    "cell, message",
    [
        ("import os", "expected `name = literal"),
        ("a = b = 1", "expected `name = literal"),
        ("x = 1\ny = x + 1", "line 2.*got 'y = x \\+ 1'"),
        ("x = 1  # type: tensor  # help", "unknown type 'tensor'"),
        ("x = 1  # type: list[tensor]  # help", "unknown type"),
    ],
)
def test_cells_that_hold_anything_but_literals_are_refused(folder, cell, message):
    with pytest.raises(ValueError, match=message):
        read_parameters(write_notebook(folder, parameters=cell))


@pytest.mark.parametrize(
    "kind, text, value",
    [
        ("int", "7", 7),
        ("int", "-7", -7),
        ("float", "7", 7.0),
        ("float", "1e-3", 1e-3),
        ("bool", "True", True),
        ("bool", "false", False),
        ("str", "5", "5"),
        ("str", "None", "None"),
        ("str|None", "None", None),
        ("str", "", ""),
        ("int|float", "3", 3),
        ("float|None", "3", 3.0),
        ("list[str]", "a", ["a"]),
        ("list[str]", "a, b", ["a", "b"]),
        ("list[str]", "5", ["5"]),
        ("list[str]", "['a', 'b']", ["a", "b"]),
        ("list[int]", "1,2", [1, 2]),
        ("list[int]", "1", [1]),
        ("list[float]", "(1, 2)", [1.0, 2.0]),
        ("str|list[str]", "a,b", "a,b"),
        ("str|list[str]", "['a']", ["a"]),
        ("dict", "{'a': 1}", {"a": 1}),
        ("list", "[1, 'a']", [1, "a"]),
        ("int|str", "5", 5),
        ("int|str", "five", "five"),
    ],
)
def test_texts_become_values_of_the_declared_type(kind, text, value):
    found = from_text(Parameter("x", kind, None), text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("int", "five"),
        ("int", "1.5"),
        ("int", "1e3"),
        ("int", "True"),
        ("float", "nan"),
        ("float", "1e999"),
        ("bool", "1"),
        ("bool", "yes"),
        ("int|None", "x"),
        ("list[int]", "a,b"),
        ("list[int]", "[1"),
        ("dict", "[]"),
        ("int", "__import__('os')"),
    ],
)
def test_texts_of_another_type_are_refused(kind, text):
    with pytest.raises(ValueError, match=r"parameter 'x' must be .*, got .* \(default None; the help\)"):
        from_text(Parameter("x", kind, None, "the help"), text)


def test_values_are_normalized_and_choices_hold():
    assert type(check(Parameter("x", "float", 1.0), 2)) is float
    assert check(Parameter("x", "list[int]", []), (1, 2)) == [1, 2]
    with pytest.raises(ValueError, match="one of a, b, got 'c'"):
        check(Parameter("x", "str", "a", "", ("a", "b")), "c")
    with pytest.raises(ValueError, match="one of a, b, got 'c'"):
        from_text(Parameter("x", "list[str]", ["a"], "", ("a", "b")), "a,c")


def test_start_and_finish_leave_a_complete_folder(toy, tmp_path, capsys):
    run = start_run("toy", values(top_k=7, device="cpu"))
    assert run.params["top_k"] == 7 and run.seed == 0 and run.device.type == "cpu" and not run.interactive
    assert run.figures.is_dir() and run.tables == run.dir and run.dir.parent == tmp_path / "results" / "toy"
    assert run.dir.name.startswith("micro-a-") and "top_k     7 (set)" in capsys.readouterr().out
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
        ({"device": "warp"}, ValueError, "device is auto, cpu, cuda, cuda:N or mps, got 'warp'"),
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


def test_the_folder_depends_on_the_parameters_alone():
    base = run_folder("toy", values())
    assert run_folder("toy", dict(reversed(values().items()))) == base
    assert run_folder("toy", values(device="cuda")) == base
    for change in [{"smoke": True}, {"seed": 1}, {"top_k": 6}, {"layers": ["b", "a"]}, {"limit": 3}]:
        assert run_folder("toy", values(**change)).name[-8:] != base.name[-8:]
    named = run_folder("toy", values(run_name="../My run!"))
    assert named.parent == base.parent and named.name == f"my-run-{base.name[-8:]}"
    assert run_folder("toy", values(target="folder:a/B c/")).name.startswith("b-c-")
    assert "smoke" in run_folder("toy", values(smoke=True)).name


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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tooy"], "no notebook 'tooy'; nearest: toy"),
        (["toy", "-p", "topk", "5"], "no parameter of toy 'topk'; nearest: top_k"),
        (["toy", "-p", "topk", "5"], "lam: float = 1.0  weight of the prior"),
        (["toy", "-p", "top_k", "five"], "'top_k' must be int, got 'five' (default 5; labels per unit)"),
        (["toy", "-p", "top_k", "five"], "limit: int|None = None  images"),
        (["toy", "-p", "method", "cosine"], "one of wpmi, soft_wpmi"),
        (["all", "-p", "topk", "5"], "no parameter of toy 'topk'"),
    ],
)
def test_wrong_commands_list_what_is_right(toy, tmp_path, capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "results").exists()


def test_wrong_commands_fail_before_anything_heavy_is_imported(toy):
    code = (
        "import sys\nfrom neuronym.runs.command import main\n"
        "assert main(['toy', '-p', 'top_k', 'five']) == 2 and main(['--list']) == 0\n"
        "print([m for m in ('torch', 'numpy', 'papermill', 'nbformat') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_lists_of_notebooks_and_parameters(toy, capsys):
    assert main(["--list"]) == 0 and "Does it run?" in capsys.readouterr().out
    assert main(["toy", "--list"]) == 0 and "top_k: int = 5  labels per unit" in capsys.readouterr().out
    assert main([]) == 2


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
    assert next((tmp_path / "results/toy").iterdir()).name.startswith("micro-a-smoke-")


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


def test_kinds_of_the_labelling_notebook_are_those_of_the_registries():
    from neuronym.datasets.concepts import CONCEPTS
    from neuronym.datasets.probe import PROBES
    from neuronym.models.clips import CLIPS
    from neuronym.models.sentences import SENTENCE_ENCODERS
    from neuronym.models.targets import TARGETS
    from neuronym.runs.parameters import read_parameters
    from neuronym.runs.run import ROOT

    known = read_parameters(ROOT / "notebooks" / "labelling.ipynb")
    kinds = {name: set(known[name].kinds) for name in ("target", "clip", "probe", "concepts", "sentences")}
    assert kinds == {
        "target": {*TARGETS, "package.module:function"},
        "clip": set(CLIPS),
        "probe": set(PROBES),
        "concepts": set(CONCEPTS),
        "sentences": set(SENTENCE_ENCODERS),
    }


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("target", "resnet50", "no kind 'resnet50'"),
        ("target", "efficientnet_lite9", "nearest: efficientnet_lite"),
        ("clip", "opnai:RN50", "nearest: openai"),
        ("clip", "own.thing:make", "no kind 'own.thing'"),
        ("probe", "photos+microworld", "no kind 'photos'"),
        ("concepts", "englsh:9", "nearest: english"),
        ("sentences", "bert", "known: minilm"),
    ],
)
def test_unknown_kinds_are_refused_before_a_kernel_starts(key, value, said):
    from neuronym.runs.command import resolve

    with pytest.raises(ValueError, match=said):
        resolve("labelling", [(key, value)])


@pytest.mark.parametrize(
    "key, value",
    [
        ("target", "my.nets:build"),
        ("target", "torchvision:resnet50@random:0"),
        ("clip", "hf:org/name"),
        ("probe", "broden+folder:/a b+c"),
        ("probe", "cifar100_val"),
        ("sentences", ""),
        ("concepts", "file:a:b"),
    ],
)
def test_known_kinds_pass(key, value):
    from neuronym.runs.command import resolve

    assert resolve("labelling", [(key, value)])[1][key] == value
