"""Images of tasks: with fewer of them, the classes to choose from stay the same."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from neuronym.datasets.tasks import load_task


def fill(folder, counts):
    """A class folder for each name, with so many pictures."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (i % 256, len(name), 0)).save(folder / name / f"{i:04}.png")
    return folder


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 4, 5, 9, 23, 99])
def test_limit_keeps_the_classes(tmp_path, limit):
    fill(tmp_path, {"ant": 20, "bee": 1, "cat": 1, "dog": 1})
    task = load_task(f"folder:{tmp_path}", limit=limit)
    N = min(limit or 23, 23)
    assert task.classes == ["ant", "bee", "cat", "dog"] and len(task.probe) == len(task.truth) == N
    assert len(set(task.truth.tolist())) == min(N, 4) == 4 - len(task.unseen)
    assert [task.classes[i] for i in task.truth] == task.probe.labels
    assert task.probe.ids == sorted(task.probe.ids) and len(set(task.probe.ids)) == N


def test_classes_of_equal_size_lose_equally(tmp_path):
    fill(tmp_path, dict.fromkeys("abcde", 6))
    every = load_task(f"folder:{tmp_path}")
    some = load_task(f"folder:{tmp_path}", limit=10)
    assert torch.bincount(some.truth).tolist() == [2] * 5
    assert some.probe.ids == every.probe.ids[::3]  # as a probing set spreads them


def test_classes_are_spread_where_images_are_fewer(tmp_path):
    fill(tmp_path, dict.fromkeys("abcdefgh", 3))
    task = load_task(f"folder:{tmp_path}", limit=4)
    assert task.probe.labels == ["a", "c", "e", "g"] and task.unseen == ["b", "d", "f", "h"]


def test_imagenet_keeps_its_thousand_names(tmp_path, monkeypatch):
    fill(tmp_path / "val", {f"n{i:08}": 1 for i in range(1000)})
    monkeypatch.setenv("NEURONYM_IMAGENET", str(tmp_path))
    task = load_task("imagenet_val", limit=3)
    assert len(task.classes) == 1000 and task.classes[0] == "tench" and len(task.unseen) == 997
    assert task.truth.tolist() == [0, 333, 666]
    (tmp_path / "val" / "n00000001" / "0000.png").unlink()
    with pytest.raises(ValueError, match=r"folders, .* \(got 999, and no image in n00000001 and 0 others\)"):
        load_task("imagenet_val", limit=3)


def test_only_chosen_images_are_read(tmp_path):
    fill(tmp_path, {"ant": 3, "bee": 3})
    (tmp_path / "bee" / "0002.png").write_bytes(b"torn")
    assert load_task(f"folder:{tmp_path}", limit=2).probe.N == 2
    with pytest.raises(ValueError, match="bee/0002.png: not an image"):
        load_task(f"folder:{tmp_path}")


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_limit_is_a_number_of_images(tmp_path, limit):
    fill(tmp_path, {"ant": 1})
    with pytest.raises(ValueError, match="limit must be a positive whole number, got"):
        load_task(f"folder:{tmp_path}", limit=limit)
