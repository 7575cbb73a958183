"""neuronym.common.memory: the budget that a machine gives when none is named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from neuronym.common import memory
from neuronym.similarity.scores import score_embeddings, SIMILARITIES

CPU = torch.device("cpu")


def test_the_budget_is_what_is_given():
    assert memory.budget(12345, CPU, 10**12) == 12345
    assert memory.budget(None, CPU, memory.MEMORY) == memory.MEMORY


@pytest.mark.parametrize("free", [0, 2**20, 2**40])
def test_the_budget_is_a_share_of_what_is_free(free, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: free)
    assert memory.budget(None, CPU, memory.MEMORY + 1) == max(memory.MEMORY, free // memory.FREE_SHARE)


@pytest.mark.parametrize("free", [0, 2**40])
def test_the_budget_of_a_run(free, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: free)
    assert memory.machine_budget(CPU) == max(memory.MEMORY, free // memory.FREE_SHARE)
    assert memory.machine_budget(CPU, 3) == 3 * 2**20


def test_a_container_has_less(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = memory._free(CPU)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free(CPU) > 0.5 * machine
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory._free(CPU) == (4000 if machine else 0)


@pytest.mark.parametrize("method", list(SIMILARITIES))
def test_scores_do_not_depend_on_what_is_free(method, monkeypatch):
    """Bit by bit, where what a block takes for speed fits."""
    generator = torch.Generator().manual_seed(0)
    I, T, Q = (torch.randn(rows, 16, generator=generator) for rows in (700, 1300, 700))
    found = []
    for free in (0, 2**34):
        monkeypatch.setattr(memory, "MEMORY", 2**24)  # 16 MiB
        monkeypatch.setattr(memory, "_free", lambda device: free)
        found.append(score_embeddings(I, T, Q, method))
    assert torch.equal(*found)


@pytest.mark.parametrize("free, least, asked", [(10, 0, 1), (10, 9, 1), (10, 10, 0), (0, 0, 0)])
def test_free_memory_is_given_back_where_it_is_worth_it(monkeypatch, free, least, asked):
    calls = []
    library = SimpleNamespace(malloc_trim=calls.append)
    monkeypatch.setattr(memory, "_C", library)
    memory.give_back(least)
    assert calls == [0], "where the C library does not tell what is free, it is given back"
    calls.clear()
    monkeypatch.setattr(memory, "_free_bytes", lambda otherwise: free)
    memory.give_back(least)
    assert calls == [0] * asked
    monkeypatch.setattr(memory, "_C", None)
    memory.give_back()
