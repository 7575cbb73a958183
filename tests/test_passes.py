"""Passes: bounded memory, no stalls by threads that crowd each other, and kills that lose no more than what
was not flushed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuronym import cache, passes
from neuronym.activations import (
    activations_and_embeddings,
    image_embeddings,
    image_job,
    IMAGES,
    unit_activations,
    unit_job,
)
from neuronym.datasets import probe as probes
from neuronym.datasets.probe import load_probe, Probe
from neuronym.models.clips import load_clip
from neuronym.second_order.effects import second_order_effects
from neuronym.second_order.lens import clip_target
from tests.helpers.networks import close, layers_of, make_clip, make_target, SIDE, to_tensor

MANY = 200


def many(count: int = MANY) -> Probe:
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return Probe("noise", [f"image-{i}" for i in range(count)], None, "many", [], list(pixels))


def test_no_more_than_a_few_batches_are_in_memory(monkeypatch):
    alive, most, lock, write = 0, 0, threading.Lock(), cache.Writer.write

    def counted(image):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return to_tensor(image)

    def slow(self, row, block):
        nonlocal alive
        time.sleep(0.005)  # slower than the network, so that all that may wait does
        write(self, row, block)
        with lock:
            alive -= len(block)

    target = make_target(preprocess=counted)
    monkeypatch.setattr(cache.Writer, "write", slow)
    unit_activations(target, many(), layers_of(target, ["fc"]), batch_size=4, workers=3)
    assert alive == 0 and most <= 4 * (probes.BATCHES_AHEAD + 1 + passes.CALLS_BEHIND + 1)


def test_threads_that_decode_start_no_others():
    before, seen = torch.get_num_threads(), []

    def watched(image):
        seen.append(torch.get_num_threads())
        return to_tensor(image)

    target = make_target(preprocess=watched)
    during = []
    target.model.register_forward_hook(lambda *_: during.append(torch.get_num_threads()))
    layers = layers_of(target, ["fc"])
    unit_activations(target, many(), layers, batch_size=8, workers=3)
    assert set(seen) == {1} and set(during) == {before} and torch.get_num_threads() == before


def test_exit_in_a_forward_pass_is_an_error_that_names_the_images():
    target, seen = make_target(), []

    def leaves(*_):
        seen.append(None)
        if len(seen) > 2:
            raise SystemExit(0)

    layers = layers_of(target, ["fc"])
    target.model.register_forward_pre_hook(leaves)
    with pytest.raises(
        RuntimeError, match=r"calls exit\(\) in its forward pass on images 'image-.* to 'image-"
    ):
        unit_activations(target, many(), layers, batch_size=4)


def test_what_a_network_does_in_place_reaches_no_other():
    """A target and a CLIP of one preprocessing see the same tensor of images."""
    alone = activations_and_embeddings(make_target(), layers_of(make_target(), ["fc"]), make_clip(), many(9))[
        1
    ]
    target = make_target(channels_last=False)
    target.model.register_forward_pre_hook(lambda module, images: (images[0].mul_(2),))
    beside = activations_and_embeddings(
        target, layers_of(target, ["fc"]), make_clip(weights_key="1"), many(9)
    )[1]
    close(beside, alone)


def counted(module):
    """How many images each forward pass of a module has, as they come."""
    passed = []
    module.register_forward_pre_hook(lambda _, given: passed.append(len(given[0])))
    return passed


def test_one_forward_pass_serves_labelling_embeddings_and_the_lens(monkeypatch, tmp_path):
    clip, probe = load_clip("microworld:vit"), load_probe("microworld:20")
    target, infos = clip_target(clip)
    units, images = unit_job(target, probe, [infos[2], infos[3]]), image_job(clip, probe)
    passed = counted(target.model)
    found = second_order_effects(clip, probe, [2], 8, beside=[units, images])
    assert sum(n for n in passed if n > 1) == probe.N  # single images prove that the tower is read rightly
    together = [found[2].s, found[2].B, found[2].rep, images.result(IMAGES), units.result(infos[3].name)]

    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "alone"))
    passed.clear()
    alone = second_order_effects(clip, probe, [2], 8)[2]
    Q = unit_activations(target, probe, [infos[2], infos[3]], batch_size=8)
    I = image_embeddings(clip, probe, batch_size=8)
    assert sum(n for n in passed if n > 1) == 3 * probe.N
    for ours, theirs in zip(together, [alone.s, alone.B, alone.rep, I, Q[infos[3].name]]):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_one_forward_pass_serves_several_lists_of_layers():
    target, probe = make_target(), many(10)
    jobs = [unit_job(target, probe, layers_of(target, names)) for names in (["conv", "fc"], ["fc", "norm"])]
    passed = counted(target.model)
    passes.compute(probe, jobs, 4, None, None, None)
    assert sum(passed) == probe.N
    for job in jobs:
        alone = unit_activations(target, replace(probe, fingerprint="b"), layers_of(target, list(job.specs)))
        assert all(torch.equal(job.result(name), q) for name, q in alone.items())


def test_networks_that_get_other_pictures_pass_alone():
    target, probe = make_target(), many(10)
    other = replace(target, preprocess=lambda image: -to_tensor(image), preprocess_spec="negative")
    jobs = [unit_job(one, probe, layers_of(target, ["fc"])) for one in (target, other)]
    passed = counted(target.model)
    passes.compute(probe, jobs, 4, None, None, None)
    assert sum(passed) == 2 * probe.N
    assert not torch.equal(jobs[0].result("fc"), jobs[1].result("fc"))


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from tests.test_passes import many
    from tests.helpers.networks import layers_of, make_clip, make_target, to_tensor
    from neuronym.activations import activations_and_embeddings

    left = 130

    def deadly(image):
        global left
        left -= 1
        if left < 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return to_tensor(image)

    target = make_target(preprocess=deadly)
    clip = make_clip(preprocess=deadly)
    activations_and_embeddings(target, layers_of(target, ["conv", "fc"]), clip, many(), batch_size=8)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_killed_pass_resumes_with_the_rows_that_were_flushed(request, monkeypatch, tmp_path):
    code = textwrap.dedent(KILLED.format(root=str(request.config.rootpath)))
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=request.config.rootpath).returncode
        == -signal.SIGKILL
    )
    calls = []

    def counted(image):
        calls.append(1)
        return to_tensor(image)

    target, clip = make_target(preprocess=counted), make_clip(preprocess=counted)
    layers = layers_of(target, ["conv", "fc"])
    Q, I = activations_and_embeddings(target, layers, clip, many(), batch_size=8)
    assert MANY - 130 < len(calls) < MANY
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "uninterrupted"))
    whole, J = activations_and_embeddings(target, layers, clip, many(), batch_size=8)
    assert all(torch.equal(Q[name], whole[name]) for name in Q) and torch.equal(I, J)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(monkeypatch, tmp_path):
    target, clip = make_target(), make_clip()
    layers = layers_of(target, ["conv", "fc"])
    Q, I = activations_and_embeddings(target, layers, clip, many(), batch_size=8)
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "gpu"))
    clip.model.cuda()
    on_gpu, J = activations_and_embeddings(target, layers, clip, many(), batch_size=8, device="cuda")
    for name in Q:
        torch.testing.assert_close(on_gpu[name], Q[name], rtol=1e-4, atol=1e-4)  # sums in another order
    close(J, I)
