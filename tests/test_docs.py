"""The pages of README.md and docs/: their numbers are those of the files beside them, their links lead
somewhere, the commands in them are taken, names.md names all, and the code of docs/script.md runs.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from neuronym.common.tables import write_table
from neuronym.microworld.render import render
from neuronym.microworld.world import scene
from neuronym.runs.command import COMMANDS, SCALED
from neuronym.runs.folders import notebooks_dir, ROOT
from neuronym.runs.kinds import KINDS
from neuronym.runs.parameters import from_text, read_parameters

PAGES = sorted((ROOT / "docs").rglob("*.md"))
ALL = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md", *PAGES]
NOTEBOOKS = {path.stem: read_parameters(path) for path in sorted(notebooks_dir().glob("*.ipynb"))}
OTHER_COMMANDS = {"NOTEBOOK", "all", "--list", *COMMANDS, *SCALED}
CODE = re.compile(r"```sh\n(.*?)```|(?<!`)`([^`\n]+)`", re.DOTALL)
MARKED = re.compile(r"<!--=[^>]*-->[^<]*<!--end-->")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
INSTEAD = {
    "timm:resnet18": "torchvision:resnet18@random:0",
    "openai:ViT-B/16": "microworld",
    "english:10000": "microworld:atoms",
}


def check() -> subprocess.CompletedProcess:
    """`make docs`, which changes nothing."""
    command = [sys.executable, "docs/write.py", "--check"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_numbers_are_those_of_the_files():
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def docs(monkeypatch):
    """What `make docs` runs: the modules of docs/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import names
    import write

    return {"names": names, "write": write}


def test_numbers_and_tables_are_written_from_files(docs, tmp_path):
    write = docs["write"]
    (tmp_path / "metrics.csv").write_text("metric,value\nshare,0.98077\n")
    (tmp_path / "more.csv").write_text("kind,half,method,mean\na,x,p,1.5\na,y,p,2.5\na,x,q,3.5\nb,x,r,4.5\n")
    several = (
        "<!-- table more.csv; among=method:p|q; pivot=method|kind,half|mean; digits=1 -->\n<!-- end -->\n"
    )
    assert write.rendered(several, tmp_path).splitlines()[1:-1] == [
        "| method | a x | a y |",
        "| --- | --- | --- |",
        "| p | 1.5 | 2.5 |",
        "| q | 3.5 |  |",
    ]
    (tmp_path / "sizes.csv").write_text("method,images,kept,mean\np,100,0.5,1.5\np,500,1,2.5\n")
    by_number = "<!-- table sizes.csv; pivot=method|images|mean; digits=1 -->\n<!-- end -->\n"
    assert write.rendered(by_number, tmp_path).splitlines()[1] == "| method | 100 | 500 |"
    by_two = by_number.replace("|images|", "|images,kept|")
    assert write.rendered(by_two, tmp_path).splitlines()[1] == "| method | 100 0.5 | 500 1.0 |"
    (tmp_path / "some.csv").write_text("layer,name,top1\na,x,0.25\na,y,0.75\nb,x,1\n")
    text = (
        "<!--=metrics.csv;share;.3f-->.5<!--end--> or <!--=metrics.csv;share;.1%-->?<!--end-->\n"
        "<!--=some.csv;top1;written;layer:a;name:y-->?<!--end-->\n"
        "<!--=some.csv;top1;minutes;layer:a-->?<!--end-->\n"
        "<!-- table some.csv; where=layer:a; columns=name,top1; digits=2 -->\nold\n<!-- end -->\n"
        "<!-- table some.csv; pivot=layer|name|top1 -->\n<!-- end -->\n"
    )
    assert write.rendered(text, tmp_path).splitlines() == [
        "<!--=metrics.csv;share;.3f-->.981<!--end--> or <!--=metrics.csv;share;.1%-->98.1 %<!--end-->",
        "<!--=some.csv;top1;written;layer:a;name:y-->.75<!--end-->",
        "<!--=some.csv;top1;minutes;layer:a-->½<!--end-->",
        "<!-- table some.csv; where=layer:a; columns=name,top1; digits=2 -->",
        *["| name | top1 |", "| --- | --- |", "| x | .25 |", "| y | .75 |", "<!-- end -->"],
        "<!-- table some.csv; pivot=layer|name|top1 -->",
        *[
            "| layer | x | y |",
            "| --- | --- | --- |",
            "| a | .250 | .750 |",
            "| b | 1.000 |  |",
            "<!-- end -->",
        ],
    ]
    wanted = write.wanted_files(text + "<!--=other/metrics.csv;share;.3f-->?<!--end-->", "here")
    assert {f"{file.parent.name}/{file.name}" for file in wanted} == {
        "here/metrics.csv",
        "here/some.csv",
        "other/metrics.csv",
    }


@pytest.mark.parametrize("marker", ["some.csv;top1;.3f;layer:a", "some.csv;top1;.3f;layer:c"])
def test_a_number_is_of_one_row(docs, tmp_path, marker):
    (tmp_path / "some.csv").write_text("layer,top1\na,0.25\na,0.75\n")
    with pytest.raises(ValueError, match="a number is of one row, .* has [02] with layer:"):
        docs["write"].rendered(f"<!--={marker}-->?<!--end-->", tmp_path)


def test_minutes_are_rounded_up(docs):
    said = [docs["write"]._minutes(minutes) for minutes in (0.01, 0.5, 0.51, 1, 1.2, 3.9)]
    assert said == ["½", "½", "1", "1", "2", "4"]


def test_only_files_of_default_runs_and_of_benchmarks_are_taken(docs, tmp_path, monkeypatch, capsys):
    write, results = docs["write"], tmp_path / "results"
    monkeypatch.setattr(write, "DATA", tmp_path / "data")
    usual = {name: parameter.default for name, parameter in NOTEBOOKS["trust"].items()}
    for folder, changed in (("defaults-1", {}), ("seed_1-2", {"seed": 1})):
        run = results / "trust" / folder
        run.mkdir(parents=True)
        (run / "params.json").write_text(json.dumps(usual | changed))
        (run / "metrics.json").write_text(json.dumps({"trust": 0.5 + len(changed), "note": "text"}))
        (run / "auroc.csv").write_text(f"trust,auroc\nscore,0.{len(changed)}\n")
        (run / "done").touch()
    (results / "benchmarks").mkdir()
    (results / "benchmarks" / "omp.csv").write_text("words,m\n10,2\n")
    write._fetch("trust", ["auroc.csv", "gone.csv", "metrics.csv"])
    write._fetch("benchmarks", ["omp.csv"])
    write._fetch("photos", ["metrics.csv"])
    write._copy(results / "trust" / "seed_1-2", "trust_map", ["vit_auroc.csv", "vit_metrics.csv"], "vit_")
    taken = sorted((tmp_path / "data").rglob("*.csv"))
    assert {f"{file.parent.name}/{file.name}": file.read_text() for file in taken} == {
        "trust/auroc.csv": "trust,auroc\nscore,0.0\n",
        "trust/metrics.csv": "metric,value\ntrust,0.5\n",
        "benchmarks/omp.csv": "words,m\n10,2\n",
        "trust_map/vit_auroc.csv": "trust,auroc\nscore,0.1\n",
        "trust_map/vit_metrics.csv": "metric,value\ntrust,1.5\n",
    }
    said = capsys.readouterr().err
    assert "defaults-1 has no gone.csv, which stay as they are" in said
    assert "no default run of photos; its numbers stay" in said


def test_readme_has_two_pages_and_no_number_by_hand():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1000
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", MARKED.sub("", text), flags=re.DOTALL)
    assert re.findall(r"(?<!Python )(?<![\d.])\d*\.\d+", prose) == []


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_line_begins_with_a_marker(page):
    """Markdown takes such a line for HTML, and shows what follows in it as it is written."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.lstrip().startswith("<!--=")] == []


def commands(text: str) -> list[list[str]]:
    """Words of every `neuronym ...` in code."""
    lines = []
    for block, inline in CODE.findall(text):
        lines += (block or inline).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("neuronym ")]


def test_commands_are_found():
    text = "`neuronym runs`\n```sh\nneuronym trust -p seed 1 \\\n    -p units ids:3  # or so\n```\n"
    assert commands(text) == [["runs"], ["trust", "-p", "seed", "1", "-p", "units", "ids:3"]]
    assert len(commands((ROOT / "README.md").read_text(encoding="utf-8"))) >= 4


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_name_notebooks_and_parameters_that_are_there(page):
    for words in commands(page.read_text(encoding="utf-8")):
        assert words[0] in {*NOTEBOOKS, *OTHER_COMMANDS}, words
        for i in (i for i, word in enumerate(words) if word == "-p"):
            key, value = words[i + 1 : i + 3]
            if words[0] in NOTEBOOKS and (key, value) != ("key", "value"):
                assert key in NOTEBOOKS[words[0]], words
                from_text(NOTEBOOKS[words[0]][key], value)


def shown_names(names, kinds: str) -> list[str]:
    return [row[0] for section in names.SECTIONS if kinds in section.kinds for row in names.rows(section)]


@pytest.mark.parametrize("kinds", KINDS)
def test_every_kind_of_name_is_in_the_page(docs, kinds):
    shown = [re.split(r"[:@\[]", name)[0] for name in shown_names(docs["names"], kinds)]
    assert [kind for kind in KINDS[kinds] if kind.partition(":")[0] not in shown] == []


def test_every_choice_is_in_the_page(docs):
    tables = {name: section for section in docs["names"].SECTIONS for name in section.parameters}
    others = {row[0].strip("`") for row in docs["names"].other_choices()}
    for notebook, parameters in NOTEBOOKS.items():
        for name, parameter in parameters.items():
            if parameter.choices and name in tables:
                told = {row[0] for row in docs["names"].rows(tables[name])}
                assert set(parameter.choices) <= told, (notebook, name)
            elif parameter.choices:
                assert name in others


def test_a_table_is_read_from_a_text(docs):
    lines = ["What it is.", "", "    a  first", "    x | one", "    y:N | two,", "          more | y:3"]
    found = list(docs["names"]._table(iter([*lines, "", "    z | not this"])))
    assert found == [("x", "one", "x"), ("y:N", "two, more", "y:3")]


@pytest.mark.parametrize(
    "script, words",
    [
        ("similarity", "--shapes 300x60x6:wpmi --d 16 --loop-units 2 --repeats 1"),
        ("omp", "--words 200 --m 4 --K 4 --d 32 --repeats 1"),
    ],
)
def test_benchmarks_write_the_tables_of_their_page(tmp_path, script, words):
    file = tmp_path / "new" / f"{script}.csv"
    command = [sys.executable, f"benchmarks/{script}.py", *words.split(), "--csv", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = ROOT / "docs" / "results" / "data" / "benchmarks" / f"{script}.csv"
    written, wanted = (set(table.read_text().splitlines()[0].split(",")) for table in (file, shown))
    assert wanted <= written


def test_every_benchmark_writes_a_table():
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    texts = {path.name: path.read_text(encoding="utf-8") for path in scripts}
    assert [
        name for name, text in texts.items() if '"--csv"' not in text and "Table.options" not in text
    ] == []


def test_modules_moved_to_are_there():
    text = (ROOT / "docs" / "moved.md").read_text(encoding="utf-8")
    rows = [row.split("|")[2] for row in text.splitlines() if row.startswith("| `") and "utils." not in row]
    modules = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert len(modules) > 50
    assert [name for name in modules if find_spec(f"neuronym.{name}") is None] == []


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_script_runs(tmp_path, monkeypatch):
    """With a network, a CLIP and words that are here in place of those that are not."""
    for i in range(40):
        render(scene(i)).save(tmp_path / f"{i}.png")
    code = "\n".join(BLOCK.findall((ROOT / "docs" / "script.md").read_text(encoding="utf-8")))
    for name, here in (INSTEAD | {"folder:/photos": f"folder:{tmp_path}"}).items():
        assert name in code
        code = code.replace(name, here)
    monkeypatch.chdir(tmp_path)
    left: dict = {}
    exec(code, left)
    plt.close("all")
    assert left["best"].index.tolist() == [3, 17, 42] and left["best"].shape == (3, 2)
    assert (tmp_path / "cards.png").stat().st_size > 10_000
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1 + 2 * 3 * 3


def test_words_of_tables_are_text(tmp_path):
    """Markup in labels would be markup of the page."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import write
    finally:
        sys.path.remove(str(ROOT / "docs"))
    words = ["<b>", "&amp;", "a|b", "`x`", "[x](y)", "$x$", "line\nbreak", "nan", "=1"]
    write_table(pd.DataFrame({"label": words}), tmp_path / "t.csv")
    text = "<!-- table t.csv -->\n<!-- end -->\n"
    assert write.rendered(text, tmp_path).splitlines()[3:-1] == [
        "| &lt;b&gt; |",
        "| &amp;amp; |",
        r"| a\|b |",
        r"| \`x\` |",
        r"| \[x\](y) |",
        r"| \$x\$ |",
        "| line break |",
        "| nan |",
        "| =1 |",
    ]
