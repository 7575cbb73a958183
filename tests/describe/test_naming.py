"""neuronym.describe.naming: a dry run asks no server, max_tokens reaches one, all pictures in one request."""

from __future__ import annotations

import json

import pytest

from neuronym import describe_and_dissect, measure
from neuronym.models.captioners import Captioner
from neuronym.models.transcripts import open_transcript
from tests.helpers.servers import read, send, serving


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURONYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return measure("microworld:resnet", "fc", "microworld:30", "microworld", "microworld:atoms")


@pytest.fixture
def server(monkeypatch):
    asked = []

    def handle(request):
        asked.append(json.loads(read(request)))
        send(request, 200, json.dumps({"choices": [{"message": {"content": "<think>x</think>red ring"}}]}))

    with serving(handle) as address:
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        yield asked


def test_a_dry_run_and_a_run(data, server, tmp_path, capsys):
    given = {
        "captioner": "vlm:eyes",
        "llm": "openai:m",
        "units": "ids:0,1",
        "images": 3,
        "crops": 0,
        "tries": 2,
    }
    table = describe_and_dissect(data, **given, dry_run=True, max_tokens=400)
    told = capsys.readouterr().out
    assert table.empty and list(table)[:3] == ["model", "layer", "unit"] and not server
    assert "vlm:eyes: 30 requests" in told and "openai:m: " in told and "dollars unknown" in told
    with pytest.raises(ValueError, match="a dry run needs a transcript opened for one"):
        describe_and_dissect(data, **given, dry_run=True, transcript=open_transcript(tmp_path / "a"))
    table = describe_and_dissect(data, **given, max_tokens=400, transcript=tmp_path / "a")
    assert set(table["label"]) == {"red ring"} and {body["max_tokens"] for body in server} == {400}


def test_all_pictures_of_a_unit_in_one_request(data, server, tmp_path, capsys):
    given = {"captioner": "vlm:eyes", "units": "ids:0,1", "images": 3, "crops": 0, "together": True}
    alone = given | {"captions_of": "examples", "transcript": tmp_path / "a"}
    assert describe_and_dissect(data, **alone | {"transcript": None}, dry_run=True).empty and not server
    assert "vlm:eyes: 2 requests, about " in capsys.readouterr().out
    table = describe_and_dissect(data, **alone)
    assert len(server) == 2 and set(table["label"]) == {"red ring"}
    assert [len(body["messages"][0]["content"]) for body in server] == [4, 4]
    describe_and_dissect(data, **given | {"transcript": tmp_path / "a", "ordinary": 10})
    assert len(server) == 12, "captions of ordinary images, one by one, where candidates come from them"
    with pytest.raises(ValueError, match="captioner=vlm:MODEL, got 'mine'"):
        describe_and_dissect(data, **alone | {"captioner": Captioner("mine", "key", list)})
