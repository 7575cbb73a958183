"""The training stages: they learn, they resume to the same weights, and the shipped networks are what they
claim.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from neuronym.microworld import networks, quality, training, world
from neuronym.microworld.fitting import fit, save_weights
from neuronym.microworld.networks import build_target, micro_vit, MicroResNet
from neuronym.microworld.render import render
from neuronym.microworld.world import caption, CLASSES, CONCEPTS, parse
from neuronym.models.captioners import load_captioner


@pytest.fixture(scope="module")
def pool():
    return training.scene_pool(23, workers=1)


def test_pool_holds_what_scenes_say(pool):
    assert (
        pool["images"].shape == (23, 3, 64, 64)
        and pool["captions"].shape == (23, 4, 24)
        and pool["patches"].shape == (23, 3, 8, 8)
    )
    some = world.scene(world.TRAIN_SEED + 5)
    assert {CONCEPTS[i] for i in np.nonzero(pool["truth"][5])[0]} == world.concepts(some)
    shapes = set(pool["patches"][5, 0].flatten().tolist()) - {12}
    assert shapes == {world.ATOMS["shape"].index(t.shape) for t in some.things}
    box, near = networks.close_up(some)
    assert pool["boxes"][5].tolist() == pytest.approx(box) and pool["boxes"].shape == (23, 4)
    assert networks.decode(torch.from_numpy(pool["near_captions"][5:6]).long()) == [near]
    assert networks.decode(torch.from_numpy(pool["full_captions"][5:6]).long()) == [
        networks.full_caption(some)
    ]


def test_an_interrupted_stage_ends_with_the_same_weights(pool, tmp_path):
    def run(folder, steps_before_kill=None):
        torch.manual_seed(0)
        model = MicroResNet(len(CLASSES), width=4)
        stop = {"report": lambda row: None}
        if steps_before_kill:

            def kill(row):
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                training.train_target(model, pool, 60, 5, folder, kill)
            torch.manual_seed(0)
            model = MicroResNet(len(CLASSES), width=4)
        return training.train_target(model, pool, 60, 5, folder, stop["report"]).state_dict()

    whole, resumed = run(tmp_path / "a"), run(tmp_path / "b", 50)
    for name in whole:
        torch.testing.assert_close(whole[name], resumed[name], rtol=1e-4, atol=1e-5)


def test_the_captioner_learns_and_an_interruption_does_not_matter(pool, tmp_path, monkeypatch):
    """Killed while its image tower keeps still, it goes on to the same weights; only then the tower moves."""
    monkeypatch.setattr(training, "STILL", 0.9)  # of 60 steps; killed after 50

    name = "vision_model.encoder.layers.0.mlp.fc1.weight"

    def run(folder, kill=False):
        torch.manual_seed(0)
        clip, model = training.new_clip("vit").eval(), networks.new_blip(layers=1)
        rows = []

        def report(row):
            rows.append(row)
            if kill:
                raise KeyboardInterrupt

        try:
            training.train_captioner(model, clip, pool, 60, 3, folder, report)
        except KeyboardInterrupt:
            before = load_file(str(folder / "checkpoint.safetensors"))[f"now.model.{name}"]
            assert torch.equal(before, clip.visual.transformer.resblocks[0].mlp.c_fc.weight)
            return run(folder)
        assert not torch.equal(model.state_dict()[name], clip.visual.transformer.resblocks[0].mlp.c_fc.weight)
        return model.state_dict(), rows

    (whole, rows), (resumed, later) = run(tmp_path / "a"), run(tmp_path / "b", kill=True)
    assert [row["step"] for row in rows] == [50, 60] and [row["step"] for row in later] == [60]
    assert rows[1]["loss"] < 0.8 * rows[0]["loss"]
    for part in whole:
        torch.testing.assert_close(whole[part], resumed[part], rtol=1e-3, atol=1e-4)


def test_the_captioner_reads_scenes_and_close_ups_with_their_own_captions(pool, monkeypatch):
    """The loss literally: minus the mean log probability of each next word up to the end, on scenes or on
    boxes.
    """
    seen = {}

    def vision(pixel_values):
        seen["images"] = pixel_values
        return SimpleNamespace(last_hidden_state=pixel_values)

    def decoder(input_ids, encoder_hidden_states, use_cache):
        assert encoder_hidden_states is seen["images"]
        seen["ids"] = input_ids
        seen["logits"] = torch.randn(
            *input_ids.shape, world.END + 1, generator=torch.Generator().manual_seed(1)
        )
        return SimpleNamespace(logits=seen["logits"])

    kept = {}
    monkeypatch.setattr(training, "take_vision", lambda *given: None)
    monkeypatch.setattr(
        training, "fit", lambda parts, loss, *given: kept.update(loss=loss) or {"model": None}
    )
    monkeypatch.setattr(training.nn, "ModuleDict", dict)
    clip = training.new_clip("vit")
    training.train_captioner(
        SimpleNamespace(vision_model=vision, text_decoder=decoder), clip, pool, 60, 23, None, None
    )
    images, take = torch.from_numpy(pool["images"]).float(), torch.randperm(23)
    found = float(kept["loss"](take, images[take], 7))
    near, total, words = 0, 0.0, 0
    said = {(p, i): torch.from_numpy(pool["captions"][i, p]).long() for p in (1, 2) for i in range(23)}
    said |= {(0, i): torch.from_numpy(pool["full_captions"][i]).long() for i in range(23)}
    for row, i in enumerate(take.tolist()):
        cut = networks.crop(images[i : i + 1], torch.from_numpy(pool["boxes"][i : i + 1]))[0]
        if torch.allclose(seen["images"][row], cut, atol=0.1):
            near, ids = near + 1, torch.from_numpy(pool["near_captions"][i]).long()
        else:
            assert torch.allclose(seen["images"][row], images[i], atol=0.1)
            ids = next(said[p, i] for p in range(3) if torch.equal(said[p, i][:-1], seen["ids"][row]))
        assert torch.equal(seen["ids"][row], ids[:-1])
        for t in range(23):
            if ids[t + 1]:
                total, words = total - float(seen["logits"][row, t].log_softmax(0)[ids[t + 1]]), words + 1
    assert found == pytest.approx(total / words, rel=1e-5) and 2 <= near <= 14


def test_every_stage_runs_and_its_weights_load_with_openai_clip(pool, tmp_path):
    from clip.model import build_model

    said = []
    made = training.make_networks(
        tmp_path / "weights", tmp_path / "work", pool, lambda stage, row: said.append(stage), most_steps=2
    )
    assert said == ["clip_rn", "read_patches", "clip_vit", "target_resnet", "target_vit", "captioner"]
    assert len(load_captioner(f"microworld@{tmp_path / 'weights'}").caption([render(world.scene(0))])) == 1
    for name in ("clip_rn", "clip_vit"):
        model = build_model(load_file(str(made[name]))).float()
        assert model.visual.input_resolution == 64
    first, second = (load_file(str(made[n])) for n in ("clip_rn", "clip_vit"))
    assert torch.equal(first["token_embedding.weight"], second["token_embedding.weight"])
    assert second["visual.transformer.resblocks.5.mlp.c_fc.weight"].shape == (512, 128)


def test_fit_lowers_the_loss(pool, tmp_path):
    rows = []
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"model": MicroResNet(2, width=4)})
    bright = torch.from_numpy(pool["images"]).float().mean((1, 2, 3)) > 120
    fit(
        model,
        lambda take, x, step: torch.nn.functional.cross_entropy(
            model["model"](x).float(), bright[take].long()
        ),
        pool,
        100,
        8,
        tmp_path,
        rows.append,
        0,
        3e-3,
    )
    assert rows[-1]["step"] == 100 and rows[-1]["loss"] < 0.8 * rows[0]["loss"]


@pytest.mark.parametrize("model", [MicroResNet(5, 4), micro_vit(5, 16, 2)])
def test_targets_are_rebuilt_from_their_weights(model, tmp_path):
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    save_weights(model.eval(), tmp_path / "w.safetensors")
    again = build_target(load_file(str(tmp_path / "w.safetensors")))
    torch.testing.assert_close(again(x), model(x), rtol=2e-2, atol=2e-2)  # half precision on disk


@pytest.mark.parametrize("tower, least", [("rn", 0.95), ("vit", 0.90)])
def test_shipped_clips_know_the_world(tower, least):
    from neuronym.models.clips import load_clip

    clip = load_clip(f"microworld:{tower}")
    found = quality.zero_shot(
        clip.encode_image, clip.encode_text, clip.preprocess, world.held_out(256, single=True)
    )
    assert found["shape_colour"] >= least
    assert quality.retrieval(clip.encode_image, clip.encode_text, clip.preprocess, world.held_out(256)) >= 0.6


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_shipped_targets_know_their_concepts(name):
    from neuronym.models.targets import load_target

    target = load_target(f"microworld:{name}")
    assert quality.mean_ap(target.model, target.preprocess, world.held_out(512))[0] >= 0.95


def test_retrieval_takes_whole_groups():
    with pytest.raises(ValueError, match="whole groups of 256 scenes, got 100"):
        quality.retrieval(None, None, None, world.held_out(100))


def test_caption_truth_by_hand():
    texts = [
        "a small red striped star on the sea in dim light",
        "two large blue dotted rings",
        "a small red plain star above a large grey grid heart on snow in warm light",
        "a star",
        "a small red striped circle",
    ]
    scenes = [
        parse("a small red striped star on the sea in dim light"),
        parse("two large blue dotted circles on snow"),
        parse("a large grey grid heart above a small pink plain star on snow in warm light"),
        parse("a red ring"),
        parse("a large blue plain circle above a small red striped star on snow in dim light"),
    ]
    found = quality.caption_truth(texts, scenes)
    assert found == {
        "shape_colour": 0.2,
        "shape": 0.4,
        "colour": 0.6,
        "texture": 0.8,
        "size": 0.8,
        "place": 0.4,
        "light": 0.4,
        "count": 0.8,
    }
    held = world.held_out(23)
    true = quality.caption_truth([caption(s) for s in held], held)
    other = quality.caption_truth([caption(s) for s in held[1:] + held[:1]], held)
    assert set(true.values()) == {1.0} and other["shape_colour"] < 0.3
    with pytest.raises(ValueError, match="each scene has a text, got 3 texts and 5 scenes"):
        quality.caption_truth(texts[:3], scenes)
