"""The training stages: they learn, they resume to the same weights, and the shipped networks are what they claim."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from utils import quality, training
from utils.fit import fit, save_weights
from utils.microworld import CLASSES, CONCEPTS
from utils.networks import MicroResNet, build_target, micro_vit


@pytest.fixture(scope="module")
def pool():
    return training.scene_pool(23, workers=1)


def test_pool_holds_what_scenes_say(pool):
    assert pool["images"].shape == (23, 3, 64, 64) and pool["captions"].shape == (23, 4, 24) and pool["patches"].shape == (23, 3, 8, 8)
    some = training.scene(training.TRAIN_SEED + 5)
    assert {CONCEPTS[i] for i in np.nonzero(pool["truth"][5])[0]} == training.concepts(some)
    shapes = set(pool["patches"][5, 0].flatten().tolist()) - {12}
    assert shapes == {training.ATOMS["shape"].index(t.shape) for t in some.things}


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


def test_every_stage_runs_and_its_weights_load_with_openai_clip(pool, tmp_path):
    from clip.model import build_model
    from safetensors.torch import load_file
    said = []
    made = training.make_networks(tmp_path / "weights", tmp_path / "work", pool, lambda stage, row: said.append(stage), most_steps=2)
    assert said == ["clip_rn", "read_patches", "clip_vit", "target_resnet", "target_vit"]
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
    fit(model, lambda take, x, step: torch.nn.functional.cross_entropy(model["model"](x).float(), bright[take].long()), pool, 100, 8,
        tmp_path, rows.append, 0, 3e-3)
    assert rows[-1]["step"] == 100 and rows[-1]["loss"] < .8 * rows[0]["loss"]


@pytest.mark.parametrize("model", [MicroResNet(5, 4), micro_vit(5, 16, 2)])
def test_targets_are_rebuilt_from_their_weights(model, tmp_path):
    from safetensors.torch import load_file
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    save_weights(model.eval(), tmp_path / "w.safetensors")
    again = build_target(load_file(str(tmp_path / "w.safetensors")))
    torch.testing.assert_close(again(x), model(x), rtol=2e-2, atol=2e-2)  # half precision on disk


@pytest.mark.parametrize("tower, least", [("rn", .95), ("vit", .90)])
def test_shipped_clips_know_the_world(tower, least):
    from utils.clips import load_clip
    clip = load_clip(f"microworld:{tower}")
    found = quality.zero_shot(clip.encode_image, clip.encode_text, clip.preprocess, quality.held_out(256, single=True))
    assert found["shape_colour"] >= least
    assert quality.retrieval(clip.encode_image, clip.encode_text, clip.preprocess, quality.held_out(256)) >= .6


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_shipped_targets_know_their_concepts(name):
    from utils.models import load_target
    target = load_target(f"microworld:{name}")
    assert quality.mean_ap(target.model, target.preprocess, quality.held_out(512))[0] >= .95


def test_retrieval_takes_whole_groups():
    with pytest.raises(ValueError, match="whole groups of 256 scenes, got 100"):
        quality.retrieval(None, None, None, quality.held_out(100))
