"""neuronym.describe.naming: a dry run asks no server, and max_tokens reaches one."""

from __future__ import annotations

import json

import pytest

from neuronym import describe_and_dissect, measure
from neuronym.models.transcripts import open_transcript
from tests.helpers.servers import read, send, serving


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


def test_a_dry_run_and_a_run(server, tmp_path, capsys):
    data = measure("microworld:resnet", "fc", "microworld:30", "microworld", "microworld:atoms")
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
