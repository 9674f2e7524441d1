"""Runs made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pullback as pb
from pullback.runs import Record, Run

Line = tuple[int, str, dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """What a loop showed at every step, in place of a file of it: values of steps 1, 2, ..., by name."""

    series: dict[str, Sequence[float]]
    last: int | None = None

    def of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        values = np.array(self.series.get(name, ()), dtype=float)[: self.last]
        return np.arange(1, len(values) + 1), values


def a_run(
    *records: Line, least: float | None = 0.0, meta: dict[str, Any] | None = None, **course: Sequence[float]
) -> Run:
    """A run whose loss is known to be ``least`` at its smallest, as cross-entropy is."""
    meta = ({} if least is None else {"least_loss": least}) | (meta or {})
    lines = tuple(Record(step, 0.0, probe, values) for step, probe, values in records)
    return Run(Path("run"), meta, lines, courses=Shown(course))  # type: ignore[arg-type]


def losses(*values: float) -> list[Line]:
    return [(10 * place, "loss", {"loss": value}) for place, value in enumerate(values)]


LEARNS = losses(2.3, 1.0, 0.5)
STUCK = losses(2.3, 2.3, 2.29)


def found(name: str, *records: Line, **known: Any) -> pb.Finding | None:
    """The finding of this name, or None."""
    return next((finding for finding in pb.diagnose(a_run(*records, **known)) if finding.name == name), None)


def severities(name: str, *records: Line) -> tuple[str | None, str | None]:
    """Of a finding in a run that learns, and in one that is stuck."""
    both = found(name, *records, *LEARNS), found(name, *records, *STUCK)
    return tuple(finding and finding.severity for finding in both)  # type: ignore[return-value]


@dataclass(frozen=True)
class Row:
    """A run made of one number, and what is asked of its findings; ``yes`` and ``no`` lie on the two sides."""

    make: Callable[[Any], list[Line] | Run]
    yes: Any
    no: Any
    name: str = ""
    asked: Callable[[pb.Finding], bool] = lambda finding: True
    least: float | None = 0.0

    def says(self, value: Any) -> bool:
        made = self.make(value)
        found = pb.diagnose(made if isinstance(made, Run) else a_run(*made, least=self.least))
        return any(finding.name == self.name and self.asked(finding) for finding in found)
