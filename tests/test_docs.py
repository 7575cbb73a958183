"""The pages of docs/: their numbers are those of the files beside them, their links lead somewhere, and the
code of docs/script.md runs.
"""

from __future__ import annotations

import re
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

from neuronym.microworld.render import render
from neuronym.microworld.world import scene
from neuronym.runs.folders import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
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


def test_a_number_that_was_changed_is_found(tmp_path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import write
    finally:
        sys.path.remove(str(ROOT / "docs"))
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
    (tmp_path / "some.csv").write_text("layer,name,top1\na,x,0.25\na,y,0.75\nb,x,1\n")
    text = (
        "<!-- = metrics.csv share .3f -->.5<!-- end -->\n"
        "<!-- table some.csv; where=layer:a; columns=name,top1; digits=2 -->\nold\n<!-- end -->\n"
        "<!-- table some.csv; pivot=layer|name|top1 -->\n<!-- end -->\n"
    )
    assert write.rendered(text, tmp_path).splitlines() == [
        "<!-- = metrics.csv share .3f -->.981<!-- end -->",
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
    assert write.wanted_files(text) == {"metrics.csv", "some.csv"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
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
