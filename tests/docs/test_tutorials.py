"""The tutorials print what they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.executed import TUTORIALS, differ, run_page

RUN = [page for page in TUTORIALS if page.stem != "index"]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    found = run_page(page, tmp_path)
    assert found
    for block, printed in found:
        assert not differ(block["body"], printed, float(block["percent"] or 1)), printed


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
    page.write_text("```python\nprint(1)\n```\n")
    with pytest.raises(AssertionError, match="prints more than it shows"):
        run_page(page, tmp_path)
