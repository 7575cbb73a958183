"""neuronym.models.server on loopback: what servers refuse, failures that pass, redirects, bounds, the key."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest

from neuronym.models import post
from neuronym.models import server as chat_server
from neuronym.models.llms import load_llm
from neuronym.models.replies import answer_of
from neuronym.models.server import hide, without_system
from tests.helpers.servers import read, send, serving

HELLO = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say hello"}]
KEY = "sk-test-0123/456789+secret"


def chat(content="hello", finish="stop", **more):
    message = {"role": "assistant", "content": content, **more}
    return {"choices": [{"index": 0, "finish_reason": finish, "message": message}]}


@pytest.fixture
def server(monkeypatch):
    """Answers a request's body by `reply`, as (status, JSON or bytes, headers); keeps the bodies."""
    log = SimpleNamespace(bodies=[], heads=[], reply=lambda body: (200, chat()))

    def handle(request):
        body = json.loads(read(request) or b"{}")
        log.bodies.append(body)
        log.heads.append((request.command, request.path, request.headers.get("Authorization")))
        status, said, *headers = log.reply(body)
        send(request, status, said if isinstance(said, bytes) else json.dumps(said), *headers)

    with serving(handle) as log.url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{log.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setattr(chat_server, "FIRST_WAIT", 0.0)
        yield log


def refusing(name, message, status=400, **more):
    """A server that refuses a request with a setting."""

    def reply(body):
        if name in body:
            return status, {"error": {"message": message, **more}}
        return 200, chat()

    return reply


REFUSED = {
    "openai": ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
    "openai, its temperature": ("temperature", "'temperature' does not support 0 with this model."),
    "text generation": ("top_p", "Input validation error: `top_p` must be > 0.0 and < 1.0"),
    "gemini": ("seed", 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'),
    "litellm": ("seed", "does not support parameters: ['seed'], for model=x"),
    "one of two": ("top_p", "`temperature` and `top_p` cannot both be specified for this model."),
    "a list of those known": ("seed", "Unknown parameter 'seed'; supported: temperature, top_p, max_tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_that_is_refused_is_left_out(server, case):
    name, message = REFUSED[case]
    server.reply = refusing(name, message)
    llm = load_llm("openai:m", tries=1)
    found = llm.answer(HELLO, max_tokens=7)
    assert found.text == "hello" and list(found.sent) == [name]
    last = server.bodies[-1]
    kept = {"model", "messages", "temperature", "top_p", "max_tokens", "seed"} - {name}
    assert kept <= set(last) and last.get("max_completion_tokens", 7) == 7
    assert ("max_completion_tokens" in last) == (name == "max_tokens")
    sent = len(server.bodies)
    assert llm.ask(HELLO) == "hello" and len(server.bodies) == sent + 1, "learnt once"


def test_settings_refused_one_after_the_other(server):
    def reply(body):
        wrong = next((name for name in ("seed", "temperature", "top_p") if name in body), None)
        detail = [{"type": "extra_forbidden", "loc": ["body", wrong], "msg": "Extra inputs", "input": 0}]
        return (422, {"detail": detail}) if wrong else (200, chat())

    server.reply = reply
    found = load_llm("openai:m", tries=1).answer(HELLO)
    assert found.sent == {"temperature": "left out", "top_p": "left out", "seed": "left out"}
    assert set(server.bodies[-1]) == {"model", "messages", "max_tokens"}


def test_a_value_that_is_too_large_is_an_error(server):
    server.reply = lambda body: (400, {"error": {"message": "max_tokens is too large: supports at most 16"}})
    with pytest.raises(ValueError, match="refused the request: HTTP 400 .max_tokens is too large"):
        load_llm("openai:m").ask(HELLO)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "status, said",
    [
        (400, {"object": "error", "message": "System role not supported", "code": 400}),
        (400, {"error": {"message": "Conversation roles must alternate user/assistant/user/..."}}),
        (500, {"error": "TemplateError: Only user and assistant roles are supported!"}),
        (
            400,
            {
                "error": {
                    "message": "'messages[0].role' does not support 'system'",
                    "param": "messages[0].role",
                }
            },
        ),
        (400, {"error": {"message": "Developer instruction is not enabled for models/gemma"}}),
        (422, {"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "role 'system' is not allowed"}]}),
    ],
)
def test_no_system_role(server, status, said):
    server.reply = lambda body: (status, said) if body["messages"][0]["role"] == "system" else (200, chat())
    llm = load_llm("openai:m", tries=1)
    assert llm.answer(HELLO).sent == {"system": "in the user's message"}
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "be brief\n\nsay hello"}]
    assert llm.ask(HELLO) == "hello" and len(server.bodies) == 3


def test_a_system_message_before_a_picture():
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    (one,) = without_system([HELLO[0], {"role": "user", "content": picture}])
    assert one["content"] == [{"type": "text", "text": "be brief"}, *picture]
    assert without_system(HELLO[:1]) == [{"role": "user", "content": "be brief"}]


PASSING = {
    "408": (408, {"error": {"message": "timed out"}}),
    "409": (409, {"error": {"message": "conflict"}}),
    "425": (425, {}),
    "502": (502, b"<html>bad gateway</html>"),
    "200 with an error": (200, {"error": {"message": "Provider returned error", "code": 502}}),
    "200 with an error without a code": (200, {"error": "overloaded"}),
    "200, choices null": (200, {"choices": None, "error": {"message": "rate limited", "code": 429}}),
    "200, no choices": (200, {"choices": []}),
    "200, a cut body": (200, b'{"choices": [{"mess'),
    "200, a page": (200, b"<html>hello</html>"),
    "200, nothing": (200, b""),
    "200, nested": (200, b"[" * 200_000),
    "200, an error at its end": (200, chat("hel", "error")),
    "200, content of another type": (200, chat(7)),
}


@pytest.mark.parametrize("case", PASSING)
def test_a_failure_that_passes(server, case):
    server.reply = lambda body: PASSING[case] if len(server.bodies) == 1 else (200, chat())
    assert load_llm("openai:m", tries=2).ask(HELLO) == "hello" and len(server.bodies) == 2


@pytest.mark.parametrize("body", [{"error": {"message": "no key", "code": 401}}, {"error": {"code": 404}}])
def test_an_error_in_a_200_that_does_not_pass(server, body):
    server.reply = lambda sent: (200, body)
    with pytest.raises((PermissionError, ValueError)):
        load_llm("openai:m", tries=3).ask(HELLO)
    assert len(server.bodies) == 1


FILTERED = {
    "azure": (400, {"error": {"message": "The response was filtered", "code": "content_filter"}}),
    "aliyun": (400, {"error": {"message": "x", "code": "data_inspection_failed"}}),
    "moderation": (403, {"error": {"message": "requires moderation; your input was flagged"}}),
    "law": (451, {}),
    "finish": (200, chat(None, "content_filter")),
    "in a 200": (200, {"error": {"message": "content filtered", "code": "content_filter"}}),
    "gemini": (200, {"choices": [], "prompt_feedback": {"block_reason": "SAFETY"}}),
}


@pytest.mark.parametrize("case", FILTERED)
def test_a_filter_is_an_answer_of_its_kind(server, case):
    server.reply = lambda body: FILTERED[case]
    assert load_llm("openai:m", tries=1).answer(HELLO).fault == "filtered" and len(server.bodies) == 1


@pytest.mark.parametrize(
    "reply, text, fault",
    [
        (chat("red", "length"), "red", "cut"),
        (chat(None, "length", reasoning_content="hm"), "", "cut"),
        (chat("<think>hm"), "<think>hm", "cut"),
        (chat(""), "", "empty"),
        (chat(None, "tool_calls"), "", "empty"),
        (chat(None, refusal="I can't"), "I can't", "refused"),
        (chat([{"type": "refusal", "refusal": "no"}]), "no", "refused"),
        (chat("I'm sorry, I can't."), "I'm sorry, I can't.", "refused"),
        (
            chat(
                [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                    {"type": "text", "text": "a"},
                ]
            ),
            "a",
            "",
        ),
        (chat(["red ", {"text": "circle"}]), "red circle", ""),
        (chat([{"type": "output_text", "text": "red"}, {"type": "reasoning", "text": "hm"}]), "red", ""),
        (chat("red \ud83d"), "red \ufffd", ""),
    ],
)
def test_what_a_reply_holds(reply, text, fault):
    found = answer_of(json.dumps(reply))
    assert (found.text, found.fault) == (text, fault)


@pytest.mark.parametrize(
    "usage, tokens",
    [
        ({"prompt_tokens": 12, "completion_tokens": 3}, (12, 3)),
        ({"input_tokens": 12, "output_tokens": 3.0}, (12, 3)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (None, 0)),
        ({"prompt_tokens": True, "completion_tokens": -1}, (None, None)),
        ("none", (None, None)),
    ],
)
def test_tokens_that_nobody_counts_are_none(usage, tokens):
    assert answer_of(json.dumps(chat() | {"usage": usage}))[1:3] == tokens


def test_redirects_within_the_host_are_followed(server):
    for status in (307, 308):
        server.bodies.clear()
        server.heads.clear()
        to = {"Location": "/other/"}
        server.reply = lambda body: (status, {}, to) if len(server.bodies) == 1 else (200, chat())
        assert load_llm("openai:m", tries=1).ask(HELLO) == "hello"
        assert server.heads[1] == ("POST", "/other/", f"Bearer {KEY}")
        assert server.bodies[1] == server.bodies[0], "the same request, with its body"
    server.reply = lambda body: (307, {}, {"Location": "/again"})
    with pytest.raises(ConnectionError, match="more than 5 redirects"):
        load_llm("openai:m", tries=1).ask(HELLO)


@pytest.mark.parametrize(
    "status, to, said",
    [
        (301, "/v2/chat", r"\(HTTP 301\), to http://127.0.0.1:\d+/v2/chat; name that server in OPENAI_BASE"),
        (302, "https://elsewhere/v1", r"\(HTTP 302\), to https://elsewhere/v1"),
        (307, "http://elsewhere/v1", r"\(HTTP 307\), to http://elsewhere/v1"),
        (308, "http://127.0.0.1:9/v1", r"\(HTTP 308\), to http://127.0.0.1:9/v1"),
        (307, "http://me:secret@127.0.0.1/v1?key=secret", r"to http://127.0.0.1/v1;"),
    ],
)
def test_other_redirects_are_named_and_not_followed(server, status, to, said):
    server.reply = lambda body: (status, {}, {"Location": to})
    with pytest.raises(ValueError, match=said) as caught:
        load_llm("openai:m", tries=3).ask(HELLO)
    assert len(server.bodies) == 1 and "secret" not in str(caught.value)


def test_a_key_goes_to_https_and_never_back():
    here = "http://host:80/v1"
    assert post._same_host(here, "https://host/v1") and post._same_host(here, "http://host:80/x")
    for to in (
        "http://other:80/",
        "http://host:81/",
        "https://other/",
        "http://a@host:80/",
        "http://host:x/",
    ):
        assert not post._same_host(here, to)
    assert not post._same_host("https://host/v1", "http://host/v1")


@pytest.mark.parametrize("where", ["body", "head"])
def test_a_byte_now_and_then_does_not_last_for_ever(monkeypatch, where):
    ended = threading.Event()

    def handle(request):
        read(request)
        line = b" " if where == "body" else b"X"
        request.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if where == "body" else b""))
        while not ended.wait(0.05):
            try:
                request.wfile.write(line)
            except OSError:
                break

    with serving(handle) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="no whole answer in 0.6 s"):
            load_llm("openai:m", timeout=0.2, tries=1).ask(HELLO)
        assert time.monotonic() - began < 5
        ended.set()


def test_an_answer_of_any_size_is_not_read(server, monkeypatch):
    monkeypatch.setattr(post, "MOST_BYTES", 1000)
    server.reply = lambda body: (200, b" " * 5000) if len(server.bodies) == 1 else (200, chat())
    assert load_llm("openai:m", tries=2).ask(HELLO) == "hello"
    server.reply = lambda body: (500, b"x" * 5000)
    with pytest.raises(ConnectionError, match="an answer of more than 1000 bytes"):
        load_llm("openai:m", tries=1).ask(HELLO)


def test_nothing_is_sent_after_a_stop(server):
    stop = threading.Event()

    def reply(body):
        stop.set()
        return 503, {}, {"Retry-After": "60"}

    server.reply = reply
    with pytest.raises(ConnectionError):
        load_llm("openai:m", tries=5).answer(HELLO, stop=stop)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "secret, text, shown",
    [
        ("none", "none of the models is named m; nonexistent", None),
        ("x", "x-ray of an x", None),
        ("EMPTY", "the answer is EMPTY", None),
        ("ollama", "wrong API key provided: ollama.", "wrong API key provided: ***."),
        ("none", "Authorization: Bearer none is refused", "Authorization: Bearer *** is refused"),
        ("none", 'the key "none" is wrong; none left', 'the key "*** is wrong; none left'),
        ("abc123", "no user abc123, abc1234", "no user ***, abc1234"),
        (KEY, f"x{KEY}y", "x***y"),
    ],
)
def test_a_short_key_is_a_word_unless_it_stands_as_a_key(secret, text, shown):
    found = hide(text, secret).replace('***"', "***")
    assert found == (text if shown is None else shown)
