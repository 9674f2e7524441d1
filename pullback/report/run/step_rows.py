"""The rows of a table over the steps, each made when it is asked for: a page shows a few of many thousand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from pullback.charts.chart import Cell

TOGETHER = 4096  # rows that are made at once, for whoever wants all


class StepRows(Sequence[list[Cell]]):
    """A row for each step at which any of some series has a value: the step, and the value of each, or None.

    Args:
        series: of each the steps (S,), ascending, each once, and values (S,).
    """

    def __init__(self, series: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._series = series
        first = series[0][0] if series else np.empty(0, np.int64)
        alike = all(steps is first or np.array_equal(steps, first) for steps, _ in series)
        self._alike = alike
        self._steps = first if alike else np.unique(np.concatenate([steps for steps, _ in series]))

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, place: int) -> list[Cell]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[Cell]]: ...
    def __getitem__(self, place: int | slice) -> list[Cell] | list[list[Cell]]:
        if isinstance(place, slice):
            return self._rows(self._steps[place])
        step = self._steps[place]
        row: list[Cell] = [step.item()]
        for steps, values in self._series:
            at = place if self._alike else int(np.searchsorted(steps, step))
            row.append(values.item(at) if self._alike or (at < len(steps) and steps[at] == step) else None)
        return row

    def __iter__(self) -> Iterator[list[Cell]]:
        for start in range(0, len(self), TOGETHER):
            yield from self._rows(self._steps[start : start + TOGETHER])

    def _rows(self, chosen: np.ndarray) -> list[list[Cell]]:
        """Those of some steps."""
        columns: list[list[Cell]] = [chosen.tolist()]
        for steps, values in self._series:
            if not len(steps):
                columns.append([None] * len(chosen))
                continue
            at = np.minimum(np.searchsorted(steps, chosen), len(steps) - 1)
            cells: list[Cell] = values[at].tolist()
            for place in np.flatnonzero(steps[at] != chosen).tolist():
                cells[place] = None
            columns.append(cells)
        return list(map(list, zip(*columns, strict=True)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self[:] == list(other)

    __hash__ = None  # type: ignore[assignment]
