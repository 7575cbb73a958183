"""OpenAI's CLIPs: openai-clip's own networks and files.

openai_module   state dict -> clip.model.CLIP in float32
openai_weights  tensors from a named file, the folder of NEURONYM_CLIP_DIR or openai-clip's own cache
text_features   its text tower, without the padding
bpe_key         hash of its tokenizer
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn, Tensor

from neuronym.common.checks import missing, openai_networks, openai_package
from neuronym.common.files import digest
from neuronym.models.identity import identity_of
from neuronym.models.weights import is_torchscript, random_start, read_weights
from neuronym.runs.folders import from_root

BPE_TOKENS = 49408


def openai_module(weights: Mapping[str, Tensor]) -> nn.Module:
    """openai-clip's module in float32 from a state dict, which tells all its sizes."""
    sizes = ("input_resolution", "context_length", "vocab_size")  # beside the weights in OpenAI's archives
    weights = {name: value for name, value in weights.items() if name not in sizes}
    if "text_projection" not in weights or "visual.conv1.weight" not in weights:
        raise ValueError(
            f"an openai-clip state dict has 'text_projection' and 'visual.conv1.weight', got "
            f"{len(weights)} tensors such as {', '.join(sorted(weights)[:3])}; else use open_clip: or hf:"
        )
    with random_start(0):
        model = openai_networks().build_model(dict(weights)).float()
    model.load_state_dict(weights)  # again: build_model has rounded everything to half precision
    return model


def openai_weights(name: str, file: str = "") -> dict[str, Tensor]:
    """Weights of the file named, else of NEURONYM_CLIP_DIR, else of openai-clip's cache; OpenAI's own are
    verified.
    """
    if file:
        return read_weights(file)
    url = openai_package().clip._MODELS[name]
    expected, official = url.split("/")[-2:]
    folder, cache = os.environ.get("NEURONYM_CLIP_DIR"), Path("~/.cache/clip").expanduser()
    plain = name.replace("/", "-")
    names = (f"{plain}.pt", official, f"{plain}.safetensors")
    places = [from_root(folder) / n for n in names] if folder else []
    found = next((place for place in [*places, cache / official] if place.is_file()), None)
    if found is None:
        raise missing(
            f"weights of openai:{name}",
            url,
            str(places[0] if places else cache / official),
            f"NEURONYM_CLIP_DIR to the folder that holds {plain}.pt",
        )
    if is_torchscript(found) and _sha256(found) != expected:
        raise ValueError(
            f"{found} must be OpenAI's file with SHA-256 {expected[:16]}..., got {_sha256(found)[:16]}"
            f"...; download {url} again, or name weights of your own as openai:{name}@FILE"
        )
    return read_weights(found)


def text_features(model: nn.Module, tokens: Tensor) -> Tensor:
    """The module's `encode_text`, run on no more tokens than the longest text has; tokens [m, context] -> [m,
    d].

    Attention looks back only, so what follows an end token cannot change it; words pass ten times faster.
    """
    ends = tokens.argmax(dim=1)  # the end token has the highest id
    length = int(ends.max()) + 1
    mask = model.build_attention_mask()[:length, :length].to(tokens.device)
    x = (model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]).transpose(
        0, 1
    )  # [T, m, w]
    for block in model.transformer.resblocks:
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
    return model.ln_final(x)[ends, torch.arange(len(tokens), device=tokens.device)] @ model.text_projection


def bpe_key(model: nn.Module) -> str:
    """16 hex for the text side's tokenizer; ValueError when the tower was made for another vocabulary."""
    from clip.simple_tokenizer import default_bpe, SimpleTokenizer

    if model.vocab_size != BPE_TOKENS:
        raise ValueError(
            f"openai-clip's tokenizer has {BPE_TOKENS} tokens, this text tower has {model.vocab_size}; "
            "use weights of an OpenAI CLIP"
        )
    return digest(identity_of(SimpleTokenizer), str(model.context_length), _sha256(Path(default_bpe())))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
