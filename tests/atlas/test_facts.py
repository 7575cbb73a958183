"""What an atlas says of units in numbers, against what numpy says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from neuronym import clip_dissect
from neuronym.activations import embed_concepts
from neuronym.atlas import contents, facts, runs
from neuronym.evaluation.meaning import MEANING, with_meaning


def test_held_is_the_correlation_over_images_that_did_not_name(measured):
    labels = clip_dissect(measured, "cos_similarity", k=1)
    table = facts.methods_table(measured, labels, ["correlation"], share=0.4)
    naming, test = measured.split(0.4)
    assert set(table["method"]) == {"cos_similarity", "correlation"}
    named = clip_dissect(naming, "correlation", k=1)
    mine = table[table["method"] == "correlation"]
    assert mine["label"].tolist() == named["label"].tolist()
    for row in table.sample(12, random_state=0).itertuples():
        text = embed_concepts(test.clip, [row.label])[0].double()
        wanted = np.corrcoef(
            (test.I.double() @ text).numpy(), test.Q[row.layer][:, row.unit].double().numpy()
        )[0, 1]
        assert abs(row.held - wanted) < 1e-5


def test_constant_and_dead_units_are_no_better_than_chance(measured):
    Q = dict(measured.Q)
    Q["conv1"] = Q["conv1"].clone().clamp_min(0)
    Q["conv1"][:, 2] = 0
    Q["fc"] = Q["fc"].clone()
    Q["fc"][:, 5] = 1.5
    data = replace(measured, Q=Q)
    labels = clip_dissect(data, "cos_similarity", k=1)
    units = facts.units_table(data, facts.methods_table(data, labels, []), "cos_similarity", draws=30)
    dead = units[(units["layer"] == "conv1") & (units["unit"] == 2)].iloc[0]
    flat = units[(units["layer"] == "fc") & (units["unit"] == 5)].iloc[0]
    assert dead["odd"] == facts.CONSTANT | facts.DEAD | facts.CHANCE and dead["active"] == 0
    assert flat["odd"] & facts.CONSTANT and flat["odd"] & facts.CHANCE
    assert (units["odd"] == 0).any()


def test_images_across_the_range_are_those_of_the_sorted_order(measured):
    q = measured.Q["fc"]
    rows, parts = facts.across_range(q), facts.parts_of_range(len(q))
    assert rows.shape == (len(parts), q.shape[1]) == (20, 52)
    for unit in (0, 17):
        order = np.argsort(-q[:, unit].numpy(), kind="stable")
        assert rows[:8, unit].tolist() == order[:8].tolist()
        assert [rows[8 + i, unit].item() for i in range(9)] == [
            order[round(150 * i / 10)] for i in range(1, 10)
        ]
        assert rows[-3:, unit].tolist() == order[-3:].tolist()
    assert parts[8] == "90 %" and parts[16] == "10 %"
    few = facts.across_range(q[:7])
    assert few.shape == (7, 52) and facts.parts_of_range(7) == ["top"] * 7


def test_a_histogram_counts_every_image_and_those_most_like_the_label():
    values = np.random.default_rng(0).normal(size=200)
    found = facts.histogram(values, -values)
    assert sum(found["all"]) == 200 and sum(found["label"]) == 10
    assert found["label"][0] > 0 and sum(found["label"][len(found["label"]) // 2 :]) == 0
    assert facts.histogram(np.zeros(5), None)["all"][0] == 5


def test_trust_is_joined_by_layer_and_unit(measured):
    labels = clip_dissect(measured, "cos_similarity", k=1)
    units = facts.units_table(measured, facts.methods_table(measured, labels, []), "cos_similarity", draws=0)
    trust = pd.DataFrame(
        {"layer": ["fc", "conv1"], "unit": [4, 1], "trust": [0.9, 0.2], "abstain": [False, True]}
    ).assign(chance=[0.001, 0.4])
    joined = facts.join_trust(units, trust).set_index(["layer", "unit"])
    assert joined.loc[("fc", 4), "trust"] == 0.9 and joined.loc[("conv1", 1), "odd"] == facts.CHANCE
    assert joined["trust"].notna().sum() == 1  # what is abstained from has none
    assert joined["p"].dropna().to_dict() == {("conv1", 1): 0.4, ("fc", 4): 0.001}
    again = facts.join_trust(joined.reset_index(), trust.rename(columns={"chance": "p"}).assign(p=0.5))
    assert again["p"].dropna().tolist() == [0.5, 0.5]  # a run of the notebook trust
    assert facts.join_trust(units, trust.drop(columns="abstain")) is units  # labels of an older run


def test_trust_that_is_no_probability_is_an_order(network, monkeypatch):
    told = np.random.default_rng(0).random(len(network.units)).round(1)
    away = np.arange(len(told)) % 5 == 0
    where = network.units[["layer", "unit"]].assign(trust=told, abstain=away, chance=0.5)
    network = replace(network, units=facts.join_trust(network.units, where))
    given = told[~away]
    below = [((given < x).sum() + (given == x).sum() / 2) / len(given) for x in given]
    assert np.allclose(network.trust[~away], below) and network.trust[away].isna().all()
    assert contents.index_content([network], "Atlas")["help"]["columns"]["trust"] == "trust, in order"
    shown = runs.trusted_only(network, 0.5).shown
    assert shown[~away].tolist() == [share >= 0.5 for share in below] and not shown[away].any()
    monkeypatch.setattr(contents, "is_probability", lambda data: True)
    assert network.trust.equals(network.units["trust"]) and network.trust[~away].tolist() == given.tolist()
    assert contents.index_content([network], "Atlas")["help"]["columns"]["trust"] == "trust"


def test_columns_of_meaning_are_joined_where_the_labels_have_them(measured):
    labels = clip_dissect(measured, "cos_similarity", k=2)
    units = facts.units_table(measured, facts.methods_table(measured, labels, []), "cos_similarity", draws=0)
    assert facts.join_meaning(units, labels).columns.tolist() == units.columns.tolist()
    meant = with_meaning(labels, measured.Q, measured.I)
    joined = facts.join_meaning(units, meant)
    assert joined[MEANING].equals(meant.loc[meant["rank"] == 1, MEANING].reset_index(drop=True))


def test_columns_have_a_place_for_every_unit(measured):
    table = pd.DataFrame(
        {"layer": ["fc"], "unit": [3], "method": ["m"], "label": ["x"], "score": [1.0], "held": [0.5]}
    )
    found = facts.by_method(table, measured.sizes, ["m", "none"])
    first = measured.sizes["conv1"]
    assert found["m"]["label"][first + 3] == "x" and (found["m"]["label"] != "").sum() == 1
    assert np.isnan(found["none"]["held"]).all() and torch.tensor(found["m"]["held"])[first + 3] == 0.5
