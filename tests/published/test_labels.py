"""neuronym.published.labels: counts known from the files, units from 0, and nothing but the pinned bytes."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from neuronym.published import labels
from neuronym.published.labels import (
    fetch_published,
    label_files,
    load_published,
    load_ratings,
    published_folder,
)
from neuronym.similarity.labels import COLUMNS

SMALL = "dnd/DnD_results/BLIP2_data/BLIP2-Layer1.csv"


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "published"


@pytest.fixture(scope="module")
def table(folder):
    return load_published(folder)


def by_layer(table, method, model, first_rank=True):
    some = table[(table["method"] == method) & (table["model"] == model)]
    return dict(list((some[some["rank"] == 1] if first_rank else some).groupby("layer", sort=False)))


@pytest.mark.parametrize(
    "method, model, units, distinct",
    [
        ("clip_dissect", "resnet50", [64, 256, 512, 1024, 2048], [22, 90, 176, 430, 811]),
        ("clip_dissect", "resnet18_places365", [64, 64, 128, 256, 512], [17, 37, 67, 148, 317]),
    ],
)
def test_counts_of_clip_dissect(table, method, model, units, distinct):
    layers = by_layer(table, method, model)
    assert list(layers) == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert [len(some) for some in layers.values()] == units
    assert [some["label"].nunique() for some in layers.values()] == distinct
    assert [some["unit"].tolist() == list(range(n)) for some, n in zip(layers.values(), units)] == [True] * 5
    means = (
        [0.2079, 0.1787, 0.1747, 0.2116, 0.3181]
        if model == "resnet50"
        else [0.1776, 0.1679, 0.1665, 0.1893, 0.3196]
    )
    assert [round(some["score"].mean(), 4) for some in layers.values()] == means


def test_netdissect_counts_from_zero_here(table):
    layers = by_layer(table, "netdissect", "resnet50")
    order = ["layer1", "layer2", "layer3", "layer4", "fc"]
    assert [layers[l]["unit"].min() for l in order] == [0] * 5 and [
        layers[l]["unit"].max() + 1 for l in order
    ] == [256, 512, 1024, 2048, 1000]
    assert [round(layers[l]["score"].mean(), 4) for l in order] == [0.0301, 0.0202, 0.0352, 0.0606, 0.1287]
    found = {l: some[some["score"] >= 0.04] for l, some in layers.items()}  # its rule for a detector
    assert [len(found[l]) for l in order] == [61, 62, 276, 1355, 983]
    assert [found[l]["label"].nunique() for l in order] == [20, 19, 76, 186, 222]
    assert set(layers["layer4"]["category"]) <= {"color", "material", "object", "part", "scene", "texture"}


def test_other_counts(table):
    milan = by_layer(table, "milan_base", "resnet50")
    assert (milan["fc"]["label"].nunique(), milan["layer4"]["label"].nunique()) == (251, 351)
    assert milan["layer4"]["label"].value_counts().head(1).to_dict() == {"Animals": 278}
    assert (
        len(by_layer(table, "dnd", "resnet50")["fc"]) == 1000
        and by_layer(table, "dnd", "resnet50")["fc"]["label"].nunique() == 869
    )
    eurosat = by_layer(table, "dnd", "resnet50_eurosat")["layer4"]
    assert len(eurosat) == 2048 and eurosat["label"].str.lower().str.contains("fishing").sum() == 853
    people = table[table["method"] == "milannotations"]
    assert (
        len(people) == 11712
        and set(people["rank"]) == {1, 2, 3}
        and people.groupby(["layer", "unit"]).ngroups == 3904
    )
    assert not table["label"].str.startswith(" ").any() and (table["label"] != "").all()
    assert (
        list(table.columns) == [*COLUMNS, "category"]
        and not table.duplicated(["model", "layer", "unit", "method", "rank"]).any()
    )


def test_spaces_around_labels_are_gone(table, folder):
    raw = (folder / "dnd/CLIP_Dissect_results/resnet152_imagenet.csv").read_text().splitlines()[1:]
    assert len(raw) == 200 and sum(line.split(",")[2].startswith(" ") for line in raw) == 196
    assert not by_layer(table, "clip_dissect", "resnet152")["layer1"]["label"].str.startswith(" ").any()


def test_some_of_them(folder):
    some = load_published(folder, ["milan_base", "dnd"], ["resnet50"])
    assert set(some["method"]) == {"milan_base", "dnd"} and set(some["model"]) == {"resnet50"}
    for given in ({"methods": ["milan"]}, {"models": ["resnet51"]}):
        with pytest.raises(KeyError, match="no published (method|model) '(milan|resnet51)'; nearest: "):
            load_published(folder, **given)


def test_ratings(folder):
    ratings = load_ratings(folder)
    assert len(ratings) == 200 * 4 * 2 and ratings["rating"].between(1, 5).all()
    assert ratings.groupby("scoring")["rating"].mean().round(3).to_dict() == {
        "Mean": 2.605,
        "Topk-Sq": 2.622,
        "Image-Products": 3.028,
        "Topk-Compare": 2.852,
    }
    once = ratings[ratings["scoring"] == "Mean"].groupby("rater")
    assert once["uninterpretable"].sum().to_dict() == {"E1": 20, "E2": 17} and once[
        "none"
    ].sum().to_dict() == {"E1": 57, "E2": 36}


# where the files come from


def test_every_file_is_pinned_and_has_a_source():
    table = pd.read_csv(labels.TABLES / "label_files.csv", keep_default_na=False)
    assert list(table.columns) == ["path", "method", "model", "layer", "base", "source", "sha256"]
    assert table["sha256"].str.fullmatch("[0-9a-f]{64}").all() and table["path"].is_unique
    assert table["source"].tolist() == [labels.SOURCES[path.partition("/")[0]] for path in table["path"]]
    assert (table["base"] == (table["method"] == "netdissect")).all()
    assert (table[["method", "model"]] != "").all(axis=None)


@pytest.fixture
def server(tmp_path, folder):
    """The files of `label_files` as their repositories give them."""
    root = tmp_path / "served"
    for path in label_files():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, root / path)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=root))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    sources = {repository: source for source, repository in labels.SOURCES.items()}
    yield root, f"http://127.0.0.1:{httpd.server_port}/", sources
    httpd.shutdown()


def test_download(server, tmp_path, monkeypatch):
    root, address, _ = server
    monkeypatch.setattr(labels, "SOURCES", {source: source for source in labels.SOURCES})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    home = tmp_path / "home"
    url = address + "{repository}/{path}"
    assert fetch_published(home, url=url) == len(label_files()) == 32
    assert len(load_published(home)) > 30_000 and fetch_published(home, url="nothing is asked") == 0
    (home / SMALL).unlink()
    (root / SMALL).write_text("Neuron ID,Label 1\n0,other\n")
    with pytest.raises(
        ValueError, match="BLIP2-Layer1.csv must have SHA-256 11f9f533df86564a..., what dnd gives now differs"
    ):
        fetch_published(home, url=url)
    assert not (home / SMALL).exists()
    (root / SMALL).unlink()
    with pytest.raises(
        ConnectionError,
        match="BLIP2-Layer1.csv could not be downloaded .*404.* get http://127.0.0.1.* put it at",
    ):
        fetch_published(home, url=url)


def test_missing_and_changed_files(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="published labels not found at .* or set NEURONYM_PUBLISHED to the folder that",
    ):
        load_published(tmp_path)
    shutil.copytree(folder / "dnd", tmp_path / "dnd")
    (tmp_path / SMALL).chmod(0o644)
    (tmp_path / SMALL).write_text((folder / SMALL).read_text().replace("pattern", "patern", 1))
    with pytest.raises(
        ValueError, match="BLIP2-Layer1.csv must have SHA-256 11f9f533df86564a..., got .* fetch it again"
    ):
        load_published(tmp_path, ["dnd_blip2"])


def test_where_they_are(monkeypatch, tmp_path):
    monkeypatch.delenv("NEURONYM_PUBLISHED", raising=False)
    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    assert published_folder() == tmp_path / "downloads" / "published"
    monkeypatch.setenv("NEURONYM_PUBLISHED", str(tmp_path / "there"))
    assert (
        published_folder() == tmp_path / "there"
        and published_folder(str(tmp_path / "named")) == tmp_path / "named"
    )
