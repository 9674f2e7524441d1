"""Records in memory, as a part of a run beside its blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pullback.runs.column import Layers, Lists, as_number
from pullback.runs.one_record import Record


@dataclass(eq=False)
class Lines:
    """Records that were read as lines, or handed over; what it answers, ``block_file.Block`` does."""

    held: tuple[Record, ...]
    skipped: int = 0
    follows: int = 0  # number of the block before them
    whole: tuple[int, int, int] = (0, 0, 0)  # bytes, records and damaged lines up to the end of the last whole line
    _numbers: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, repr=False)
    _layers: dict[tuple[str, str], Layers] = field(default_factory=dict, repr=False)

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

    def succeeded(self, probe: str) -> np.ndarray:
        """Of these the places of those that are no errors."""
        return np.array([place for place in self.of(probe).tolist() if self.held[place].error is None], np.int64)

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

    def numbers(self, probe: str, metric: str) -> np.ndarray:
        """(S,), of each record that succeeded a metric as a number; NaN of what is none, or is not there."""
        if (probe, metric) not in self._numbers:
            succeeded = self.records(self.succeeded(probe))
            found = [as_number(record.values.get(metric)) for record in succeeded]
            self._numbers[probe, metric] = np.array(found, float)
        return self._numbers[probe, metric]

    def texts(self, probe: str, metric: str) -> list[str]:
        """All there are in a metric's cells."""
        return list(_texts([each.values.get(metric) for each in self.records(self.succeeded(probe))]))

    def mapped(self, probe: str, metric: str, function: Callable[[Any], float]) -> np.ndarray:
        """(S,), of each record that succeeded what a function makes of a metric, of None where it is not there."""
        return np.array([function(each.values.get(metric)) for each in self.records(self.succeeded(probe))], float)

    def layers(self, probe: str, metric: str) -> Layers:
        """Keys (K,) of a metric's cells that are dicts, and numbers (S, K) under them; NaN as in ``numbers``."""
        if (probe, metric) not in self._layers:
            cells = [record.values.get(metric) for record in self.records(self.succeeded(probe))]
            dicts = [cell if isinstance(cell, dict) else {} for cell in cells]
            names = list(dict.fromkeys(name for cell in dicts for name in cell))
            found = [[as_number(cell.get(name, math.nan)) for name in names] for cell in dicts]
            self._layers[probe, metric] = names, np.array(found, float).reshape(len(cells), len(names))
        return self._layers[probe, metric]

    def lists(self, probe: str, metric: str, most: int) -> Lists:
        """Lengths (S,) of a metric's cells that are lists, else 0, and their first numbers (S, at most ``most``)."""
        cells = [record.values.get(metric) for record in self.records(self.succeeded(probe))]
        listed = [cell if isinstance(cell, list) else [] for cell in cells]
        lengths = np.array([len(cell) for cell in listed], int)
        found = np.full((len(cells), min(most, int(lengths.max(initial=0)))), math.nan)
        for row, cell in enumerate(listed):
            found[row, : len(cell)] = list(map(as_number, cell[: found.shape[1]]))
        return lengths, found


def _texts(cell: Any) -> Iterator[str]:
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, list | dict):
        for each in cell.values() if isinstance(cell, dict) else cell:
            yield from _texts(each)
