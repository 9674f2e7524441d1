"""The records of one probe that succeeded, by step: read one by one, or many at once, as arrays of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from pullback.runs.block_file import Block
from pullback.runs.column import Layers, Lists
from pullback.runs.lines import Lines
from pullback.runs.one_record import Record

Part = Block | Lines


@dataclass(frozen=True, eq=False, repr=False)
class Rows(Sequence[Record]):
    """A sequence of records, each of which is made when it is asked for.

    Attributes:
        probe: its name.
        parts: of the run.
        places: of each part those of its records of this probe that succeeded.
        chosen: (R,), of each record its place among all of these.

    Cost: arrays are read from the disk once, and are eight bytes a number then.
    """

    probe: str
    parts: tuple[Part, ...]
    places: tuple[np.ndarray, ...]
    chosen: np.ndarray

    @classmethod
    def of(cls, probe: str, parts: tuple[Part, ...], kept: Sequence[np.ndarray]) -> Rows:
        """Of the parts of a run, and masks of their records."""
        known = [(part, mask) for part, mask in zip(parts, kept, strict=True) if len(part.of(probe))]
        held = tuple(part for part, _ in known)
        places = tuple(part.succeeded(probe) for part in held)
        run = np.concatenate([np.empty(0, bool), *(mask[at] for (_, mask), at in zip(known, places, strict=True))])
        rows = cls(probe, held, places, np.flatnonzero(run))
        return replace(rows, chosen=rows.chosen[np.argsort(rows.steps, kind="stable")])

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def steps(self) -> np.ndarray:
        """(R,), of each record, ascending."""
        return self._of_all([part.steps[at] for part, at in zip(self.parts, self.places, strict=True)], np.int64)

    @property
    def times(self) -> np.ndarray:
        """(R,), of each record, in seconds since the run began."""
        return self._of_all([part.times[at] for part, at in zip(self.parts, self.places, strict=True)])

    def _of_all(self, found: Sequence[np.ndarray], kind: Any = np.float64) -> np.ndarray:
        return np.concatenate([np.empty(0, kind), *found])[self.chosen]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(at) for at in self.places])

    def __iter__(self) -> Iterator[Record]:
        numbers = np.searchsorted(self._ends, self.chosen, side="right")
        for group in np.split(np.arange(len(self)), np.flatnonzero(np.diff(numbers)) + 1):
            if len(group):
                yield from self._records(int(numbers[group[0]]), self.chosen[group])

    def _records(self, number: int, chosen: np.ndarray) -> Iterator[Record]:
        places = self.places[number]
        return self.parts[number].records(places[chosen - self._ends[number] + len(places)])

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Record | Rows:
        if isinstance(place, slice):
            return replace(self, chosen=self.chosen[place])
        chosen = self.chosen[[place]]
        return next(self._records(int(np.searchsorted(self._ends, chosen[0], side="right")), chosen))

    def where(self, mask: np.ndarray) -> Rows:
        """Those for which a mask (R,) is true."""
        return replace(self, chosen=self.chosen[mask])

    def has(self, metric: str) -> np.ndarray:
        """(R,), whether a record has a metric, whatever it is."""
        found = []
        for part, at in zip(self.parts, self.places, strict=True):
            known = part.places(self.probe, metric)
            found.append(np.ones(len(at), bool) if len(known) == len(at) else np.isin(at, known))
        return self._of_all(found, bool)

    def numbers(self, metric: str) -> np.ndarray:
        """(R,) float64, of each record a metric; NaN where it is no number, or not there. Flags are no numbers."""
        return self._of_all([part.numbers(self.probe, metric) for part in self.parts])

    def mapped(self, metric: str, function: Callable[[Any], float]) -> np.ndarray:
        """(R,) float64, what a function of one cell, or of None where there is none, makes of each.

        Kept as ``numbers`` are: the function has to be one of a module, that knows nothing but the cell.
        """
        return self._of_all([part.mapped(self.probe, metric, function) for part in self.parts])

    def cells(self, metric: str) -> list[Any]:
        """(R,), of each record what it has of a metric, None where it has none."""
        found: list[Any] = []
        for part, at in zip(self.parts, self.places, strict=True):
            places, cells = part.cells(self.probe, metric)
            whole = len(places) == len(at)
            found += cells if whole else map(dict(zip(places.tolist(), cells, strict=True)).get, at.tolist())
        return [found[place] for place in self.chosen.tolist()]

    def texts(self, metric: str) -> set[str]:
        """All there are in the cells of a metric, of whatever shape; also of records that are not among these."""
        return {text for part in self.parts for text in part.texts(self.probe, metric)}

    def layers(self, metric: str) -> Layers:
        """Keys (K,) of cells that are dicts, as they first appear, and numbers (R, K), NaN as in ``numbers``."""
        found = [part.layers(self.probe, metric) for part in self.parts]
        names = list(dict.fromkeys(name for own, _ in found for name in own))
        whole = [table if own == names else _spread(own, table, names) for own, table in found]
        return names, np.concatenate([np.empty((0, len(names))), *whole])[self.chosen]

    def lists(self, metric: str, most: int) -> Lists:
        """Lengths (R,) of cells that are lists, else 0, and their first numbers (R, at most ``most``), or NaN."""
        found = [part.lists(self.probe, metric, most) for part in self.parts]
        width = max((table.shape[1] for _, table in found), default=0)
        wide = [np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=np.nan) for _, table in found]
        table = np.concatenate([np.empty((0, width)), *wide])[self.chosen]
        return self._of_all([lengths for lengths, _ in found], int), table


def _spread(own: list[str], table: np.ndarray, names: list[str]) -> np.ndarray:
    """Columns of a table at their places among all."""
    found = np.full((len(table), len(names)), np.nan)
    found[:, [names.index(name) for name in own]] = table
    return found
