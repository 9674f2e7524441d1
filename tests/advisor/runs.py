"""Runs made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pullback as pb
from pullback.runs import Record, Run

Line = tuple[int, str, dict[str, Any]]


def a_run(*records: Line, least: float | None = 0.0) -> Run:
    """A run whose loss is known to be ``least`` at its smallest, as cross-entropy is."""
    meta = {} if least is None else {"least_loss": least}
    return Run(Path("run"), meta, tuple(Record(step, 0.0, probe, values) for step, probe, values in records))


def losses(*values: float) -> list[Line]:
    return [(10 * place, "loss", {"loss": value}) for place, value in enumerate(values)]


LEARNS = losses(2.3, 1.0, 0.5)
STUCK = losses(2.3, 2.3, 2.29)


def found(name: str, *records: Line, least: float | None = 0.0) -> pb.Finding | None:
    """The finding of this name, or None."""
    return next((finding for finding in pb.diagnose(a_run(*records, least=least)) if finding.name == name), None)


def severities(name: str, *records: Line) -> tuple[str | None, str | None]:
    """Of a finding in a run that learns, and in one that is stuck."""
    both = found(name, *records, *LEARNS), found(name, *records, *STUCK)
    return tuple(finding and finding.severity for finding in both)  # type: ignore[return-value]
