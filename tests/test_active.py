"""A pass that keeps what is active has the values of a dense one, whatever the chunks, and names alike."""

from __future__ import annotations

import pytest
import torch

from neuronym import active, cache, hooks
from neuronym.activations import unit_activations
from neuronym.active import sparse_activations
from neuronym.dissect import best_of_units, clip_dissect
from neuronym.evaluation.label_quality import label_quality
from neuronym.evaluation.meaning import MEANING, meaning_columns
from neuronym.evaluation.presence import against_oracle, best_by_truth, oracle_blocks, true_presence
from neuronym.figures.cards import collect
from neuronym.measurements import measure, top_images_table
from neuronym.similarity import sparse_columns
from neuronym.trust.quick import quick_trust
from neuronym.trust.untrained import standing_out
from tests.helpers.features import D, written
from tests.helpers.networks import close, make_probe, make_target, SIDE
from tests.sae.test_layers import feature_layer


@pytest.mark.parametrize("how", ["avg", "max", "share"])
def test_values_are_those_of_the_dense_pass(tmp_path, how):
    target, probe = make_target(), make_probe()
    files = {name: written(tmp_path, d, name=name) for name, d in (("conv", 7), ("first", 8), ("fc", 11))}
    layers = [feature_layer(target, name, file) for name, file in files.items()]
    expected = unit_activations(target, probe, layers, how, batch_size=5)
    for chunk in (3, probe.N):
        found = sparse_activations(target, probe, layers, how, batch_size=2, chunk=chunk)
        assert list(found) == list(expected)
        for name, q in expected.items():
            close(found[name][:, :], q)
            assert found[name].nbytes == 8 * int((q != 0).sum()) + 8 * (D + 1)


def test_a_chunk_is_taken_from_the_cache_and_one_of_another_network_is_not(tmp_path, monkeypatch):
    target, probe = make_target(), make_probe()
    layer = feature_layer(target, "conv", written(tmp_path, 7))
    first = sparse_activations(target, probe, [layer], chunk=3)[layer.name]
    passed, run = [], active._active
    monkeypatch.setattr(active, "_active", lambda *a: passed.append(a[1].N) or run(*a))
    again = sparse_activations(target, probe, [layer], chunk=3)[layer.name]
    assert set(passed) == {1} and torch.equal(again.values, first.values)
    passed.clear()
    with torch.no_grad():
        for weight in target.model.parameters():
            weight.mul_(1.5)
    moved = sparse_activations(target, probe, [layer], chunk=3)[layer.name]
    assert 3 in passed and not torch.allclose(moved[:, :], first[:, :])
    assert all("sparse" in entry["kind"] for entry in cache.entries("sparse_activations"))


def test_names_and_columns_are_those_of_dense_measurements(tmp_path):
    file = written(tmp_path, 192)
    words = ["a red circle", "a star", "a blue square"]
    given = ("microworld:resnet", f"fc,layer4@sae:{file}", "microworld:40", "microworld", words)
    dense, sparse = (measure(*given, pool="max", sparse=one, memory=2**22) for one in (False, True))
    assert list(sparse.Q) == list(dense.Q) and sparse.sizes == dense.sizes
    for similarity in ("soft_wpmi", "combined_correlation", "rank_reorder"):
        one, other = (clip_dissect(data, similarity, k=2, memory=2**22) for data in (dense, sparse))
        texts = ["layer", "unit", "rank", "label", "note"]
        assert other[texts].equals(one[texts])
        torch.testing.assert_close(
            *(torch.tensor(table["score"].to_numpy()) for table in (other, one)),
            rtol=1e-4,
            atol=1e-5,
            equal_nan=True,
        )
    some = {"layer4@sae:a192": [7, 2]}
    assert clip_dissect(sparse, units=some, k=1)["unit"].tolist() == [2, 7]
    name = list(dense.Q)[1]
    part = sparse.rows([5, 1, 30])
    close(part.Q[name][:, :], dense.Q[name][[5, 1, 30]])
    one, other = (meaning_columns(data.Q[name], data.I)[MEANING] for data in (dense, sparse))
    close(torch.tensor(other.to_numpy()).nan_to_num(9), torch.tensor(one.to_numpy()).nan_to_num(9))


def test_all_that_labelling_says_is_that_of_dense_measurements(tmp_path, monkeypatch):
    given = ("microworld:resnet", f"fc,layer4@sae:{written(tmp_path, 192)}", "microworld:60", "microworld")
    words, budget = ["a red circle", "a star", "a blue square", "night"], 2**20
    monkeypatch.setattr(sparse_columns, "COPIED", budget // (4 * 60 * 5))  # five units a block
    pairs = [measure(*given, words, pool="max", sparse=one) for one in (False, True)]
    name = list(pairs[0].Q)[1]
    assert torch.equal(pairs[1].dense().Q[name], pairs[0].Q[name])
    assert top_images_table(pairs[1], 3).equals(top_images_table(pairs[0], 3))
    found = []
    for data in pairs:
        naming, testing = data.split(0.4)
        truth = true_presence(data.probe, words)
        rows = [truth[list(part.row_numbers)] for part in (naming, testing)]
        named = {layer: best_of_units(naming.P, q, memory=budget) for layer, q in naming.Q.items()}
        best = {layer: best_by_truth(q, rows[0], budget) for layer, q in naming.Q.items()}
        labels = clip_dissect(data, k=2)
        trust, told = quick_trust(data, testing, labels, named, memory=budget)
        said = [labels.loc[(labels["layer"] == name) & (labels["rank"] == 1), "label"].tolist()]
        said += [against_oracle(said[0], oracle_blocks(data.Q[name], truth, budget), words)]
        held = oracle_blocks(testing.Q[name], rows[1], budget)
        methods = {"named": named[name], "oracle": best[name]}
        quality = label_quality(held, methods, level=0.2).round(9)
        shares = {layer: round(share, 9) for layer, share in standing_out(data, memory=budget).items()}
        assert len(list(oracle_blocks(data.Q[name], truth, budget))) == (1 if data is pairs[0] else 3)
        of_layer = (data.target, data.probe, data.layers[name], data.Q[name], labels)
        cards = [card["values"] for card in collect(*of_layer, [3, 1])]
        found.append((said, quality.to_dict(), told, trust.round(6).fillna(-1).to_dict(), shares, cards))
    assert found[0] == found[1]


def test_what_is_refused(tmp_path):
    target, probe = make_target(), make_probe()
    plain = hooks.resolve_layers(target.model, "conv", torch.zeros(1, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="of features, NAME@sae:FILE, got conv"):
        sparse_activations(target, probe, plain)
    layer = feature_layer(target, "conv", written(tmp_path, 7))
    with torch.no_grad():
        target.model.conv.weight[0] = torch.nan
    with pytest.raises(ValueError, match="must be finite; 'conv@sae:a7' gave nan for image"):
        sparse_activations(target, probe, [layer])
