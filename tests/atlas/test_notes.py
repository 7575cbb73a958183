"""What runs of visualisation, trust and second_order say of units: read, written into the site, refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from neuronym.atlas import notes, runs, site
from neuronym.similarity.labels import write_labels
from tests.atlas.conftest import HOSTILE
from tests.atlas.test_site import said

SIZES = {"conv1": 24, "fc": 52}


def run_of(folder, notebook: str, **params):
    """The folder of a finished run."""
    made = folder / notebook / "some-1"
    made.mkdir(parents=True)
    (made / "params.json").write_text(json.dumps(params))
    (made / "done").touch()
    return made


def test_what_labelling_says_beside_the_name():
    labels = pd.DataFrame(
        {"layer": "fc", "unit": [0, 0, 1, 2], "rank": [1, 2, 1, 1], "label": ["a", "b", "", "c"]}
    )
    assert notes.label_notes(labels, None, SIZES) == {
        title: {} for title in (notes.WITHOUT, notes.POOLING, notes.SEVERAL)
    }
    told = labels.assign(note=["", "", "dead", ""], pooling_note=["max: 'dots' .62, here .35"] * 2 + ["", ""])
    several = pd.DataFrame(
        {"layer": ["fc", "fc", "layer9"], "unit": [0, 2, 0], "several": ["a - b", "c", "d + e"]}
    )
    several = several.assign(better=[True, False, True], correlation=0.3, correlation_several=0.456)
    found = notes.label_notes(told, several, SIZES)
    assert found[notes.WITHOUT] == {("fc", 1): "dead"}
    assert found[notes.POOLING] == {("fc", 0): "max: 'dots' .62, here .35"}
    assert list(found[notes.SEVERAL]) == [("fc", 0)]
    assert "“a - b”: correlation .46 on images held out, of one word .30" == found[notes.SEVERAL]["fc", 0]


def test_notes_of_several_sources_stay(network):
    both = network.noted({"one": {("fc", 3): "x"}}).noted({"two": {("fc", 3): "y", ("fc", 4): "z"}})
    assert both.notes == {("fc", 3): {"one": "x", "two": "y"}, ("fc", 4): {"two": "z"}}
    assert not network.notes


@pytest.fixture
def visualised(tmp_path):
    run = run_of(tmp_path, "visualisation", target="microworld:resnet")
    (run / "visualised" / "fc").mkdir(parents=True)
    rows = []
    for unit, image, label_share in ((3, "fourier", 0.83), (7, "maco", None), (3, "accentuated", 0.5)):
        file = f"visualised/fc/{image}_{unit:04d}.png"
        Image.new("RGB", (64, 64), "red" if unit == 3 else "blue").save(run / file)
        rows.append(("fc", unit, file, image, 8.872, 5.894, HOSTILE, label_share))
    rows.append(("fc", None, "visualised/fc/vector.png", "fourier", 1.0, 1.0, "x", 0.5))
    rows.append(("layer9", 3, "visualised/fc/fourier_0003.png", "fourier", 1.0, 1.0, "x", 0.5))
    columns = ["layer", "unit", "file", "image", "activation", "best_real", "label", "label_share"]
    pd.DataFrame(rows, columns=columns).to_csv(run / "visualised.csv", index=False)
    return run


def test_pictures_made_from_noise_come_to_their_units(visualised, network, tmp_path):
    found = notes.made_pictures(visualised, SIZES)
    assert list(found) == [("fc", 3), ("fc", 7)] and found["fc", 3][0].name == "fourier_0003.png"
    assert "activation 8.87, best real picture 5.89; nearer to “" in found["fc", 3][1]
    assert "than to 83 % of other names" in found["fc", 3][1] and "nearer" not in found["fc", 7][1]
    told = runs.add_run(network, visualised)
    sizes = site.write_site(tmp_path / "site", [told], size=32, firing=False)
    assert sum(sizes.values()) == sum(f.stat().st_size for f in (tmp_path / "site").rglob("*") if f.is_file())
    units = said(tmp_path / "site" / "units" / "1" / "0000.js", 'ATLAS.file("units/1/0000",')
    [(caption, picture)] = units[3]["x"].items()
    assert caption == found["fc", 3][1] == picture["alt"] and "x" not in units[4]
    with Image.open(tmp_path / "site" / picture["src"]) as copied:
        red, green, _ = copied.convert("RGB").getpixel((16, 16))
        assert copied.size == (32, 32) and red > 200 > 60 > green


def test_units_without_pictures_have_no_made_one_either(visualised, network, tmp_path):
    shown = (network.units["layer"] == "conv1").to_numpy()
    told = replace(runs.add_run(network, visualised), shown=shown)
    site.write_site(tmp_path / "site", [told], size=32, firing=False)
    assert not (tmp_path / "site" / "made").exists()


def test_a_picture_that_is_gone_or_elsewhere_is_refused(visualised, tmp_path):
    table = pd.read_csv(visualised / "visualised.csv")
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    for file in ("visualised/fc/gone.png", "../../private.png"):
        table.assign(file=file).to_csv(visualised / "visualised.csv", index=False)
        with pytest.raises(FileNotFoundError, match="run visualisation again"):
            notes.made_pictures(visualised, SIZES)


def test_causal_scores_stand_on_the_page(network, tmp_path):
    run = run_of(tmp_path, "trust", target="microworld:resnet")
    rows = [
        ("conv1", 5, "sea", 0.557),
        ("conv1", 6, "red", None),
        ("fc", 60, "x", 0.1),
        ("fc, 200 images", 1, "x", 0.1),
    ]
    table = pd.DataFrame(rows, columns=["layer", "unit", "name", "causal"])
    table.assign(trust=0.5, abstain=False).to_csv(run / "trust.csv", index=False)
    told = runs.add_run(network, run)
    assert list(told.notes) == [("conv1", 5)]
    assert told.notes["conv1", 5][notes.CAUSAL].startswith("0.56 for “sea”, from -1 to 1")
    assert told.units.set_index(["layer", "unit"]).loc[("conv1", 5), "trust"] == 0.5
    table.drop(columns="causal").assign(trust=0.5, abstain=False).to_csv(run / "trust.csv", index=False)
    assert runs.add_run(network, run).notes == {}


def test_words_of_the_lens_come_in_order_to_layers_of_that_name(network, tmp_path):
    run = run_of(tmp_path, "second_order", clip="microworld:vit")
    rows = [("fc", 2, "second_order", rank, f"word{rank}", 0.5 / rank) for rank in (3, 1, 2, 4, 5, 6)]
    rows += [("fc", 2, "soft_wpmi", 1, "other", 9.0), ("resblocks.4", 1, "second_order", 1, "x", 1.0)]
    columns = ["layer", "unit", "method", "rank", "label", "score"]
    table = pd.DataFrame(rows, columns=columns)
    write_labels(table.assign(model="microworld:vit", active_share=1.0, note=""), run)
    words = runs.add_run(network, run).notes["fc", 2][notes.LENS]
    assert words == "word1 (+0.5), word2 (+0.25), word3 (+0.17), word4 (+0.12), word5 (+0.1)"
    both = replace(network, notes={("fc", 2): {"own": "text"}})
    assert list(runs.add_run(both, run).notes["fc", 2]) == ["own", notes.LENS]


def test_a_run_of_no_network_of_the_atlas_is_refused(network, tmp_path, monkeypatch):
    first = run_of(tmp_path, "labelling", target="microworld:resnet")
    monkeypatch.setattr(runs, "read_network", lambda folder, device, **options: network)
    other = run_of(tmp_path, "trust", target="efficientnet_lite0")
    with pytest.raises(ValueError, match="is of efficientnet_lite0, which no run of labelling has"):
        runs.read_networks([first, other])
