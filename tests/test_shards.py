"""Passes in parts: every image once, the same bits as in one pass, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from neuronym import cache
from neuronym.activations import measured_arrays
from neuronym.runs.checks import resolve
from neuronym.runs.command import main
from neuronym.runs.sweep import read_sweep
from neuronym.shards import _passes as passes
from neuronym.shards import check_part, compute_shard, join_shards, Passes, shard_rows

VALUES = [("probe", "microworld:50"), ("layers", "conv1,fc"), ("batch_size", "8"), ("device", "cpu")]


@pytest.mark.parametrize("N, count, batch", [(50, 3, 8), (1, 1, 64), (640, 10, 64), (641, 11, 64), (7, 7, 1)])
def test_parts_have_every_image_once_and_end_where_batches_end(N, count, batch):
    parts = [shard_rows(N, i, count, batch) for i in range(1, count + 1)]
    assert [row for part in parts for row in part] == list(range(N))
    assert all(part.start % batch == 0 and len(part) for part in parts)


def test_more_parts_than_batches_are_refused():
    with pytest.raises(ValueError, match="at most 2 parts"):
        shard_rows(100, 1, 3, 64)


@pytest.mark.parametrize("text", ["0-of-3", "4-of-3", "3/8", "", "1-of-0"])
def test_parts_as_written(text):
    with pytest.raises(ValueError, match="3-of-8"):
        check_part(text)
    assert check_part("3-of-8") == (3, 8)


def test_joined_parts_are_bit_identical_to_one_pass(tmp_path, monkeypatch):
    _, params = resolve("labelling", VALUES)
    one: Passes = passes(params)
    where = {"batch_size": one.batch_size, "device": one.device}
    Q, beside, I = measured_arrays(one.target, one.layers, one.clip, one.probe, one.pool, one.beside, **where)
    whole = [q.clone() for layer in Q for q in (Q[layer], *beside.get(layer, {}).values())] + [I.clone()]
    assert len(whole) > len(Q) + 1
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "other"))
    for i in (3, 1):
        compute_shard("labelling", params, i, 3)
    with pytest.raises(LookupError, match="parts 2-of-3 are not in the cache"):
        join_shards("labelling", params, 3)
    compute_shard("labelling", params, 2, 3)
    assert join_shards("labelling", params, 3).name == "joined"
    arrays = [cache.load(kind, spec) for kind, spec, _ in one.specs(one.probe)]
    for found, wanted in zip(arrays, whole, strict=True):
        assert np.array_equal(found, wanted.numpy())


def test_a_sweep_cuts_a_run_and_its_parts_are_shared(tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "runs:\n  - notebook: labelling\n    shard: 2\n    parameters:\n"
        "      {probe: microworld:200, layers: fc, similarity: [soft_wpmi, wpmi], cards_per_layer: 0}\n"
    )
    rows = read_sweep(file)
    assert [row.words[0] for row in rows] == ["shard", "shard", "join", "labelling", "labelling"]
    join = rows[2]
    assert join.after == (rows[0].done, rows[1].done) and all(join.done in row.after for row in rows[3:])
    for row in rows[:3]:
        assert main(list(row.words)) == 0 and row.done.exists()
    assert "2 parts joined: 2 arrays of 200 images" in capsys.readouterr().out
    file.write_text("runs: [{notebook: labelling, shard: 2, parameters: {smoke: true}}]")
    with pytest.raises(ValueError, match="smoke is a small one"):
        read_sweep(file)
