"""Relative paths start at the repository's root, wherever the process runs."""

from __future__ import annotations

import os

import pytest

from neuronym.models.transcripts import open_transcript
from neuronym.models.weights import is_file_or_seed, read_weights
from neuronym.runs.folders import cache_dir, check_transcript, chosen_device, data_dir, results_dir, ROOT


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


def test_a_transcript_is_a_file_in_a_folder_that_is_there(tmp_path):
    file = tmp_path / "folder" / "new.jsonl"
    file.parent.mkdir()
    check_transcript(file)
    with pytest.raises(ValueError, match="a transcript is a file, .*folder is a folder; name a file in it"):
        check_transcript(file.parent, replay=True)
    with pytest.raises(FileNotFoundError, match="in a folder that is there, .*nowhere is not; make it"):
        check_transcript(tmp_path / "nowhere" / "a.jsonl")
    with pytest.raises(FileNotFoundError, match="a replay needs the answers of a run, and there is no .*new"):
        check_transcript(file, replay=True)
    os.mkfifo(file)
    with pytest.raises(ValueError, match="a transcript is a regular file, .*new.jsonl is none; name another"):
        check_transcript(file)


def test_auto_leaves_out_mps_which_has_no_float64(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert chosen_device("auto").type == "cpu"
    with pytest.raises(
        ValueError, match="statistics need float64, which device 'mps' does not have; take cpu"
    ):
        chosen_device("mps")
