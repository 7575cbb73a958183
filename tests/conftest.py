"""Fixtures shared by all tests: private cache and results folders, and the optional reference data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def private_folders(tmp_path, monkeypatch):
    """Keep every test away from the user's cache and results."""
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEURONYM_RESULTS", str(tmp_path / "results"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real photos, published tables and golden outputs; tests that need it skip without it."""
    folder = Path(os.environ.get("NEURONYM_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(
            f"reference data not found at {folder}; set NEURONYM_SHARED to the folder that holds data/"
        )
    return folder
