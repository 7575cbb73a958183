"""The folder that a site is: what its files say, that texts are no markup, that its size is told before."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from neuronym.atlas import alike, contents, site
from tests.atlas.conftest import HOSTILE


def said(file, call: str):
    """What a file hands to the page."""
    text = file.read_text()
    assert text.startswith(call) and text.endswith(");\n")
    return json.loads(text[len(call) : -3])


def unpacked(text: str, kind) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


@pytest.fixture
def written(network, tmp_path):
    places = alike.unit_map(network.data.Q)
    sizes = site.write_site(tmp_path / "site", [network], "An atlas", size=32, places=places)
    return tmp_path / "site", sizes


def test_columns_say_what_the_tables_say(written, network):
    folder, sizes = written
    index = said(folder / "index.js", "ATLAS.index(")
    units = network.units
    words = np.array(index["words"])
    labels = words[unpacked(index["columns"]["label"]["codes"], np.uint16)]
    assert labels.tolist() == units["label"].tolist()
    for name in ("score", "held", "p", "active", "clarity", "redundancy"):
        column = index["columns"].get(name)
        column = column or said(folder / "columns" / f"{name}.js", f'ATLAS.file("columns/{name}",')
        codes = unpacked(column["codes"], np.uint16).astype(float)
        values = np.where(codes > 0, column["low"] + (codes - 1) * column["step"], np.nan)
        np.testing.assert_allclose(values, units[name], atol=0.51 * column["step"])
    assert [(l["name"], l["units"]) for l in index["layers"]] == [("conv1", 24), ("fc", 52)]
    beside = f"label{index['methods'].index('cos_similarity')}"
    column = said(folder / "columns" / f"{beside}.js", f'ATLAS.file("columns/{beside}",')
    own = network.methods[network.methods["method"] == "cos_similarity"]
    assert words[unpacked(column["codes"], np.uint16)].tolist() == own["label"].tolist()
    there = {file.stem for file in (folder / "columns").glob("label*")}
    assert there == {beside}  # the main method's names are the column "label"
    assert sum(sizes.values()) == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert sizes["page"] == sum((folder / name).stat().st_size for name in site.PAGE)


def test_a_column_in_two_bytes_keeps_order_and_what_is_missing():
    values = np.random.default_rng(0).normal(size=500)
    values[[3, 7]] = np.nan, np.inf
    column = contents.quantised(values)
    codes = unpacked(column["codes"], np.uint16)
    assert codes[3] == codes[7] == 0 and codes.max() == 65535
    there = np.isfinite(values)
    order = np.argsort(values[there])
    assert (np.diff(codes[there][order].astype(int)) >= 0).all()
    read = column["low"] + (codes[there] - 1.0) * column["step"]
    assert np.abs(read - values[there]).max() <= 0.5001 * column["step"]
    same = contents.quantised(np.array([2.5, 2.5]))
    assert same["low"] == 2.5 and unpacked(same["codes"], np.uint16).tolist() == [1, 1]
    assert unpacked(contents.quantised(np.full(3, np.nan))["codes"], np.uint16).tolist() == [0, 0, 0]


def test_details_tell_a_units_pictures_and_neighbours(written, network):
    folder, _ = written
    some = said(folder / "units" / "1" / "0000.js", 'ATLAS.file("units/1/0000",')
    assert len(some) == 52 and len(some[3]["p"]) == len(some[3]["v"]) == 20
    q = network.data.Q["fc"]
    assert some[3]["v"][0] == pytest.approx(float(q[:, 3].max()), rel=1e-3)
    assert (
        "w" not in some[3]
        and len(said(folder / "units" / "0" / "0000.js", 'ATLAS.file("units/0/0000",')[0]["w"]) == 20
    )
    assert len(some[3]["n"]) == 6 and sum(some[3]["h"]["all"]) == 150
    names = network.units.set_index(["layer", "unit"])["label"]
    own = some[5]
    assert own["m"] and [1, 5] not in [two[:2] for two in own["m"]]
    for number, unit, cosine in own["m"]:
        assert (cosine == 1) == (names[["conv1", "fc"][number], unit] == names["fc", 5])
    tops = unpacked(said(folder / "tops" / "0000.js", 'ATLAS.file("tops/0000",'), np.int32).reshape(-1, 3)
    assert tops[24 + 3].tolist() == some[3]["p"][:3]
    best = said(folder / "index.js", "ATLAS.index(")["best"]  # of the first view
    first = network.units["held"].where(network.units["odd"] & 3 == 0).nlargest(24, keep="first").index
    assert best == {str(i): tops[i].tolist() for i in first}


def test_without_places_there_is_no_map(network):
    assert not contents.index_content([network], "An atlas")["mapped"]
    assert contents.index_content([network], "An atlas", alike.unit_map(network.data.Q))["mapped"]


def test_the_page_says_which_map_it_has(network):
    few, many = (contents.index_content([network], "An atlas", most=most)["help"]["map"] for most in (76, 75))
    assert "lie together" in few and "two principal components" in many


def test_markup_in_labels_is_text(written):
    folder, _ = written
    index = (folder / "index.js").read_text()
    assert HOSTILE in json.loads(index[len("ATLAS.index(") : -3])["words"]
    assert (folder / "index.html").read_text().count("<script") == 2


def test_a_site_is_the_same_however_often_it_is_written(network, tmp_path):
    for name in ("a", "b"):
        network.sheets.places.clear()
        site.write_site(tmp_path / name, [network], size=32)
    files = {f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*") if f.is_file()}
    assert files == {f.relative_to(tmp_path / "b") for f in (tmp_path / "b").rglob("*") if f.is_file()}
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_a_site_too_large_is_refused_with_a_way_out(network):
    parts = site.estimate([network], 32)
    assert parts["pictures"] > 0 and "MB" in site.check_size(parts)
    with pytest.raises(ValueError, match="takes at most 0 MB, this one .* trusted units only"):
        site.check_size(parts, 1000)


def test_networks_over_the_same_images_share_pictures_and_are_matched(network, tmp_path):
    from dataclasses import replace

    other = replace(network, data=replace(network.data))
    pairs = alike.matched_layers([network.data, other.data])
    assert set(pairs) == {(0, 2), (0, 3), (1, 2), (1, 3)} and pairs[1, 3]["held"].min() > 0.999
    site.write_site(tmp_path / "site", [network, other], size=32, matches=pairs)
    assert [folder.name for folder in (tmp_path / "site" / "sheets").iterdir()] == ["0"]
    found = said(tmp_path / "site" / "matches" / "1-3.js", 'ATLAS.file("matches/1-3",')
    assert found["a"] == pairs[1, 3]["a"].tolist()
    np.testing.assert_allclose(found["held"], pairs[1, 3]["held"], atol=6e-5)
