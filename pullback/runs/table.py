"""``Table``: the columns of a run as a dict of lists, each of which is made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pullback._results import to_frame
from pullback.runs.cells import Cells
from pullback.runs.column import without_collecting
from pullback.runs.one_record import Record
from pullback.runs.records import Found, records_of

Source = tuple[str, str, str | None]  # probe, metric and key


class Table(dict[str, list[Any]]):
    """A dict like any other for whoever reads it; a column that nobody asks for is neither read nor held."""

    def __init__(self, held: Sequence[Record]) -> None:
        super().__init__(step=[])
        records = records_of(held)
        self._records, self._steps = records, records.steps
        self._sources: dict[str, list[Source]] = {"step": []}
        for probe, metric in records.metrics():
            for key in records.keys(probe, metric):
                name = f"{probe}.{metric}" + (f".{key}" if key is not None else "")
                self._sources.setdefault(name, []).append((probe, metric, key))
        self._waiting = dict.fromkeys(self._sources)
        super().update((name, []) for name in self._sources)

    def __getitem__(self, name: str) -> list[Any]:
        if name in self._waiting:
            del self._waiting[name]
            self[name] = self._column(name)
        return super().__getitem__(name)

    def cells(self, name: str) -> tuple[np.ndarray, list[Any]]:
        """Steps (S,), ascending, at which a column has anything, and what it has there; none of a name there is not."""
        if name not in self._sources:
            return self._steps[:0], []
        rows, found = self._filled(name)
        known = np.array([cell is not None for cell in found], bool)
        if not known.all():
            found = [cell for cell in found if cell is not None]
        return self._steps[rows[known]], found

    def _column(self, name: str) -> list[Any]:
        if name == "step":
            return self._steps.tolist()
        places, found = self._filled(name)
        if len(places) == len(self._steps):
            return found
        if isinstance(found, Cells):
            return found.among(places, len(self._steps))
        column = np.full(len(self._steps), None, object)
        for place, cell in zip(places.tolist(), found, strict=True):
            column[place] = cell
        return column.tolist()

    def _filled(self, name: str) -> tuple[np.ndarray, list[Any]]:
        """Rows and cells; of several at one step the last that was recorded."""
        sources = [self._records.under(*source) for source in self._sources[name]]
        cells = sources[0] if len(sources) == 1 else _merged(sources)
        rows = np.searchsorted(self._steps, cells.steps)
        if np.all(np.diff(rows) > 0):
            return rows, cells.values
        last = dict(zip(rows.tolist(), cells.values, strict=True))
        ordered = sorted(last)
        return np.array(ordered, np.int64), [last[row] for row in ordered]

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # one of its own, so that `dict(table)` asks for each column

    def get(self, name: str, default: Any = None) -> Any:
        """A column, or the default where there is none."""
        try:
            return self[name]
        except KeyError:
            return default

    def pop(self, name: str, *default: Any) -> Any:
        """Take a column out."""
        self.get(name)
        return super().pop(name, *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """A column, or else the default, which becomes one."""
        return self[name] if name in self else super().setdefault(name, default)

    def items(self) -> Any:
        """Names and columns."""
        return self._all_columns().items()

    def values(self) -> Any:
        """Columns."""
        return self._all_columns().values()

    def copy(self) -> dict[str, list[Any]]:
        """A plain dict."""
        return dict(self._all_columns())

    def __eq__(self, other: object) -> bool:
        return self._all_columns() == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} columns of {len(self._steps)} steps)"

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, indexed by step.

        Raises:
            InputError: pandas is not installed.
        """
        return to_frame("Run.to_pandas", self._all_columns()).set_index("step")

    def __reduce__(self) -> Any:
        return dict, (self._all_columns(),)

    def _all_columns(self) -> dict[str, list[Any]]:
        """All columns, as a plain dict."""
        with without_collecting():
            return {name: self[name] for name in self}


def _merged(sources: list[Found]) -> Found:
    """Cells that came under one name by several ways, in the order in which they were recorded."""
    order = np.argsort(np.concatenate([each.places for each in sources]), kind="stable")
    values = [value for each in sources for value in each.values]
    steps = np.concatenate([each.steps for each in sources])[order]
    return Found(np.arange(len(order)), steps, [values[place] for place in order.tolist()])
