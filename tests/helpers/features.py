"""Random sparse autoencoders as files."""

from __future__ import annotations

from pathlib import Path

import torch

from neuronym.sparse import Encoding, save_sae, SparseAutoencoder

D = 13


def written(folder: Path, d: int, seed: int = 0, name: str = "a", **how) -> str:
    """NAMEd.safetensors of a layer of width d, TopK of D features unless told otherwise."""
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(shape, generator=g) for shape in ((d, D), (D,), (D, d), (d,))]
    encoding = Encoding(**{"activation": "topk", "k": 4} | how)
    return str(save_sae(SparseAutoencoder(*parts, encoding), folder / f"{name}{d}.safetensors"))
