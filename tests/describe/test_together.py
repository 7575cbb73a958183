"""neuronym.describe.together: all examples of a unit in one request to a server on loopback."""

from __future__ import annotations

import base64
import io
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from neuronym.common.files import digest
from neuronym.datasets.probe import load_probe
from neuronym.describe.examples import Example, picture
from neuronym.describe.prompts import PROMPTS
from neuronym.describe.together import need_server, question, shared_phrases
from neuronym.models import server as chat_server
from neuronym.models.captioners import load_captioner, picture_key, PROMPT
from neuronym.models.transcripts import as_recorded, open_transcript, summary
from tests.helpers.servers import read, send, serving

BOX = (10, 20, 200, 375)
SHOWN = {7: [Example(0, None, 3.0), Example(0, BOX, 2.0), Example(3, None, 1.0)], 2: [Example(1, None, 1.0)]}


@pytest.fixture(scope="module")
def probe():
    return load_probe("microworld:5")


@pytest.fixture
def server(monkeypatch):
    """Keeps what it is sent; says `reply` of the number of pictures, or a list of two phrases."""
    log = SimpleNamespace(bodies=[], reply=lambda n: None, lock=threading.Lock())

    def handle(request):
        body = json.loads(read(request))
        with log.lock:
            log.bodies.append(body)
        said = log.reply(len(body["messages"][0]["content"]) - 1)
        said = "Here are two phrases:\n1. **Red ring**\n2. dim light." if said is None else said
        usage = {"prompt_tokens": 1000, "completion_tokens": 9}
        reply = {"choices": [{"message": {"content": said}, "finish_reason": "stop"}], "usage": usage}
        send(request, 200, json.dumps(reply))

    with serving(handle) as address:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        monkeypatch.setattr(chat_server, "FIRST_WAIT", 0.0)
        yield log


def test_a_unit_is_one_request_with_all_its_pictures(server, probe, tmp_path):
    book = open_transcript(tmp_path / "a", prices=(2.0, 10.0))
    found = shared_phrases(load_captioner("vlm:eyes"), book, probe, SHOWN, 5)
    assert found == {7: ["Red ring", "dim light"], 2: ["Red ring", "dim light"]}
    assert book.asked == len(server.bodies) == 2
    assert summary(book)["cost"] == pytest.approx(2 * (1000 * 2 + 9 * 10) / 1e6)
    sent = {len(body["messages"][0]["content"]) - 1: body for body in server.bodies}
    for some in SHOWN.values():
        body = sent[len(some)]
        assert body["model"] == "eyes" and body["max_tokens"] == 300 and len(body["messages"]) == 1
        told, *pictures = body["messages"][0]["content"]
        assert told == {"type": "text", "text": question("objects", 5)}
        for part, example in zip(pictures, some, strict=True):
            data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
            expected = np.asarray(picture(probe, example))
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected), "strongest first"


def test_a_second_time_and_a_replay_ask_nothing(server, probe, tmp_path, monkeypatch):
    captioner, file = load_captioner("vlm:eyes"), tmp_path / "a"
    first = shared_phrases(captioner, open_transcript(file), probe, SHOWN, 5)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    keys = [picture_key(picture(probe, one)) for one in SHOWN[7]]
    assert digest(captioner.key, question("objects", 5), *keys) in {line["key"] for line in lines}
    assert sorted(line["request"]["pictures"] for line in lines) == [1, 3]
    again = open_transcript(file)
    assert shared_phrases(captioner, again, probe, SHOWN, 5) == first and again.replayed == 2
    assert len(server.bodies) == 2
    monkeypatch.delenv("OPENAI_BASE_URL")
    again = open_transcript(file, "replay")
    recorded = as_recorded(again, load_captioner("vlm:eyes"))
    assert shared_phrases(recorded, again, probe, SHOWN, 5) == first
    for other in ({2: SHOWN[7][::-1]}, {2: SHOWN[7][:2]}):
        with pytest.raises(LookupError, match="a replay asks nothing"):
            shared_phrases(recorded, again, probe, other, 5)
    with pytest.raises(LookupError, match="a replay asks nothing"):
        shared_phrases(recorded, again, probe, SHOWN, 4)


def test_units_of_the_same_pictures_are_asked_about_once(server, probe, tmp_path):
    book = open_transcript(tmp_path / "a")
    found = shared_phrases(load_captioner("vlm:eyes"), book, probe, {1: SHOWN[7], 4: SHOWN[7]}, 1)
    assert found == {1: ["Red ring"], 4: ["Red ring"]} and len(server.bodies) == 1, "at most so many"


def test_a_dry_run_counts_requests_and_pictures(server, probe, tmp_path):
    book = open_transcript(tmp_path / "a", prices=(2.0, 10.0), dry_run=True)
    found = shared_phrases(load_captioner("vlm:eyes"), book, probe, SHOWN, 5)
    assert all(found.values()) and not server.bodies
    letters = len(question("objects", 5)) // 4
    assert book.dry.models == {"vlm:eyes": [2, 4 * 300 + 2 * letters, 600]}, "four pictures in two requests"
    assert "vlm:eyes: 2 requests, " in book.dry.told(book.prices)


def test_an_answer_that_is_none_is_asked_for_again_and_left_out(server, probe, tmp_path, capsys):
    server.reply = lambda n: "I'm sorry, I can't help with that." if n == 3 else None
    found = shared_phrases(load_captioner("vlm:eyes"), open_transcript(tmp_path / "a"), probe, SHOWN, 5)
    assert found == {7: [], 2: ["Red ring", "dim light"]}
    assert sorted(body["max_tokens"] for body in server.bodies) == [300, 300, 4800]
    assert "1 of 2 captions are left out: 1 refused" in capsys.readouterr().err


def test_what_is_asked_goes_by_the_prompt():
    asked = {name: question(name, 3) for name in PROMPTS}
    assert all(" 3 different phrases " in text and "{" not in text for text in asked.values())
    assert len({asked[name] for name in ("objects", "textures", "satellite")}) == 3
    assert asked["objects"] == question(PROMPTS["objects"], 3) != PROMPT


def test_what_it_refuses(server, probe, tmp_path):
    book = open_transcript(tmp_path / "a")
    with pytest.raises(
        ValueError, match="captioner=vlm:MODEL, got 'microworld'; name one, or together=False"
    ):
        need_server(load_captioner("microworld"))
    with pytest.raises(ValueError, match="got 'microworld'"):
        shared_phrases(load_captioner("microworld"), book, probe, SHOWN, 5)
    with pytest.raises(ValueError, match="number of phrases must be a positive whole number, got 0"):
        shared_phrases(load_captioner("vlm:eyes"), book, probe, SHOWN, 0)
