"""Sparse autoencoders that other packages saved, recognised by their tensors' names and converted once.

convert         FILE or folder -> our safetensors file, which `layers=NAME@sae:FILE` takes
read_published  the same in memory, with the name of the form

    SAELens              | cfg.json + sae_weights.safetensors: standard, topk, jumprelu, gated
    ViT-Prisma           | weights.pt + config.json: b_dec subtracted, scaling at run time
    saev                 | sae.pt with a line of JSON first (schema 0 to 5): b_dec not subtracted, topk
                           without ReLU, batchtopk with its learnt threshold where the file has one
    dictionary_learning  | ae.pt + config.json: AutoEncoder, AutoEncoderTopK, BatchTopKSAE, Matryoshka
                           (threshold at test time), JumpReLU and gated (features times the decoder's norms)
    Overcomplete         | a state dict: linear encoder with BatchNorm, unit decoder rows; k or threshold are
                           not in it and are given

Every form becomes W_enc, b_enc, W_dec, b_dec, threshold and an `Encoding` with the same features. A gated one
is a jumprelu with W_enc e^r, b_mag and threshold b_mag - e^r b_gate (Rajamanoharan 2024, 2404.16014, eq. 7).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from neuronym.common.files import read_json, sha256
from neuronym.models.weights import read_weights
from neuronym.runs.folders import from_root
from neuronym.sparse import Encoding, save_sae, SparseAutoencoder

SAVED_AS = ("sae_weights.safetensors", "ae.pt", "sae.pt", "weights.pt")
CONFIGS = ("cfg.json", "config.json")
SCALING_OF = {
    None: "none",
    "none": "none",
    "constant_norm_rescale": "constant_norm",
    "layer_norm": "layer_norm",
}
Parts = dict[str, Tensor]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    allow_pickle: bool = False,
    activation: str = "",
    k: int = 0,
    threshold: float | None = None,
) -> Path:
    """Write a published autoencoder as our file OUT.safetensors, with its form and checksum in the header."""
    sae, form, file = _read(source, allow_pickle, activation, k, threshold)
    return save_sae(sae, out, {"form": form, "file": file.name, "sha256": sha256(file)})


def read_published(
    source: str | Path,
    *,
    allow_pickle: bool = False,
    activation: str = "",
    k: int = 0,
    threshold: float | None = None,
) -> tuple[SparseAutoencoder, str]:
    """A published autoencoder in evaluation mode, and the name of its form.

    `source` is a file, or a folder with one of SAVED_AS; its configuration lies beside it. Files of pickled
    tensors (.pt) are read after `allow_pickle` alone, and nothing in them is run. `activation`, `k` and
    `threshold` say what a file does not. Errors: FileNotFoundError; ValueError for a form that is not known,
    or that says too little.
    """
    return _read(source, allow_pickle, activation, k, threshold)[:2]


def _read(
    source: str | Path, allow_pickle: bool, activation: str, k: int, threshold: float | None
) -> tuple[SparseAutoencoder, str, Path]:
    file = _file(source)
    tensors, header = _tensors(file, allow_pickle)
    config = header or _config(file)
    given = Encoding(activation, k) if activation else None
    told = None if threshold is None else torch.tensor(float(threshold))
    names = tensors.keys()
    if header is not None:
        form, made = "saev", _saev(tensors, header)
    elif {"encoder.weight", "decoder.weight"} <= names:
        form, made = "dictionary_learning", _linear(tensors, config, given)
    elif any(name.startswith("encoder.final_block.") for name in names):
        form, made = "overcomplete", _overcomplete(tensors, given, k, told)
    elif {"W_enc", "W_dec", "b_dec"} <= names and (_dict_class(config) or "group_sizes" in names):
        form, made = "dictionary_learning", _matrices(tensors, config)
    elif {"W_enc", "W_dec", "b_dec"} <= names:
        form = "sae_lens" if "apply_b_dec_to_input" in config else "vit_prisma"
        made = _lens(tensors, config, given)
    else:
        raise ValueError(
            f"{file} holds no sparse autoencoder of a known form; it has {', '.join(sorted(names)[:6])}, "
            "and known forms have W_enc and W_dec, encoder.weight and decoder.weight, or encoder.final_block"
        )
    parts, encoding = made
    own = parts.get("threshold")
    parts["threshold"] = told if told is not None else own
    if encoding.activation in ("relu", "topk"):
        parts["threshold"] = None
    elif encoding.activation == "batchtopk" and (
        parts["threshold"] is None or own is not None and (own < 0).any()
    ):
        if told is None:
            raise ValueError(
                f"{file} is batchtopk and has no threshold for test time (its training was too short); pass "
                "threshold=NUMBER"
            )
    floats = {name: None if value is None else value.float() for name, value in parts.items()}
    return SparseAutoencoder(encoding=encoding, **floats).eval().requires_grad_(False), form, file


def _file(source: str | Path) -> Path:
    path = from_root(source)
    if path.is_dir():
        found = next((path / name for name in SAVED_AS if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"no sparse autoencoder in {path}; it has one of {', '.join(SAVED_AS)}")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"no sparse autoencoder at {path}")
    return path


def _config(file: Path) -> dict:
    found = [read_json(file.with_name(name)) for name in CONFIGS]
    return next((config for config in found if isinstance(config, dict)), {})


def _tensors(file: Path, allow_pickle: bool) -> tuple[Parts, dict | None]:
    """Tensors by name, and the JSON line that saev writes before them."""
    if file.suffix == ".safetensors":
        return read_weights(file), None
    if not allow_pickle:
        raise ValueError(
            f"{file} holds pickled tensors, which are read on request alone; pass allow_pickle=True "
            "(tensors and plain containers are read, nothing is run)"
        )
    with open(file, "rb") as content:
        if content.read(1) != b"{":
            return read_weights(file), None
        content.seek(0)
        try:
            header = json.loads(content.readline())
            loaded = torch.load(io.BytesIO(content.read()), map_location="cpu", weights_only=True)
            return {str(name): value for name, value in loaded.items()}, dict(header)
        except Exception as error:  # what a reader raises over a damaged file may be anything
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{file} begins like a file of saev and is damaged: {said}") from error


def _saev(tensors: Parts, header: Mapping) -> tuple[Parts, Encoding]:
    """saev: features are not centred, and topk keeps what is largest, negative or not. Its batchtopk chose at
    each position by itself before it learnt a threshold, `activation.threshold`; of one that is still 0 or
    less, all that is positive counts.
    """
    schema, config = header.get("schema", 0), header.get("cfg", {})
    if schema not in range(6):
        raise ValueError(
            f"files of saev are read up to schema 5, got {schema}; save W_enc, b_enc, W_dec and b_dec as "
            "safetensors and pass activation"
        )
    said = config.get("activation", {})
    name = said.get("cls") or header.get("cls", "Relu")
    top_k = said.get("params", {}).get("top_k", config.get("top_k", 32))
    if "W_enc" in tensors:
        top_k = min(top_k, tensors["W_enc"].shape[1])
    learnt = tensors.get("activation.threshold")
    if name == "BatchTopK" and learnt is not None:
        if learnt <= 0:
            return _named(tensors), Encoding("relu", subtract=False)
        return _named(tensors) | {"threshold": learnt}, Encoding("batchtopk", top_k, subtract=False)
    if name in ("TopK", "BatchTopK"):
        return _named(tensors), Encoding("topk", top_k, subtract=False, signed=True)
    if name not in ("Relu", "SparseAutoencoderConfig"):
        raise ValueError(f"an autoencoder of saev is Relu, TopK or BatchTopK, got {name}")
    return _named(tensors), Encoding("relu", subtract=False)


def _linear(tensors: Parts, config: Mapping, given: Encoding | None) -> tuple[Parts, Encoding]:
    """dictionary_learning with linear layers: encoder.weight [D, d], decoder.weight [d, D]."""
    W_enc, W_dec = tensors["encoder.weight"].T, tensors["decoder.weight"].T
    if "gate_bias" in tensors:
        gated = {
            "W_enc": W_enc,
            "W_dec": W_dec,
            "b_dec": tensors["decoder_bias"],
            "r_mag": tensors["r_mag"],
            "b_mag": tensors["mag_bias"],
            "b_gate": tensors["gate_bias"],
        }
        return _by_norms(_ungated(gated)), Encoding("jumprelu", subtract=True)
    parts = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": tensors["encoder.bias"]}
    if "bias" in tensors:
        return parts | {"b_dec": tensors["bias"]}, Encoding("relu", subtract=True)
    if "decoder.bias" in tensors:
        return parts | {"b_dec": tensors["decoder.bias"]}, Encoding("relu", subtract=False)
    kind = _dict_class(config)
    named = {"BatchTopKSAE": "batchtopk", "AutoEncoderTopK": "topk"}.get(kind, given and given.activation)
    if named not in ("topk", "batchtopk") or "b_dec" not in tensors or not ("k" in tensors or given):
        raise ValueError(
            "AutoEncoderTopK and BatchTopKSAE have the same tensors, and config.json beside them says which; "
            f"got {kind or 'none'}; pass activation='topk' or 'batchtopk' (and k where the file has none)"
        )
    parts |= {"b_dec": tensors["b_dec"], "threshold": tensors.get("threshold")}
    return parts, Encoding(named, int(tensors["k"]) if "k" in tensors else given.k, subtract=True)


def _matrices(tensors: Parts, config: Mapping) -> tuple[Parts, Encoding]:
    """dictionary_learning with W_enc [d, D]: Matryoshka and JumpReLU."""
    if "group_sizes" in tensors or "k" in tensors:
        parts = _named(tensors) | {"threshold": tensors.get("threshold")}
        return parts, Encoding("batchtopk", int(tensors["k"]), subtract=True)
    if "threshold" not in tensors:
        raise ValueError(f"{_dict_class(config)} of dictionary_learning is not a known kind of autoencoder")
    parts = _named(tensors) | {"threshold": tensors["threshold"]}
    return _by_norms(parts), Encoding("jumprelu", subtract=False)


def _overcomplete(
    tensors: Parts, given: Encoding | None, k: int, threshold: Tensor | None
) -> tuple[Parts, Encoding]:
    """Overcomplete: linear layer and BatchNorm folded into one, a dictionary of unit rows without bias."""
    layers = "encoder.final_block."
    W, b = tensors[f"{layers}0.weight"], tensors[f"{layers}0.bias"]
    rest = [name for name in tensors if name.startswith("encoder.") and not name.startswith(layers)]
    if rest or W.ndim != 2:
        raise ValueError(
            f"an encoder of Overcomplete is read where it is linear, got {rest or list(W.shape)}"
        )
    if f"{layers}1.running_var" in tensors:
        mean, var = tensors[f"{layers}1.running_mean"], tensors[f"{layers}1.running_var"]
        scale = tensors[f"{layers}1.weight"] / (var + torch.nn.BatchNorm1d(1).eps).sqrt()
        W, b = W * scale[:, None], (b - mean) * scale + tensors[f"{layers}1.bias"]
    elif f"{layers}1.weight" in tensors:
        raise ValueError(
            "an encoder of Overcomplete is read with BatchNorm or without a norm, got another one"
        )
    rows = tensors.get("dictionary._weights")
    if rows is None:
        raise ValueError("a dictionary of Overcomplete is read from dictionary._weights, which is absent")
    W_dec = rows / (rows.norm(dim=1, keepdim=True) + 1e-8)
    parts = {"W_enc": W.T, "b_enc": b, "W_dec": W_dec, "b_dec": W.new_zeros(W_dec.shape[1])}
    if "thresholds" in tensors:
        return parts | {"threshold": tensors["thresholds"].exp()}, Encoding("jumprelu", subtract=False)
    kind = given.activation if given else "topk" if k else "batchtopk" if threshold is not None else ""
    if not kind:
        raise ValueError(
            "a state dict of Overcomplete does not say what it keeps; pass k=NUMBER (TopKSAE), "
            "threshold=NUMBER (BatchTopKSAE) or activation='relu'"
        )
    return parts, Encoding(kind, k or int(kind == "batchtopk"), subtract=False)


def _lens(tensors: Parts, config: Mapping, given: Encoding | None) -> tuple[Parts, Encoding]:
    """SAELens and ViT-Prisma, whose b_dec is subtracted unless the configuration says otherwise."""
    if not config and given is None:
        raise ValueError(
            f"W_enc and W_dec alone do not say what is kept; put {' or '.join(CONFIGS)} beside them, or pass "
            "activation='relu' or 'topk' with k"
        )
    if config.get("rescale_acts_by_decoder_norm") or "scaling_factor" in tensors:
        raise ValueError(
            "features scaled by the decoder's norms must be folded into W_enc before they are saved"
        )
    norm = config.get("normalize_activations")
    if norm not in SCALING_OF:
        raise ValueError(
            f"normalize_activations is one of {', '.join(filter(None, SCALING_OF))}, got {norm!r}; fold its "
            "factor into the weights and save it as 'none'"
        )
    how = {"subtract": bool(config.get("apply_b_dec_to_input", True)), "scaling": SCALING_OF[norm]}
    if {"r_mag", "b_mag", "b_gate"} <= tensors.keys():
        return _ungated(tensors), Encoding("jumprelu", **how)
    if config.get("architecture") == "jumprelu" or "threshold" in tensors:
        return _named(tensors) | {"threshold": tensors["threshold"]}, Encoding("jumprelu", **how)
    said = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    said = "topk" if config.get("architecture") == "topk" else said
    count = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k", 0)
    kind, count = (given.activation, given.k) if given else (said, count)
    if kind not in ("relu", "topk"):
        raise ValueError(f"an autoencoder without a threshold is relu or topk, got {kind!r}")
    return _named(tensors), Encoding(kind, int(count or 0) if kind == "topk" else 0, **how)


def _named(tensors: Parts) -> Parts:
    return {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def _ungated(tensors: Parts) -> Parts:
    """A gated encoder as a jumprelu: the gate is open where the magnitude is above a threshold."""
    scale = tensors["r_mag"].exp()
    return {
        "W_enc": tensors["W_enc"] * scale,
        "b_enc": tensors["b_mag"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        "threshold": tensors["b_mag"] - scale * tensors["b_gate"],
    }


def _by_norms(parts: Parts) -> Parts:
    """Features times their decoder rows' norms, which are then of length 1."""
    norms = parts["W_dec"].norm(dim=1)
    scaled = {name: parts[name] * norms for name in ("W_enc", "b_enc", "threshold")}
    return parts | scaled | {"W_dec": parts["W_dec"] / norms[:, None]}


def _dict_class(config: Mapping) -> str:
    trainer = config.get("trainer")
    return trainer.get("dict_class", "") if isinstance(trainer, Mapping) else ""
