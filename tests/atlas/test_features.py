"""Layers of features in an atlas: by their short names, and only those of the files that the runs are of."""

from __future__ import annotations

import json

import pytest

from neuronym import clip_dissect, measure
from neuronym.atlas import runs, site
from neuronym.atlas.explorer import Answers, as_network
from neuronym.common.memory import MEMORY
from neuronym.runs.folders import notebook_path
from neuronym.runs.parameters import read_parameters
from neuronym.similarity import sparse_columns
from neuronym.similarity.labels import write_labels
from tests.atlas.test_notes import run_of
from tests.atlas.test_site import said
from tests.helpers.features import written


def test_a_run_over_features_becomes_a_site(tmp_path):
    file, words = written(tmp_path, 192), ["red", "blue", "circle", "star"]
    (tmp_path / "words.txt").write_text("\n".join(words))
    given = {name: one.default for name, one in read_parameters(notebook_path("labelling")).items()}
    given |= {"layers": f"fc,layer4@sae:{file}", "probe": "microworld:60", "compared": ""}
    given |= {"concepts": f"file:{tmp_path / 'words.txt'}"}
    run = run_of(tmp_path, "labelling", **given)
    data = measure(given["target"], given["layers"], given["probe"], given["clip"], words, pool="auto")
    write_labels(clip_dissect(data, k=1), run)
    network = runs.read_network(run, draws=0)
    assert list(network.data.Q) == ["fc", "layer4@sae:a192"]
    site.write_site(tmp_path / "site", [network], size=32)
    page = (tmp_path / "site" / "index.js").read_text(encoding="utf-8")
    assert '"name":"layer4@sae:a192","units":13' in page
    dead = (data.Q["layer4@sae:a192"] == 0).all(0).nonzero()[:, 0].tolist()
    details = said(tmp_path / "site" / "units" / "1" / "0000.js", 'ATLAS.file("units/1/0000",')
    assert dead and all(
        (details[unit]["k"] == []) == (unit in dead) for unit in range(13)
    )  # no name, no score
    told = page.replace(json.dumps(network.command)[1:-1], "")  # which makes the run again
    assert str(tmp_path) not in told

    (tmp_path / "other").mkdir()
    same = run_of(tmp_path, "trust", layers=f"layer4@sae:{file}")
    runs.check_features(same, network)
    other = run_of(
        tmp_path / "other", "trust", layers=f"layer4@sae:{written(tmp_path / 'other', 192, seed=1)}"
    )
    with pytest.raises(ValueError, match="those called 'layer4@sae:a192' here are of .*; make both"):
        runs.check_features(other, network)


def test_the_explorer_tells_the_same_of_what_is_active(tmp_path, monkeypatch):
    file, words = written(tmp_path, 192), ["red", "blue", "circle", "star"]
    given = ("microworld:resnet", f"fc,layer4@sae:{file}", "microworld:60", "microworld", words)
    pairs = [measure(*given, pool="max", sparse=one) for one in (False, True)]
    monkeypatch.setattr(sparse_columns, "COPIED", MEMORY // (4 * 60 * 5))  # five units a block
    labels = clip_dissect(pairs[0], k=1)
    found = []
    for data in pairs:
        answers = Answers([as_network(data, labels)])
        found.append((answers.start(""), answers.tops(0), answers.details(1, 5), answers.details(0, 3)))
        site.write_site(tmp_path / f"{len(found)}", [as_network(data, labels)], size=32)
    assert found[0][1:4] == found[1][1:4]
    assert json.dumps(found[0][0]) == json.dumps(found[1][0])
    for name in ("units/1/0000.js", "tops/0000.js", "index.js"):
        one, other = (tmp_path / folder / name for folder in "12")
        assert one.read_text(encoding="utf-8") == other.read_text(encoding="utf-8")
