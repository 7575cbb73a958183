"""Answers that are none, several processes on one transcript, Ctrl-C, and what a run would cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from PIL import Image

from neuronym.common.checks import read_prices
from neuronym.common.types import Answer
from neuronym.describe import pipeline
from neuronym.models import server as chat_server
from neuronym.models.captioners import load_captioner
from neuronym.models.llms import Llm, load_llm
from neuronym.models.transcript_files import claimed, claims
from neuronym.models.transcripts import (
    as_recorded,
    ask_all,
    BudgetReached,
    load_recorded,
    open_transcript,
    summary,
)
from neuronym.runs.folders import ROOT
from tests.helpers.servers import read, send, serving


def chat(content, finish="stop", tokens=(10, 3)):
    found = {"choices": [{"finish_reason": finish, "message": {"content": content}}]}
    return found | ({"usage": dict(zip(("prompt_tokens", "completion_tokens"), tokens))} if tokens else {})


@pytest.fixture
def server(monkeypatch):
    """Answers by `reply`, called with the last message and max_tokens; keeps these."""
    log = SimpleNamespace(asked=[], reply=lambda text, most: chat(f"{text}!"), release=threading.Event())

    def handle(request):
        body = json.loads(read(request))
        text = body["messages"][-1]["content"]
        text = "picture" if isinstance(text, list) else text
        log.asked.append((text, body["max_tokens"]))
        found = log.reply(text, body["max_tokens"])
        status, found = found if isinstance(found, tuple) else (200, found)
        with suppress(ConnectionError):  # who asked has gone
            send(request, status, json.dumps(found))

    with serving(handle) as address:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        monkeypatch.setattr(chat_server, "FIRST_WAIT", 0.0)
        yield log
        log.release.set()


def ask(text, **settings):
    return [{"role": "user", "content": text}], {"max_tokens": 32} | settings


def asks(n):
    return [ask(f"word{i}") for i in range(n)]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# answers that are none

FAULTS = {
    "cut": chat("Okay, the user wants", "length"),
    "empty": chat(""),
    "refused": chat("I'm sorry, I can't."),
    "filtered": (400, {"error": {"message": "x", "code": "content_filter"}}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_none_is_asked_again_and_left_out(server, tmp_path, capsys, fault):
    server.reply = lambda text, most: FAULTS[fault] if text == "word1" else chat(f"{text}!")
    for mode in ("record", "record", "replay"):
        book = open_transcript(tmp_path / "a", mode)
        assert ask_all(book, load_llm("openai:m"), asks(3)) == ["word0!", "", "word2!"]
        said = capsys.readouterr().err
        assert f"openai:m: 1 of 3 answers are left out: 1 {'cut off' if fault == 'cut' else fault}" in said
        assert ("max_tokens=32 and at 512; raise max_tokens" in said) == (fault == "cut")
        assert summary(book)["left_out"] == 1
    assert sorted(server.asked) == [("word0", 32), ("word1", 32), ("word1", 512), ("word2", 32)]
    assert ask_all(open_transcript(tmp_path / "a"), load_llm("openai:m"), [ask("word1", max_tokens=64)]) == [
        ""
    ]
    assert server.asked[-2:] == [("word1", 64), ("word1", 1024)], "more tokens are another request"


def test_more_tokens_may_give_an_answer(server, tmp_path, capsys):
    server.reply = lambda text, most: (
        chat("<think>hm", "length") if most == 32 else chat("<think>a</think>dog")
    )
    book = open_transcript(tmp_path / "a")
    assert ask_all(book, load_llm("openai:m"), asks(1)) == ["<think>a</think>dog"]
    line = lines(tmp_path / "a")[-1]
    assert (line["prompt_tokens"], line["answer_tokens"]) == (20, 6), "both were paid"
    assert line["sent"] == {"max_tokens": "512, when asked again"} and "fault" not in line
    assert (book.paid, book.prompt_tokens, book.answer_tokens) == (2, 20, 6) and capsys.readouterr().err == ""


def test_a_second_request_that_is_refused_leaves_the_first(server, tmp_path):
    server.reply = lambda text, most: chat("a", "length") if most == 32 else (400, {"error": "too long"})
    assert ask_all(open_transcript(tmp_path / "a"), load_llm("openai:m"), asks(1)) == [""]
    assert ask_all(open_transcript(tmp_path / "a"), load_llm("openai:m"), asks(1)) == [""]
    assert len(server.asked) == 2


def test_a_budget_between_the_two(server, tmp_path):
    server.reply = lambda text, most: chat("a", "length") if most == 32 else chat("dog")
    book = open_transcript(tmp_path / "a", budget=1)
    assert ask_all(book, load_llm("openai:m"), asks(1)) == [""] and len(server.asked) == 1
    assert ask_all(open_transcript(tmp_path / "a"), load_llm("openai:m"), asks(1)) == ["dog"]
    assert [most for _, most in server.asked] == [32, 512], "what was paid is not asked again"


def test_a_local_model_is_asked_again_only_where_it_was_cut(tmp_path):
    asked = []

    def answer(messages, stop=None, **settings):
        text = messages[-1]["content"]
        asked.append((text, settings["max_tokens"]))
        return Answer("x", 1, 1, {"word0": "cut", "word1": "refused"}.get(text, ""))

    llm = Llm("hf:x", "k", lambda *a, **k: "", answer)
    assert ask_all(open_transcript(tmp_path / "a"), llm, asks(3)) == ["", "", "x"]
    assert asked == [("word0", 32), ("word0", 128), ("word1", 32), ("word2", 32)]


def test_what_a_server_did_not_take_is_in_the_transcript(server, tmp_path):
    error = {"error": {"message": "Unsupported parameter", "param": "seed"}}
    replies = iter([(400, error)])
    server.reply = lambda text, most: next(replies, None) or chat("dog")
    ask_all(open_transcript(tmp_path / "a"), load_llm("openai:m"), asks(2), workers=1)
    assert [line["sent"] for line in lines(tmp_path / "a")] == [{"seed": "left out"}] * 2


def test_captions_of_a_server(server, tmp_path, capsys):
    """Each is written when it comes, read without thoughts, counted, and left out where there is none."""
    shown = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(4)]
    replies = [chat("<think>x</think>**A dog.**"), chat("a cat", tokens=None), chat("I'm sorry, I can't.")]
    server.reply = lambda text, most: replies[min(len(server.asked) - 1, 2)]
    captioner = load_captioner("vlm:m", tries=1)
    book = open_transcript(tmp_path / "a", prices=(2.0, 10.0))
    found = [pipeline._captions(captioner, book, shown[i : i + 1])[0] for i in range(3)]
    assert found == ["A dog", "a cat", ""] and "1 of 1 captions are left out" in capsys.readouterr().err
    assert [most for _, most in server.asked] == [300, 300, 300, 4800]
    assert [line["prompt_tokens"] for line in lines(tmp_path / "a")] == [10, None, 10, 20]
    assert summary(book)["cost"] == summary(book)["prompt_tokens"] == "unknown", "never 0"
    assert captioner.caption(shown[3:]) == [""]
    server.reply = lambda text, most: (500, {}) if len(server.asked) % 8 == 5 else chat("a bird")
    before = len(lines(tmp_path / "a"))
    many = [Image.new("RGB", (8, 8), (0, i, 9)) for i in range(8)]
    with pytest.raises(ConnectionError):
        pipeline._captions(captioner, open_transcript(tmp_path / "a"), many)
    kept = len(lines(tmp_path / "a")) - before
    assert kept == sum(most == 300 for _, most in server.asked[6:]) - 1 >= 4, "all that came but the error"


def test_more_tokens_for_captions(monkeypatch):
    keys = [load_captioner("vlm:m", max_tokens=most).key for most in (1, 300, 2000)]
    assert keys[0] == keys[1] != keys[2] and load_captioner("vlm:m", max_tokens=2000).max_tokens == 2000


# a replay


def test_a_replay_needs_no_address_and_no_model(server, tmp_path, monkeypatch):
    picture = [Image.new("RGB", (8, 8), "red")]
    book = open_transcript(tmp_path / "a")
    ask_all(book, load_llm("openai:m"), asks(2))
    said = pipeline._captions(load_captioner("vlm:m"), book, picture)
    monkeypatch.delenv("OPENAI_BASE_URL")
    again = open_transcript(tmp_path / "a", "replay")
    assert ask_all(again, load_recorded(again, "openai:m"), asks(2)) == ["word0!", "word1!"]
    assert pipeline._captions(as_recorded(again, load_captioner("vlm:m")), again, picture) == said
    assert (
        as_recorded(open_transcript(tmp_path / "a"), load_captioner("vlm:m")).key
        == load_captioner("vlm:m").key
    )
    with pytest.raises(LookupError):
        ask_all(again, load_recorded(again, "openai:n"), asks(2))
    llm = Llm("hf:/gone", "k", lambda messages, **settings: "dog")
    ask_all(open_transcript(tmp_path / "a"), llm, asks(1))
    again = open_transcript(tmp_path / "a", "replay")
    assert ask_all(again, load_recorded(again, "hf:/gone"), asks(1)) == ["dog"]


# several processes


def test_two_processes_ask_each_key_once(tmp_path):
    log = tmp_path / "log"

    def one(messages, **settings):
        with open(log, "a") as file:
            file.write(messages[-1]["content"] + "\n")
        time.sleep(0.005)
        return messages[-1]["content"]

    llm = Llm("fake", "k", one, together=4)
    children = []
    for _ in "ab":
        children.append(os.fork())
        if not children[-1]:
            try:
                found = ask_all(open_transcript(tmp_path / "a"), llm, asks(40))
                os._exit(found != [f"word{i}" for i in range(40)])
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert sorted(log.read_text().split()) == sorted(f"word{i}" for i in range(40))
    assert not claims(tmp_path / "a").exists()


def test_the_claim_of_a_process_that_was_killed_is_free(tmp_path):
    child = os.fork()
    if not child:
        with claimed(tmp_path / "a", "llm", "k"):
            (tmp_path / "ready").touch()
            time.sleep(60)
        os._exit(0)
    until = time.monotonic() + 10
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.01)
    with claimed(tmp_path / "a", "llm", "k") as mine:
        assert not mine
    with claimed(tmp_path / "a", "llm", "other") as mine:
        assert mine
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with claimed(tmp_path / "a", "llm", "k") as mine:
        assert mine


def test_an_answer_that_another_process_got_is_not_paid(tmp_path):
    first, second = open_transcript(tmp_path / "a", budget=2), open_transcript(tmp_path / "a", budget=2)
    log = []
    llm = Llm("fake", "k", lambda messages, **settings: log.append(1) or messages[-1]["content"])
    ask_all(first, llm, asks(2))
    assert ask_all(second, llm, asks(4)) == [f"word{i}" for i in range(4)] and len(log) == 4
    assert (second.paid, second.asked, second.replayed) == (2, 2, 2)
    with pytest.raises(BudgetReached):
        ask_all(second, llm, asks(5))


def test_a_transcript_that_cannot_be_written_is_said_before_anything_is_asked(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="stands in a folder that is there, .*/no is not; make it or"):
        open_transcript(tmp_path / "no" / "a")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="answers are kept as they come, and .*/a cannot be written"):
        open_transcript(tmp_path / "a")


@pytest.mark.parametrize("prices", ["a,b", "1", "1,2,3", "-1,2", "nan,1", "inf,1", (1,), "1;2"])
def test_prices_that_are_none(prices):
    with pytest.raises(ValueError, match="prices are two numbers, .*; write 2.5,10"):
        read_prices(prices)


def test_prices_as_text():
    assert read_prices(" 2.5, 10") == (2.5, 10) == read_prices((2.5, 10))


# Ctrl-C

INTERRUPTED = """
import signal
import sys
from neuronym.models.llms import load_llm
from neuronym.models.transcripts import ask_all, open_transcript
book, llm = open_transcript(sys.argv[1]), load_llm("openai:m", timeout=30, tries=3)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of scripts
print("asking", flush=True)
try:
    ask_all(book, llm, [([{"role": "user", "content": f"word{i}"}], {}) for i in range(9)], workers=3)
except KeyboardInterrupt:
    print("ended", flush=True)
    raise
"""


def test_an_interrupt_ends_at_once_and_sends_nothing_more(server, tmp_path):
    held = threading.Event()

    def reply(text, most):
        if len(server.asked) > 3:
            held.set()
            server.release.wait(30)
        return chat(f"{text}!")

    server.reply = reply
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "a")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert held.wait(60)
    time.sleep(0.1)
    asked = len(server.asked)
    child.send_signal(signal.SIGINT)
    assert "ended" in child.communicate(timeout=25)[0], "long before the 30 seconds of a silence"
    assert len(server.asked) == asked and len(lines(tmp_path / "a")) == 3


# what a run would cost


def test_a_dry_run_asks_nothing_and_tells_what_it_would(server, tmp_path):
    file = tmp_path / "a"
    ask_all(open_transcript(file), load_llm("openai:m"), asks(1))
    written, sent = file.read_bytes(), len(server.asked)
    book = open_transcript(file, prices=(2.0, 10.0), dry_run=True)
    llm = load_llm("openai:m")
    long = ask("x" * 400)
    assert ask_all(book, llm, [*asks(1), long, long]) == ["word0!", "", ""]
    assert ask_all(book, llm, [long]) == [""], "counted once"
    shown = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(2)]
    said = pipeline._captions(load_captioner("vlm:m"), book, shown)
    assert len(set(said)) == 2 and all(said)
    told = book.dry.told(book.prices).splitlines()
    assert told[0] == "openai:m: 1 requests, about 100 tokens read, at most 32 written, at most $0.0005"
    assert told[1].startswith("vlm:m: 2 requests, ") and "at most 600 written" in told[1]
    assert told[2].startswith("in all: 3 requests, ") and "once more" in told[3]
    assert "dollars unknown without prices" in book.dry.told(None)
    assert len(server.asked) == sent and file.read_bytes() == written
