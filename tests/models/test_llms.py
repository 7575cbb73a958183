"""neuronym.models.llms: an OpenAI-compatible server on loopback that answers by script, and a tiny random
Llama.
"""

from __future__ import annotations

import email.utils
import json
import socket
import threading
import time
import traceback
import warnings
from types import SimpleNamespace

import pytest
import torch

from neuronym.common.checks import UnknownName
from neuronym.models import llms
from neuronym.models.llms import load_llm
from neuronym.models.server import LONGEST_WAIT, OPENAI, SHOWN
from tests.helpers.llama import save_llama, TEMPLATE, WORDS
from tests.helpers.servers import read, send, serving

KEY = "sk-test-0123/456789+secret"
HELLO = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say hello"}]


def answer(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server(monkeypatch):
    """Answers with `script`, one entry a request and the last one ever after; keeps requests; no wait takes
    time.
    """
    log = SimpleNamespace(script=[], requests=[], waits=[], release=threading.Event())

    def handle(request):
        log.requests.append((request.command, request.path, dict(request.headers), read(request)))
        status, body, *headers = log.script.pop(0) if len(log.script) > 1 else log.script[0]
        if status == "silence":
            log.release.wait(10)
        elif status != "hang up":
            send(request, status, body, *headers)

    with serving(handle) as log.url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{log.url}/v1/")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setattr(llms.time, "sleep", log.waits.append)
        yield log
        log.release.set()


def failure(error, ask, *messages, **settings):
    """The message of an error, once its whole traceback is known not to show the key."""
    with pytest.raises(error) as caught:
        ask(*(messages or [HELLO]), **settings)
    shown = (
        "".join(traceback.format_exception(caught.value))
        + repr(caught.value)
        + repr(caught.value.__context__)
    )
    assert KEY not in shown and KEY[:12] not in shown and KEY.replace("/", "\\/") not in shown
    return str(caught.value)


def test_a_request_and_its_answer(server):
    server.script = [answer(" hello\n"), answer("")]
    llm = load_llm("openai:some/model-1")
    assert (
        llm.ask(HELLO, temperature=0.3, top_p=0.9, max_tokens=7, seed=5) == "hello"
        and llm.ask(HELLO[1:]) == ""
    )
    (command, path, headers, body), (*_, plain) = server.requests
    assert (command, path, headers["Authorization"]) == ("POST", "/v1/chat/completions", f"Bearer {KEY}")
    assert headers["Content-Type"] == "application/json" and server.waits == []
    assert json.loads(body) == {
        "model": "some/model-1",
        "messages": HELLO,
        "temperature": 0.3,
        "top_p": 0.9,
        "max_tokens": 7,
        "seed": 5,
    }
    assert json.loads(plain) == {
        "model": "some/model-1",
        "messages": HELLO[1:],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 256,
        "seed": 0,
    }
    assert KEY not in repr(llm)


def test_what_is_spent(server):
    usage = [
        {"prompt_tokens": 12, "completion_tokens": 3},
        None,
        {"prompt_tokens": None, "completion_tokens": "3"},
        {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5},
    ]
    server.script = [
        (200, json.dumps({"choices": [{"message": {"content": "x"}}], "usage": u})) for u in usage
    ]
    server.script += [(400, "no")]
    llm = load_llm("openai:m")
    assert [llm.answer(HELLO)[:3] for _ in range(3)] == [("x", 12, 3), ("x", None, None), ("x", None, None)]
    assert llm.ask(HELLO) == "x"
    failure(ValueError, llm.ask)
    spent = llm.spent
    assert (spent.calls, spent.prompt_tokens, spent.answer_tokens) == (4, 17, 3) and spent.seconds > 0
    assert spent.uncounted == 2
    assert load_llm("openai:m").spent.calls == 0 and llm.together > 8


def test_a_key_in_an_answer_is_taken_out(server, monkeypatch):
    server.script = [answer(f"it is {KEY}.")]
    assert load_llm("openai:m").ask(HELLO) == "it is ***."
    monkeypatch.setenv("OPENAI_API_KEY", "it")  # no secret, and a word
    assert load_llm("openai:m").ask(HELLO) == f"it is {KEY}."


def test_pictures_go_to_a_server_alone(server, llama):
    server.script = [answer("a dog")]
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png,x"}},
    ]
    messages = [{"role": "user", "content": parts}]
    assert load_llm("openai:m").ask(messages) == "a dog"
    assert json.loads(server.requests[0][3])["messages"] == messages
    with pytest.raises(ValueError, match="messages are a list of dicts of role and content, both texts"):
        llama.ask(messages)
    for strange in ([], ["text"], [{"text": "x"}]):
        with pytest.raises(ValueError, match="messages are a list"):
            load_llm("openai:m").ask([{"role": "user", "content": strange}])


def test_a_server_without_key_is_not_sent_one(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server.script = [answer("hello"), (401, '{"error": {"message": "who are you?"}}')]
    llm = load_llm("openai:m")
    assert llm.ask(HELLO) == "hello" and "Authorization" not in server.requests[0][2]
    assert failure(PermissionError, llm.ask) == (
        f"openai:m at {server.url}/v1 wants a key: HTTP 401 (who are you?); set OPENAI_API_KEY to one"
    )


def test_a_refused_key_is_not_repeated_by_the_error(server):
    for body in (
        json.dumps({"error": {"message": f"wrong key {KEY}"}}),
        f"<b>{KEY}</b>",
        f'"{KEY}"',
        json.dumps({"error": KEY}).replace("/", "\\/"),
        "sent " + KEY.replace("/", "\\/"),
        "x" * (SHOWN - 22) + KEY,
    ):
        server.script = [(401, body)]
        said = failure(PermissionError, load_llm("openai:m").ask)
        assert (
            "refused a key: HTTP 401 (" in said
            and "***" in said
            and said.endswith("OPENAI_API_KEY to another one")
        )
    assert len(server.requests) == 6 and server.waits == [], "a key does not become right by being sent again"


def test_busy_then_an_answer(server):
    soon, past = (email.utils.formatdate(time.time() + seconds, usegmt=True) for seconds in (30, -30))
    server.script = [
        (429, "slow down"),
        (429, "", {"Retry-After": "7.5"}),
        (503, "", {"Retry-After": soon}),
        (500, "", {"Retry-After": "nonsense"}),
        (429, "", {"Retry-After": "86400"}),
        (429, "", {"Retry-After": past}),
        answer("hello"),
    ]
    assert load_llm("openai:m", tries=7).ask(HELLO) == "hello"
    first, seconds, date, nonsense, day, over = server.waits
    assert (first, seconds, nonsense, day, over) == (0.5, 7.5, 4.0, LONGEST_WAIT, 0) and 20 < date <= 30
    assert len({body for *_, body in server.requests}) == 1, "each try sends the same"


def test_back_off_doubles_up_to_a_bound(server):
    server.script = [(500, "")]
    failure(ConnectionError, load_llm("openai:m", tries=10).ask)
    assert server.waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_always_failing(server):
    server.script = [(500, f"Internal error, {KEY} " + "x" * 9999)]
    said = failure(ConnectionError, load_llm("openai:m").ask)
    assert said.startswith(
        f"openai:m at {server.url}/v1 gave no answer in 5 tries: HTTP 500 (Internal error, *** xxx"
    )
    assert len(said) < 600 and len(server.requests) == 5 and len(server.waits) == 4


def test_time_out(server):
    server.script = [("silence", "")]
    said = failure(ConnectionError, load_llm("openai:m", timeout=0.1, tries=2).ask)
    assert (
        "gave no answer in 2 tries: silent for 0.1 s; start the server" in said and len(server.requests) == 2
    )


def test_a_connection_that_breaks_is_made_anew(server):
    short = (200, answer("hello")[1], {"Content-Length": "9999"})
    server.script = [("hang up", ""), short, answer("hello")]
    assert load_llm("openai:m").ask(HELLO) == "hello" and server.waits == [0.5, 1]


def test_no_server(server, monkeypatch):
    with socket.socket() as taken:  # bound and not listening: nothing answers there
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        said = failure(ConnectionError, load_llm("openai:m", tries=3).ask)
    assert "in 3 tries: no connection (" in said and "refused" in said and server.waits == [0.5, 1]


@pytest.mark.parametrize(
    "body", ["no JSON", '{"choices": []}', "[]", '{"choices": [{"text": "hello"}]}', b"\xff", ""]
)
def test_malformed_answers(server, body):
    server.script = [(200, body)]
    said = failure(ConnectionError, load_llm("openai:m", tries=3).ask)
    assert "gave no answer in 3 tries: HTTP 200 without a chat completion ('" in said
    assert len(server.requests) == 3 and "set OPENAI_BASE_URL" in said


def test_malformed_answers_that_hold_the_key(server):
    server.script = [(200, f"you sent {KEY}")]
    assert "'you sent ***'" in failure(ConnectionError, load_llm("openai:m").ask)


def test_a_request_that_is_refused_is_not_sent_again(server):
    server.script = [(404, '{"error": {"message": "no model m", "code": 1}}')]
    assert failure(ValueError, load_llm("openai:m").ask) == (
        f"openai:m at {server.url}/v1 refused the request: HTTP 404 (no model m); look at the model's name, "
        "the "
        "settings and OPENAI_BASE_URL"
    )
    assert len(server.requests) == 1


def test_a_proxy_is_not_asked_for_this_machine(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server.script = [answer("hello")]
    assert load_llm("openai:m").ask(HELLO) == "hello"


def test_asked_from_many_threads(server):
    server.script = [answer("hello")]
    llm, found = load_llm("openai:m"), []
    threads = [threading.Thread(target=lambda: found.append(llm.ask(HELLO))) for _ in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["hello"] * 7


@pytest.mark.parametrize("key", [f"{KEY}\u2026", f"{KEY}\nX-Other:1", f"{KEY} {KEY}"])
def test_a_key_that_no_header_can_hold(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server.script = [answer("hello")]
    assert "OPENAI_API_KEY must be printable ASCII" in failure(ValueError, load_llm("openai:m").ask)
    assert server.requests == []
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")  # as files end
    assert (
        load_llm("openai:m").ask(HELLO) == "hello"
        and server.requests[0][2]["Authorization"] == f"Bearer {KEY}"
    )


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:80/v1",
        "file:///etc",
        "http:///v1",
        f"https://me:{KEY}@host/v1",
        f"http://host/v1?key={KEY}",
        "http://host:port/v1",
        "http://ho st/v1",
    ],
)
def test_addresses_that_are_none(monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    assert "must be http(s)://HOST[:PORT]/PATH without user" in failure(ValueError, load_llm, "openai:m")


def test_key_tells_models_and_servers_apart(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    keys = [load_llm("openai:m").key, load_llm("openai:n").key]
    monkeypatch.setenv("OPENAI_BASE_URL", f"{OPENAI}/")
    assert load_llm("openai:m").key == keys[0] and len(keys[0]) == 16
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert load_llm("openai:m").key == keys[0]
    for url in ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8081/v1", "http://127.0.0.1:8080/v2"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        keys.append(load_llm("openai:m").key)
    assert len(set(keys)) == 5


@pytest.fixture
def llama(tmp_path):
    return load_llm(save_llama(tmp_path / "a"))


def literal(folder, messages, tokens):
    """The likeliest token, one at a time, each from a pass over all before it."""
    from transformers import AutoModelForCausalLM

    vocabulary = ["<unk>", "<s>", "</s>", *WORDS]
    text = " ".join(f"<s> {m['role']} {m['content']}" for m in messages) + " <s> assistant"
    ids = [vocabulary.index(word) if word in vocabulary else 0 for word in text.split()]
    model, found = AutoModelForCausalLM.from_pretrained(folder).eval(), []
    while len(found) < tokens and (not found or found[-1] != 2):
        with torch.no_grad():
            found.append(int(model(torch.tensor([ids + found])).logits[0, -1].argmax()))
    return " ".join(vocabulary[i] for i in found if i > 2)


def test_temperature_zero_is_the_likeliest_token(llama, tmp_path):
    assert llama.ask(HELLO, max_tokens=9) == literal(tmp_path / "a", HELLO, 9) != ""
    assert llama.ask(HELLO[1:], max_tokens=5, seed=3) == literal(tmp_path / "a", HELLO[1:], 5)


def test_tokens_of_a_local_model_are_its_own(llama):
    text, prompt, answered, *_ = llama.answer(HELLO, max_tokens=9)
    assert text == llama.ask(HELLO, max_tokens=9) and prompt == 10 and len(text.split()) <= answered <= 9
    assert (llama.spent.calls, llama.spent.prompt_tokens, llama.together) == (2, 20, 1)


def test_an_answer_ends_where_the_context_does(tmp_path):
    llm = load_llm(save_llama(tmp_path / "a", longest=13))  # 10 tokens of prompt
    assert llm.ask(HELLO) == llm.ask(HELLO, max_tokens=3)
    with pytest.raises(ValueError, match="reads fewer than 13 tokens, got 13; send shorter messages"):
        llm.ask([*HELLO, {"role": "user", "content": "word1"}])


def test_seeds_repeat_an_answer_and_leave_torch_alone(llama):
    before = torch.get_rng_state()
    answers = [llama.ask(HELLO, temperature=2.0, max_tokens=12, seed=seed) for seed in (0, 1, 2, 3)]
    assert len(set(answers)) == 4 and torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert llama.ask(HELLO, temperature=2.0, max_tokens=12, seed=2) == answers[2]


def test_top_p_and_temperature_bound_the_choice(llama):
    greedy = llama.ask(HELLO, max_tokens=8)
    assert llama.ask(HELLO, temperature=2.0, top_p=1e-6, max_tokens=8, seed=4) == greedy
    assert llama.ask(HELLO, temperature=1e-4, max_tokens=8, seed=4) == greedy
    assert llama.ask(HELLO, temperature=2.0, max_tokens=8, seed=4) != greedy


def test_every_word_can_be_drawn(llama):
    first = {llama.ask(HELLO, temperature=1e4, max_tokens=1, seed=seed) for seed in range(150)}
    assert len(first) > 60, "transformers would keep the 50 likeliest"


def test_what_the_folder_says_of_sampling_does_not_matter(llama, tmp_path, capfd):
    other = load_llm(save_llama(tmp_path / "b", do_sample=True, temperature=0.1, top_k=1, top_p=0.2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert other.ask(HELLO, max_tokens=8) == llama.ask(HELLO, max_tokens=8)
        assert [other.ask(HELLO, temperature=2.0, max_tokens=8, seed=s) for s in range(3)] == [
            llama.ask(HELLO, temperature=2.0, max_tokens=8, seed=s) for s in range(3)
        ]
    assert "generation flags" not in capfd.readouterr().err


def test_key_changes_with_weights_template_and_settings(tmp_path):
    options = [{}, {"seed": 1}, {"template": TEMPLATE + " "}, {"repetition_penalty": 1.3}]
    keys = [load_llm(save_llama(tmp_path / str(i), **o)).key for i, o in enumerate(options)]
    assert len(set(keys)) == 4 and load_llm(save_llama(tmp_path / "elsewhere")).key == keys[0]


def test_a_model_without_template(tmp_path):
    with pytest.raises(ValueError, match="has a chat template, that of hf:.* has none; name an instruct"):
        load_llm(save_llama(tmp_path / "a", template=None))


RAISING = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
SILENT = TEMPLATE.replace("messages", "messages if m.role != 'system'", 1)


@pytest.mark.parametrize("template", [RAISING + TEMPLATE, SILENT])
def test_a_template_without_a_system_role(tmp_path, llama, template):
    """Refused or passed over, the instruction stands in the user's message."""
    folder = save_llama(tmp_path / "b", template=template)
    found = load_llm(folder).answer(HELLO, max_tokens=9)
    told = f"{HELLO[0]['content']}\n\n{HELLO[1]['content']}"
    assert found.text == llama.ask([{"role": "user", "content": told}], max_tokens=9)
    assert (
        found.sent == {"system": "in the user's message"} and llama.answer(HELLO, max_tokens=9).sent is None
    )


def test_an_answer_that_the_last_token_cuts(llama):
    assert llama.answer(HELLO, max_tokens=1).fault == "cut"


def test_messages_that_the_template_refuses(llama):
    with pytest.raises(ValueError, match="must suit the chat template.*no tools here; try one user message"):
        llama.ask([{"role": "tool", "content": "hello"}])


def test_absent_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"hf:/.*/nowhere could not be loaded \(.*name its folder as hf:PATH"
    ):
        load_llm("hf:~/nowhere")


@pytest.mark.parametrize(
    "name, error, message",
    [
        (
            "openaai:m",
            UnknownName,
            "no llm 'openaai:m'; nearest: openai:MODEL; known: openai:MODEL, hf:ID, gguf:PATH",
        ),
        ("hf:", UnknownName, "no llm 'hf:'"),
        ("openai", UnknownName, "no llm 'openai'"),
        ("gguf:", UnknownName, "no llm 'gguf:'"),
    ],
)
def test_names_that_are_none(name, error, message):
    with pytest.raises(error, match=message):
        load_llm(name)


@pytest.mark.parametrize(
    "messages, settings, message",
    [
        ("hello", {}, "messages are a list of dicts of role and content, both texts, got 'hello'"),
        ([], {}, "messages are a list"),
        ([{"content": "x"}], {}, "messages are a list"),
        ([{"role": "user", "content": None}], {}, "messages are a list"),
        (HELLO, {"temperature": -1}, "temperature >= 0, .*, got -1, 1.0 and 256"),
        (HELLO, {"temperature": float("nan")}, "got nan"),
        (HELLO, {"top_p": 0}, "got 0.0, 0 and 256"),
        (HELLO, {"max_tokens": 0}, "got 0.0, 1.0 and 0"),
        (HELLO, {"temprature": 1}, "no setting of a language model 'temprature'; nearest: temperature"),
    ],
)
def test_what_cannot_be_asked(server, messages, settings, message):
    with pytest.raises((ValueError, UnknownName), match=message):
        load_llm("openai:m").ask(messages, **settings)
    assert server.requests == []


@pytest.mark.parametrize("settings", [{"tries": 0}, {"timeout": 0}])
def test_no_try_or_no_time(settings):
    with pytest.raises(ValueError, match="at least one try and some time"):
        load_llm("openai:m", **settings)
