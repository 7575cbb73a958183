"""The table of kinds is what the registries load."""

from __future__ import annotations

from neuronym.datasets.concepts import CONCEPTS
from neuronym.datasets.probe_sets import PROBES
from neuronym.datasets.tasks import SEGMENTED, TASKS
from neuronym.models.captioners import CAPTIONERS
from neuronym.models.clips import CLIPS
from neuronym.models.generators import GENERATORS
from neuronym.models.llms import LLMS
from neuronym.models.sentences import SENTENCE_ENCODERS
from neuronym.models.targets import TARGETS
from neuronym.runs.kinds import KINDS


def test_kinds_are_those_of_the_registries():
    assert set(KINDS["targets"]) == {*TARGETS, "package.module:function"}
    assert set(KINDS["probes"]) == set(PROBES) and set(KINDS["concepts"]) == set(CONCEPTS)
    assert set(KINDS["clips"]) == set(CLIPS) and set(KINDS["lens_clips"]) == set(CLIPS) - {"conse"}
    assert set(KINDS["captioners"]) == set(CAPTIONERS)
    assert set(KINDS["llms"]) == {*LLMS, "extractive"}
    assert set(KINDS["generators"]) == {*GENERATORS, "retrieval"}
    assert set(KINDS["sentences"]) == set(SENTENCE_ENCODERS)
    assert set(KINDS["encoders"]) == {*SENTENCE_ENCODERS, "auto"}
    assert set(KINDS["masks"]) == set(SEGMENTED)
    assert set(KINDS["tasks"]) == {*TASKS, "folder", "imagenet_val", "cifar100_val"}
