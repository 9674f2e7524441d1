"""What one probe measured at one step, whose values may stand in columns that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pullback._results import Shown
from pullback.runs.column import Column


@dataclass(frozen=True, slots=True)
class Record(Shown):
    """What one probe measured at one step, or why it could not (``error``)."""

    step: int
    time: float
    probe: str
    values: Mapping[str, Any]
    error: str | None = None


_new: Any = object.__new__
_set_step, _set_time, _set_probe, _set_values, _set_error = (
    getattr(Record, name).__set__ for name in ("step", "time", "probe", "values", "error")
)


_MISSING: Any = object()


class Values(Mapping[str, Any]):
    """What stands in one record: reads as the dict does that was recorded, and takes each value out of its column."""

    __slots__ = ("_columns", "_row")

    def __init__(self, columns: dict[str, Column], row: int) -> None:
        self._columns, self._row = columns, row

    def __getitem__(self, metric: str) -> Any:
        found = self.get(metric, _MISSING)
        if found is _MISSING:
            raise KeyError(metric)
        return found

    def __contains__(self, metric: object) -> bool:
        column = self._columns.get(metric)  # type: ignore[call-overload]
        return column is not None and column.has(self._row)

    def get(self, metric: str, default: Any = None) -> Any:
        """A value, or the default where there is none."""
        column = self._columns.get(metric)
        if column is None:
            return default
        if column.places is None and column.plain is not None:  # as for most, and rules ask for millions
            return column.plain[self._row]
        return column.get(self._row, default)

    def __iter__(self) -> Iterator[str]:
        return (metric for metric, column in self._columns.items() if column.has(self._row))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self) | dict(other)

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(other) | dict(self)

    def __repr__(self) -> str:
        return repr(dict(self))


def of_columns(step: int, time: float, probe: str, columns: dict[str, Column], row: int) -> Record:
    """A record without an error as ``Record(...)`` makes it, in a third of the time."""
    record = _new(Record)
    _set_step(record, step)
    _set_time(record, time)
    _set_probe(record, probe)
    _set_values(record, Values(columns, row))
    _set_error(record, None)
    return record
