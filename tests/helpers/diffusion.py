"""A stand-in for a diffusers pipeline."""

from __future__ import annotations

from types import SimpleNamespace


def scheduler(betas, source):
    return SimpleNamespace(config={"betas": betas, "_name_or_path": source})


def tokenizer(words):
    return SimpleNamespace(get_vocab=lambda: words, init_kwargs={})
