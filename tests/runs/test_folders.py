"""Relative paths start at the repository's root, wherever the process runs."""

from __future__ import annotations

import pytest

from neuronym.models.transcripts import open_transcript
from neuronym.models.weights import is_file_or_seed, read_weights
from neuronym.runs.folders import cache_dir, data_dir, results_dir, ROOT


@pytest.mark.parametrize(
    "variable, folder",
    [("NEURONYM_DATA", data_dir), ("NEURONYM_CACHE", cache_dir), ("NEURONYM_RESULTS", results_dir)],
)
def test_folders_of_the_environment(tmp_path, monkeypatch, variable, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "some/where")
    assert folder() == ROOT / "some" / "where"
    monkeypatch.setenv(variable, str(tmp_path))
    assert folder() == tmp_path.resolve()


def test_files_of_parameters(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    assert open_transcript("answers.jsonl").path.resolve() == ROOT / "answers.jsonl"
    assert is_file_or_seed("pyproject.toml")
    assert read_weights("data/microworld/clip_rn.safetensors")
