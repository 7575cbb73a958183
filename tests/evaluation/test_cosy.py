"""CoSy: literal counts, scipy and scikit-learn, the microworld's true and wrong names, retrieval, and the
cache.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from neuronym.activations import unit_activations
from neuronym.datasets.probe import load_probe
from neuronym.evaluation import cosy as cosy_module
from neuronym.evaluation.cosy import cosy, drawn, respond, score_labels, TOGETHER
from neuronym.hooks import resolve_layers
from neuronym.models.generators import Generator, load_generator, pictures_of, PROMPT
from neuronym.models.targets import load_target
from neuronym.similarity.scores import retrieved

n, N, K = 7, 23, 5


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(rows: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    """Activations with many ties; unit 2 is dead."""
    X = torch.randint(0, 9, (rows, K), generator=dice(seed)).to(dtype) + 0.5
    X[:, 2] = 3.7
    return X


@pytest.fixture(scope="module")
def target():
    return load_target("microworld:resnet", suggest=False)


@pytest.fixture(scope="module")
def fc(target):
    return resolve_layers(target.model, "fc", target.example)[0]


@pytest.fixture
def control(target, fc):
    return unit_activations(target, load_probe("microworld:150"), [fc])


# --- the numbers


def test_cosy_is_the_literal_count():
    generated, control = values(n, 1), values(N, 2)
    found = cosy(generated, control)
    for k in range(K):
        a, b = generated[:, k].tolist(), control[:, k].tolist()
        wins = sum((x > y) + 0.5 * (x == y) for x in a for y in b)
        assert found["auc"][k].item() == pytest.approx(wins / (n * N), abs=1e-12)
        mean = math.fsum(b) / N
        sd = math.sqrt(math.fsum((y - mean) ** 2 for y in b) / N)
        mad = 0 if k == 2 else (math.fsum(a) / n - mean) / sd
        assert found["mad"][k].item() == pytest.approx(mad, abs=1e-12)
    assert found["auc"].dtype == torch.float64 and all(x.shape == (K,) for x in found.values())


def test_cosy_agrees_with_scikit_learn_and_scipy():
    from scipy.stats import mannwhitneyu
    from sklearn.metrics import roc_auc_score

    generated, control = values(n, 3), values(N, 4)
    found = cosy(generated, control)
    truth = [1] * n + [0] * N
    for k in (0, 1, 3, 4):
        joined = torch.cat([generated[:, k], control[:, k]]).numpy()
        assert found["auc"][k].item() == pytest.approx(roc_auc_score(truth, joined), abs=1e-12)
        test = mannwhitneyu(joined[:n], joined[n:], alternative="greater", method="asymptotic")
        assert found["p"][k].item() == pytest.approx(test.pvalue, abs=1e-12)
        assert found["auc"][k].item() == pytest.approx(test.statistic / (n * N), abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_dead_units_have_stated_values():
    generated, control = values(n, 1), values(N, 2)
    found = cosy(generated, control)
    assert [found[key][2].item() for key in ("auc", "mad", "p")] == [0.5, 0, 1]
    alive = generated.clone()
    alive[:, 2] += 1  # dead on the control only
    found = cosy(alive, control)
    assert [found[key][2].item() for key in ("auc", "mad")] == [1, 0] and found["p"][2] < 0.001
    shaken = control.float()
    shaken[::2, 2] *= 1 + 1e-7  # as batches of other sizes may round
    assert cosy(generated.float(), shaken)["mad"][2] == 0


def test_order_and_scale_do_not_matter():
    generated, control = values(n, 5), values(N, 6)
    found = cosy(generated, control)
    units = torch.tensor([3, 1, 0, 4, 2])
    turned = cosy(generated.flip(0)[:, units] * 8 - 3, control.flip(0)[:, units] * 8 - 3)
    for key in found:
        torch.testing.assert_close(turned[key], found[key][units], rtol=1e-9, atol=1e-12)
    swapped = cosy(control, generated)["auc"]
    torch.testing.assert_close(swapped, 1 - found["auc"])
    assert found["mad"][0] != 0 and found["auc"].std() > 0.01


def test_p_values_are_uniform_when_pictures_are_control_images():
    X = torch.randn(40 + 60, 2000, generator=dice(7))
    p = cosy(X[:40], X[40:])["p"]
    assert all(abs((p < level).double().mean() - level) < 0.02 for level in (0.05, 0.25, 0.5, 0.75))


# --- pictures


def test_each_label_is_drawn_once_with_the_same_seeds():
    calls = []

    def draw(prompts, seeds):
        calls.append((list(prompts), list(seeds)))
        return [Image.new("RGB", (4, 4)) for _ in prompts]

    source = Generator("diffusers:none", "0", draw, cached=False)
    found = pictures_of(["cat", "dog", "cat"], source, 3)
    assert list(found) == ["cat", "dog"] and all(len(drawn) == 3 for drawn in found.values())
    assert [prompts[0] for prompts, _ in calls] == [PROMPT.replace("{}", "cat"), PROMPT.replace("{}", "dog")]
    assert calls[0][1] == calls[1][1] and len(set(calls[0][1])) == 3
    pictures_of(["cat"], source, 3, seed=1, template="a {}!")
    assert calls[2][0] == ["a cat!"] * 3 and not set(calls[2][1]) & set(calls[0][1])


def test_labels_whose_pictures_are_missing_have_no_score(monkeypatch):
    def draw(prompts, seeds):
        kept = {"a cat": len(prompts), "a dog": 0}
        return [Image.new("RGB", (4, 4)) if i < kept.get(p, 1) else None for i, p in enumerate(prompts)]

    source = Generator("diffusers:none", "0", draw, cached=False)
    layer = SimpleNamespace(name="fc", units=2)

    def respond(target, layers, pictures, *how):
        return {"fc": torch.arange(2.0 * len(pictures)).view(-1, 2)}

    monkeypatch.setattr(cosy_module, "respond", respond)
    seen = cosy_module.drawn(None, [layer], ["bird", "cat", "dog"], source, 3, template="a {}")
    assert {label: len(found["fc"]) for label, found in seen.items()} == {"bird": 1, "cat": 3, "dog": 0}
    control = {"fc": torch.randn(20, 2, generator=dice(3))}
    table = cosy_module.score_labels({"m": {"fc": ["dog", "cat"]}}, seen, control)
    assert table["label"].tolist() == ["cat"]
    alone = cosy_module.drawn(None, [layer], ["dog"], source, 3, template="a {}")
    assert alone["dog"]["fc"].shape == (0, 2)


def test_microworld_pictures_show_the_label_and_repeat():
    source = load_generator("microworld")
    found, again = (pictures_of(["snow", "night"], source, 2) for _ in range(2))
    assert all(np.array_equal(a, b) for label in found for a, b in zip(found[label], again[label]))
    assert not np.array_equal(*found["night"])
    assert np.asarray(found["night"][0]).mean() < np.asarray(found["snow"][0]).mean()


def test_retrieved_are_the_nearest_by_literal_sorting():
    I, T = (
        torch.nn.functional.normalize(torch.randn(rows, 6, generator=dice(rows), dtype=torch.float64), dim=1)
        for rows in (19, 4)
    )
    I[11] = T[3] = I[4]  # a tie
    near = [[math.fsum(a * b for a, b in zip(t, i)) for i in I.tolist()] for t in T.tolist()]
    expected = [sorted(range(19), key=lambda i: (-round(row[i], 12), i))[:5] for row in near]
    for memory in (2**28, 16 * 19):
        assert retrieved(I, T, 5, memory).tolist() == expected
    assert expected[3][:2] == [4, 11]


# --- on a network


def test_the_cache_knows_pictures_by_their_pixels(target, fc):
    def shown(colour):
        return [Image.new("RGB", (64, 64), colour)] * 2

    red, blue = respond(target, [fc], shown("red"))["fc"], respond(target, [fc], shown("blue"))["fc"]
    assert red.shape == (2, 52) and not torch.allclose(red, blue)
    assert torch.equal(respond(target, [fc], shown("red"))["fc"], red)
    with torch.no_grad():
        direct = target.model(torch.stack([target.preprocess(picture) for picture in shown("blue")]))
    torch.testing.assert_close(blue, direct, rtol=1e-4, atol=1e-4)
    mixed = respond(target, [fc], [shown("blue")[0], shown("red")[0]])["fc"]
    torch.testing.assert_close(mixed, torch.stack([blue[0], red[0]]), rtol=1e-4, atol=1e-4)


def test_true_names_score_high_and_dealt_names_by_chance(target, fc, control):
    names = target.classes
    dealt = [names[i] for i in torch.randperm(52, generator=dice(1)).tolist()]
    seen = drawn(target, [fc], names, load_generator("microworld"), 4)
    found = score_labels({"true": {"fc": names}, "dealt": {"fc": dealt}}, seen, control)
    true, wrong = (some.reset_index(drop=True) for _, some in found.groupby("method", sort=False))
    assert list(found) == ["layer", "unit", "method", "label", "auc", "mad", "p"] and true[
        "unit"
    ].tolist() == list(range(52))
    assert true["label"].tolist() == names and wrong["label"].tolist() == dealt
    assert true["auc"].mean() > 0.87 and abs(wrong["auc"].mean() - 0.5) < 0.07
    assert true["auc"][:12].min() > 0.85  # shapes, in a tenth of the control
    assert true["mad"].mean() > 1.7 and abs(wrong["mad"].mean()) < 0.3
    assert (true["p"] < 0.01).mean() > 0.8 > 0.2 > (wrong["p"] < 0.01).mean()


def test_shared_labels_share_pictures_and_each_unit_its_own_numbers(target, fc, control):
    asked = []

    def draw(prompts, seeds):
        asked.extend(prompts)
        return load_generator("microworld").draw(prompts, seeds)

    source = Generator("microworld", "mine", draw, cached=False, bare=True)
    labels = [None] * 52
    labels[3], labels[7], labels[9] = "star", "star", "sea"
    seen = drawn(target, [fc], filter(None, labels), source, 5)
    assert sorted(asked) == ["sea"] * 5 + ["star"] * 5
    found = score_labels({"m": {"fc": labels}}, seen, control)
    assert found["unit"].tolist() == [3, 7, 9]
    for row in found.itertuples():
        shown = respond(target, [fc], pictures_of([row.label], source, 5)[row.label])["fc"]
        alone = cosy(shown[:, [row.unit]], control["fc"][:, [row.unit]])
        assert [row.auc, row.mad, row.p] == pytest.approx(
            [alone[key].item() for key in ("auc", "mad", "p")], abs=1e-6
        )
    some = score_labels({"m": {"fc": ["sea", "star"]}}, seen, control, units={"fc": [9, 3]})
    assert some["unit"].tolist() == [3, 9]
    assert some["auc"].tolist() == found.set_index("unit").loc[[3, 9], "auc"].tolist()


def test_how_many_labels_pass_together_does_not_matter(target, fc, monkeypatch):
    labels, source = target.classes[:5], load_generator("microworld")
    whole = drawn(target, [fc], labels, source, 2)
    monkeypatch.setattr("neuronym.evaluation.cosy.TOGETHER", 2)
    parts = drawn(target, [fc], labels, source, 2)
    assert list(parts) == list(whole) == labels and TOGETHER > 5
    for label in labels:
        torch.testing.assert_close(parts[label]["fc"], whole[label]["fc"], rtol=1e-4, atol=1e-4)


def test_retrieved_images_are_left_out_of_the_control():
    control = values(N, 2)
    rows = {"a": torch.tensor([1, 4]), "b": torch.tensor([0, 7])}
    seen = {label: {"x": control[some]} for label, some in rows.items()}
    found = score_labels(
        {"m": {"x": ["a", "b", "a", "b", "a"]}}, seen, {"x": control}, left_out=rows
    ).set_index("unit")
    for unit, label in enumerate("ababa"):
        rest = [i for i in range(N) if i not in rows[label].tolist()]
        assert found.loc[unit, "auc"] == pytest.approx(
            float(cosy(control[rows[label]], control[rest])["auc"][unit]), abs=1e-12
        )


# --- bad input

G, C = values(n, 1), values(N, 2)
HOLE = C.clone()
HOLE[4, 1] = math.nan
MICRO = Generator("microworld", "0", lambda prompts, seeds: [], cached=False, bare=True)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: cosy(G[:, :3], C),
            r"generated \[n, K\] and control \[N, K\] with equal K, got \[7, 3\] and \[23, 5\]",
        ),
        (lambda: cosy(G[:0], C), r"got \[0, 5\]"),
        (lambda: cosy(G, C[:1]), "control has at least two images, got 1"),
        (lambda: cosy(G, HOLE), "control must be finite, got nan at image 4, unit 1"),
        (lambda: cosy(HOLE, C), "generated must be finite, got nan"),
        (
            lambda: retrieved(G, C[:, :4], 2),
            r"I \[N, d\] and T \[m, d\] with equal d, .* got \[7, 5\] and \[23, 4\]",
        ),
        (lambda: retrieved(G, C, 8), "n 8 exceeds the pool's 7 images"),
        (lambda: retrieved(HOLE, C, 2), "I must be finite, got nan"),
        (lambda: pictures_of("cat", MICRO), "labels are a list of texts, got the text 'cat'"),
        (lambda: pictures_of(["cat", " "], MICRO), "labels are texts, none empty, got ' '"),
        (lambda: pictures_of(["cat"], MICRO, template="cat"), "a template holds {} once, got 'cat'"),
        (lambda: pictures_of(["cat"], MICRO, n=0), "n must be a positive whole number, got 0"),
        (lambda: pictures_of(["qwerty"], load_generator("microworld"), 1), "knows none in 'qwerty'"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_layers_and_labels_are_refused_in_a_sentence(target, fc):
    C, seen = {"fc": torch.zeros(3, 52)}, {"red": {"fc": torch.ones(2, 52)}}
    for labels, error, message in (
        ({"fd": ["red"]}, KeyError, "no layer in control 'fd'; nearest: fc"),
        ({"fc": ["red"] * 51 + ["rde"]}, KeyError, "no label with pictures 'rde'; nearest: red"),
        (
            {"fc": ["red"] * 51},
            ValueError,
            r"layer 'fc' has 52 units, got 51 labels of m and control \[3, 52\]",
        ),
        ({"fc": ["red"] * 51 + [""]}, ValueError, "labels are texts, none empty, got ''"),
    ):
        with pytest.raises(error, match=message):
            score_labels({"m": labels}, seen, C)
    with pytest.raises(ValueError, match="expected PIL pictures, at least one, got 1: ndarray"):
        respond(target, [fc], [np.zeros((4, 4, 3), np.uint8)])
