"""One cache for the runs of all notebooks here, as a user has."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_cache(private_folders, monkeypatch, tmp_path_factory):
    """What one notebook has computed the next one reads; results stay apart."""
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path_factory.getbasetemp() / "notebooks-cache"))
