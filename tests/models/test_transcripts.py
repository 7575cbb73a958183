"""neuronym.models.transcripts against a real HTTP server on loopback: no answer is lost, none is asked for
twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest

from neuronym.common import locks
from neuronym.common.checks import UnknownName
from neuronym.models import server as chat_server
from neuronym.models import transcript_files, transcripts
from neuronym.models.llms import Ledger, Llm, load_llm
from neuronym.models.transcripts import (
    answers,
    ask_all,
    BudgetReached,
    copy_used,
    open_transcript,
    recorded_llm,
    summary,
)
from neuronym.runs.folders import ROOT
from tests.helpers.servers import read, send, serving

KEY = "sk-test-0123/456789+secret"
PRICES = (2.0, 10.0)  # of a million tokens


@pytest.fixture
def server(monkeypatch):
    """Answers "<content>!" in 10 + 3 tokens; `reply` may say otherwise; keeps what was asked, and how many
    together.
    """
    log = SimpleNamespace(asked=[], together=0, most=0, reply=lambda text: None, release=threading.Event())
    lock = threading.Lock()

    def handle(request):
        text = json.loads(read(request))["messages"][-1]["content"]
        with lock:
            log.asked.append(text)
            log.together += 1
            log.most = max(log.most, log.together)
        status, body = log.reply(text) or (200, None)
        with lock:
            log.together -= 1
        if status == "silence":
            log.release.wait(10)
            return
        body = (
            json.dumps(
                {
                    "choices": [{"message": {"content": f"{text}!"}}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 3},
                }
            )
            if body is None
            else body
        )
        with suppress(ConnectionError):  # who asked was killed
            send(request, status, body)

    with serving(handle) as address:
        log.url = f"{address}/v1"
        monkeypatch.setenv("OPENAI_BASE_URL", log.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setattr(chat_server, "FIRST_WAIT", 0.0)
        yield log
        log.release.set()


def ask(text, **settings):
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}], settings


def asks(n):
    return [ask(f"word{i}") for i in range(n)]


def fake(log, name="fake:a", key="a", **more):
    def one(messages, **settings):
        log.append((messages[-1]["content"], settings))
        return f"{messages[-1]['content']}?"

    return Llm(name, key, one, **more)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def literal_key(model_key, messages, **settings):
    settings = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 256, "seed": 0, **settings}
    text = json.dumps(
        {"messages": messages, "model_key": model_key, "settings": dict(sorted(settings.items()))},
        separators=(",", ":"),
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def test_record_then_replay_with_the_server_off(server, tmp_path, monkeypatch):
    file = tmp_path / "answers.jsonl"
    wanted = [
        ask("one"),
        ask("two", temperature=0.3, seed=5),
        ask("one"),
        ask("two", temperature=0.3, seed=6),
        ask("one"),
    ]
    first = open_transcript(file)
    assert not file.exists(), "nothing was answered yet"
    llm = load_llm("openai:m")
    assert ask_all(first, llm, wanted) == ["one!", "two!", "one!", "two!", "one!"]
    assert sorted(server.asked) == ["one", "two", "two"], "each different request once"
    assert summary(first) == {
        "mode": "record",
        "asked": 3,
        "replayed": 0,
        "left_out": 0,
        "prompt_tokens": 30,
        "answer_tokens": 9,
        "cost": None,
        "damaged": 0,
    }
    assert llm.spent.calls == 3 and (llm.spent.prompt_tokens, llm.spent.answer_tokens) == (30, 9)
    assert {line["key"] for line in lines(file)} == {
        literal_key(llm.key, ask("one")[0]),
        literal_key(llm.key, ask("two")[0], temperature=0.3, seed=5),
        literal_key(llm.key, ask("two")[0], temperature=0.3, seed=6),
    }
    one = next(line for line in lines(file) if line["answer"] == "one!")
    assert one == {
        "key": literal_key(llm.key, ask("one")[0]),
        "kind": "llm",
        "model": "openai:m",
        "answer": "one!",
        "request": {
            "model_key": llm.key,
            "messages": ask("one")[0],
            "settings": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 256, "seed": 0},
        },
        "prompt_tokens": 10,
        "answer_tokens": 3,
    }

    written = file.read_bytes()
    monkeypatch.delenv("OPENAI_API_KEY")
    server.reply = lambda text: (500, "off")
    for mode in ("replay", "record"):
        again = open_transcript(file, mode)
        assert ask_all(again, load_llm("openai:m", tries=1), wanted) == [
            "one!",
            "two!",
            "one!",
            "two!",
            "one!",
        ]
        assert (again.asked, again.replayed) == (0, 3)
    assert len(server.asked) == 3 and file.read_bytes() == written


def test_what_a_replay_lacks(server, tmp_path):
    file = tmp_path / "a.jsonl"
    llm = load_llm("openai:m")
    ask_all(open_transcript(file), llm, asks(2))
    written = file.read_bytes()
    with pytest.raises(
        LookupError,
        match=r"a replay asks nothing, and 3 of 5 answers of kind 'llm' are not in .*a\.js"
        "onl; open it with mode='record' to ask for them",
    ):
        ask_all(open_transcript(file, "replay"), llm, asks(5))
    for other in (
        ask("word0", temperature=0.1),
        ask("word0", seed=1),
        ask("word0", top_p=0.5),
        ask("word0", max_tokens=3),
        ask("word0 "),
        (ask("word0")[0][1:], {}),
    ):
        with pytest.raises(LookupError, match="1 of 1 answers"):
            ask_all(open_transcript(file, "replay"), llm, [other])
    with pytest.raises(LookupError, match="1 of 1 answers"):
        ask_all(open_transcript(file, "replay"), load_llm("openai:n"), asks(1))
    same = ask("word0", max_tokens=256, temperature=0, top_p=1, seed=0)
    assert ask_all(open_transcript(file, "replay"), llm, [same]) == ["word0!"], "a default may be written"
    assert len(server.asked) == 2 and file.read_bytes() == written
    with pytest.raises(FileNotFoundError, match="a replay needs the answers of a run, and there is no .*/no"):
        open_transcript(tmp_path / "no", "replay")


def test_live_asks_again_and_the_last_line_holds(tmp_path):
    file, log = tmp_path / "a.jsonl", []
    number = iter(range(99))
    llm = Llm(
        "fake",
        "k",
        lambda messages, **settings: log.append(messages[-1]["content"]) or f"answer {next(number)}",
    )
    wanted = [ask("a"), ask("b"), ask("a")]
    assert ask_all(open_transcript(file), llm, wanted) == ["answer 0", "answer 1", "answer 0"]
    live = open_transcript(file, "live")
    assert ask_all(live, llm, wanted) == ["answer 2", "answer 3", "answer 2"]
    assert ask_all(live, llm, [ask("a")]) == ["answer 4"] and log == ["a", "b", "a", "b", "a"]
    assert len(lines(file)) == 5 and live.asked == 3 and live.replayed == 0
    assert ask_all(open_transcript(file, "replay"), llm, wanted) == ["answer 4", "answer 3", "answer 4"]


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_many_together_keep_their_order(server, tmp_path, workers):
    gate = threading.Barrier(workers)

    def reply(text):
        gate.wait(10)  # answers only when `workers` requests are there
        time.sleep(0.002 * (7 * int(text[4:]) % 5))

    server.reply = reply
    seen = []

    def progress(items, total, text):
        for item in items:
            yield item
            seen.append((total, text))

    transcript = open_transcript(tmp_path / "a.jsonl")
    assert ask_all(transcript, load_llm("openai:m"), asks(24), workers, progress) == [
        f"word{i}!" for i in range(24)
    ]
    assert (
        server.most == workers
        and seen == [(24, "asking openai:m")] * 24
        and len(lines(tmp_path / "a.jsonl")) == 24
    )
    copy_used(transcript, tmp_path / "run" / "b.jsonl")
    assert [line["answer"] for line in lines(tmp_path / "run" / "b.jsonl")] == [
        f"word{i}!" for i in range(24)
    ]


def test_a_local_model_is_asked_one_by_one(tmp_path):
    running, most = [0], [0]

    def one(messages, **settings):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.005)
        running[0] -= 1
        return "x"

    ask_all(open_transcript(tmp_path / "a"), Llm("fake", "k", one), asks(6), 8)
    assert most == [1]
    ask_all(open_transcript(tmp_path / "b"), Llm("fake", "k", one, together=3), asks(9), 8)
    assert 1 < most[0] <= 3


def test_busy_then_an_answer(server, tmp_path):
    tried = []
    server.reply = lambda text: (429, "slow down") if tried.append(text) or tried.count(text) < 3 else None
    transcript = open_transcript(tmp_path / "a.jsonl")
    assert ask_all(transcript, load_llm("openai:m"), asks(4)) == [f"word{i}!" for i in range(4)]
    assert len(server.asked) == 12 and transcript.asked == transcript.paid == 4, "a refusal is not paid for"


FAILURES = {
    "always failing": ((500, f"broken, {KEY}"), ConnectionError, "gave no answer in 2 tries: HTTP 500"),
    "time-out": (("silence", ""), ConnectionError, "in 2 tries: silent for 0.4 s"),
    "malformed": ((200, "{no JSON"), ConnectionError, "without a chat completion"),
    "another shape": ((200, '{"choices": []}'), ConnectionError, "without a chat completion"),
    "key refused": ((401, f"wrong key {KEY}"), PermissionError, "refused a key"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_loses_no_answer(server, tmp_path, case):
    """The fourth of nine fails for good; the next run asks for it and what was not begun, and for nothing
    else.
    """
    failing, error, said = FAILURES[case]
    file = tmp_path / "a.jsonl"
    llm = load_llm("openai:m", timeout=0.4 if case == "time-out" else 5.0, tries=2)
    server.reply = lambda text: failing if text == "word3" else None
    transcript = open_transcript(file)
    with pytest.raises(error, match=said):
        ask_all(transcript, llm, asks(9), workers=2)
    kept = [line["answer"] for line in lines(file)]
    assert kept and "word3!" not in kept and transcript.paid == len(kept)
    answered = {text for text in server.asked if text != "word3"}
    assert {f"{text}!" for text in answered} == set(kept), "every answer that the server gave is in the file"

    server.reply = lambda text: None
    server.asked.clear()
    again = open_transcript(file)
    assert ask_all(again, load_llm("openai:m"), asks(9), workers=2) == [f"word{i}!" for i in range(9)]
    assert sorted(server.asked) == sorted({f"word{i}" for i in range(9)} - answered)
    assert again.replayed == len(kept) and KEY.encode() not in file.read_bytes()


def test_those_under_way_are_kept_when_another_fails(server, tmp_path):
    failed, gate = threading.Event(), threading.Barrier(3)

    def reply(text):
        gate.wait(10)
        if text == "word1":
            failed.set()
            return 400, "no"
        failed.wait(10)
        time.sleep(0.1)  # the failure reaches the other side first

    server.reply = reply
    with pytest.raises(ValueError, match="refused the request: HTTP 400"):
        ask_all(open_transcript(tmp_path / "a"), load_llm("openai:m"), asks(9), workers=3)
    assert sorted(server.asked) == ["word0", "word1", "word2"], "nothing is begun after a failure"
    assert sorted(line["answer"] for line in lines(tmp_path / "a")) == ["word0!", "word2!"]


def test_the_first_error_is_raised(tmp_path):
    failed = threading.Event()

    def one(messages, **settings):
        text = messages[-1]["content"]
        if text != "word2":
            failed.wait(10)
            time.sleep(0.1)
        failed.set()
        raise ValueError(text)

    with pytest.raises(ValueError, match="word2"):
        ask_all(open_transcript(tmp_path / "a"), Llm("fake", "k", one, together=3), asks(3))


@pytest.mark.parametrize("workers", [1, 4])
def test_a_budget_of_calls(server, tmp_path, workers):
    file, llm = tmp_path / "a.jsonl", load_llm("openai:m")
    ask_all(open_transcript(file), llm, asks(2))
    transcript = open_transcript(file, budget=5, prices=PRICES)
    with pytest.raises(BudgetReached) as caught:
        ask_all(transcript, llm, asks(12), workers)
    assert str(caught.value) == (
        "budget=5 is reached by 5 answers of 50 + 15 tokens, which cost 0.00025; 5 answers "
        "are missing, the 5 that came are kept: raise budget and run again"
    )
    assert len(server.asked) == len(lines(file)) == 7 and isinstance(caught.value, RuntimeError)
    with pytest.raises(BudgetReached, match="1 answers are missing"):
        ask_all(transcript, llm, [ask("other")], workers)
    assert ask_all(transcript, llm, asks(7)) == [f"word{i}!" for i in range(7)], "what is there costs nothing"
    enough = open_transcript(file, budget=5)
    assert ask_all(enough, llm, asks(12), workers) == [f"word{i}!" for i in range(12)]
    assert len(server.asked) == 12 and enough.asked == 5 and enough.replayed == 7


def test_a_budget_of_nothing_still_replays(server, tmp_path):
    llm = load_llm("openai:m")
    with pytest.raises(
        BudgetReached, match=r"budget=0 is reached by 0 answers of 0 \+ 0 tokens; 3 answers are mis"
    ):
        ask_all(open_transcript(tmp_path / "a", budget=0), llm, asks(3))
    assert server.asked == [] and not (tmp_path / "a").exists()
    ask_all(open_transcript(tmp_path / "a"), llm, asks(3))
    assert (
        len(ask_all(open_transcript(tmp_path / "a", budget=0, prices=PRICES, most_cost=0.0), llm, asks(3)))
        == 3
    )


def test_a_budget_of_money(server, tmp_path):
    each = (10 * PRICES[0] + 3 * PRICES[1]) / 1e6
    transcript = open_transcript(tmp_path / "a", prices=PRICES, most_cost=3.5 * each)
    llm = load_llm("openai:m")
    with pytest.raises(
        BudgetReached, match="most_cost=0.000175 is reached by 4 answers of .* which cost 0.0002; 5"
    ):
        ask_all(transcript, llm, asks(9), workers=1)
    assert len(server.asked) == 4 and summary(transcript)["cost"] == pytest.approx(4 * each)
    gate = threading.Barrier(3)
    server.reply = lambda text: gate.wait(10) and None
    with pytest.raises(BudgetReached):
        ask_all(open_transcript(tmp_path / "a", prices=PRICES, most_cost=0.5 * each), llm, asks(9), workers=3)
    assert len(server.asked) == 7, "those under way are finished"


def test_money_cannot_be_counted_without_tokens(server, tmp_path):
    server.reply = lambda text: (200, json.dumps({"choices": [{"message": {"content": "x"}}]}))
    with pytest.raises(
        ValueError, match="most_cost needs an answer's tokens, and 1 came without; 4 answers are"
    ):
        ask_all(
            open_transcript(tmp_path / "a", prices=PRICES, most_cost=1.0),
            load_llm("openai:m"),
            asks(5),
            workers=1,
        )
    assert len(lines(tmp_path / "a")) == 1
    assert len(ask_all(open_transcript(tmp_path / "a", budget=9), load_llm("openai:m"), asks(5))) == 5


def test_no_key_in_any_file(server, tmp_path, monkeypatch):
    for key in (KEY, 'quote"and/slash+long', "back\\slash-and-more"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        told = {"choices": [{"message": {"content": f"your key is {key}"}}]}
        server.reply = lambda text: (200, json.dumps(told))
        transcript = open_transcript(tmp_path / "a.jsonl", "live")
        found = ask_all(transcript, load_llm("openai:m"), [ask(f"my key is {key}"), ask("hello")])
        assert found == ["your key is ***"] * 2
        assert answers(transcript, "caption", [f"x{key}"], lambda some: [key]) == ["***"]
        copy_used(transcript, tmp_path / "b.jsonl")
    for file in tmp_path.iterdir():
        for line in file.read_text().splitlines():
            assert not any(
                spelling in line
                for key in (KEY, 'quote"and/slash+long', "back\\slash-and-more")
                for spelling in (key, json.dumps(key)[1:-1], key.replace("/", "\\/"))
            )
            assert json.loads(line)


def test_a_word_that_a_local_server_takes_for_a_key_stays_in_answers(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "dog")
    assert ask_all(open_transcript(tmp_path / "a"), load_llm("openai:m"), [ask("dog")]) == ["dog!"]
    assert ask_all(open_transcript(tmp_path / "a", "replay"), load_llm("openai:m"), [ask("dog")]) == ["dog!"]


def test_a_torn_last_line_is_asked_for_again(tmp_path):
    file, log = tmp_path / "a.jsonl", []
    ask_all(open_transcript(file), fake(log), asks(3))
    whole = file.read_bytes()
    last = len(whole.splitlines()[-1]) + 1
    for cut in (1 + 1, 10, last - 1):  # the end of the line is not part of a tear: see below
        file.write_bytes(whole[:-cut])
        log.clear()
        torn = open_transcript(file)
        assert torn.damaged == 0
        assert ask_all(torn, fake(log), asks(3)) == ["word0?", "word1?", "word2?"]
        assert [text for text, _ in log] == ["word2"]
        assert file.read_bytes() == whole, "overwritten cleanly"
    file.write_bytes(whole[:-1])  # as some editors save
    log.clear()
    ask_all(open_transcript(file), fake(log), asks(4))
    assert (
        [text for text, _ in log] == ["word3"]
        and len(lines(file)) == 4
        and file.read_bytes().startswith(whole)
    )


def test_damaged_lines_are_counted_and_left_alone(tmp_path):
    file, log = tmp_path / "a.jsonl", []
    ask_all(open_transcript(file), fake(log), asks(3))
    one, two, three = file.read_bytes().splitlines(keepends=True)
    strange = b'[1]\n"x"\n{"key": 3, "kind": "llm", "model": "", "answer": "x", "request": {}}\n\xff\xfe\n'
    file.write_bytes(one + two[:40] + b"\n" + b"\n" + strange + three)
    with pytest.raises(
        LookupError, match="1 of 3 answers of kind 'llm' are not in .*, where 5 lines are damaged"
    ):
        ask_all(open_transcript(file, "replay"), fake(log), asks(3))
    log.clear()
    transcript = open_transcript(file)
    assert ask_all(transcript, fake(log), asks(3)) == ["word0?", "word1?", "word2?"] and len(log) == 1
    assert summary(transcript)["damaged"] == 5 and file.read_bytes().count(strange) == 1


def test_any_text_survives(tmp_path):
    texts = [
        "Ünïcode 犬",
        "two\nlines\r\n",
        "line\u2028end\x85",
        "half \ud83d",
        '"quoted" \\ </script>',
        "",
        "\x00",
    ]
    llm = Llm("fake", "k", lambda messages, **settings: messages[-1]["content"])
    transcript = open_transcript(tmp_path / "a")
    come = ["half \ufffd" if text == "half \ud83d" else text.strip("\0") for text in texts]
    assert ask_all(transcript, llm, [ask(text) for text in texts]) == come
    assert ask_all(open_transcript(tmp_path / "a", "replay"), llm, [ask(text) for text in texts]) == come
    copy_used(transcript, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_no_room_for_an_answer(tmp_path, monkeypatch):
    file, log = tmp_path / "a", []
    ask_all(open_transcript(file), fake(log), asks(2))
    before, write = file.read_bytes(), os.write
    monkeypatch.setattr(transcripts.os, "write", lambda where, data: write(where, data[:7]))
    with pytest.raises(OSError, match="no room for an answer; make some and run again"):
        ask_all(open_transcript(file), fake(log), asks(3))
    assert file.read_bytes() == before


def test_two_processes_add_to_one_file(tmp_path):
    file = tmp_path / "a"
    llm = Llm("fake", "k", lambda messages, **settings: messages[-1]["content"] * 300, together=4)
    children = []
    for me in "ab":
        children.append(os.fork())
        if not children[-1]:
            try:
                ask_all(open_transcript(file), llm, [ask(f"{me}{i}-") for i in range(120)])
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    transcript = open_transcript(file, "replay")
    assert transcript.damaged == 0 and len(transcript.found) == len(lines(file)) == 240
    assert {line["answer"] for line in lines(file)} == {f"{me}{i}-" * 300 for me in "ab" for i in range(120)}


KILLED = """
import sys
from neuronym.models.llms import load_llm
from neuronym.models.transcripts import ask_all, open_transcript
ask_all(open_transcript(sys.argv[1]), load_llm("openai:m"),
        [([{"role": "user", "content": f"word{i}"}], {}) for i in range(9)], workers=2)
"""


def test_killed_half_way_then_resumed(server, tmp_path):
    """SIGKILL while the server holds back its fifth answer."""
    held = threading.Event()

    def reply(text):
        if text in ("word4", "word5"):
            held.set()
            server.release.wait(10)

    server.reply = reply
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "a")], cwd=ROOT)
    assert held.wait(60)
    until = time.monotonic() + 10
    while len((tmp_path / "a").read_bytes().splitlines()) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = {line["answer"][:-1] for line in lines(tmp_path / "a")}
    assert len(kept) >= 4 and kept <= {f"word{i}" for i in range(9)}
    server.reply = lambda text: None
    server.asked.clear()
    wanted = [([{"role": "user", "content": f"word{i}"}], {}) for i in range(9)]
    assert ask_all(open_transcript(tmp_path / "a"), load_llm("openai:m"), wanted) == [
        f"word{i}!" for i in range(9)
    ]
    assert sorted(server.asked) == sorted({f"word{i}" for i in range(9)} - kept)


def test_answers_of_other_kinds(tmp_path):
    file, made = tmp_path / "a", []

    def make(some):
        made.append(some)
        return (f"caption {i}" for i in some)

    transcript = open_transcript(file, budget=0)  # pictures cost nothing here
    keys = ["p", "q", "p", "r"]
    found = ["caption 0", "caption 1", "caption 0", "caption 3"]
    assert answers(transcript, "caption", keys, make, model="blip") == found
    assert answers(transcript, "caption", ["r", "s"], make) == ["caption 3", "caption 1"] and made == [
        [0, 1, 3],
        [1],
    ]
    assert answers(transcript, "tags", ["p"], make) == ["caption 0"], "kinds are kept apart"
    assert [line["model"] for line in lines(file)] == ["blip", "blip", "blip", "", ""]
    again = open_transcript(file, "replay")
    assert answers(again, "caption", keys, make) == found
    assert len(made) == 3 and again.replayed == 3 and answers(again, "caption", [], make) == []
    with pytest.raises(LookupError, match="1 of 2 answers of kind 'tags'"):
        answers(again, "tags", ["p", "q"], make)


def test_answers_are_written_as_they_come(tmp_path):
    def make(some):
        for i in some:
            assert len(lines(tmp_path / "a") if i else []) == i
            if i == 3:
                raise RuntimeError("out of memory")
            yield f"caption {i}"

    with pytest.raises(RuntimeError, match="out of memory"):
        answers(open_transcript(tmp_path / "a"), "caption", list("pqrst"), make)
    asked, again = [], open_transcript(tmp_path / "a")
    found = answers(again, "caption", list("pqrst"), lambda some: asked.extend(some) or ["x", "y"])
    assert found == ["caption 0", "caption 1", "caption 2", "x", "y"] and asked == [3, 4]


@pytest.mark.parametrize(
    "made, said",
    [
        (["x", "y"], "got 2 for 3 of kind 'c'"),
        ([], "got 0 for 3"),
        (list("xyzu"), "got more than 3 of kind 'c'"),
    ],
)
def test_too_few_or_too_many_answers(tmp_path, made, said):
    with pytest.raises(ValueError, match=f"one text for each key is wanted, {said}"):
        answers(open_transcript(tmp_path / "a"), "c", list("pqr"), lambda some: made)


def test_paid_answers_of_other_kinds(tmp_path):
    asked = []

    def make(some):
        for i in some:
            asked.append(i)
            yield f"caption {i}", 100, 7

    transcript = open_transcript(tmp_path / "a", budget=3, prices=PRICES)
    with pytest.raises(
        BudgetReached, match=r"budget=3 is reached by 3 answers of 300 \+ 21 tokens, .*; 2 answers"
    ):
        answers(transcript, "vlm", list("pqrst"), make, paid=True)
    assert asked == [0, 1, 2] and answers(transcript, "vlm", list("pqr"), make, paid=True)[2] == "caption 2"
    with pytest.raises(BudgetReached, match="1 answers are missing"):
        answers(transcript, "vlm", ["u"], make, paid=True)
    each = (100 * PRICES[0] + 7 * PRICES[1]) / 1e6
    with pytest.raises(BudgetReached, match="most_cost=.* is reached by 1 answers"):
        answers(
            open_transcript(tmp_path / "a", prices=PRICES, most_cost=each),
            "vlm",
            list("pqrst"),
            make,
            paid=True,
        )
    assert asked == [0, 1, 2, 3] and len(lines(tmp_path / "a")) == 4


def test_a_run_keeps_a_cassette_of_its_own(tmp_path):
    file, log = tmp_path / "all.jsonl", []
    ask_all(open_transcript(file), fake(log), asks(9))
    run = open_transcript(file)
    ask_all(run, fake(log), [ask("word5"), ask("new"), ask("word2"), ask("word5")])
    answers(run, "caption", ["p"], lambda some: ["a dog"])
    copy_used(run, tmp_path / "run" / "used.jsonl")
    used = lines(tmp_path / "run" / "used.jsonl")
    assert [line["answer"] for line in used] == ["word5?", "new?", "word2?", "a dog"]
    log.clear()
    alone = open_transcript(tmp_path / "run" / "used.jsonl", "replay")
    assert ask_all(alone, fake(log), [ask("word2"), ask("new")]) == ["word2?", "new?"] and log == []
    assert os.listdir(tmp_path / "run") == ["used.jsonl"]
    with pytest.raises(ValueError, match="a copy goes to a file of its own"):
        copy_used(run, tmp_path / "run" / ".." / "all.jsonl")
    assert len(lines(file)) == 11


def test_a_model_that_is_known_from_its_answers(tmp_path):
    file, log = tmp_path / "a", []
    ask_all(open_transcript(file), fake(log), asks(3))
    ask_all(open_transcript(file), fake(log, "fake:b", "b"), asks(1))
    transcript = open_transcript(file, "replay")
    llm = recorded_llm(transcript, "fake:a")
    assert (llm.name, llm.key, llm.spent) == ("fake:a", "a", Ledger())
    assert ask_all(transcript, llm, asks(3)) == ["word0?", "word1?", "word2?"]
    with pytest.raises(LookupError, match="'fake:a' is known from its answers in .* alone, and has none to "):
        ask_all(open_transcript(file), llm, asks(4))
    with pytest.raises(
        LookupError, match="one model 'fake:c' must have answered in .*, got 0; known: fake:a, fake:b"
    ):
        recorded_llm(transcript, "fake:c")
    ask_all(open_transcript(file), fake(log, "fake:a", "other"), asks(1))
    with pytest.raises(LookupError, match="got 2; known"):
        recorded_llm(open_transcript(file), "fake:a")


def test_asked_from_many_threads(tmp_path):
    log = []
    transcript, llm = open_transcript(tmp_path / "a"), fake(log)
    with ThreadPoolExecutor(5) as pool:
        found = list(
            pool.map(lambda i: ask_all(transcript, llm, [ask(f"{i}-{j}") for j in range(8)]), range(5))
        )
    assert found == [[f"{i}-{j}?" for j in range(8)] for i in range(5)]
    assert transcript.asked == 40 and len(lines(tmp_path / "a")) == 40


@pytest.mark.parametrize(
    "how, error, said",
    [
        ({"mode": "reply"}, UnknownName, "no mode of a transcript 'reply'; nearest: replay"),
        ({"budget": -1}, ValueError, "at least 0, got -1 and None"),
        ({"most_cost": float("nan"), "prices": PRICES}, ValueError, "got None and nan"),
        ({"prices": (1.0,)}, ValueError, r"prices are two numbers, .* got \(1.0,\)"),
        ({"prices": (1.0, -1.0)}, ValueError, "prices are two"),
        ({"most_cost": 1.0}, ValueError, "most_cost needs prices, got 1.0"),
        ({"path": ""}, ValueError, "a transcript is a file, .* is a folder; name a file in it"),
    ],
)
def test_transcripts_that_cannot_be_opened(tmp_path, how, error, said):
    with pytest.raises(error, match=said):
        open_transcript(tmp_path / how.pop("path", "a"), **how)


@pytest.mark.parametrize(
    "settings, error, said",
    [
        ({"temprature": 1}, UnknownName, "no setting of a language model 'temprature'; nearest: temperature"),
        ({"seed": "x"}, ValueError, "settings of a request are numbers, got seed='x'"),
        ({"top_p": None}, ValueError, "settings of a request are numbers, got top_p=None"),
        ({"temperature": float("nan")}, ValueError, "settings of a request are numbers, got temperature=nan"),
    ],
)
def test_settings_that_are_none(tmp_path, settings, error, said):
    with pytest.raises(error, match=said):
        ask_all(open_transcript(tmp_path / "a"), fake([]), [ask("x", **settings)])


def test_kinds_and_texts_that_are_none(tmp_path):
    transcript = open_transcript(tmp_path / "a")
    with pytest.raises(ValueError, match="answers of kind 'llm' are those of ask_all"):
        answers(transcript, "llm", ["p"], lambda some: ["x"])
    for strange in (3, ("x", 1), ["x", 1, 2, 3]):
        with pytest.raises(
            ValueError, match="an answer is a text, or .text, prompt tokens, answer tokens., got"
        ):
            answers(transcript, "caption", ["p"], lambda some: [strange])
    assert not (tmp_path / "a").exists()


def test_processes_without_flock_add_whole_lines(tmp_path, monkeypatch):
    """As two machines do whose file system does not pass it on."""
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(transcript_files, "fcntl", None)
    path, children = tmp_path / "a", []
    line = {"kind": "llm", "model": "m", "answer": "dog", "request": {}}
    for name in "abc":
        children.append(os.fork())
        if not children[-1]:
            try:
                for i in range(20):
                    transcript_files.append_line(path, transcript_files.to_line(line | {"key": f"{name}{i}"}))
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    found, damaged, _ = transcript_files.read_transcript(path)
    assert sorted(one["key"] for one in found) == sorted(f"{name}{i}" for name in "abc" for i in range(20))
    assert damaged == 0 and [file.name for file in tmp_path.iterdir()] == ["a"]
