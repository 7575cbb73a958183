"""Chat completions of any OpenAI-compatible HTTP server: tries, waits, tokens; the key is shown nowhere.

openai_chat  model at OPENAI_BASE_URL -> key, ask
secret_key   OPENAI_API_KEY
hide         text without a key
hide_long    the same, where a key that is too short to be a secret may be a word
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import time
import urllib.request
from urllib.parse import urlsplit

from neuronym.common.files import digest
from neuronym.common.types import Ask

OPENAI = "https://api.openai.com/v1"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between tries; doubled each time
SHOWN = 300  # characters of what a server said that an error repeats
SECRET = 16  # characters of the shortest key that is taken for a secret


def openai_chat(model: str, timeout: float, tries: int) -> tuple[str, Ask]:
    """Key of a model at its address, and ask(messages, **settings) -> (answer, prompt tokens, answer tokens).

    The messages and settings go out as they are, pictures too; tokens that the server does not count are 0.
    Errors: ValueError for an address that is none; those of `ask` are load_llm's.
    """
    base = (os.environ.get("OPENAI_BASE_URL") or OPENAI).strip().rstrip("/")
    address = _address(base)

    def ask(messages: list[dict], **settings) -> tuple[str, int, int]:
        secret = secret_key()  # read when needed, so that nothing holds it
        body = {"model": model, "messages": messages, **settings}
        failure = ""
        for i in range(tries):
            status, reply, wait = _post(f"{base}/chat/completions", body, secret, timeout)
            if status == 200:
                return _answer(reply, f"openai:{model} at {address}", secret)
            failure = _cut(f"HTTP {status} ({_said(reply)})" if status else reply, secret)
            if status and status != 429 and status < 500:
                break
            if i + 1 < tries:
                time.sleep(min(FIRST_WAIT * 2**i if wait is None else wait, LONGEST_WAIT))
        # no traceback leads to the request, which holds the key
        if status in (401, 403):
            raise PermissionError(
                f"openai:{model} at {address} {'refused' if secret else 'wants'} a key: {failure}; "
                f"set OPENAI_API_KEY to {'another one' if secret else 'one'}"
            )
        if status and status != 429 and status < 500:
            raise ValueError(
                f"openai:{model} at {address} refused the request: {failure}; look at the model's name, "
                "the settings and OPENAI_BASE_URL"
            )
        raise ConnectionError(
            f"openai:{model} at {address} gave no answer in {tries} tries: {failure}; "
            "start the server, set OPENAI_BASE_URL, or wait and run again"
        )

    return digest("openai", model, address), ask


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
    """Text with a key taken out, plain or as JSON writes it."""
    for spelling in {secret, json.dumps(secret)[1:-1], secret.replace("/", "\\/")} if secret else ():
        text = text.replace(spelling, "***")
    return text


def hide_long(text: str, secret: str) -> str:
    """What `hide` gives for a key that is a secret; the short words that a local server wants are ones of
    answers.
    """
    return hide(text, secret) if len(secret) >= SECRET else text


def _post(url: str, body: dict, secret: str, timeout: float) -> tuple[int, str, float | None]:
    """Status, body and asked-for wait of one request; status 0 and a reason when the server could not be
    talked to.
    """
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if secret:  # not sent on to where a server redirects
        request.add_unredirected_header("Authorization", f"Bearer {secret}")
    # a proxy does not reach this machine's own servers
    proxy = (
        [urllib.request.ProxyHandler({})]
        if urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        else []
    )
    try:
        try:
            with urllib.request.build_opener(*proxy).open(request, timeout=timeout) as answer:
                return answer.status, answer.read().decode("utf-8", "replace"), None
        except urllib.error.HTTPError as error:
            with error:
                return (
                    error.code,
                    error.read().decode("utf-8", "replace"),
                    _wait(error.headers.get("Retry-After")),
                )
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return 0, f"silent for {timeout:g} s", None
        return 0, f"no connection ({str(reason) or type(reason).__name__})", None


def _answer(reply: str, who: str, secret: str) -> tuple[str, int, int]:
    """Text and tokens of a chat completion."""
    try:
        read = json.loads(reply)
        choice = read["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(
            f"a chat completion is JSON with choices[0].message.content, got from {who}: "
            f"'{_cut(reply, secret)}'; look at OPENAI_BASE_URL"
        ) from None
    if not isinstance(content, str):  # a refusal, or a call of a tool
        raise ValueError(
            f"an answer is text, got {_cut(json.dumps(choice), secret)} from {who}; ask otherwise"
        )
    usage = read.get("usage")
    tokens = [
        usage.get(f"{part}_tokens") if isinstance(usage, dict) else None for part in ("prompt", "completion")
    ]
    prompt, answered = (n if isinstance(n, int) and n >= 0 else 0 for n in tokens)
    return hide_long(content.strip(), secret), prompt, answered


def _said(reply: str) -> str:
    """What a server said of an error: its message where it sent one, else the beginning of its page."""
    try:
        said = json.loads(reply)
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
    except ValueError:
        said = reply
    return " ".join(str(said).split()) or "no reason given"


def _wait(header: str | None) -> float | None:
    """Seconds in a Retry-After header, which are a number or a date; None for anything else."""
    try:
        seconds = float(header) if header else None
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return None if seconds is None or seconds != seconds else max(seconds, 0.0)


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
