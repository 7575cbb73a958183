"""The microworld's network and CLIP on 60 images, and what was seen there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from neuronym.activations import activations_and_embeddings
from neuronym.datasets.probe import load_probe
from neuronym.describe.pipeline import ordinary_captions
from neuronym.hooks import resolve_layers
from neuronym.models.captioners import load_captioner
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.models.transcripts import open_transcript
from tests.helpers.describe import looks, UNITS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The microworld's network, CLIP and captioner, 60 images, and what the network does on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURONYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        target, clip, probe = (
            load_target("microworld:resnet"),
            load_clip("microworld"),
            load_probe("microworld:60"),
        )
        layers = {layer.name: layer for layer in resolve_layers(target.model, "layer4,fc", target.example)}
        Q, I = activations_and_embeddings(target, list(layers.values()), clip, probe)
        captioner = load_captioner("microworld")
        found = SimpleNamespace(
            target=target,
            clip=clip,
            probe=probe,
            layers=layers,
            I=I.clone(),
            captioner=captioner,
            Q={name: q.clone() for name, q in Q.items()},
        )
        book = open_transcript(tmp_path_factory.mktemp("answers") / "a.jsonl")
        found.looked = {
            name: looks(found, book, captioner, name, UNITS if name == "layer4" else [0, 26, 43])
            for name in layers
        }
        found.ordinary = ordinary_captions(probe, captioner, book, 20)
        found.book = book
        return found
