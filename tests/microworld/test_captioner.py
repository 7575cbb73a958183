"""neuronym.microworld.networks: the tower taken from a CLIP, decoding by loops, close-ups, and what the
shipped captioner says.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neuronym.microworld import networks, quality, world
from neuronym.microworld.fitting import save_weights
from neuronym.microworld.networks import (
    build_blip,
    close_up,
    crop,
    decode,
    full_caption,
    new_blip,
    say,
    take_vision,
)
from neuronym.microworld.render import render
from neuronym.microworld.training import new_clip, vit_tokens
from neuronym.microworld.world import END, read, scene, START, tokenize
from neuronym.models.captioners import load_captioner
from neuronym.models.weights import random_start, read_weights


def noise(n, seed=0):
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny():
    """Two blocks and one layer of width 8, random; large weights, so that its captions differ."""
    with random_start(0):
        model = new_blip(2, 1, 8).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.7)
    return model


@pytest.fixture(scope="module")
def visual():
    with random_start(1):
        visual = new_clip("vit").visual.eval()
        for part in visual.modules():  # norms that do something
            if isinstance(part, torch.nn.LayerNorm):
                torch.nn.init.normal_(part.weight, 1.0, 0.2)
                torch.nn.init.normal_(part.bias, 0.0, 0.2)
    return visual


def test_the_blocks_of_a_clip_tower_are_blips(visual):
    """Given the same tokens, BLIP's encoder gives what the CLIP's blocks and last norm give."""
    model = new_blip().eval()
    take_vision(model, visual, noise(3))
    tokens = torch.randn(5, 65, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = visual.ln_post(visual.transformer(tokens.transpose(0, 1)).transpose(0, 1))
        ours = model.vision_model.post_layernorm(
            model.vision_model.encoder(inputs_embeds=tokens).last_hidden_state
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_norm_before_the_blocks_is_folded_into_the_embeddings(visual):
    """Literally: ln_pre with the mean deviation of patches in place of each token's own; exact for the class
    token.
    """
    model, images = new_blip().eval(), noise(3)
    take_vision(model, visual, images)
    norm, given = visual.ln_pre, []
    with torch.no_grad():
        for image in images:
            rows = [visual.class_embedding + visual.positional_embedding[0]]
            for i in range(8):
                for j in range(8):
                    patch = image[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                    place = visual.positional_embedding[1 + 8 * i + j]
                    rows.append((visual.conv1.weight * patch).sum((1, 2, 3)) + place)
            given.append(torch.stack(rows))
        given = torch.stack(given)
        deviation = (given.var(-1, unbiased=False) + norm.eps).sqrt()
        deviation[:, 1:] = deviation[:, 1:].mean()
        expected = (given - given.mean(-1, keepdim=True)) / deviation[..., None] * norm.weight + norm.bias
        torch.testing.assert_close(model.vision_model.embeddings(images), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(expected[:, 0], norm(given[:, 0]), rtol=1e-4, atol=1e-5)


def test_the_shipped_towers_tokens_survive_the_folding():
    from neuronym.models.clips import load_clip

    clip = load_clip("microworld:vit")
    images = torch.stack([clip.preprocess(render(s)) for s in world.held_out(23)])
    model = new_blip().eval()
    take_vision(model, clip.model.visual, images)
    with torch.no_grad():
        ours, theirs = model.vision_model(images).last_hidden_state, vit_tokens(clip.model.visual, images)
    assert F.cosine_similarity(ours, theirs, dim=-1).mean() > 0.95


def test_greedy_captions_by_loops(tiny):
    images = noise(5, 3)
    expected = []
    for image in images:
        ids = [START]
        while len(ids) < 33 and ids[-1] != END:
            with torch.no_grad():
                logits = tiny(pixel_values=image[None], input_ids=torch.tensor([ids])).logits[0, -1]
            if len(ids) < 5:
                logits[END] = -torch.inf
            ids.append(int(logits.argmax()))
        expected.append(decode(torch.tensor([ids]))[0])
    assert say(tiny, images) == expected and len(set(expected)) > 1
    assert [say(tiny, images[i : i + 1])[0] for i in range(5)] == expected


def test_decode_is_the_inverse_of_tokenize():
    texts = ["a red circle on the sea", "two stars", full_caption(scene(3)), ""]
    assert decode(tokenize(texts)) == texts
    after_the_end = tokenize("two stars")
    after_the_end[0, 5] = 1
    assert decode(after_the_end) == ["two stars"]


def test_a_captioner_is_rebuilt_from_its_weights(tiny, tmp_path):
    save_weights(tiny, tmp_path / "captioner.safetensors")
    again = build_blip(read_weights(tmp_path / "captioner.safetensors"))
    whole = tiny.state_dict()
    assert set(again.state_dict()) == set(whole) and not again.training
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, whole[name].half().float(), rtol=0, atol=0)
    assert again.config.text_config.num_hidden_layers == 1 and len(again.vision_model.encoder.layers) == 2


def test_weights_of_another_network_are_refused(tmp_path):
    save_weights(torch.nn.Linear(2, 3), tmp_path / "captioner.safetensors")
    with pytest.raises(
        ValueError, match="has a vision_model and a text_decoder, got bias, weight, ...; name a folder"
    ):
        load_captioner(f"microworld@{tmp_path}")


def test_new_weights_are_seeded():
    def weights(seed):
        with random_start(seed):
            return new_blip(1, 1, 8).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_crops_are_cut_out_pixel_by_pixel():
    images = noise(3)
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [16.0, 32.0, 48.0, 64.0], [8.0, 4.0, 24.0, 36.0]])
    cut = crop(images, boxes)
    torch.testing.assert_close(cut[0], images[0], rtol=0, atol=1e-4)
    for n in (1, 2):
        left, top, right, bottom = boxes[n].tolist()
        for i, j in ((0, 0), (13, 50), (63, 63), (31, 7)):
            y, x = top + (i + 0.5) * (bottom - top) / 64 - 0.5, left + (j + 0.5) * (right - left) / 64 - 0.5
            i0, j0 = int(np.floor(y)), int(np.floor(x))
            expected = sum(
                abs(1 - abs(y - a)) * abs(1 - abs(x - b)) * images[n, :, min(a, 63), min(b, 63)]
                for a in (i0, i0 + 1)
                for b in (j0, j0 + 1)
            )
            torch.testing.assert_close(cut[n, :, i, j], expected, rtol=1e-4, atol=1e-4)


def test_captions_of_scenes_and_close_ups_are_true():
    for seed in range(60):
        s = scene(seed)
        said = read(full_caption(s))
        assert (said["place"], said["light"]) == (s.place, s.light) and said["given"][0]["shape"] == s.things[
            0
        ].shape
        if len(s.things) == 1:
            assert (
                said["given"][0]["position"] == s.things[0].position
                and said["given"][0]["size"] == s.things[0].size
            )
        (left, top, right, bottom), text = close_up(s)
        near = read(text)
        assert (
            0 <= left < right <= 64
            and 0 <= top < bottom <= 64
            and close_up(s)[0] == (left, top, right, bottom)
        )
        shown = [t for t in s.things if left < t.x < right and top < t.y < bottom]
        assert any(
            near["given"][0] == {"shape": t.shape, "colour": t.colour, "texture": t.texture} for t in shown
        )
        assert (near["place"], near["light"]) == (s.place, s.light)


@pytest.fixture(scope="module")
def shipped():
    return load_captioner("microworld")


def test_the_shipped_captioner_names_what_is_there(shipped):
    scenes = world.held_out(50)
    texts = shipped.caption([render(s) for s in scenes])
    found = quality.caption_truth(texts, scenes)
    random.Random(0).shuffle(texts)
    control = quality.caption_truth(texts, scenes)
    assert all(
        found[kind] >= 0.8
        for kind in ("shape_colour", "shape", "colour", "texture", "place", "light", "count")
    )
    assert all(control[kind] <= found[kind] - 0.3 for kind in found) and control["shape_colour"] < 0.2


def test_the_shipped_captioner_names_close_ups_of_examples(shipped):
    """Boxes cut out of a picture of 375 pixels, as Describe-and-Dissect does."""
    scenes = world.held_out(40)
    pictures, shown = [], []
    for s in scenes:
        box, text = close_up(s)
        picture = (
            render(s).resize((375, 375)).crop(tuple(round(v * 375 / 64) for v in box)).resize((375, 375))
        )
        pictures.append(picture)
        words = read(text)["given"][0]
        shown.append(
            dataclasses.replace(
                s,
                things=tuple(
                    t
                    for t in s.things
                    if {"shape": t.shape, "colour": t.colour, "texture": t.texture} == words
                )[:1],
            )
        )
    found = quality.caption_truth(shipped.caption(pictures), shown)
    assert found["shape"] >= 0.8 and found["colour"] >= 0.8


def test_the_shipped_captioner_does_not_depend_on_batches(shipped, monkeypatch):
    pictures = [render(s) for s in world.held_out(5)]
    together = shipped.caption(pictures)
    monkeypatch.setattr("neuronym.models.captioners.BATCH", 2)
    assert shipped.caption(pictures) == together == [shipped.caption([p])[0] for p in pictures]
    assert all(5 <= len(text.split()) <= 32 for text in together)


def test_settings_are_the_papers():
    assert (
        networks.SETTINGS["max_new_tokens"] == 32
        and networks.SETTINGS["min_length"] == 5
        and not networks.SETTINGS["do_sample"]
    )
