"""Sparse autoencoders trained on a layer's positions, and what they are worth there.

layer_positions  activations of a layer at every position of every image
train_sae        positions -> a TopK or BatchTopK autoencoder
untrained_sae    the same before its first step
shuffled_decoder the same with its decoder's rows dealt anew
sae_quality      explained variance, features at a position, dead features
spliced_outputs  the network's outputs with the layer replaced by its reconstruction

Loss and revival of dead features are those of Gao et al. 2024 (2406.04093, sections 2 and A.2); the test-time
threshold of BatchTopK is that of Bussmann et al. 2024 (2412.06410, eq. 5).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn, Tensor

from neuronym.common.checks import check_positive_int
from neuronym.common.memory import slices
from neuronym.common.types import Device, Progress, Target
from neuronym.datasets.probe import batches, Probe
from neuronym.hooks import edit, record
from neuronym.layouts import LayerInfo, LAYOUTS
from neuronym.passes import inference_of
from neuronym.sparse import Encoding, reconstruction_of, SparseAutoencoder

REVIVED = 1 / 32  # weight of the loss that revives dead features (Gao et al. 2024, A.2)
BLOCK = 4096  # positions encoded at a time


@torch.no_grad()
def layer_positions(
    target: Target, layer: LayerInfo, probe: Probe, batch_size: int = 64, device: Device = None
) -> Tensor:
    """A layer's activations at every position of every image: [N positions, d], image after image, float32 on
    the CPU; 4 N positions d bytes.
    """
    _, batch_axis, unit_axis = LAYOUTS[layer.layout]
    parts = []
    with inference_of(target, device) as place, record(target.model, [layer.name]) as acts:
        for _, (images,) in batches(probe, [target.preprocess], batch_size):
            found = []
            for piece in place(images):
                target.model(piece)
                rows = acts[layer.name].float().movedim((batch_axis, unit_axis), (0, -1))
                found.append(rows.reshape(len(rows), -1, layer.units).cpu())
            parts.append(torch.cat(found)[: len(images)].flatten(0, 1))
    return torch.cat(parts)


def untrained_sae(
    X: Tensor, D: int, activation: str, k: int, generator: torch.Generator | None = None
) -> SparseAutoencoder:
    """Random decoder rows of length 1, an encoder that is their transpose, b_dec the mean of X [n, d]; the
    threshold of batchtopk is found on X.
    """
    check_positive_int("D", D)
    W_dec = nn.functional.normalize(torch.randn(D, X.shape[1], generator=generator).to(X), dim=1)
    sae = SparseAutoencoder(W_dec.T, X.new_zeros(D), W_dec, X.mean(0), Encoding(activation, k))
    _find_threshold(sae, X)
    return sae.eval().requires_grad_(False)


def train_sae(
    X: Tensor,
    D: int,
    activation: str = "topk",
    k: int = 16,
    *,
    steps: int = 2000,
    batch: int = 1024,
    rate: float = 1e-3,
    dead_after: int = 200,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> SparseAutoencoder:
    """Train D features on positions X [n, d] by Adam, k of them at a position ("topk") or on average
    ("batchtopk").

    The loss is the squared error over the variance, plus `REVIVED` times the same of what is left, explained
    by the 2 k strongest features that have not fired for `dead_after` steps. Decoder rows keep length 1; the
    rate falls to zero over the last fifth. `generator` is one of the CPU.
    """
    if activation not in ("topk", "batchtopk"):
        raise ValueError(f"trained are topk and batchtopk, got {activation!r}")
    for name, value in (("steps", steps), ("batch", batch), ("dead_after", dead_after)):
        check_positive_int(name, value)
    scale = (X - X.mean(0)).square().mean().sqrt()
    if not bool(scale > 0):
        raise ValueError(f"activations that do not vary have no features, got {list(X.shape)} equal ones")
    scaled = X / scale
    sae = untrained_sae(scaled, D, activation, k, generator).train().requires_grad_(True)
    adam = torch.optim.Adam(sae.parameters(), rate)
    silent = torch.zeros(D, dtype=torch.long, device=X.device)
    for step in progress(range(steps), steps, f"training {activation}") if progress else range(steps):
        for group in adam.param_groups:
            group["lr"] = rate * min(1, 5 * (1 - step / steps))
        x = scaled[torch.randint(len(X), (batch,), generator=generator).to(X.device)]
        z = sae.encode(x)
        error = x - sae.decode(z)
        variance = (x - x.mean(0)).square().mean()
        loss = error.square().mean() / variance
        dead = silent >= dead_after
        if dead.any():
            loss = loss + REVIVED * _left(sae, x, error.detach(), dead, 2 * k) / variance
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            sae.W_dec.copy_(nn.functional.normalize(sae.W_dec, dim=1))
            silent = torch.where((z > 0).any(0), 0, silent + 1)
    with torch.no_grad():  # back in the units of X: features grow by the scale, decoder rows stay of length 1
        sae.b_enc.mul_(scale)
        sae.b_dec.mul_(scale)
    _find_threshold(sae, X)
    return sae.eval().requires_grad_(False)


def shuffled_decoder(sae: SparseAutoencoder, generator: torch.Generator | None = None) -> SparseAutoencoder:
    """The same features, each with the decoder row of another: a control of what is put back."""
    order = torch.randperm(sae.D, generator=generator).to(sae.W_dec.device)
    parts = (sae.W_enc, sae.b_enc, sae.W_dec[order], sae.b_dec)
    return SparseAutoencoder(*parts, sae.encoding, sae.threshold).eval().requires_grad_(False)


@torch.no_grad()
def sae_quality(sae: SparseAutoencoder, X: Tensor) -> dict[str, float]:
    """On positions X [n, d]: explained_variance 1 - |x - x'|^2 / |x - mean|^2, l0 (features above 0 at a
    position), dead (share of features that never are).
    """
    left, fired, count = 0.0, torch.zeros(sae.D, dtype=torch.bool, device=X.device), 0
    for rows in slices(len(X), BLOCK):
        z = sae.encode(X[rows])
        left += float((X[rows] - sae.decode(z, X[rows])).double().square().sum())
        fired |= (z > 0).any(0)
        count += int((z > 0).sum())
    total = float((X - X.mean(0)).double().square().sum())
    return {
        "explained_variance": 1 - left / total,
        "l0": count / len(X),
        "dead": float((~fired).double().mean()),
    }


@torch.no_grad()
def spliced_outputs(
    target: Target,
    layer: LayerInfo,
    saes: Sequence[SparseAutoencoder | None],
    probe: Probe,
    batch_size: int = 64,
    device: Device = None,
) -> list[Tensor]:
    """Outputs [N, C] of the network with the layer replaced by each autoencoder's reconstruction of it; None
    leaves it as it is.
    """
    parts: list[list[Tensor]] = [[] for _ in saes]
    with inference_of(target, device) as place:
        for _, (images,) in batches(probe, [target.preprocess], batch_size):
            for sae, outputs in zip(saes, parts):
                edits = {} if sae is None else {layer.name: lambda x, sae=sae: reconstruction_of(sae, x)}
                with edit(target.model, edits):
                    found = torch.cat([target.model(piece).float().cpu() for piece in place(images)])
                outputs.append(found[: len(images)])
    return [torch.cat(outputs) for outputs in parts]


def _left(sae: SparseAutoencoder, x: Tensor, error: Tensor, dead: Tensor, k: int) -> Tensor:
    """Mean squared error of what the strongest dead features make of the error."""
    pre = sae.pre_activations(x).relu()[:, dead]
    best = pre.topk(min(k, pre.shape[1]), dim=1)
    z = torch.zeros_like(pre).scatter(1, best.indices, best.values)
    return (error - z @ sae.W_dec[dead]).square().mean()


@torch.no_grad()
def _find_threshold(sae: SparseAutoencoder, X: Tensor) -> None:
    """The mean over blocks of the smallest feature that training keeps."""
    if sae.encoding.activation != "batchtopk":
        return
    sae.train()
    kept = [sae.encode(X[rows]) for rows in slices(len(X), BLOCK)]
    sae.threshold = torch.stack([z[z > 0].min() for z in kept if bool((z > 0).any())]).mean()
