"""The records of a run as one sequence, whether they stand in blocks, in lines or in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

from pullback.runs.block_file import Block, Record
from pullback.runs.schema import RESUME

END = 2**63 - 1  # a step that no record is beyond
KEPT = 2**17  # records of a probe that are kept once they were made


@dataclass(frozen=True)
class Cells:
    """What was recorded under one name: numbers of the records, steps and values, in the order of the records."""

    places: np.ndarray
    steps: np.ndarray
    values: list[Any]


@dataclass(eq=False)
class Lines:
    """Records in memory, as a part of a run beside its blocks."""

    held: tuple[Record, ...]
    skipped: int = 0
    follows: int = 0  # number of the block before them
    whole: tuple[int, int, int] = (0, 0, 0)  # bytes, records and damaged lines up to the end of the last whole line

    def __len__(self) -> int:
        return len(self.held)

    def is_same(self, other: Lines) -> bool:
        """Whether nothing was added to the same lines."""
        return (self.follows, self.whole, len(self)) == (other.follows, other.whole, len(other))

    @cached_property
    def steps(self) -> np.ndarray:
        """(N,), of each record."""
        return np.array([record.step for record in self.held], np.int64)

    @property
    def times(self) -> np.ndarray:
        """(N,), of each record."""
        return np.array([record.time for record in self.held], float)

    def of(self, probe: str) -> np.ndarray:
        """Places of a probe's records."""
        return self._by_probe.get(probe, np.empty(0, np.int64))

    @property
    def probes(self) -> list[str]:
        """Names, in the order in which they first appear."""
        return list(self._by_probe)

    @cached_property
    def _by_probe(self) -> dict[str, np.ndarray]:
        found: dict[str, list[int]] = {}
        for place, record in enumerate(self.held):
            found.setdefault(record.probe, []).append(place)
        return {probe: np.array(places) for probe, places in found.items()}

    @property
    def failed(self) -> np.ndarray:
        """Places of records that are errors."""
        return np.array([place for place, record in enumerate(self.held) if record.error is not None], np.int64)

    def records(self, places: np.ndarray) -> Iterator[Record]:
        """Those at these places."""
        return (self.held[place] for place in places.tolist())

    def metrics(self) -> dict[tuple[str, str], None]:
        """Of the records that succeeded, probe and metric, in the order in which they first appear."""
        return {(record.probe, metric): None for record in self.held for metric in record.values}

    def keys(self, probe: str, metric: str) -> list[str | None]:
        """Keys of a metric's cells that are dicts, and None if there are others."""
        found: dict[str | None, None] = {}
        for record in self.records(self.of(probe)):
            if metric in record.values:
                cell = record.values[metric]
                found |= dict.fromkeys(cell if isinstance(cell, dict) else (None,))
        return list(found)

    def places(self, probe: str, metric: str) -> np.ndarray:
        """Of the records that have a metric."""
        return np.array([p for p in self.of(probe).tolist() if metric in self.held[p].values], np.int64)

    def cells(self, probe: str, metric: str) -> tuple[np.ndarray, list[Any]]:
        """Places and whole cells of a metric."""
        places = self.places(probe, metric)
        return places, [self.held[place].values[metric] for place in places.tolist()]

    def under(self, probe: str, metric: str, key: str | None) -> tuple[np.ndarray, list[Any]]:
        """The same of the parts under a key, or for None of cells that are no dicts."""
        places, cells = self.cells(probe, metric)
        pairs = [
            (place, cell if key is None else cell[key])
            for place, cell in zip(places.tolist(), cells, strict=True)
            if (not isinstance(cell, dict) if key is None else isinstance(cell, dict) and key in cell)
        ]
        return np.array([place for place, _ in pairs], np.int64), [value for _, value in pairs]


Part = Block | Lines


@dataclass(eq=False, repr=False)
class Records(Sequence[Record]):
    """Records in the order they were written, without those that a resumed run left behind.

    Values are read from the disk when they are asked for, a probe at a time, and stay in memory then.

    Args:
        parts: in their order.
        last: the last step to tell of.
    """

    parts: tuple[Part, ...] = ()
    last: int = END
    _made: dict[str, tuple[Record, ...]] = field(default_factory=dict)

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

    def of(self, probe: str) -> Sequence[Record]:
        """Those of a probe, by step; errors among them."""
        if probe not in self._made:
            found = tuple(
                sorted(
                    (each for part, kept in self._parts() for each in part.records(_only(part.of(probe), kept))),
                    key=lambda record: record.step,
                )
            )
            if len(found) > KEPT:
                return found
            self._made[probe] = found
        return self._made[probe]

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

    def steps(self) -> np.ndarray:
        """(S,), at which there is any, ascending."""
        found = [part.steps[kept] for part, kept in self._parts()]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

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

    def cells(self, probe: str, metric: str) -> Cells:
        """Whole cells of a metric."""
        return self._joined([part.cells(probe, metric) for part in self.parts])

    def under(self, probe: str, metric: str, key: str | None) -> Cells:
        """Of a metric's cells the parts under a key, or for None those that are no dicts."""
        return self._joined([part.under(probe, metric, key) for part in self.parts])

    def _parts(self) -> Iterator[tuple[Part, np.ndarray]]:
        return zip(self.parts, self.kept, strict=True)

    def _joined(self, found: list[tuple[np.ndarray, list[Any]]]) -> Cells:
        places, steps, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
        for (at, cells), (part, kept), offset in zip(found, self._parts(), self.offsets, strict=False):
            here = kept[at]
            places.append(at[here] + offset)
            steps.append(part.steps[at[here]])
            values += cells if here.all() else [cell for cell, keep in zip(cells, here.tolist(), strict=True) if keep]
        return Cells(np.concatenate(places), np.concatenate(steps), values)


def _only(places: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return places[kept[places]]


def records_of(records: Sequence[Record]) -> Records:
    """Records that are in memory, as those of a run."""
    return records if isinstance(records, Records) else Records((Lines(tuple(records)),))
