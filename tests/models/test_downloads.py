"""Files that others offer, from a server on this machine: whole, continued, refused, without a network."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace

import pytest
import torch
import torchvision

from neuronym.common.checks import UnknownName
from neuronym.models import downloads
from neuronym.models.downloads import download, DOWNLOADS
from neuronym.models.targets import load_target
from neuronym.runs.command import main
from tests.helpers.servers import send, serving

CATEGORIES = "\n".join(f"/{'abc'[i % 3]}/place_{i}/indoor {i}" for i in range(365)).encode()


def weights(classes: int) -> bytes:
    file = io.BytesIO()
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        state = torchvision.models.resnet18(num_classes=classes).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    return file.getvalue()


WEIGHTS = weights(365)


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """The files of "places365" by their names, and what was asked for, as (name, first byte)."""
    files, asked = {"resnet18_places365.pth.tar": WEIGHTS, "categories_places365.txt": CATEGORIES}, []
    behaviour = {"ranges": True, "cut": None}

    def answer(request):
        name = request.path.rpartition("/")[2]
        start = int((re.findall(r"bytes=(\d+)-", request.headers.get("Range") or "") or ["0"])[0])
        asked.append((name, start))
        if name not in files:
            return send(request, 404, "gone")
        body = files[name]
        if start and behaviour["ranges"]:
            if start >= len(body):
                return send(request, 416, "")
            return send(request, 206, body[start:])
        if behaviour["cut"]:  # says the whole length, and ends before
            cut, behaviour["cut"] = behaviour["cut"], None
            return send(request, 200, body[:cut], {"Content-Length": str(len(body))})
        send(request, 200, body)

    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    for name in ("NEURONYM_PLACES365", "NEURONYM_CONCEPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(answer) as address:
        what, (network, names) = DOWNLOADS["places365"]
        here = (
            replace(network, url=f"{address}/{network.url.rpartition('/')[2]}"),
            replace(names, url=f"{address}/categories_places365.txt", sha256=sha(CATEGORIES)),
        )
        monkeypatch.setitem(downloads.DOWNLOADS, "places365", (what, here))
        yield files, asked, behaviour


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_one_command_brings_a_network_whose_units_have_true_names(offered, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="neuronym download places365"):
        load_target("places365:resnet18")
    assert main(["download", "places365"]) == 0
    said = capsys.readouterr().out
    assert f"resnet18_places365.pth.tar: {len(WEIGHTS):,} bytes, SHA-256 {sha(WEIGHTS)}" in said
    target = load_target("places365:resnet18")
    assert len(target.classes) == 365 and target.classes[:2] == ["place 0, indoor", "place 1, indoor"]
    assert main(["download", "places365"]) == 0 and "is there already" in capsys.readouterr().out
    assert [name for name, _ in offered[1]] == ["resnet18_places365.pth.tar", "categories_places365.txt"]
    assert main(["download"]) == 0 and "(2 of 2 there)" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(offered[0])


def test_what_was_interrupted_is_continued(offered, tmp_path):
    files, asked, behaviour = offered
    behaviour["cut"] = 1000
    with pytest.raises(ConnectionError, match=r"1000 of \d+ bytes; run again to continue\); get http"):
        download("places365")
    part = tmp_path / "downloads" / "resnet18_places365.pth.tar.part"
    assert part.stat().st_size == 1000 and not part.with_suffix("").exists()
    download("places365")
    assert asked[:2] == [(asked[0][0], 0), (asked[0][0], 1000)]
    assert part.with_suffix("").read_bytes() == WEIGHTS and not part.exists()


@pytest.mark.parametrize("have", [WEIGHTS, WEIGHTS + b"more", b"x" * 10])
def test_parts_of_other_lengths_and_servers_without_ranges(offered, tmp_path, have):
    offered[2]["ranges"] = have[:1] != b"x"
    part = tmp_path / "downloads" / "resnet18_places365.pth.tar.part"
    part.parent.mkdir()
    part.write_bytes(have)
    download("places365")
    assert part.with_suffix("").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "content, message",
    [
        (weights(10), "no ResNet-18 of 365 classes"),
        (b"<html>we have moved</html>", "is not resnet18_places365.pth.tar"),
    ],
)
def test_other_files_take_no_place(offered, tmp_path, capsys, content, message):
    offered[0]["resnet18_places365.pth.tar"] = content
    assert main(["download", "places365"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert [p.name for p in (tmp_path / "downloads").iterdir()] == ["resnet18_places365.pth.tar.rejected"]


def test_checksums(offered, tmp_path):
    with pytest.raises(ValueError, match=f"has SHA-256 {sha(WEIGHTS)}, and must have abab"):
        download("places365", "AB" * 32)
    download("places365", sha(WEIGHTS).upper())
    (tmp_path / "concepts" / "categories_places365.txt").unlink()
    offered[0]["categories_places365.txt"] = CATEGORIES + b"\n/z/zoo 365"
    with pytest.raises(ValueError, match=f"must have {sha(CATEGORIES)}"):
        download("places365")
    with pytest.raises(ValueError, match="64 hex digits of a SHA-256, got 'ab'"):
        download("places365", "ab")
    with pytest.raises(ValueError, match="checksums of 'concepts' are known here"):
        download("concepts", "ab" * 32)
    with pytest.raises(UnknownName, match="no download 'place365'; nearest: places365"):
        download("place365")


def test_without_a_network_one_sentence_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("NEURONYM_GTSEGS", "NEURONYM_CONCEPTS"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda request: None) as closed:
        pass
    for name, (what, files) in list(DOWNLOADS.items()):
        moved = tuple(replace(file, url=f"{closed}/{file.place().name}") for file in files)
        monkeypatch.setitem(downloads.DOWNLOADS, name, (what, moved))
        assert main(["download", name]) == 2
        said = capsys.readouterr().err
        assert re.search(r"could not be downloaded .*get http.* and put it at", said), said
        assert len(said.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_categories_of_another_number_are_no_names(offered, tmp_path):
    download("places365")
    (tmp_path / "concepts" / "categories_places365.txt").write_text("/a/airfield 0\n/a/alley 1\n")
    with pytest.warns(UserWarning, match="the network has 365 classes, and categories_places365.txt 2"):
        assert load_target("places365:resnet18").classes is None


@pytest.mark.parametrize(
    "start, right", [(b"MATLAB 7.3 MAT-file", True), (b"\x89HDF\r\n\x1a\n..", True), (b"<html>", False)]
)
def test_masks_are_a_file_of_matlab(tmp_path, start, right):
    ((masks,),) = (DOWNLOADS["gtsegs"][1],)
    (tmp_path / "a.mat").write_bytes(start)
    if right:
        masks.looks_right(tmp_path / "a.mat")
        return
    with pytest.raises(ValueError, match="no MATLAB 7.3 file"):
        masks.looks_right(tmp_path / "a.mat")
