"""The records of a run as one sequence, whether they stand in blocks, in lines or in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

from pullback.runs.cells import joined_cells
from pullback.runs.column import Column
from pullback.runs.lines import Lines
from pullback.runs.one_record import Record
from pullback.runs.rows import Part, Rows
from pullback.runs.schema import RESUME

END = 2**63 - 1  # a step that no record is beyond


@dataclass(frozen=True)
class Found:
    """What was recorded under one name: numbers of the records, steps and values, in the order of the records."""

    places: np.ndarray
    steps: np.ndarray
    values: list[Any]


@dataclass(eq=False, repr=False)
class Records(Sequence[Record]):
    """Records in the order they were written, without those that a resumed run left behind.

    Values are read from the disk when they are asked for, a probe at a time. Of what is asked for as an array that
    stays in memory, and what it was made of does not.

    Args:
        parts: in their order.
        last: the last step to tell of.
    """

    parts: tuple[Part, ...] = ()
    last: int = END
    _rows: dict[str, Rows] = field(default_factory=dict)

    @cached_property
    def resumptions(self) -> tuple[tuple[int, int, int], ...]:
        """Number of the part, place in it and step of every time that training was resumed."""
        return tuple(
            (number, place, int(part.steps[place]))
            for number, part in enumerate(self.parts)
            for place in part.of(RESUME).tolist()
        )

    @cached_property
    def kept(self) -> tuple[np.ndarray, ...]:
        """Of each part which of its records are the run's: those of steps that no later resumption made anew."""
        bounds = [np.full(len(part), self.last) for part in self.parts]
        for number, place, step in self.resumptions:
            for bound in bounds[:number]:
                np.minimum(bound, step, out=bound)
            np.minimum(bounds[number][:place], step, out=bounds[number][:place])
            bounds[number][place] = -1
        return tuple(part.steps <= bound for part, bound in zip(self.parts, bounds, strict=True))

    @cached_property
    def offsets(self) -> list[int]:
        """Where each part begins, among all records."""
        return [0, *np.cumsum([len(part) for part in self.parts]).tolist()]

    @cached_property
    def _length(self) -> int:
        return sum(int(np.count_nonzero(kept)) for kept in self.kept)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Record]:
        for part, kept in zip(self.parts, self.kept, strict=True):
            yield from part.records(np.flatnonzero(kept))

    @cached_property
    def _places(self) -> np.ndarray:
        """Of each record its place among all."""
        return np.flatnonzero(np.concatenate([np.empty(0, bool), *self.kept]))

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, place: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(place, slice):
            return tuple(map(self._at, self._places[place].tolist()))
        return self._at(int(self._places[place]))

    def _at(self, place: int) -> Record:
        number = bisect_right(self.offsets, place) - 1
        return next(self.parts[number].records(np.array([place - self.offsets[number]])))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} records>"

    def until(self, step: int) -> Records:
        """Those up to a step."""
        return Records(self.parts, min(self.last, step))

    def of(self, probe: str) -> Rows:
        """Those of a probe that succeeded, by step."""
        if probe not in self._rows:
            self._rows[probe] = Rows.of(probe, self.parts, self.kept)
        return self._rows[probe]

    def failed(self) -> list[Record]:
        """Those that are errors."""
        return [each for part, kept in self._parts() for each in part.records(_only(part.failed, kept))]

    @cached_property
    def succeeded(self) -> dict[str, np.ndarray]:
        """Of each probe the steps of its records that are no errors, in their order."""
        found: dict[str, list[np.ndarray]] = {}
        for part, kept in self._parts():
            whole = kept.copy()
            whole[part.failed] = False
            for probe in part.probes:
                steps = part.steps[_only(part.of(probe), whole)]
                if len(steps):
                    found.setdefault(probe, []).append(steps)
        return {probe: np.concatenate(steps) for probe, steps in found.items()}

    def last_time(self) -> float:
        """The latest, in seconds since the run began; 0 where there is none."""
        return max((float(part.times[kept].max(initial=0.0)) for part, kept in self._parts()), default=0.0)

    @cached_property
    def steps(self) -> np.ndarray:
        """(S,), at which there is any, ascending."""
        found = np.concatenate([np.empty(0, np.int64), *(part.steps[kept] for part, kept in self._parts())])
        return np.unique(found[np.append(True, found[1:] != found[:-1])] if len(found) else found)

    def metrics(self) -> list[tuple[str, str]]:
        """Probe and metric of all that was recorded, in the order in which it first appeared."""
        found = {
            each: None
            for part, kept in self._parts()
            for each in part.metrics()
            if each[0] != RESUME and (kept.all() or kept[part.places(*each)].any())
        }
        return list(found)

    def keys(self, probe: str, metric: str) -> list[str | None]:
        """Keys of a metric's cells that are dicts, and None if there are others."""
        found = {
            key: None
            for part, kept in self._parts()
            for key in part.keys(probe, metric)
            if kept.all() or kept[part.under(probe, metric, key)[0]].any()
        }
        return list(found)

    def cells(self, probe: str, metric: str) -> Found:
        """Whole cells of a metric."""
        return self._joined([part.cells(probe, metric) for part in self.parts])

    def under(self, probe: str, metric: str, key: str | None) -> Found:
        """Of a metric's cells the parts under a key, or for None those that are no dicts."""
        return self._joined([part.under(probe, metric, key) for part in self.parts])

    def _parts(self) -> Iterator[tuple[Part, np.ndarray]]:
        return zip(self.parts, self.kept, strict=True)

    def _joined(self, found: Sequence[tuple[np.ndarray, list[Any] | Column]]) -> Found:
        places, steps, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
        for (at, cells), (part, kept), offset in zip(found, self._parts(), self.offsets, strict=False):
            here = kept[at]
            places.append(at[here] + offset)
            steps.append(part.steps[at[here]])
            values.append((cells, None if here.all() else np.flatnonzero(here)))
        return Found(np.concatenate(places), np.concatenate(steps), joined_cells(values))


def _only(places: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return places[kept[places]]


def records_of(records: Sequence[Record]) -> Records:
    """Records that are in memory, as those of a run."""
    return records if isinstance(records, Records) else Records((Lines(tuple(records)),))
