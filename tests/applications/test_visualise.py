"""Synthesised pictures: parametrisations and columns against literal forms, the ascent, refusals."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from neuronym.applications import visualise_images as images
from neuronym.applications.visualise import accentuate, aim_at, layers_before, Settings, synthesise
from neuronym.applications.visualise_columns import (
    activation_over,
    as_pictures,
    by_layer,
    label_share,
    own_first,
    path_similarity,
    picture_columns,
    seen_pictures,
)
from neuronym.applications.visualise_files import (
    clear_pictures,
    picture_file,
    read_directions,
    read_pictures,
    with_alpha,
    write_pictures,
)
from neuronym.applications.visualise_transforms import affine_maps, NONE, transformed, Transforms
from neuronym.figures.visualise import picture_cards, picture_rows, TILE
from neuronym.hooks import list_layers, poolings
from neuronym.measurements import measure
from neuronym.models.clips import load_clip
from neuronym.models.preprocess import HALF, Preprocess
from neuronym.models.targets import load_target
from neuronym.models.weights import random_start
from neuronym.runs.folders import ROOT
from tests.helpers import reference_pictures as literal

SIZE = (5, 6)
QUICK = Settings(steps=4, views=2)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    plain = torch.rand(4, 3, *SIZE, generator=dice())
    plain[:, 1] = 0.6 * plain[:, 0] + 0.4 * plain[:, 1]  # colours that go together
    return plain


@pytest.fixture(scope="module")
def statistics(pictures):
    return images.picture_statistics(pictures)


def test_colours_are_the_root_of_the_covariance(pictures, statistics):
    mean, covariance = literal.mean_and_covariance(pictures.double().tolist())
    assert torch.allclose(statistics.mean.double(), torch.tensor(mean, dtype=torch.float64), atol=1e-6)
    root = statistics.colours.double()
    assert torch.allclose(root, root.T, atol=1e-6)
    assert torch.allclose(root @ root, torch.tensor(covariance, dtype=torch.float64), atol=1e-6)


def test_the_spectrum_is_the_mean_magnitude_of_decorrelated_pictures(pictures, statistics):
    mean, covariance = literal.mean_and_covariance(pictures.double().tolist())
    values, vectors = torch.linalg.eigh(torch.tensor(covariance, dtype=torch.float64))
    inverse = vectors / values.sqrt() @ vectors.T
    centred = pictures.double() - torch.tensor(mean, dtype=torch.float64)[:, None, None]
    white = torch.einsum("ij,njhw->nihw", inverse, centred)
    magnitude = torch.zeros(3, *SIZE, dtype=torch.float64)
    for picture in white:
        for c in range(3):
            magnitude[c] += torch.tensor(
                [[abs(v) for v in row] for row in literal.transform(picture[c].tolist())]
            )
    magnitude[:, 0, 0] = 0
    energy = magnitude.square().sum((1, 2)) / (SIZE[0] * SIZE[1])
    expected = (magnitude / energy.sqrt()[:, None, None])[:, :, : SIZE[1] // 2 + 1]
    assert torch.allclose(statistics.spectrum.double(), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(5, 6), (6, 5), (4, 4)])
@pytest.mark.parametrize("decay", [1.0, 1.5])
def test_frequencies_are_scaled_as_the_formula_says(size, decay):
    expected = torch.tensor(literal.scale(*size, decay))
    assert torch.allclose(images.fourier_scale(size, decay), expected, rtol=1e-5)


def test_a_fourier_picture_is_the_inverse_transform_in_real_colours(statistics):
    made = images.fourier(1, statistics, SIZE, dice())
    numbers = made.numbers * 100
    picture = made.picture(numbers)[0].double()
    white = torch.zeros(3, *SIZE, dtype=torch.float64)
    weights = torch.tensor(literal.scale(*SIZE, 1.0), dtype=torch.float64)
    entries = torch.view_as_complex(numbers[0].double().contiguous()) * weights
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            for u in range(SIZE[0]):
                for v in range(SIZE[1] // 2 + 1):
                    turn = torch.tensor(2j * torch.pi * (u * y / SIZE[0] + v * x / SIZE[1])).exp()
                    twice = 1 if v in (0, SIZE[1] / 2) else 2
                    white[:, y, x] += twice * (entries[:, u, v] * turn).real / (SIZE[0] * SIZE[1]) ** 0.5
    coloured = torch.einsum("ij,jhw->ihw", statistics.colours.double(), white)
    expected = 1 / (1 + torch.exp(-4 * (coloured + statistics.mean.double()[:, None, None] - 0.5)))
    assert torch.allclose(picture, expected, atol=1e-5)


def test_maco_keeps_the_magnitude_of_real_pictures_whatever_the_phase(statistics):
    made = images.maco(2, statistics, SIZE, dice())
    picture = made.picture(made.numbers)
    white = torch.logit(picture) / images.STEEP + 0.5 - statistics.mean[:, None, None]
    white = torch.einsum("ij,njhw->nihw", torch.linalg.inv(statistics.colours), white)
    magnitude = torch.fft.rfft2(white, norm="ortho").abs()
    inner = slice(1, (SIZE[1] + 1) // 2)  # the other columns are their own mirror
    assert torch.allclose(
        magnitude[..., inner], statistics.spectrum[..., inner].expand(2, -1, -1, -1), atol=1e-3
    )


def test_numbers_of_a_photo_give_it_back(pictures, statistics):
    made = images.fourier(1, statistics, SIZE, dice())
    back = made.picture(images.from_pictures(pictures.clamp(0.02, 0.98), statistics))
    assert torch.allclose(back, pictures.clamp(0.02, 0.98), atol=1e-4)


def test_grey_pictures_have_colours_too():
    grey = torch.rand(3, 1, 4, 4, generator=dice()).expand(-1, 3, -1, -1)
    found = images.picture_statistics(grey)
    assert torch.isfinite(found.colours).all() and torch.isfinite(found.spectrum).all()


def test_views_as_they_are_and_moved():
    x = torch.rand(2, 3, 6, 8, generator=dice())
    assert torch.equal(transformed(x, 2, NONE, [dice(), dice()]), x.repeat_interleave(2, 0))
    straight = replace(NONE, jitter=1e-12)
    assert torch.allclose(transformed(x, 1, straight, [dice(), dice()]), x, atol=1e-5)
    both = transformed(x, 2, Transforms(), [dice(1), dice(2)])
    alone = transformed(x[1:], 2, Transforms(), [dice(2)])
    assert torch.equal(both[2:], alone)  # whatever is made beside it


def test_crops_lie_within_the_picture_and_turns_keep_shapes():
    draws = torch.rand(200, 6, generator=dice())
    maps = affine_maps(draws, Transforms(jitter=0, smallest=0.3, largest=0.9, rotate=0), (6, 8))
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)])
    assert (maps @ corners.T).abs().max() <= 1 + 1e-6
    turned = affine_maps(draws, Transforms(jitter=0, smallest=1, largest=1, rotate=90), (6, 8))
    pixels = torch.tensor([8.0, 6.0])  # in pixels a turn keeps lengths
    across, down = turned[:, :, 0] * pixels / 8, turned[:, :, 1] * pixels / 6
    assert torch.allclose(across.norm(dim=1), torch.ones(200), atol=1e-5)
    assert torch.allclose((across * down).sum(1), torch.zeros(200), atol=1e-5)


@pytest.fixture(scope="module")
def made_up():
    q, Q = torch.randn(3, 7, generator=dice(1)), torch.randn(20, 7, generator=dice(2))
    return q, Q


def test_path_similarity_is_that_of_the_formula(made_up):
    q, Q = made_up
    best = torch.tensor([[0, 3, 5], [1, 2, 9], [11, 7, 4]])
    random = torch.tensor([6, 8, 10, 12])
    found = path_similarity(q, Q, best, random)
    for i in range(3):
        expected = literal.path_similarity(q[i].tolist(), Q.tolist(), best[i].tolist(), random.tolist())
        assert [float(found[key][i]) for key in ("path", "path_top", "path_random")] == pytest.approx(
            expected, abs=1e-5
        )
        share = (expected[0] - expected[2]) / (expected[1] - expected[2])
        if expected[1] > expected[2]:
            assert float(found["path_share"][i]) == pytest.approx(share, abs=1e-4)
        else:
            assert torch.isnan(found["path_share"][i])


def test_own_first_and_activation_are_those_of_the_formula(made_up):
    q, Q = made_up
    units = [2, 6, 0]
    directions = torch.eye(7)[units]
    ranks = own_first(q, Q, directions)["own_rank"].tolist()
    assert ranks == [literal.own_rank(q[i].tolist(), Q.tolist(), unit) for i, unit in enumerate(units)]
    vector = torch.ones(3, 7)
    summed = [[*row, sum(row)] for row in Q.tolist()]
    ranks = own_first(q, Q, vector)["own_rank"].tolist()  # among the seven units and itself
    assert ranks == [literal.own_rank([*row, sum(row)], summed, 7) for row in q.tolist()]
    over = activation_over(q, Q, directions)
    assert over["activation"].tolist() == [q[i, unit].item() for i, unit in enumerate(units)]
    assert over["beats_best"].tolist() == [
        bool(q[i, unit] > Q[:, unit].max()) for i, unit in enumerate(units)
    ]


def test_label_share_counts_the_labels_that_are_farther():
    I = torch.randint(-9, 9, (3, 4), generator=dice(1)).float()  # whole numbers, so that equal is equal
    T = torch.randint(-9, 9, (6, 4), generator=dice(2)).float()
    T[5] = T[1]
    own = torch.tensor([1, 0, 4])
    expected = [literal.label_share(I[i].tolist(), T.tolist(), int(own[i])) for i in range(3)]
    assert label_share(I, T, own).tolist() == pytest.approx(expected)
    assert torch.isnan(label_share(I, T[:1], torch.zeros(3, dtype=torch.long))).all()


class Rounded(nn.Module):
    def forward(self, x):
        return x.round()


class Small(nn.Module):
    """Two convolutions and a linear layer; `cut` detaches in between."""

    def __init__(self, cut: bool = False):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3), nn.Linear(6, 4)
        self.cut = cut

    def forward(self, x):
        x = self.first(x).relu()
        x = self.second(x.detach() if self.cut else x)
        return self.fc(x.mean((2, 3)))


def small(cut: bool = False):
    with random_start(3):
        model = Small(cut)
    return load_target(model, preprocess=Preprocess(16, 16, mean=HALF, std=HALF), name="small")


@pytest.fixture
def setting():
    """A target, its layers, activations of noise pictures, and these pictures' statistics."""
    target = small()
    layers = {one.name: one for one in list_layers(target.model, target.example)}
    real = [
        Image.fromarray(one) for one in np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), np.uint8)
    ]
    with torch.no_grad():
        x = torch.stack([target.preprocess(one) for one in real])
        first = target.model.first(x)
        second = target.model.second(first.relu())
    Q = {"first": first.mean((2, 3)), "second": second.mean((2, 3)), "fc": target.model(x).detach()}
    shown = torch.stack([torch.from_numpy(np.array(one)) for one in real]).permute(0, 3, 1, 2) / 255
    return target, layers, Q, images.picture_statistics(shown), shown


def aimed(setting, units, layer="second"):
    _, layers, Q, *_ = setting
    earlier = [layers[name] for name in ("first",) if name != layer]
    return aim_at(
        layers[layer],
        Q,
        poolings(list(layers.values()), "auto") | dict.fromkeys(layers, "avg"),
        units,
        earlier,
    )


@pytest.mark.parametrize("image", images.PARAMETRISATIONS)
@pytest.mark.parametrize("layer", ["second", "fc"])
def test_the_ascent_raises_what_it_aims_at(setting, image, layer):
    target, _, _, statistics, _ = setting
    aim = aimed(setting, [0, 3], layer)
    still = Settings(image=image, contrast=0, smooth=0, steps=1, rate=1e-6)
    before = synthesise(target, aim, statistics, still)
    after = synthesise(target, aim, statistics, replace(still, steps=30, rate=1.0))
    assert (after.pictures >= 0).all() and (after.pictures <= 1).all()
    assert (after.alpha >= 0).all() and after.alpha.amax() == 1 and not after.silent.any()
    shown = images.as_shown(target)

    def values(made):
        out = target.model.second(target.model.first(shown.input_of(made.pictures)).relu()).mean((2, 3))
        out = target.model.fc(out) if layer == "fc" else out
        return out[[0, 1], [0, 3]]

    assert (values(after) > values(before)).all()


def test_neither_batch_nor_company_matters_and_the_seed_does(setting):
    target, _, _, statistics, _ = setting
    aim = aimed(setting, [0, 2, 4])
    first = synthesise(target, aim, statistics, QUICK, batch=3).pictures
    assert torch.allclose(first, synthesise(target, aim, statistics, QUICK, batch=1).pictures, atol=1e-4)
    alone = synthesise(target, aimed(setting, [2]), statistics, QUICK).pictures
    assert torch.allclose(first[1:2], alone, atol=1e-4)
    assert not torch.allclose(first, synthesise(target, aim, statistics, QUICK, seed=1).pictures, atol=1e-3)


def test_a_unit_is_the_direction_along_its_axis(setting):
    target, _, _, statistics, _ = setting
    unit = aimed(setting, [2])
    vector = replace(aimed(setting, torch.eye(6)[2:3] * 5), names=unit.names)  # names draw the noise
    made = [synthesise(target, aim, statistics, QUICK).pictures for aim in (unit, vector)]
    assert torch.allclose(*made, atol=1e-4)


def test_an_accentuated_photo_stays_nearer_when_it_is_kept(setting):
    target, _, _, statistics, shown = setting
    aim = aimed(setting, [0, 1])
    photos = shown[:2].float()
    far = [
        (accentuate(target, aim, photos, statistics, replace(QUICK, steps=20), keep=keep).pictures - photos)
        .square()
        .mean()
        for keep in (0.0, 1000.0)
    ]
    assert far[1] < far[0] / 2


def test_gradients_go_through_tokens_and_where_settings_say(setting):
    target = load_target("microworld:vit")
    layer = next(
        one for one in list_layers(target.model, target.example) if one.layout == "tokens" and one.grid
    )
    Q = {layer.name: torch.randn(8, layer.units, generator=dice())}
    statistics = images.picture_statistics(torch.rand(3, 3, 64, 64, generator=dice()))
    for pool in ("cls", "avg"):
        for where in ("pooled", "centre"):
            aim = aim_at(layer, Q, {layer.name: pool}, [1])
            made = synthesise(target, aim, statistics, Settings(steps=2, views=1, where=where))
            assert torch.isfinite(made.pictures).all() and not made.silent.any()


@pytest.mark.parametrize("name", ["microworld", "microworld:vit"])
def test_a_clip_has_units_too(name):
    clip = load_clip(name)
    target = load_target(clip.model.visual, preprocess=clip.preprocess, name=name)
    layer = next(
        one for one in list_layers(target.model, target.example) if one.layout in ("tokens_first", "conv")
    )
    aim = aim_at(layer, {layer.name: torch.randn(8, layer.units, generator=dice())}, {layer.name: "avg"}, [1])
    statistics = images.picture_statistics(torch.rand(3, 3, 64, 64, generator=dice()))
    told = []

    def progress(items, total, text):
        told.append((total, text))
        return items

    made = synthesise(target, aim, statistics, Settings(steps=2, views=1), progress=progress)
    assert made.pictures.shape == (1, 3, 64, 64) and not made.silent.any()
    assert told == [(2, "steps of pictures")]


def refusals(setting):
    target, layers, Q, statistics, shown = setting
    pools = dict.fromkeys(layers, "avg")
    cut = small(cut=True)
    yield "passes one to none", lambda: synthesise(cut, aimed(setting, [0]), statistics, QUICK)
    flat = small()
    flat.model.second = nn.Sequential(flat.model.second, Rounded())
    yield "passes one of 0 for every", lambda: synthesise(flat, aimed(setting, [0]), statistics, QUICK)
    yield "are [n, 6], at least one", lambda: aim_at(layers["second"], Q, pools, torch.ones(2, 5))
    yield "are [n, 6], at least one", lambda: aim_at(layers["second"], Q, pools, torch.ones(0, 6))
    yield "finite and not zero", lambda: aim_at(layers["second"], Q, pools, torch.zeros(1, 6))
    yield "no parametrisation of pictures 'furier'", lambda: Settings(image="furier")
    yield "no place of a unit's value 'left'", lambda: Settings(where="left")
    yield "steps must be a positive", lambda: Settings(steps=0)
    yield "smooth must be a finite number", lambda: Settings(smooth=float("nan"))
    yield "largest must be", lambda: Transforms(smallest=0.9, largest=0.5)
    yield (
        "a photo goes with each",
        lambda: accentuate(target, aimed(setting, [0]), shown[:2], statistics, QUICK),
    )
    yield "at least one, got [0, 3", lambda: images.picture_statistics(torch.zeros(0, 3, 4, 4))
    grey = replace(target, example=torch.zeros(1, 1, 16, 16))
    yield "has three channels", lambda: images.as_shown(grey)
    bent = replace(target, preprocess=lambda image: target.preprocess(image).square())
    yield "scales and shifts each channel", lambda: images.as_shown(bent)
    yield "has 16 x 16 pixels, got 8 x 8", lambda: images.as_shown(target)(Image.new("RGB", (8, 8)))


def test_what_cannot_be_is_refused_in_a_sentence(setting):
    for message, act in refusals(setting):
        with pytest.raises((ValueError, KeyError)) as caught:
            act()
        assert message in str(caught.value), message
        assert "\n" not in str(caught.value)


def test_the_network_gets_a_picture_as_it_is(setting):
    target = setting[0]
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8))
    assert torch.allclose(images.as_shown(target)(picture), target.preprocess(picture), atol=1e-6)


def test_columns_and_files_of_a_network_of_the_microworld(tmp_path):
    data = measure(
        "microworld:resnet", "layer3,layer4", "microworld:40", "microworld", ["a red circle", "a star"]
    )
    statistics = images.picture_statistics(seen_pictures(data.target, data.probe))
    layers = list(data.layers.values())
    aim = aim_at(layers[1], data.Q, poolings(layers, data.pool), [5, 17], layers[:1])
    made = synthesise(data.target, aim, statistics, Settings(steps=2, views=1))
    shown = as_pictures(made.pictures)
    columns = picture_columns(data, aim, shown, ["a star", "a red circle"], ["a red circle"])
    assert len(columns) == 2 and columns["label_share"].isin([0, 0.5, 1]).all()
    with torch.no_grad():
        x = images.as_shown(data.target)(shown[0])[None]
        body = nn.Sequential(*list(data.target.model.children())[:5])
        assert float(columns["activation"][0]) == pytest.approx(float(body(x).mean((2, 3))[0, 5]), rel=1e-4)
    table = write_pictures(tmp_path, columns, shown, made.alpha, "fourier")
    more = write_pictures(tmp_path, columns, shown, made.alpha, "fourier", photos=["a.png", "b.png"])
    again = write_pictures(tmp_path, columns, shown, made.alpha, "fourier", photos=["a.png", "b.png"])
    assert len(more) == len(again) == 2  # the rows written, of the whole table
    back = read_pictures(tmp_path)
    assert len(back) == 4 and back["unit"].tolist() == [5, 17, 5, 17]
    assert picture_file("layer4", "17") in back["file"].tolist() and back["photo"].tolist()[2:] == [
        "a.png",
        "b.png",
    ]
    assert np.array_equal(np.asarray(Image.open(tmp_path / table["file"][1])), np.asarray(shown[1]))
    assert Image.open(tmp_path / table["alpha"][1]).mode == "RGBA"
    pd.testing.assert_series_equal(back["z"][:2], columns["z"].astype(float), rtol=1e-4)
    (tmp_path / table["file"][0]).unlink()
    with pytest.raises(FileNotFoundError, match="and not there"):
        read_pictures(tmp_path)
    (tmp_path / "visualised" / "mine.png").touch()
    clear_pictures(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["mine.png"]
    clear_pictures(tmp_path)
    write_pictures(tmp_path, columns, shown, made.alpha, "pixels")
    assert read_pictures(tmp_path)["image"].tolist() == ["pixels", "pixels"]
    with pytest.raises(FileNotFoundError, match="has no visualised.csv"):
        read_pictures(tmp_path / "elsewhere")


def test_directions_come_from_files_and_others_are_refused(tmp_path):
    vectors = torch.randn(2, 6, generator=dice())
    np.save(tmp_path / "v.npy", vectors.numpy())
    save_file({"W_enc": vectors}, tmp_path / "v.safetensors")
    np.savetxt(tmp_path / "v.csv", vectors.numpy(), delimiter=",")
    np.save(tmp_path / "one.npy", vectors[0].numpy())
    for name in ("v.npy", "v.safetensors", "v.csv"):
        assert torch.allclose(read_directions(tmp_path / name, 6, "second"), vectors)
    assert read_directions(tmp_path / "one.npy", 6, "second").shape == (1, 6)
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "v.txt").write_text("1,2")
    (tmp_path / "words.csv").write_text("a,b")
    (tmp_path / "torn.safetensors").write_bytes(b"x")
    for name in ("pickled.npy", "v.txt", "words.csv", "torn.safetensors"):
        with pytest.raises(ValueError, match="is none: .+"):
            read_directions(tmp_path / name, 6, "second")
    with pytest.raises(ValueError, match="'second' have 7 values each, .* holds"):
        read_directions(tmp_path / "v.npy", 7, "second")
    with pytest.raises(FileNotFoundError, match="no file of directions at"):
        read_directions(tmp_path / "gone.npy", 6, "second")


def test_layers_before_are_those_that_have_run(setting):
    target, layers, *_ = setting
    given = list(layers.values())
    assert [one.name for one in layers_before(target, layers["second"], given[::-1])] == ["first"]
    assert [one.name for one in layers_before(target, layers["fc"], given)] == ["first", "second"]
    assert layers_before(target, layers["first"], given) == []


def test_shares_by_layer_are_means_and_the_path_that_of_means():
    table = pd.DataFrame(
        {
            "layer": ["a", "a", "b"],
            "times_best": [1.0, 3.0, 0.5],
            "beats_best": [True, True, False],
            "own_first": [True, False, False],
            "real_first": [False, False, True],
            "path": [0.2, 0.6, 0.1],
            "path_top": [0.5, 0.5, 0.3],
            "path_random": [0.1, 0.0, 0.1],
        }
    )
    found = by_layer(table)
    assert found["beats_best"].tolist() == [1, 0] and found["own_first"].tolist() == [0.5, 0]
    assert found["path_share"].tolist() == pytest.approx([(0.4 - 0.05) / (0.5 - 0.05), 0])
    assert by_layer(table.assign(image=["x", "y", "x"]))["image"].tolist() == ["x", "y", "x"]


def test_figures_show_every_picture_beside_real_ones():
    picture = Image.new("RGB", (64, 64), "red")
    card = {"title": "layer4  3", "label": "a $red$ thing", "lines": ["1.2", "x"], "real": [picture] * 3}
    card["made"] = [picture, with_alpha(picture, torch.zeros(64, 64))]
    fig = picture_cards([card] * 3)
    shown = np.asarray(fig.axes[0].images[0].get_array())
    red = (shown[..., :3] == (255, 0, 0)).all(-1).sum()
    assert red == 3 * 4 * TILE * TILE  # what is transparent is white
    assert sum("$red$" in text.get_text() for text in fig.texts) == 3
    rows = picture_rows({"photo": [picture], "after": [picture, picture]}, ["a", "b"])
    assert (np.asarray(rows.axes[0].images[0].get_array())[..., 0] == 255).any()
    assert [text.get_text() for text in rows.texts] == ["photo", "after", "a", "b"]
    plt.close("all")


def test_the_script_of_the_page_runs(capsys):
    page = (ROOT / "docs" / "results" / "visualisation.md").read_text(encoding="utf-8")
    script = page.partition("```python\n")[2].partition("```")[0]
    assert "microworld:500" in script and "steps=64" in script
    exec(script.replace("microworld:500", "microworld:40").replace("steps=64", "steps=2"), {})
    assert "own_first" in capsys.readouterr().out
