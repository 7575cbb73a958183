"""neuronym.second_order.ablation, neuronym.datasets.tasks: the paper's ablations literally, indirect effects
by editing the network, tasks with truth.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from neuronym import hooks
from neuronym.activations import zero_shot_head
from neuronym.datasets.probe import load_probe, probe_from_scenes
from neuronym.datasets.tasks import load_prompts, load_task, zero_shot_accuracy
from neuronym.models.clips import load_clip
from neuronym.second_order import ablation, effects
from neuronym.second_order.tower import read_tower
from tests.helpers import reference_lens as literal
from tests.helpers.lens import same

NAMES = {
    "all": "all",
    "significant": "without_significant",
    "insignificant": "without_insignificant",
    "all but rank 1": "rank_1",
}


@pytest.mark.parametrize("how", ablation.ABLATIONS)
def test_ablations_are_the_literal_ones(made, how):
    found, phi = made
    about = effects.mean(found)
    directions = effects.principal_directions(found, about, effects.norms(found, about), top=9)
    rep = torch.randn(23, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ours = ablation.effect_ablation(rep, found, about, directions, how)
    for memory in (
        60_000,
        90_000,
        300_000,
    ):  # the image at the threshold is on one side of it however neurons are taken
        assert_close(
            ablation.effect_ablation(rep, found, about, directions, how, memory=memory),
            ours,
            rtol=1e-11,
            atol=1e-11,
        )
    theta = directions.threshold * (
        1 + 1e-6
    )  # an effect at its threshold is as long here as there only up to rounding
    for i in (0, 7, 22):
        same(ours[i], literal.ablate(rep[i], phi[i], phi.mean(0), NAMES[how], theta, directions.r))
    if how != "all":
        assert (ours - ablation.effect_ablation(rep, found, about, directions, "all")).norm(
            dim=1
        ).mean() > 0.1


def test_along_takes_unit_rows_unless_released(made):
    found, phi = made
    about, deviations = effects.mean(found), phi - phi.mean(0)
    rep, R = phi[:, 0], torch.randn(48, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    R[3] = 0
    unit = torch.nn.functional.normalize(R, dim=1)
    for rows, released in ((unit, False), (R, True)):
        parts = torch.einsum("nkd,kd->nk", deviations, rows) @ rows
        same(ablation.along_directions(rep, found, about, R, released), rep - deviations.sum(1) + parts)


def test_unknown_ablation(made):
    with pytest.raises(KeyError, match="no ablation 'some'; known: all, significant, insignificant"):
        ablation.effect_ablation(None, *made, None, "some")


def test_indirect_effects_by_editing_the_network(small):
    clip, _ = small
    probe, tower = load_probe("microworld:5"), read_tower(clip)
    name = tower.blocks[0].activation
    mean = ablation.mean_activations(clip, probe, 0, batch_size=2)
    ours = ablation.indirect_effects(clip, probe, 0, [3, 200, 41], mean, together=2)
    x = torch.stack([clip.preprocess(probe.image(i)) for i in range(5)])
    with torch.no_grad(), hooks.record(clip.model.visual, [name]) as acts:
        whole = 100 * clip.encode_image(x)
        assert_close(mean, acts[name].mean(1), rtol=1e-4, atol=1e-5)
    assert ours.shape == (5, 3, 20) and ours.norm(dim=2).min() > 0
    for k, unit in enumerate((3, 200, 41)):

        def to_mean(p, unit=unit):
            p = p.clone()
            p[:, :, unit] = mean[:, unit, None]
            return p

        with torch.no_grad(), hooks.edit(clip.model.visual, {name: to_mean}):
            assert_close(ours[:, k], whole - 100 * clip.encode_image(x), rtol=1e-3, atol=1e-4)


def test_indirect_and_second_order_effects_point_alike(small):
    """The second-order effect is what attention carries of the indirect one, with the attention as it was."""
    clip, _ = small
    probe = load_probe("microworld:40")
    found = effects.second_order_effects(clip, probe, [0])[0]
    about = effects.mean(found)
    mean = ablation.mean_activations(clip, probe, 0)
    indirect = ablation.indirect_effects(clip, probe, 0, range(256), mean)
    direct = effects.materialize(found) - effects.materialize(
        effects.Effects(about.s[None], about.B[None], found.factors, found.rep[:1])
    )
    assert torch.nn.functional.cosine_similarity(indirect, direct, dim=2).mean() > 0.1


# tasks


def test_the_microworld_task():
    task = load_task("microworld:30")
    assert (
        len(task.classes) == len(set(task.classes)) == 2 * 11 * 8 * 12
        and task.probe.N == len(task.truth) == 30
    )
    for i in (0, 29):
        thing = task.probe.scene(i).things[0]
        assert (
            task.classes[task.truth[i]]
            == task.probe.labels[i]
            == f"{thing.size} {thing.colour} {thing.texture} {thing.shape}"
        )
    shapes = load_task("microworld_shapes:30", limit=12)
    assert len(shapes.classes) == 12 and shapes.probe.ids == task.probe.ids[:12]
    assert load_task("microworld:30", seed=1).probe.ids[0] != task.probe.ids[0]


def test_a_clip_solves_it():
    clip, task = load_clip("microworld:vit"), load_task("microworld_shapes:60")
    x = torch.stack([clip.preprocess(task.probe.image(i)) for i in range(60)])
    head = zero_shot_head(clip, task.classes, ["a {}"])
    assert zero_shot_accuracy(clip.encode_image(x), head, task.truth) > 0.9
    assert zero_shot_accuracy(clip.encode_image(x), head.roll(1, 0), task.truth) < 0.1


def test_any_labelled_probe_is_a_task(tmp_path):
    for name in ("b/1", "a/1", "b/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        load_probe("microworld:3").image(int(name[-1])).save(tmp_path / f"{name}.png")
    task = load_task(f"folder:{tmp_path}")
    assert task.classes == ["a", "b"] and task.truth.tolist() == [0, 1, 1]
    load_probe("microworld:1").image(0).save(tmp_path / "c.png")
    with pytest.raises(
        ValueError, match="needs the class of every image, 'folder:.*' has images without; put images"
    ):
        load_task(f"folder:{tmp_path}")


def test_imagenets_folders_are_named_by_their_order(tmp_path):
    picture = load_probe("microworld:1").image(0)
    for i in range(1000):
        folder = tmp_path / f"n{10_000_000 + 7 * i}"
        folder.mkdir()
        picture.save(folder / "a.png")
    task = load_task(f"folder:{tmp_path}")
    assert (
        len(task.classes) == 1000
        and task.classes[:2] == ["tench", "goldfish"]
        and task.truth.tolist() == list(range(1000))
    )
    (tmp_path / "n10000000" / "a.png").unlink()
    with pytest.raises(
        ValueError,
        match="classes are words, got WordNet ids such as n10000007; use all .* .got 999, .*n10000000",
    ):
        load_task(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "name, message", [("microworld:x", "takes a number of images"), ("microworld:0", "from 1 to")]
)
def test_tasks_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        load_task(name)


def test_prompts(tmp_path):
    assert load_prompts("a {}| a photo of a {} |") == ["a {}", "a photo of a {}"]
    (tmp_path / "p.txt").write_text("a {}\n\nthe {}.\n")
    assert load_prompts(f"file:{tmp_path / 'p.txt'}") == ["a {}", "the {}."]
    for wrong in ("a photo", "", "{} {}"):
        with pytest.raises(ValueError, match="a prompt holds {} once, got"):
            load_prompts(wrong)


def test_probes_of_scenes():
    probe = load_probe("microworld:3")
    same_scenes = probe_from_scenes("mine", probe.items)
    assert same_scenes.fingerprint == probe.fingerprint and same_scenes.labels is None
    assert probe_from_scenes("mine", probe.items[::-1]).fingerprint != probe.fingerprint
