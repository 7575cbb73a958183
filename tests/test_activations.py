"""Activations and embeddings: values, what must not matter, what must, resuming, and that nothing is left
behind.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn, Tensor

from neuronym import cache, hooks
from neuronym.activations import (
    activation_maps,
    activation_spec,
    activations_and_embeddings,
    embed_concepts,
    embedding_spec,
    image_embeddings,
    unit_activations,
)
from neuronym.common.memory import top_images
from neuronym.datasets.probe import Probe
from neuronym.models.clips import load_clip
from neuronym.passes import CHECKED, checked_rows, inference
from neuronym.similarity.scores import score_embeddings
from tests.helpers.networks import (
    close,
    CountingProbe,
    FakeClip,
    FakeTarget,
    inverted,
    LAYERS,
    layers_of,
    make_clip,
    make_probe,
    make_target,
    N,
    SIDE,
    to_tensor,
)


@pytest.fixture
def target() -> FakeTarget:
    return make_target()


@pytest.fixture
def clip() -> FakeClip:
    return make_clip()


@pytest.fixture
def probe() -> CountingProbe:
    return make_probe()


def images_of(target: FakeTarget, probe: Probe) -> Tensor:
    return torch.stack([target.preprocess(probe.image(i)) for i in range(probe.N)])


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# values


@pytest.mark.parametrize("template", ["{}", "a photo of a {}"])
def test_cached_text_embeddings_are_compared_with_a_few_fresh_ones(template, capsys):
    clip, words = load_clip("microworld"), ["red", "blue", "circle", "star", "square"]
    before = embed_concepts(clip, words, template)
    assert torch.equal(embed_concepts(clip, words, template), before) and not capsys.readouterr().err
    encode = clip.encode_text
    clip.encode_text = lambda texts: -encode(texts)  # what no key tells
    torch.testing.assert_close(embed_concepts(clip, words, template), -before)
    assert "gives other embeddings for a few texts now; it is computed anew" in capsys.readouterr().err


def test_the_stand_in_has_every_layout(target):
    assert [layer.layout for layer in layers_of(target)] == [
        "conv",
        "conv",
        "nhwc",
        "tokens",
        "tokens_first",
        "fc",
    ]


def as_of_a_vit(layers):
    """The layers with tokens of which it is not known that all are patches."""
    return [replace(layer, grid=None) if "tokens" in layer.layout else layer for layer in layers]


@pytest.mark.parametrize("how", ["avg", "max", "cls"])
def test_values_are_those_of_a_plain_forward(target, probe, how):
    names = LAYERS if how != "cls" else ["tokens", "first", "fc"]
    Q = unit_activations(target, probe, as_of_a_vit(layers_of(target, names)), how, batch_size=5)
    with torch.no_grad():
        outputs = target.model.outputs(images_of(target, probe))
    for name in names:
        expected = {"avg": outputs[name].mean(1), "max": outputs[name].amax(1), "cls": outputs[name][:, 0]}[
            how
        ]
        assert Q[name].dtype == torch.float32
        close(Q[name], expected)


def test_cls_goes_with_layers_without_tokens_beside_it(target, probe):
    """`layers=all` of a ViT: its first convolution has no class token and is averaged, as if asked for."""
    together = unit_activations(target, probe, as_of_a_vit(layers_of(target)), "cls")
    tokens = {"tokens", "first"}
    alone = unit_activations(target, probe, as_of_a_vit(layers_of(target, [*tokens])), "cls")
    averaged = unit_activations(target, probe, layers_of(target), "avg")
    assert set(together) == set(averaged) and tokens < set(together)
    for name, Q in together.items():
        assert torch.equal(Q, alone[name] if name in tokens else averaged[name])


def test_auto_takes_the_class_token_where_there_is_one(target):
    layers = layers_of(target)
    tokens = [layer for layer in layers if "tokens" in layer.layout]
    with_token = [replace(layer, grid=(4, 4), start=1) for layer in tokens]
    without = [replace(layer, start=0) for layer in with_token] + [replace(tokens[0], grid=None)]
    convolutions = [layer for layer in layers if "tokens" not in layer.layout]
    assert set(hooks.poolings(with_token, "auto").values()) == {"cls"} and len(with_token) == 2
    assert set(hooks.poolings([*without, *convolutions], "auto").values()) == {"avg"}
    with pytest.raises(ValueError, match="'cls' pooling needs tokens with a class token, got .*; use 'avg'"):
        hooks.poolings(convolutions, "cls")
    bare = [replace(layer, start=0, name=f"bare {layer.name}") for layer in with_token]
    with pytest.raises(ValueError, match="class token, got bare"):  # the first token is a patch
        hooks.poolings(bare, "cls")
    mixed = hooks.poolings([*bare, *with_token, *convolutions], "cls")
    assert {name for name, how in mixed.items() if how == "cls"} == {layer.name for layer in with_token}
    said = hooks.told_poolings([*bare, *with_token, *convolutions], "cls")
    assert (
        said.startswith("no class token, averaged over positions: bare")
        and hooks.told_poolings(bare, "avg") == ""
    )


def test_embeddings_are_those_of_a_plain_forward(clip, probe):
    I = image_embeddings(clip, probe, batch_size=5)
    with torch.no_grad():
        close(I, clip.encode_image(images_of(clip, probe)))


def test_equal_preprocessing_is_done_once(target, clip, probe):
    calls = []

    def counted(image: Image.Image) -> Tensor:
        calls.append(1)
        return to_tensor(image)

    pair = replace(target, preprocess=counted), replace(clip, preprocess=counted)
    activations_and_embeddings(pair[0], layers_of(target), pair[1], probe)
    assert len(calls) == N
    other = replace(clip, preprocess=inverted, preprocess_spec="inverted")
    Q, I = activations_and_embeddings(target, layers_of(target), other, make_probe(1, "probe-b"))
    with torch.no_grad():
        close(I, clip.encode_image(images_of(other, make_probe(1))))
        close(Q["conv"], target.model.outputs(images_of(target, make_probe(1)))["conv"].mean(1))


# what must not matter


@pytest.mark.parametrize("batch_size, workers", [(1, 0), (7, 0), (N, 2), (64, 3)])
def test_batch_size_and_workers_do_not_matter(
    target, clip, probe, batch_size, workers, monkeypatch, tmp_path
):
    layers = layers_of(target)
    Q, I = activations_and_embeddings(target, layers, clip, probe, batch_size=5, workers=0)
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "other"))
    again, J = activations_and_embeddings(target, layers, clip, probe, batch_size=batch_size, workers=workers)
    for name in LAYERS:
        close(again[name], Q[name])
    close(J, I)


def test_layers_recorded_together_alone_or_in_another_order_agree(target, probe, monkeypatch, tmp_path):
    together = unit_activations(target, probe, layers_of(target))
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "backwards"))
    backwards = unit_activations(target, probe, layers_of(target)[::-1])
    assert list(backwards) == LAYERS[::-1]
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "alone"))
    for layer in layers_of(target):
        alone = unit_activations(target, probe, [layer])
        close(alone[layer.name], together[layer.name])
        close(backwards[layer.name], together[layer.name])


def test_a_hit_gives_what_the_miss_gave_and_decodes_nothing(target, clip, probe):
    layers = layers_of(target)
    Q, I = activations_and_embeddings(target, layers, clip, probe)
    assert sorted(probe.decoded) == list(range(N))  # once for both networks
    again, J = activations_and_embeddings(target, layers, clip, probe, batch_size=3)
    assert probe.decoded[N:] == checked_rows(probe)  # once for both
    assert all(torch.equal(again[name], Q[name]) for name in LAYERS) and torch.equal(I, J)
    unit_activations(target, probe, layers[:2])
    image_embeddings(clip, probe)
    assert len(probe.decoded) == N + 3 * CHECKED


def test_only_missing_layers_are_computed(target, clip, probe):
    conv, norm, fc = layers_of(target, ["conv", "norm", "fc"])
    unit_activations(target, probe, [conv, fc])
    passes = []  # images, and hooks on fc
    target.model.register_forward_pre_hook(
        lambda _, inputs: passes.append((len(inputs[0]), len(target.model.fc._forward_hooks)))
    )
    activations_and_embeddings(target, [conv, fc], clip, probe)
    assert passes == [(CHECKED, 1)]  # the target has a few rows to compare, the CLIP all to do
    unit_activations(target, probe, [conv, norm, fc], batch_size=N)
    assert passes[1:] == [(CHECKED, 1), (N, 0)]  # one pass, which leaves fc alone


def test_a_second_target_reuses_the_embeddings_and_other_concepts_every_pass(target, clip, probe):
    layers, passes = layers_of(target, ["conv", "fc"]), []
    activations_and_embeddings(target, layers, clip, probe)
    clip.model.register_forward_hook(lambda _, inputs, output: passes.append(("clip", len(output))))
    second = make_target(seed=1, weights_key="another")
    second.model.register_forward_hook(lambda _, inputs, output: passes.append(("second", len(output))))
    activations_and_embeddings(second, layers, clip, probe, batch_size=N)
    assert passes == [("clip", CHECKED), ("second", N)] and len(probe.decoded) == 2 * N + CHECKED
    Q, I = activations_and_embeddings(second, layers, clip, probe)
    for M in (3, 8):
        assert score_embeddings(I, torch.randn(M, 5), Q["conv"], "cos_similarity").shape == (7, M)
    assert passes[2:] == [("second", CHECKED), ("clip", CHECKED)]


@pytest.mark.parametrize("pixels", [1, 3 * SIDE**2, 10**6])
def test_pieces_of_a_batch_do_not_matter(target, clip, probe, pixels, monkeypatch):
    for piece in ("PIECE", "VIT_PIECE"):
        monkeypatch.setattr(f"neuronym.passes.{piece}", pixels / torch.get_num_threads())
    sizes = []
    target.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    Q, I = activations_and_embeddings(target, layers_of(target), clip, probe, batch_size=10)
    # none of a single image
    expected = {1: [2] * 9 + [3], 3 * SIDE**2: [3, 3, 4, 3, 3, 4, 3]}.get(pixels, [10, 10, 3])
    assert sizes[-len(expected) :] == expected
    close(Q["fc"], target.model(images_of(target, probe)).detach())
    close(I, clip.encode_image(images_of(target, probe)).detach())


def test_names_do_not_matter(target, clip, probe):
    layer = layers_of(target)[0]
    other = replace(probe, name="other", ids=[f"x{i}" for i in range(N)])
    assert activation_spec(target, probe, layer) == activation_spec(
        replace(target, name="other"), other, layer
    )
    assert embedding_spec(clip, probe) == embedding_spec(replace(clip, name="other"), other)


def test_pooling_of_a_layer_without_positions_does_not_matter(target, probe):
    fc = layers_of(target, ["fc"])
    assert activation_spec(target, probe, fc[0], "max") == activation_spec(target, probe, fc[0], "cls")
    with pytest.raises(ValueError, match="got 'mean'"):
        unit_activations(target, probe, fc, "mean")


# what must matter: with any of these changed, cached activations are neither found nor returned

CHANGES = {
    "weights": lambda t, p, l: (make_target(1, weights_key="another"), p, l, "avg", "float32"),
    "layer": lambda t, p, l: (t, p, layers_of(t, ["norm"])[0], "avg", "float32"),
    "layout": lambda t, p, l: (t, p, replace(l, layout="nhwc", units=SIDE), "avg", "float32"),
    "pool": lambda t, p, l: (t, p, l, "max", "float32"),
    "preprocess": lambda t, p, l: (
        replace(t, preprocess=inverted, preprocess_spec="inverted"),
        p,
        l,
        "avg",
        "float32",
    ),
    "probe": lambda t, p, l: (t, make_probe(1, "probe-b"), l, "avg", "float32"),
    "dtype": lambda t, p, l: (t, p, l, "avg", "bfloat16"),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_no_stale_activations(target, probe, changed):
    layer = layers_of(target)[0]
    Q = unit_activations(target, probe, [layer])["conv"]
    t, p, l, how, dtype = CHANGES[changed](target, probe, layer)
    old, new = activation_spec(target, probe, layer), activation_spec(t, p, l, how, dtype)
    assert [name for name in old if old[name] != new[name]] == [changed]
    assert cache.key_of(old) != cache.key_of(new)
    fresh = unit_activations(t, p, [l], how, dtype=dtype)[l.name]
    assert fresh.shape != Q.shape or not torch.equal(fresh, Q)
    with inference(t.model, dtype=dtype) as place:
        expected = torch.cat(
            [t.model.outputs(x)[l.name] for x in place(images_of(t, p))]
        )  # [N, positions, K]
    if changed == "layout":  # as told, if absurd: rows taken for units
        expected = expected.transpose(1, 2).unflatten(2, (SIDE, SIDE)).flatten(1, 2)
    expected = (expected.mean(1) if how == "avg" else expected.amax(1)).float()
    torch.testing.assert_close(fresh, expected, rtol=1e-5, atol=1e-2 if dtype == "bfloat16" else 1e-5)
    assert torch.equal(unit_activations(target, probe, [layer])["conv"], Q)


@pytest.mark.parametrize(
    "field", ["schema", "weights", "layer", "layout", "pool", "preprocess", "probe", "dtype", "tf32"]
)
def test_every_field_is_in_the_key(target, probe, field):
    spec = activation_spec(target, probe, layers_of(target)[0])
    assert field in spec and len(spec) == 9
    assert cache.key_of(spec) != cache.key_of({**spec, field: "changed"})


@pytest.mark.parametrize(
    "changed, other",
    [
        ("weights", lambda c, p: (make_clip(1, weights_key="another"), p, "float32")),
        (
            "preprocess",
            lambda c, p: (replace(c, preprocess=inverted, preprocess_spec="inverted"), p, "float32"),
        ),
        ("probe", lambda c, p: (c, make_probe(1, "probe-b"), "float32")),
        ("dtype", lambda c, p: (c, p, "bfloat16")),
    ],
)
def test_no_stale_embeddings(clip, probe, changed, other):
    I = image_embeddings(clip, probe)
    c, p, dtype = other(clip, probe)
    old, new = embedding_spec(clip, probe), embedding_spec(c, p, dtype)
    assert [name for name in old if old[name] != new[name]] == [changed]
    assert not torch.equal(image_embeddings(c, p, dtype=dtype), I)
    assert torch.equal(image_embeddings(clip, probe), I)


# resuming


def test_an_interrupted_pass_goes_on_where_it_stopped(target, clip, monkeypatch, tmp_path):
    layers = layers_of(target)
    with pytest.raises(KeyboardInterrupt):
        activations_and_embeddings(target, layers, clip, make_probe(stop_at=13), batch_size=5, workers=0)
    assert hooks_of(target.model) == 0
    probe = make_probe()
    Q, I = activations_and_embeddings(target, layers, clip, probe, batch_size=5, workers=0)
    assert probe.decoded == list(range(10, N))
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "uninterrupted"))
    whole, J = activations_and_embeddings(target, layers, clip, probe, batch_size=5, workers=0)
    assert all(torch.equal(Q[name], whole[name]) for name in LAYERS) and torch.equal(I, J)


def test_layers_that_stopped_at_different_rows_resume_at_the_smallest(target, clip, monkeypatch, tmp_path):
    conv, norm, fc = layers_of(target, ["conv", "norm", "fc"])
    for layers, stop_at in (([conv], 13), ([norm], 6)):
        with pytest.raises(KeyboardInterrupt):
            unit_activations(target, make_probe(stop_at=stop_at), layers, batch_size=3, workers=0)
    with pytest.raises(KeyboardInterrupt):
        image_embeddings(clip, make_probe(stop_at=20), batch_size=5, workers=0)
    probe = make_probe()
    Q, I = activations_and_embeddings(
        target, [conv, norm], clip, probe, batch_size=4, workers=0
    )  # other batches
    assert probe.decoded == list(range(6, N))
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "uninterrupted"))
    whole, J = activations_and_embeddings(target, [conv, norm], clip, probe, batch_size=5)
    close(Q["conv"], whole["conv"])
    close(Q["norm"], whole["norm"])
    close(I, J)


def test_an_error_of_the_writer_ends_the_pass_and_the_rows_before_it_stay(target, probe, monkeypatch):
    layer, write = layers_of(target, ["conv"]), cache.Writer.write

    def full(self, row, block):
        if row >= 9:
            raise OSError(28, "No space left on device")
        write(self, row, block)

    monkeypatch.setattr(cache.Writer, "write", full)
    with pytest.raises(OSError, match="No space left"):
        unit_activations(target, probe, layer, batch_size=3)
    monkeypatch.setattr(cache.Writer, "write", write)
    probe.decoded.clear()
    unit_activations(target, probe, layer, batch_size=3, workers=0)
    assert probe.decoded == list(range(9, N))


# what is left behind


def test_nothing_is_left_behind(target, clip, probe):
    target.model.train()
    target.model.norm.eval()
    modes = [m.training for m in target.model.modules()]
    matmul = torch.backends.cuda.matmul.allow_tf32
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Q, _ = activations_and_embeddings(target, layers_of(target), clip, probe)
    assert hooks_of(target.model) == 0 and [m.training for m in target.model.modules()] == modes
    assert torch.backends.cuda.matmul.allow_tf32 == matmul
    for name, value in target.model.state_dict().items():
        assert torch.equal(before[name], value) and before[name].stride() == value.stride()
    target.model(torch.randn(2, 3, SIDE, SIDE)).sum().backward()  # parameters can still be trained
    with torch.no_grad():
        close(make_target().model.outputs(images_of(target, probe))["conv"].mean(1), Q["conv"])


def test_short_mantissas_are_off_during_the_pass(target, probe):
    matmul = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    during = []
    layers = layers_of(target, ["fc"])
    target.model.conv.register_forward_hook(lambda *_: during.append(getattr(matmul, name)))
    torch.set_float32_matmul_precision("high")
    try:
        unit_activations(target, probe, layers)
        assert set(during) == {exact} and matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_writing_to_a_result_does_not_touch_the_cache(target, clip, probe):
    layers = layers_of(target)
    Q, I = activations_and_embeddings(target, layers, clip, probe)
    expected, expected_I = Q["conv"].clone(), I.clone()
    Q["conv"] += 1
    I.zero_()
    again, J = activations_and_embeddings(target, layers, clip, probe)
    assert torch.equal(again["conv"], expected) and torch.equal(J, expected_I)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_layer_and_image(target, probe, value):
    def spoiled(image: Image.Image) -> Tensor:
        x = to_tensor(image)
        return x + value * torch.ones_like(x) if np.array_equal(np.array(image), probe.items[17]) else x

    broken = replace(target, preprocess=spoiled)
    with pytest.raises(ValueError, match="'conv' of net gave .* for image 'image-17'"):
        unit_activations(broken, probe, layers_of(target), batch_size=5)
    assert hooks_of(target.model) == 0
    assert cache.load("activations", activation_spec(broken, probe, layers_of(target)[0])) is None


@pytest.mark.parametrize(
    "layers, how, error, message",
    [
        (
            lambda t: [*layers_of(t, ["conv"]), replace(layers_of(t)[0], name="cnv")],
            "avg",
            KeyError,
            "nearest: conv",
        ),
        (lambda t: layers_of(t, ["conv"]), "cls", ValueError, "'cls' pooling needs tokens"),
        (lambda t: layers_of(t, ["conv"]), "mean", ValueError, "'avg', 'max', 'share' or 'cls', got 'mean'"),
        (
            lambda t: [replace(layers_of(t, ["conv"])[0], units=8)],
            "avg",
            ValueError,
            "8 values per image, got shape",
        ),
        (
            lambda t: [replace(layers_of(t, ["first"])[0], layout="tokens")],
            "avg",
            ValueError,
            "batch .* at axis 0",
        ),
        (lambda t: ["conv"], "avg", ValueError, "a list of LayerInfo"),
        (lambda t: [], "avg", ValueError, "a list of LayerInfo"),
    ],
)
def test_refusals_leave_no_hook_and_no_entry(target, probe, layers, how, error, message):
    with pytest.raises(error, match=message):
        unit_activations(target, probe, layers(target), how)
    assert hooks_of(target.model) == 0
    assert cache.load("activations", activation_spec(target, probe, layers_of(target)[0])) is None


def test_other_refusals(target, clip, probe):
    with pytest.raises(ValueError, match="dtype is one of float32, .*got 'half'"):
        unit_activations(target, probe, layers_of(target), dtype="half")
    with pytest.raises(ValueError, match="clip 'clip' is on cpu.*load_clip"):
        image_embeddings(clip, probe, device="meta")
    clip.encode_image = lambda images: clip.model(images)
    with pytest.raises(ValueError, match="embeddings of clip must have length 1"):
        image_embeddings(clip, probe)
    empty = replace(probe, items=[], ids=[])
    with pytest.raises(ValueError, match="has no images"):
        unit_activations(target, empty, layers_of(target))


def test_progress_counts_the_batches_that_are_left(target, clip, probe):
    calls = []

    def progress(batches, total, text):
        calls.append((total, text, 0))
        for batch in batches:
            calls[-1] = (total, text, calls[-1][2] + 1)
            yield batch

    for _ in range(2):
        activations_and_embeddings(target, layers_of(target), clip, probe, batch_size=5, progress=progress)
    assert calls == [(5, "net + clip", 5)]  # and none on the hit


# spot check, maps, top images


def test_what_a_hit_does_not_reproduce_is_computed_anew(target, clip, probe, capsys):
    """A network changed in place keeps its key; its old activations are found out, and so are a CLIP's."""
    layers = layers_of(target)
    first, I = activations_and_embeddings(target, layers, clip, probe)
    first, I = {name: q.clone() for name, q in first.items()}, I.clone()
    with torch.no_grad():
        target.model.fc.weight.mul_(2)
        last = list(clip.model.parameters())[-1]
        last.copy_(last.flip(0) + 1)
    capsys.readouterr()
    Q, J = activations_and_embeddings(target, layers, clip, probe)
    said = capsys.readouterr().err
    close(Q["fc"], target.model(images_of(target, probe)).detach())
    close(J, clip.encode_image(images_of(target, probe)).detach())
    assert torch.equal(Q["conv"], first["conv"]) and not torch.equal(J, I)
    assert (
        said.count("gives other values for a few images now; it is computed anew") == 2 and "'fc' of" in said
    )


@pytest.mark.parametrize("name", ["conv", "norm", "nhwc", "tokens", "first"])
def test_maps_of_chosen_images_and_units(target, probe, name):
    [layer] = layers_of(target, [name])
    rows, units = [19, 0, 4], [5, 2]
    maps = activation_maps(target, probe, layer, rows, units, batch_size=2)
    with torch.no_grad():
        expected = target.model.outputs(images_of(target, probe))[name][rows][
            :, :, units
        ]  # [n, positions, 2]
    close(maps, expected.transpose(1, 2).unflatten(2, (SIDE, SIDE)))
    whole = activation_maps(target, probe, layer, torch.tensor(rows))
    assert whole.shape == (3, layer.units, SIDE, SIDE)
    close(whole[:, units], maps)
    close(whole.mean((2, 3)), unit_activations(target, probe, [layer])[name][rows])
    assert hooks_of(target.model) == 0
    maps += 1  # an ordinary tensor


@pytest.mark.parametrize(
    "rows, units, message",
    [
        ([N], None, "image numbers lie within 0 .. 22, got 23"),
        ([-1], None, "image numbers"),
        ([], None, "got none"),
        ([0], [7], "unit of 'conv' numbers lie within 0 .. 6, got 7"),
    ],
)
def test_maps_refuse_what_is_not_there(target, probe, rows, units, message):
    with pytest.raises(ValueError, match=message):
        activation_maps(target, probe, layers_of(target)[0], rows, units)
    with pytest.raises(ValueError, match="no maps"):
        activation_maps(target, probe, layers_of(target, ["fc"])[0], [0])
    assert hooks_of(target.model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("k", [1, 5, N])
def test_top_images_break_ties_by_the_lower_index(dtype, k):
    Q = torch.randint(-2, 3, (N, 11), generator=torch.Generator().manual_seed(0)).to(dtype)
    Q[:, 3], Q[:, 4], Q[:, 5] = 0, torch.randn(N), -torch.rand(N) * 1e-30
    Q[::2, 6], Q[1::2, 6] = 0.0, -0.0
    top = top_images(Q, k)
    assert top.shape == (k, 11) and top.dtype == torch.int64
    for unit in range(11):
        expected = sorted(range(N), key=lambda i: (-Q[i, unit].item(), i))[:k]
        assert top[:, unit].tolist() == expected


def test_top_images_does_not_depend_on_the_block(monkeypatch):
    Q = torch.randn(N, 7).round(decimals=1)
    whole = top_images(Q, 5)
    monkeypatch.setattr("neuronym.common.memory.RANKING_BYTES", 1)
    assert torch.equal(top_images(Q, 5), whole)


@pytest.mark.parametrize(
    "Q, k, message",
    [
        (torch.zeros(N, 7), 0, "k within 1 .. N"),
        (torch.zeros(N, 7), N + 1, "k within 1 .. N"),
        (torch.zeros(N), 1, "expected Q"),
        (torch.full((N, 7), float("nan")), 1, "must be finite"),
    ],
)
def test_top_images_refuses(Q, k, message):
    with pytest.raises(ValueError, match=message):
        top_images(Q, k)
