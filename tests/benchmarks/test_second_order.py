"""The benchmark of second-order methods runs, on its small preset, and its rows say what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies import second_order


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


def test_verdicts_are_decided_over_seeds() -> None:
    """A tenth of SGD's loss in every run holds, as much under one network alone holds under conditions."""
    sgd = [{"losses": [9.0, 1.0 + seed / 10]} for seed in range(3)]
    better, worse = ([{"losses": [0.0, factor * (1.1 + seed / 10)]} for seed in range(3)] for factor in (0.1, 10.0))
    rows = {f"{name}, {method}": {"runs": worse} for name in ("MLP", "conv") for method in second_order.RATES}
    rows |= {f"{name}, SGD": {"runs": sgd} for name in ("MLP", "conv")}
    rows |= {"MLP, Adam": {"runs": better}, "conv, Adam": {"runs": better}, "MLP, HessianFree": {"runs": better}}
    words = [line.split(" | ")[1] for line in second_order.verdicts(rows)]
    assert words == ["holds", "holds under conditions", *["does not hold"] * 4]


def test_the_stored_run() -> None:
    """Its verdicts are those of its rows, and the documentation has the lines of its table."""
    root = Path(__file__).parents[2]
    found = json.loads((root / "benchmarks/results/second_order.json").read_text())
    assert found["preset"] == "full"
    assert {len(row["runs"]) for row in found["rows"].values()} == {5}
    assert found["verdicts"] == second_order.verdicts(found["rows"])
    text = (root / "docs/dynamics.md").read_text(encoding="utf-8")
    assert all(second_order.line(name, row) in text for name, row in found["rows"].items())
    assert all(line in text for line in found["verdicts"])
