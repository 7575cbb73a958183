"""Layers of features in an atlas: by their short names, and only those of the files that the runs are of."""

from __future__ import annotations

import json

import pytest

from neuronym import clip_dissect, measure
from neuronym.atlas import runs, site
from neuronym.runs.folders import notebook_path
from neuronym.runs.parameters import read_parameters
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
