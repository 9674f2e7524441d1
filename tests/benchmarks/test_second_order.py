"""The benchmark of second-order methods runs, on its small preset, and its rows say what was found."""

from __future__ import annotations

import pytest

from benchmarks import second_order


@pytest.mark.slow
def test_small_preset(capsys: pytest.CaptureFixture[str]) -> None:
    found = second_order.run("small")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found["rows"]) == 2 * len(second_order.RATES)
    for row in found["rows"].values():
        for each in row["runs"]:
            assert len(each["losses"]) == len(second_order.MARKS)
            assert each["steps"] >= 1
            assert 0 <= each["accuracy"] <= 1


def test_a_row_is_medians_and_a_range() -> None:
    runs = [{"losses": [9.0, 8.0, 3.0, 2.0, last], "accuracy": 0.9, "steps": 4} for last in (0.25, 1.0, 0.5)]
    assert second_order.line("a", {"runs": runs}) == "| a | 4 | 3 | 2 | 0.5 | 0.25 to 1 | 90.0 |"
