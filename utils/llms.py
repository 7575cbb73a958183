"""Language models by name: chat messages in, the answer's text out.

load_llm   name -> Llm
LLMS       name up to the colon -> loader
Llm        what is loaded

    openai:MODEL   any OpenAI-compatible server: its address from OPENAI_BASE_URL (OpenAI's own by default), the key
                   from OPENAI_API_KEY, which a server on this machine may not need
    hf:ID          a chat model of transformers, from a Hugging Face id or a folder, with its own chat template
"""
from __future__ import annotations

import email.utils
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import torch

from utils.errors import unknown
from utils.sentences import quiet_transformers, tokenizer_key
from utils.weights import digest, identity, random_start

OPENAI = "https://api.openai.com/v1"
TIMEOUT = 120.  # seconds of a server's silence
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = .5, 60.  # seconds between tries; doubled each time
SHOWN = 300  # characters of what a server said that an error repeats


@dataclass
class Llm:
    """ask(messages, *, temperature=0., top_p=1., max_tokens=256, seed=0) -> answer, without white space around it.

    Messages are dicts of role ("system", "user", "assistant") and content; temperature 0 takes the likeliest token.
    """
    name: str
    key: str  # stands for all that determines an answer besides ask's arguments
    ask: Callable[..., str]


def load_llm(name: str, device: str | torch.device = "cpu", timeout: float = TIMEOUT, tries: int = TRIES) -> Llm:
    """Load a language model by name (see the module's text); `timeout` and `tries` are for servers.

    Errors: KeyError for an unknown name, FileNotFoundError for absent weights, ValueError for a model without a chat
    template or an address that is none. `ask` raises ValueError for messages it cannot send and answers it cannot
    read, PermissionError for a key that is absent or refused, ConnectionError when all tries failed.
    """
    kind, _, rest = name.partition(":")
    if kind not in LLMS or not rest:
        raise unknown("llm", name, ["openai:MODEL", "hf:ID"])
    if timeout <= 0 or tries < 1:
        raise ValueError(f"a server gets at least one try and some time, got tries={tries}, timeout={timeout}; "
                         f"leave them out for {TRIES} and {TIMEOUT:g}")
    llm = LLMS[kind](rest, torch.device(device), timeout, tries)
    return replace(llm, name=name, ask=_checked(llm.ask))


def _openai(model: str, device: torch.device, timeout: float, tries: int) -> Llm:
    base = (os.environ.get("OPENAI_BASE_URL") or OPENAI).strip().rstrip("/")
    address = _address(base)

    def ask(messages: list[dict], **settings) -> str:
        secret = _secret()  # read when needed, so that nothing holds it
        body = {"model": model, "messages": messages, **settings}
        failure = ""
        for i in range(tries):
            status, reply, wait = _post(f"{base}/chat/completions", body, secret, timeout)
            if status == 200:
                return _content(reply, f"openai:{model} at {address}", secret)
            failure = _hide(f"HTTP {status} ({_said(reply)})" if status else reply, secret)
            if status and status != 429 and status < 500:
                break
            if i + 1 < tries:
                time.sleep(min(FIRST_WAIT * 2**i if wait is None else wait, LONGEST_WAIT))
        # no traceback leads to the request, which holds the key
        if status in (401, 403):
            raise PermissionError(f"openai:{model} at {address} {'refused' if secret else 'wants'} a key: {failure}; "
                                  f"set OPENAI_API_KEY to {'another one' if secret else 'one'}")
        if status and status != 429 and status < 500:
            raise ValueError(f"openai:{model} at {address} refused the request: {failure}; look at the model's name, "
                             "the settings and OPENAI_BASE_URL")
        raise ConnectionError(f"openai:{model} at {address} gave no answer in {tries} tries: {failure}; "
                              "start the server, set OPENAI_BASE_URL, or wait and run again")

    return Llm("", digest("openai", model, address), ask)


def _hf(source: str, device: torch.device, timeout: float, tries: int) -> Llm:
    import transformers
    from jinja2 import TemplateError

    source = str(Path(source).expanduser()) if source.startswith("~") else source
    own = {} if int(transformers.__version__.split(".")[0]) >= 5 else {"torch_dtype": "auto"}  # the checkpoint's type
    try:
        with quiet_transformers(), random_start(0):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            model = transformers.AutoModelForCausalLM.from_pretrained(source, **own)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"hf:{source} could not be loaded ({reason}); download it where there is network and "
                                "name its folder as hf:PATH, or set HF_HOME to a cache with it") from error
    if not tokenizer.chat_template:
        raise ValueError(f"a chat model's tokenizer has a chat template, that of hf:{source} has none; name an "
                         "instruct or chat model")
    key = identity(model, None, tokenizer_key(tokenizer), repr(tokenizer.chat_template),
                   model.generation_config.to_json_string(), "top_k=0")
    model = model.eval().requires_grad_(False).to(device)
    longest = getattr(model.config, "max_position_embeddings", None)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    one_at_a_time = threading.Lock()  # sampling takes its seed from torch's own generator

    def ask(messages: list[dict], temperature: float, top_p: float, max_tokens: int, seed: int) -> str:
        try:
            tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True,
                                                   return_tensors="pt").to(device)
        except TemplateError as error:
            raise ValueError(f"messages must suit the chat template of hf:{source}, which says: {error}; "
                             "try one user message") from error
        length = tokens["input_ids"].shape[1]
        if longest is not None and length >= longest:
            raise ValueError(f"hf:{source} reads fewer than {longest} tokens, got {length}; send shorter messages")
        room = max_tokens if longest is None else min(max_tokens, longest - length)
        # the values of "greedy" are transformers' neutral ones: version 4 warns about a folder's own
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else \
            {"do_sample": False, "temperature": 1., "top_p": 1., "top_k": 50}
        cuda = [device] if device.type == "cuda" else []
        with one_at_a_time, torch.no_grad(), torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            for one in cuda:
                with torch.cuda.device(one):
                    torch.cuda.manual_seed(seed)
            ids = model.generate(**tokens, max_new_tokens=room, num_beams=1, pad_token_id=pad, **how)[0, length:]
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    return Llm("", key, ask)


LLMS: dict[str, Callable[[str, torch.device, float, int], Llm]] = {"openai": _openai, "hf": _hf}


def _checked(ask: Callable[..., str]) -> Callable[..., str]:
    def checked(messages: list[dict], *, temperature: float = 0., top_p: float = 1., max_tokens: int = 256,
                seed: int = 0) -> str:
        if not isinstance(messages, (list, tuple)) or not messages or not all(
                isinstance(m, dict) and set(m) == {"role", "content"} and isinstance(m["content"], str)
                for m in messages):
            raise ValueError('messages are a list of dicts of role and content, both texts, got '
                             f'{messages!r:.80}; write [{{"role": "user", "content": "..."}}]')
        if not temperature >= 0 or not 0 < top_p <= 1 or max_tokens < 1:
            raise ValueError(f"temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1, got {temperature}, {top_p} and "
                             f"{max_tokens}; leave them out for 0, 1 and 256")
        return ask(list(messages), temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)

    return checked


def _post(url: str, body: dict, secret: str, timeout: float) -> tuple[int, str, float | None]:
    """Status, body and asked-for wait of one request; status 0 and a reason when the server could not be talked to."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if secret:  # not sent on to where a server redirects
        request.add_unredirected_header("Authorization", f"Bearer {secret}")
    # a proxy does not reach this machine's own servers
    proxy = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1") else []
    try:
        try:
            with urllib.request.build_opener(*proxy).open(request, timeout=timeout) as answer:
                return answer.status, answer.read().decode("utf-8", "replace"), None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8", "replace"), _wait(error.headers.get("Retry-After"))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return 0, f"silent for {timeout:g} s", None
        return 0, f"no connection ({str(reason) or type(reason).__name__})", None


def _content(reply: str, who: str, secret: str) -> str:
    """The text in a chat completion."""
    try:
        choice = json.loads(reply)["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"a chat completion is JSON with choices[0].message.content, got from {who}: "
                         f"'{_hide(reply, secret)}'; look at OPENAI_BASE_URL") from None
    if not isinstance(content, str):  # a refusal, or a call of a tool
        raise ValueError(f"an answer is text, got {_hide(json.dumps(choice), secret)} from {who}; "
                         "ask otherwise")
    return content.strip()


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
    return None if seconds is None or seconds != seconds else max(seconds, 0.)


def _secret() -> str:
    secret = os.environ.get("OPENAI_API_KEY", "").strip()
    if not secret.isascii() or not secret.isprintable() or " " in secret:  # http.client would repeat it in its error
        raise ValueError("OPENAI_API_KEY must be printable ASCII without spaces, and is not; set it to the key alone")
    return secret


def _hide(text: str, secret: str) -> str:
    """Text with the key taken out, plain or as JSON writes it, and cut only then: half a key is too much as well."""
    for spelling in {secret, json.dumps(secret)[1:-1], secret.replace("/", "\\/")} if secret else ():
        text = text.replace(spelling, "***")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _address(base: str) -> str:
    """Host, port and path of a server, without the user and password that a URL may hold."""
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts = host = port = None
    plain = base.isascii() and base.isprintable() and not set(base) & set(" @?#")  # "@" follows user and password
    if not host or not plain or parts.scheme not in ("http", "https"):
        raise ValueError("OPENAI_BASE_URL must be http(s)://HOST[:PORT]/PATH without user, query or fragment, and is "
                         f"not; for example {OPENAI}")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"
