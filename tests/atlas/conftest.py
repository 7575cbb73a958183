"""A small network of an atlas, measured once, with hostile texts among its labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neuronym import clip_dissect, measure
from neuronym.atlas import facts
from neuronym.atlas.contents import Network
from neuronym.atlas.pictures import Sheets
from neuronym.evaluation.meaning import with_meaning

HOSTILE = '</script><img src=x onerror="window.hacked=1">'


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """Measurements of two layers of the microworld's network over 150 scenes."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NEURONYM_CACHE", str(tmp_path_factory.mktemp("atlas")))
    words = ["red", "blue", "circle", "star", "meadow", "night"]
    yield measure("microworld:resnet", "conv1,fc", "microworld:150", "microworld", words)
    patch.undo()


@pytest.fixture(scope="session")
def labelled(measured) -> Network:
    """The network with labels, one of which is markup; not to be changed."""
    labels = with_meaning(clip_dissect(measured, "cos_similarity_cubed", k=2), measured.Q, measured.I)
    first = (labels["layer"] == "fc") & (labels["unit"] == 3)
    labels.loc[first & (labels["rank"] == 1), "label"] = HOSTILE
    plain = labels.assign(label=labels["label"].where(~first, "red"))
    methods = facts.methods_table(measured, plain, ["cos_similarity"])
    units = facts.units_table(
        measured, methods, "cos_similarity_cubed", draws=20, generator=torch.Generator().manual_seed(0)
    )
    units = facts.join_meaning(units, labels)
    for table in (units, methods[methods["method"] == "cos_similarity_cubed"]):
        there = table.index[(table["layer"] == "fc") & (table["unit"] == 3)]
        (units if table is units else methods).loc[there, "label"] = HOSTILE
    return Network(
        measured, labels, units, methods, "cos_similarity_cubed", {"red": "colour"}, "neuronym labelling"
    )


@pytest.fixture
def network(labelled) -> Network:
    """A copy, without pictures on sheets."""
    return replace(labelled, units=labelled.units.copy(), methods=labelled.methods.copy(), sheets=Sheets())
