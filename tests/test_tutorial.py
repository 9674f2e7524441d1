"""The tutorial notebook: every cell runs, in a kernel of its own, and shows what its text says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    """And small: what it shows is made where it is read."""
    cells = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )
    assert FILE.stat().st_size < 20_000


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every cell of the notebook shows, by its source; a cell that raises is an error here."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    book = nbformat.read(FILE, as_version=4)
    home = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=home).execute()
    return {cell.source: cell.outputs for cell in book.cells if cell.cell_type == "code"}


def last(shown: dict[str, Any], end: str) -> dict[str, str]:
    """The data of what the cell with this last line shows."""
    (outputs,) = [outputs for source, outputs in shown.items() if source.splitlines()[-1] == end]
    return outputs[-1]["data"]


@pytest.mark.slow
def test_every_cell_shows_what_its_text_says(shown: dict[str, Any]) -> None:
    cards = last(shown, "findings")["text/html"]
    assert "learning rate too high" in cards
    assert "learning_rate" in last(shown, "findings[0].change")["text/plain"]
    assert (
        "learning-rate-too-high"
        in last(shown, 'findings.to_pandas()[["name", "severity", "steps", "because"]]')["text/html"]
    )
    assert "pb-card pb-critical" not in last(shown, "pb.diagnose(better)")["text/html"]
    assert "sorted by class" in last(shown, "kernel")["text/html"]
    assert last(shown, "influence")["text/html"].count("data:image/png") == 20
    assert "application/vnd.plotly.v1+json" in last(shown, "run.plot()")


@pytest.mark.slow
def test_no_output_is_large_or_long(shown: dict[str, Any]) -> None:
    for source, outputs in shown.items():
        for output in outputs:
            assert output["output_type"] != "error"
            data = output.get("data", {})
            assert len(data.get("text/html", "")) < 2_000_000, source
            if "application/vnd.plotly.v1+json" not in data:
                assert len(data.get("text/plain", "")) <= 1_000, source
            if output["output_type"] == "stream" and output["name"] == "stderr":
                assert not re.search("Error|Traceback", output["text"]), source
