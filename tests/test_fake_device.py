"""The main path on a device that is not there: nothing is computed from tensors of two places, and all comes
out as on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from neuronym.dissect import clip_dissect
from neuronym.measurements import measure
from neuronym.models.clips import load_clip
from neuronym.second_order.naming import second_order
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.text_code import code_coefficients
from neuronym.similarity.scores import SIMILARITIES
from tests.helpers.fake_device import Away, DEVICE, FakeDevice

WORDS = ["red", "blue", "circle", "star", "square", "striped", "night", "large"]


def here(x):
    return x.here if isinstance(x, Away) else x


def test_tensors_of_two_places_do_not_meet():
    with FakeDevice() as device:
        a, b = torch.ones(3, device=DEVICE), torch.ones(3)
        assert a.device == DEVICE and a.cpu().device.type == "cpu" and (a * 2).sum().item() == 6
        assert device.waits == {"to the CPU": 1, "item": 1}
        assert a[torch.tensor([0, 1])].shape == (2,) and (a * torch.tensor(2.0))[0].item() == 2
        for mixed in (lambda: a + b, lambda: b @ a, lambda: torch.where(b > 0, a, a)):
            with pytest.raises(RuntimeError, match="meets tensors"):
                mixed()


def test_from_images_to_labels(monkeypatch, tmp_path):
    def labels(device, k=3):
        target = "microworld:resnet"
        clip = load_clip("microworld", device)
        data = measure(target, "layer4,fc", "microworld:40", clip, WORDS, device=device)
        assert all(x.device.type == torch.device(device).type for x in (data.I, data.T, *data.Q.values()))
        return {
            name: clip_dissect(data, name, k, generator=torch.Generator().manual_seed(0))
            for name in SIMILARITIES
        }

    expected = labels("cpu")
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "elsewhere"))
    with FakeDevice():
        found = labels(DEVICE)
    for name, table in expected.items():
        assert list(found[name]["label"]) == list(table["label"]), name
        assert_close(
            torch.tensor(found[name]["score"]),
            torch.tensor(table["score"]),
            rtol=1e-4,
            atol=1e-4,
            equal_nan=True,
        )


def test_the_lens(monkeypatch, tmp_path):
    def table(device):
        clip = load_clip("microworld:vit", device)
        return second_order(clip, "microworld:40", WORDS, "3,4", "ids:0-9", m=3, top=10)

    expected = table("cpu")
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "elsewhere"))
    with FakeDevice():
        found = table(DEVICE)
    assert list(found["label"]) == list(expected["label"])
    assert_close(torch.tensor(found["score"]), torch.tensor(expected["score"]), rtol=1e-3, atol=1e-3)


def test_without_float64_passes_run_there_and_statistics_on_the_cpu():
    words = WORDS[:3]
    with FakeDevice(doubles=False) as device:
        clip = load_clip("microworld", DEVICE)
        data = measure("microworld:resnet", "fc", "microworld:30", clip, words, device=DEVICE)
        assert data.target.example.device == DEVICE and device.waits["to the CPU"] > 2
    assert {x.device.type for x in (data.I, data.T, *data.Q.values())} == {"cpu"}
    assert len(clip_dissect(data, k=1)) == 52


@pytest.mark.parametrize("M", [300, 70], ids="few all".split())
def test_matching_pursuit_waits_twice_a_step(M):
    g = torch.Generator().manual_seed(0)
    R, T = torch.randn(40, 24, generator=g), torch.randn(M, 24, generator=g)
    order, waits = matching_pursuit(R, T, 6), []
    for m in (3, 6):
        with FakeDevice() as device:
            away = matching_pursuit(R.to(DEVICE), T.to(DEVICE), m)
        assert torch.equal(here(away), order[:, :m])
        waits.append(device.waits.total())
    assert waits[1] - waits[0] == 2 * 3
    with FakeDevice():
        gamma = code_coefficients(R.to(DEVICE), T.to(DEVICE), away)
    assert_close(here(gamma), code_coefficients(R, T, order))


def test_matching_pursuit_among_many_that_may_be_the_best():
    """Atoms that are there many times, and a pool in which nothing tells them apart."""
    g = torch.Generator().manual_seed(0)
    R, some = torch.randn(5, 16, generator=g), torch.randn(30, 16, generator=g)
    for T in (some.repeat(20, 1), some.repeat_interleave(3, 0), torch.eye(16)):
        with FakeDevice():
            away = matching_pursuit(R.to(DEVICE), T.to(DEVICE), 4)
        assert torch.equal(here(away), matching_pursuit(R, T, 4))
