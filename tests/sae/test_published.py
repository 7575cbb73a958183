"""Published autoencoders: small modules of each form, saved as their packages do, held to a plain forward."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn, Tensor

from neuronym.sae.published import convert, read_published
from neuronym.sparse import load_sae

d, D, K = 5, 12, 3
WIDTHS = {"W_enc": (d, D), "b_enc": (D,), "W_dec": (D, d), "b_dec": (d,)}


def tensors(**more: tuple[int, ...]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(11)
    return {name: torch.randn(shape, generator=g) * 0.7 for name, shape in (WIDTHS | more).items()}


def data() -> Tensor:
    return torch.randn(40, d, generator=torch.Generator().manual_seed(12))


def largest(pre: Tensor, k: int = K) -> Tensor:
    return torch.where(pre >= pre.sort(dim=1, descending=True).values[:, k - 1 : k], pre, torch.zeros(()))


def config(folder: Path, name: str, **said) -> None:
    (folder / name).write_text(json.dumps(said))


def sae_lens(folder: Path, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    w = tensors(**{"threshold": (D,)} if kind == "jumprelu" else {})
    save_file(w, folder / "sae_weights.safetensors")
    said = {"architecture": "standard" if kind == "relu" else kind, "apply_b_dec_to_input": kind == "relu"}
    said |= {"normalize_activations": "layer_norm" if kind == "topk" else "none"}
    config(folder, "cfg.json", **said, k=K)
    mean, deviation = (x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5) if kind == "topk" else (0, 1)
    y = (x - mean) / deviation
    pre = (y - w["b_dec"] if kind == "relu" else y) @ w["W_enc"] + w["b_enc"]
    z = pre.relu()
    if kind == "jumprelu":
        z = z * (pre > w["threshold"])
    elif kind == "topk":
        z = largest(z)
    return z, (z @ w["W_dec"] + w["b_dec"]) * deviation + mean


def prisma(folder: Path, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    w = tensors(**{"r_mag": (D,), "b_mag": (D,), "b_gate": (D,)} if kind == "gated" else {})
    torch.save({"state_dict": w}, folder / "weights.pt")
    config(folder, "config.json", normalize_activations="constant_norm_rescale", activation_fn_str="relu")
    scale = d**0.5 / x.norm(dim=1, keepdim=True)
    y = x * scale - w["b_dec"]
    if kind == "gated":
        gate = (y @ w["W_enc"] + w["b_gate"] > 0).float()
        z = gate * (y @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    else:
        z = (y @ w["W_enc"] + w["b_enc"]).relu()
    return z, (z @ w["W_dec"] + w["b_dec"]) / scale


def saev(folder: Path, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    w = tensors()
    headers = {
        "0": {"d_vit": d, "exp_factor": 2, "seed": 0},
        "1a": {"schema": 1, "cls": "TopK", "cfg": {"d_vit": d, "top_k": K}},
        "1b": {"schema": 1, "cfg": {"activation": {"cls": "Relu", "params": {}}}},
        "2": {"schema": 2, "cfg": {"activation": {"cls": "BatchTopK", "params": {"top_k": K}}}},
        "3": {"schema": 3, "cfg": {"activation": {"cls": "TopK", "params": {"top_k": K, "sparsity": {}}}}},
        "4": {"schema": 4, "cfg": {"activation": {"cls": "Relu", "params": {"sparsity": {"coeff": 4e-4}}}}},
    }
    sparsity = {"cls": "NoSparsity", "params": {"key": "no-sparsity"}}
    params = {"key": "batch-top-k", "top_k": K, "sparsity": sparsity, "momentum": 0.1}
    said = {"d_model": d, "d_sae": D, "activation": {"cls": "BatchTopK", "params": params}}
    headers |= dict.fromkeys(("5", "5, not learnt"), {"schema": 5, "cfg": said})
    if kind.startswith("5"):
        w["activation.threshold"] = torch.tensor(0.6 if kind == "5" else 0.0)
    with open(folder / "sae.pt", "wb") as file:
        file.write(json.dumps(headers[kind]).encode() + b"\n")
        torch.save(w, file)
    pre = x @ w["W_enc"] + w["b_enc"]
    z = pre.relu() if kind in ("0", "1b", "4", "5, not learnt") else largest(pre)
    z = torch.where(pre > 0.6, pre, torch.zeros(())) if kind == "5" else z
    return z, z @ w["W_dec"] + w["b_dec"]


def linear(folder: Path, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """dictionary_learning, with linear layers."""
    w = tensors(r_mag=(D,), gate_bias=(D,), mag_bias=(D,))
    state = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous()}
    bias = {"relu": "bias", "new": "decoder.bias", "gated": "decoder_bias"}.get(kind, "b_dec")
    state[bias] = w["b_dec"]
    if kind == "gated":
        state |= {name: w[name] for name in ("r_mag", "gate_bias", "mag_bias")}
    else:
        state["encoder.bias"] = w["b_enc"]
    if kind in ("topk", "batchtopk"):
        state |= {"k": torch.tensor(K), "threshold": torch.tensor(0.6)}
        names = {"topk": "AutoEncoderTopK", "batchtopk": "BatchTopKSAE"}
        config(folder, "config.json", trainer={"dict_class": names[kind]})
    torch.save(state, folder / "ae.pt")
    y = x @ w["W_enc"] if kind == "new" else (x - w["b_dec"]) @ w["W_enc"]
    z = (y + w["b_enc"]).relu()
    if kind == "topk":
        z = largest(z)
    elif kind == "batchtopk":
        z = z * (z > 0.6)
    elif kind == "gated":
        z = (y + w["gate_bias"] > 0).float() * (w["r_mag"].exp() * y + w["mag_bias"]).relu()
    out = z @ w["W_dec"] + w["b_dec"]
    return z * w["W_dec"].norm(dim=1) if kind == "gated" else z, out


def matrices(folder: Path, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """dictionary_learning, with matrices."""
    w = tensors(threshold=(D,) if kind == "jumprelu" else ())
    if kind == "matryoshka":
        w |= {"threshold": torch.tensor(0.4), "k": torch.tensor(K), "group_sizes": torch.tensor([4, D - 4])}
    torch.save(w, folder / "ae.pt")
    names = {"jumprelu": "JumpReluAutoEncoder", "matryoshka": "MatryoshkaBatchTopKSAE"}
    config(folder, "config.json", trainer={"dict_class": names[kind]})
    if kind == "jumprelu":
        pre = x @ w["W_enc"] + w["b_enc"]
        z = (pre * (pre > w["threshold"])).relu()
    else:
        z = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        z = z * (z > 0.4)
    out = z @ w["W_dec"] + w["b_dec"]
    return z * w["W_dec"].norm(dim=1) if kind == "jumprelu" else z, out


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.final_block = nn.Sequential(nn.Linear(d, D), nn.BatchNorm1d(D))


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self._weights = nn.Parameter(torch.empty(D, d))


class Overcomplete(nn.Module):
    """Linear layer, BatchNorm, ReLU; a dictionary without bias, its rows brought to length 1."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.encoder, self.dictionary = kind, Block(), Dictionary()
        if kind == "jumprelu":
            self.thresholds = nn.Parameter(torch.empty(D))
        g = torch.Generator().manual_seed(13)
        with torch.no_grad():
            for name, value in self.state_dict().items():
                if value.is_floating_point():
                    draw = torch.randn(value.shape, generator=g)
                    value.copy_(draw.abs() + 0.5 if name.endswith("running_var") else draw)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder.final_block(x).relu()
        if self.kind == "topk":
            z = largest(z)
        elif self.kind == "batchtopk":
            z = z * (z >= 0.5)
        elif self.kind == "jumprelu":
            z = z * (z >= self.thresholds.exp())
        return z, z @ (self.dictionary._weights / (self.dictionary._weights.norm(dim=1, keepdim=True) + 1e-8))


def overcomplete(folder: Path, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    model = Overcomplete(kind).eval()
    torch.save(model.state_dict(), folder / "sae.pt")
    with torch.no_grad():
        return model(x)


FORMS = [
    *((sae_lens, "sae_lens", kind, {}) for kind in ("relu", "topk", "jumprelu")),
    *((prisma, "vit_prisma", kind, {}) for kind in ("relu", "gated")),
    *((saev, "saev", kind, {}) for kind in ("0", "1a", "1b", "2", "3", "4", "5", "5, not learnt")),
    *((linear, "dictionary_learning", kind, {}) for kind in ("relu", "new", "topk", "batchtopk", "gated")),
    *((matrices, "dictionary_learning", kind, {}) for kind in ("jumprelu", "matryoshka")),
    (overcomplete, "overcomplete", "relu", {"activation": "relu"}),
    (overcomplete, "overcomplete", "topk", {"k": K}),
    (overcomplete, "overcomplete", "batchtopk", {"threshold": 0.5}),
    (overcomplete, "overcomplete", "jumprelu", {}),
]


@pytest.mark.parametrize("write, form, kind, given", FORMS, ids=[f"{f[1]}-{f[2]}" for f in FORMS])
def test_every_form_gives_what_its_own_forward_gives(tmp_path, write: Callable, form, kind, given):
    x = data()
    z, out = write(tmp_path, x, kind)
    sae, told = read_published(tmp_path, allow_pickle=True, **given)
    assert told == form
    torch.testing.assert_close(sae.encode(x), z)
    torch.testing.assert_close(sae(x), out)
    assert 0 < int((z != 0).sum()) < z.numel()
    ours = load_sae(convert(tmp_path, tmp_path / "ours.safetensors", allow_pickle=True, **given))
    torch.testing.assert_close(ours.encode(x), z)
    torch.testing.assert_close(ours(x), out)


def test_pickled_tensors_are_read_on_request_alone(tmp_path):
    linear(tmp_path, data(), "relu")
    with pytest.raises(ValueError, match="pass allow_pickle=True"):
        read_published(tmp_path)


def test_what_a_pickle_would_run_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for name, before in (("ae.pt", b""), ("sae.pt", b'{"schema": 2}\n')):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(before + pickle.dumps({"W_enc": Attack()}))
        with pytest.raises(ValueError):
            read_published(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def refused(tmp_path: Path, said: str, **given) -> None:
    with pytest.raises(ValueError, match=said):
        read_published(tmp_path, allow_pickle=True, **given)


def test_files_that_say_too_little_are_one_sentence(tmp_path):
    linear(tmp_path, data(), "topk")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "config.json beside them says which; got none; pass activation")
    assert read_published(tmp_path, allow_pickle=True, activation="topk")[0].encoding.k == K


def test_a_batchtopk_that_never_learnt_its_threshold(tmp_path):
    w = tensors() | {"threshold": torch.tensor(-1.0), "k": torch.tensor(K), "group_sizes": torch.tensor([D])}
    torch.save(w, tmp_path / "ae.pt")
    refused(tmp_path, "has no threshold for test time .* pass threshold=NUMBER")
    assert float(read_published(tmp_path, allow_pickle=True, threshold=0.3)[0].threshold) == pytest.approx(
        0.3
    )


def test_other_files_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no sparse autoencoder in .* it has one of"):
        read_published(tmp_path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "sae_weights.safetensors")
    refused(tmp_path, "no sparse autoencoder of a known form; it has weight")
    save_file(tensors(), tmp_path / "sae_weights.safetensors")
    refused(tmp_path, "alone do not say what is kept")
    config(tmp_path, "cfg.json", normalize_activations="expected_average_only_in")
    refused(tmp_path, "got 'expected_average_only_in'; fold its factor")
    overcomplete(tmp_path, data(), "topk")
    (tmp_path / "sae_weights.safetensors").unlink()
    refused(tmp_path, "does not say what it keeps; pass k=NUMBER")
