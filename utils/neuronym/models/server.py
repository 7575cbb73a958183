"""Chat completions of any OpenAI-compatible HTTP server: tries, waits, tokens; the key is shown nowhere.

openai_chat  model at OPENAI_BASE_URL -> key, ask
without_system  messages whose system message stands in the user's first one
secret_key   OPENAI_API_KEY
hide         text without a key; a key that is a word stays where it is one
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from neuronym.common.files import digest
from neuronym.common.types import Answer, Ask
from neuronym.models.post import post, Reply
from neuronym.models.replies import answer_of, error_in, filtered, not_accepted, PASS, said

OPENAI = "https://api.openai.com/v1"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between tries; doubled each time
SHOWN = 300  # characters of what a server said that an error repeats
SECRET = 16  # characters of the shortest key that is taken for a secret wherever it stands
SHORTEST = 4  # and of the shortest that is one as a word by itself, where it is none of letters alone
CHANGES = 8  # of a request that a server refuses
TOLD = {"": "left out", "max_completion_tokens": "as max_completion_tokens", "user": "in the user's message"}


def openai_chat(model: str, timeout: float, tries: int) -> tuple[str, Ask]:
    """Key of a model at its address, and ask(messages, **settings) -> Answer.

    The messages and settings go out as they are, pictures too. What the server refuses of them, a setting or
    the system's role, it is sent without from then on; `Answer.sent` tells. A content filter's refusal is an
    Answer with that fault. After `stop` is set nothing more is sent. Errors: ValueError for an address that
    is none; those of `ask` are load_llm's.
    """
    base = (os.environ.get("OPENAI_BASE_URL") or OPENAI).strip().rstrip("/")
    address = _address(base)
    who, learnt = f"openai:{model} at {address}", {}

    def ask(messages: list[dict], stop: threading.Event | None = None, **settings) -> Answer:
        secret = secret_key()  # read when needed, so that nothing holds it
        reply, tried, refused = Reply(0, "stopped"), 0, 0
        while tried < tries and not (stop is not None and stop.is_set()):
            known = dict(learnt)
            body = changed({"model": model, "messages": messages, **settings}, known)
            reply = _judged(post(f"{base}/chat/completions", body, secret, timeout))
            found = answer_of(reply.text) if reply.status == 200 else None
            told = {name: TOLD[to] for name, to in known.items() if name in settings or name == "system"}
            if found is not None:
                return found._replace(text=hide(found.text, secret), sent=told or None)
            if reply.status and filtered(reply.status, reply.text):
                return Answer(_cut(said(reply.text), secret), None, None, "filtered", told or None)
            change = not_accepted(reply.status, reply.text, body)
            if refused < CHANGES and (known != learnt or change):
                refused += 1
                if known == learnt:  # else another request has learnt something meanwhile
                    learnt.update(change)
                continue
            if not passes(reply.status):
                break
            tried += 1
            if tried < tries:
                wait = FIRST_WAIT * 2 ** (tried - 1) if reply.wait is None else reply.wait
                _rest(min(wait, LONGEST_WAIT), stop)
        # no traceback leads to the request, which holds the key
        raise _failure(reply, who, tried, secret)

    return digest("openai", model, address), ask


def passes(status: int) -> bool:
    """Whether a failure of this status may pass; 200 is that of a reply that is no chat completion."""
    return status in PASS or status == 200 or status >= 500


def changed(body: dict, changes: dict[str, str]) -> dict:
    """A request as a server accepts it: settings renamed or left out, the system's message in the user's."""
    found = {}
    for name, value in body.items():
        name = changes.get(name, name)
        name = changes.get(name, name)  # a new name may have been refused as well
        if name:
            found[name] = value
    return found | {"messages": without_system(body["messages"])} if "system" in changes else found


def without_system(messages: Sequence[dict]) -> list[dict]:
    """Messages whose system message stands before the text of the user's first one."""
    told = [message["content"] for message in messages if message["role"] in ("system", "developer")]
    rest = [dict(message) for message in messages if message["role"] not in ("system", "developer")]
    first = next((message for message in rest if message["role"] == "user"), None)
    if not told:
        return rest
    text = "\n\n".join(part for part in told if isinstance(part, str))
    if first is None:
        return [{"role": "user", "content": text}, *rest]
    content = first["content"]
    first["content"] = (
        f"{text}\n\n{content}" if isinstance(content, str) else [{"type": "text", "text": text}, *content]
    )
    return rest


def secret_key() -> str:
    """The key in OPENAI_API_KEY, "" without one; ValueError for one that no header can hold."""
    secret = os.environ.get("OPENAI_API_KEY", "").strip()
    if (
        not secret.isascii() or not secret.isprintable() or " " in secret
    ):  # http.client would repeat it in its error
        raise ValueError(
            "OPENAI_API_KEY must be printable ASCII without spaces, and is not; set it to the key alone"
        )
    return secret


def hide(text: str, secret: str) -> str:
    """Text with a key taken out, plain or as JSON writes it.

    Local servers take any word for a key ("none", "ollama"). One that is shorter than SECRET goes only where
    it stands by itself: behind a word such as "key", and anywhere if it is no word of letters alone.
    """
    for spelling in {secret, json.dumps(secret)[1:-1], secret.replace("/", "\\/")} if secret else ():
        if len(secret) >= SECRET:
            text = text.replace(spelling, "***")
            continue
        alone = rf"(?<![\w-]){re.escape(spelling)}(?![\w-])"
        if len(secret) >= SHORTEST and not secret.isalpha():
            text = re.sub(alone, "***", text)
        behind = r"((?i:\b(?:api[ _-]?key|key|token|bearer|authorization|credentials?|password)s?\b)"
        between = r"""(?:\s+(?i:is|was|provided|given|sent|of))?[\s:='"\\(\[`]{1,4})"""
        text = re.sub(behind + between + alone, r"\1***", text)
    return text


def _judged(reply: Reply) -> Reply:
    """A reply with the status of the error that it holds; 200 is left to those that hold none."""
    inner = error_in(reply.text) if reply.status == 200 and answer_of(reply.text) is None else 0
    return reply._replace(status=inner) if inner else reply


def _rest(seconds: float, stop: threading.Event | None) -> None:
    if stop is None:
        time.sleep(seconds)
    else:
        stop.wait(seconds)


def _failure(reply: Reply, who: str, tried: int, secret: str) -> Exception:
    """The error that a reply ends with."""
    status = reply.status
    if reply.to:
        to = urlsplit(reply.to)
        to = _cut(f"{to.scheme}://{to.netloc.rpartition('@')[2]}{to.path}", secret)
        return ValueError(
            f"{who} sends requests elsewhere (HTTP {status}), to {to}; name that server in "
            "OPENAI_BASE_URL, up to /chat/completions"
        )
    if status == 200:
        failure = f"HTTP 200 without a chat completion ('{_cut(reply.text, secret)}')"
    else:
        failure = _cut(f"HTTP {status} ({said(reply.text)})" if status else reply.text, secret)
    if status in (401, 403):
        return PermissionError(
            f"{who} {'refused' if secret else 'wants'} a key: {failure}; "
            f"set OPENAI_API_KEY to {'another one' if secret else 'one'}"
        )
    if not passes(status):
        return ValueError(
            f"{who} refused the request: {failure}; look at the model's name, the settings and "
            "OPENAI_BASE_URL"
        )
    return ConnectionError(
        f"{who} gave no answer in {tried} tries: {failure}; "
        "start the server, set OPENAI_BASE_URL, or wait and run again"
    )


def _cut(text: str, secret: str) -> str:
    """Text for an error: without the key, and cut only then, since half a key is too much as well."""
    text = hide(text, secret)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _address(base: str) -> str:
    """Host, port and path of a server, without the user and password that a URL may hold."""
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts = host = port = None
    plain = (
        base.isascii() and base.isprintable() and not set(base) & set(" @?#")
    )  # "@" follows user and password
    if not host or not plain or parts.scheme not in ("http", "https"):
        raise ValueError(
            "OPENAI_BASE_URL must be http(s)://HOST[:PORT]/PATH without user, query or fragment, and is "
            f"not; for example {OPENAI}"
        )
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"
