"""Findings on what units do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.advisor.runs import found, severities


def activations(**values: dict[str, Any]) -> tuple[int, str, dict[str, Any]]:
    return 50, "activations", values


def test_saturated_units() -> None:
    kinds = {"a": "Tanh", "b": "Tanh", "c": "ReLU"}
    saturated = activations(saturated={"a": 0.6, "b": 0.8, "c": 0.9}, kind=kinds)
    finding = found("saturated-units", saturated)
    assert finding is not None
    assert finding.layer == "b"
    assert finding.evidence == {"share": 0.8, "layers beyond": 2}
    assert severities("saturated-units", saturated) == ("info", "warning")
    assert found("saturated-units", activations(saturated={"a": 0.4, "c": 0.9}, kind=kinds)) is None


def test_dead_units() -> None:
    dead = activations(dead={"a": 0.1, "b": 0.7})
    finding = found("dead-units", dead)
    assert finding is not None
    assert finding.layer == "b"
    assert severities("dead-units", dead) == ("info", "warning")
    assert found("dead-units", activations(dead={"a": 0.2, "b": 0.3})) is None


@pytest.mark.parametrize("width", [64, None])
def test_rank_collapse(width: int | None) -> None:
    widths = {} if width is None else {"width": dict.fromkeys("abc", width)}
    collapsed = activations(effective_rank={"a": 9.0, "b": 1.04, "c": 1.01}, **widths)
    finding = found("rank-collapse", collapsed)
    assert finding is not None
    assert finding.layer == "b"  # where it begins
    assert finding.evidence["smallest effective rank"] == 1.01
    assert severities("rank-collapse", collapsed) == ("info", "warning")
    assert found("rank-collapse", activations(effective_rank={"a": 9.0, "b": 1.3})) is None
    assert found("rank-collapse", activations(effective_rank={"a": 1.02}, width={"a": 2})) is None
