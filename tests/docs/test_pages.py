"""Every page's code runs, in order and as it stands, and prints what the page shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pullback as pb
from tests.docs.executed import BLOCK, PAGES, SOURCES, differ, name_of, run_page

WATCHED = {"plain", "start", "accumulated", "half", "lightning", "transformers", "parallel", "sharded", "resumed"}
WATCHED |= {"forwarded", "stopped", "noted"}


def every_stack_is_watched(names: dict[str, Any], folder: Path) -> None:
    """A run each, and no probe failed in any."""
    runs = {path.parent.name: pb.load_run(path.parent) for path in folder.glob("runs/*/run.json")}
    assert runs.keys() == WATCHED
    for run in runs.values():
        assert run.steps
        assert not [record.error for record in run.records if record.error]


def the_controller_steers(names: dict[str, Any], folder: Path) -> None:
    assert names["controller"].num_measurements == 1
    assert names["optimizer"].param_groups[0]["lr"] != 0.1


def the_change_is_taken(names: dict[str, Any], folder: Path) -> None:
    assert 0 < names["lr"] < 300


# What else must have come of a page, beside that it runs.
AFTER: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "monitor": every_stack_is_watched,
    "controllers": the_controller_steers,
    "advisor": the_change_is_taken,
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    for block, printed in run_page(page, tmp_path, names):
        assert not differ(block["body"], printed, float(block["percent"] or 1)), printed
    AFTER.get(name_of(page), lambda *_: None)(names, tmp_path)


def test_no_block_is_left_out() -> None:
    """Every fence is one of the blocks that are run: there is no other way to write code, and none is excused."""
    for page in SOURCES:
        text = page.read_text(encoding="utf-8")
        fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
        blocks = [block for block in BLOCK.finditer(text) if block["kind"]]
        assert fences == 2 * len(blocks), name_of(page)
        assert text.count("<!-- given") == sum(block["given"] is not None for block in BLOCK.finditer(text))
        assert page in PAGES or not fences
        assert ">>> " not in text, f"{name_of(page)}: a session cannot be pasted"
    assert len(PAGES) == 21


def test_what_counts_as_the_same() -> None:
    assert not differ("loss 1.00, 3 of 4\n", "loss  1.005,\n3 of 4", 1)
    assert differ("loss 1.00\n", "loss 1.02\n", 1)
    assert not differ("loss 1.00\n", "loss 1.02\n", 5)
    assert differ("loss 1.00\n", "rate 1.00\n", 5)
    assert differ("loss 1.00\n", "loss 1.00 2\n", 5)
    assert differ("1e-3\n", "-1e-3\n", 100)
    assert not differ("1,000 and\n...\n", "1000 and\nmore\nof it\n", 1)


def test_what_a_page_does_not_show_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\n```\n\n```python\nprint(a)\n```\n\n```text\n1\n```\n")
    ((block, printed),) = run_page(page, tmp_path)
    assert (block["body"], printed) == ("1\n", "1\n")
    page.write_text(page.read_text() + "\n```python\nprint(2)\n```\n")
    with pytest.raises(AssertionError, match="prints more than it shows"):
        run_page(page, tmp_path)


def test_what_is_given_is_run_where_it_stands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- given\nmine = 2\n-->\n\n```python\nmine += 1\n```\n\n<!-- given\nmine *= 2\n-->\n")
    names: dict[str, Any] = {}
    assert run_page(page, tmp_path, names) == []
    assert names["mine"] == 6
