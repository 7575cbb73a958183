"""A folder of notebooks for the tests of runs."""

from __future__ import annotations

import pytest

from tests.helpers.notebooks import write_notebook


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of notebooks in place of the repository's."""
    monkeypatch.setenv("NEURONYM_NOTEBOOKS", str(tmp_path / "books"))
    return tmp_path / "books"


@pytest.fixture
def toy(folder):
    """A notebook that draws one number."""
    draw = "# papermill_description=Draw\nimport torch\n"
    draw += "x = torch.rand(1, generator=run.generator).item()\nprint('x', x)"
    return write_notebook(folder, cells=[draw, "finish_run(run, {'x': x, 'top_k': top_k})"])
