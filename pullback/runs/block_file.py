"""Many records in one file, as columns: what becomes of a record's lines once there are many of them.

``blocks/000001.zip`` and so on are ZIP archives, which carry a checksum of each member: ``index`` says of every record
its probe, step, time and error, and one member a probe, named by its number, has the values
(``runs.packed_columns``). A block appears under its name once it is whole, and is never changed again. Members are read
when they are asked for.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np

from pullback.runs.column import Column, Layers, Lists
from pullback.runs.members import members_of, read_member
from pullback.runs.one_record import Record, of_columns
from pullback.runs.packed_columns import unpack
from pullback.runs.planes import joined

BLOCKS_FOLDER = "blocks"
INDEX = "index"
MICRO = 1e6  # times are told to the microsecond
KEPT = 96  # members that are kept once they were read: those of one probe, of a long run, and of the next
DAMAGED = "the block of the record that had its values is damaged"


def block_path(folder: Path, number: int) -> Path:
    """Where the block of that number, from 1 on, stands in a run folder."""
    return folder / BLOCKS_FOLDER / f"{number:06}.zip"


@dataclass(eq=False)
class Block:
    """A block as it is read.

    Attributes:
        path: of the file.
        members: where in it each stands, by name.
        probes: names, by number.
        named: (probe, metric) -> keys of its cells that are dicts, and None if there are others; in the order of their
            first records.
        errors: texts, by number; None is that of no error.
        skipped: damaged lines among those that became the block.
        codes, steps, times, error_codes: (N,), of each record the number of its probe, step, time, number of its error.

    Cost: of opening, the index alone, about ten bytes a record.
    """

    path: Path
    members: dict[str, zipfile.ZipInfo]
    probes: list[str]
    named: dict[tuple[str, str], list[str | None]]
    errors: list[str | None]
    skipped: int
    codes: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    error_codes: np.ndarray
    _succeeded: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _numbers: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, repr=False)
    _layers: dict[tuple[str, str], Layers] = field(default_factory=dict, repr=False)
    _lists: dict[tuple[str, str, int], Lists] = field(default_factory=dict, repr=False)
    _places: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, repr=False)
    _texts: dict[tuple[str, str], list[str]] = field(default_factory=dict, repr=False)
    _mapped: dict[tuple[str, str, Callable[[Any], float]], np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path) -> Block:
        """Read its index.

        Raises:
            ValueError: it is damaged, or none is there.
        """
        members = members_of(path)
        content = read_member(path, members, INDEX)
        place = content.index(b"\n")
        told = json.loads(content[:place])
        rows, place = [], place + 1
        for spec in told["specs"]:
            part, place = joined(spec, content, place)
            rows.append(part)
        codes, steps, times, failed = rows
        times = times / MICRO if told["micros"] else times
        named = {(told["probes"][code], metric): told["keys"][under] for code, metric, under in told["metrics"]}
        return cls(path, members, told["probes"], named, told["errors"], told["skipped"], codes, steps, times, failed)

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def rows(self) -> np.ndarray:
        """(N,), of each record its place among those of its probe that succeeded."""
        found = np.zeros(len(self), np.int64)
        for code in range(len(self.probes)):
            whole = (self.codes == code) & (self.error_codes == 0)
            found[whole] = np.arange(np.count_nonzero(whole))
        return found

    def columns(self, probe: str) -> dict[str, Column] | None:
        """Of one probe; None where its member is damaged. What the last ones were made of is kept, no more."""
        return _columns(ref(self), self.probes.index(probe)) if probe in self.probes else None

    def of(self, probe: str) -> np.ndarray:
        """Places of a probe's records."""
        return np.flatnonzero(self.codes == self.probes.index(probe)) if probe in self.probes else np.empty(0, np.int64)

    @property
    def failed(self) -> np.ndarray:
        """Places of records that are errors."""
        return np.flatnonzero(self.error_codes)

    def metrics(self) -> dict[tuple[str, str], None]:
        """Of the records that succeeded, probe and metric, in the order in which they first appear."""
        return dict.fromkeys(self.named)

    def keys(self, probe: str, metric: str) -> list[str | None]:
        """Keys of a metric's cells that are dicts, and None if there are others."""
        return self.named.get((probe, metric), [])

    def places(self, probe: str, metric: str) -> np.ndarray:
        """Of the records that have a metric."""
        if (probe, metric) not in self._places:
            column, whole = self._column(probe, metric), self.succeeded(probe)
            all_of_them = column is not None and column.places is None  # an array for all metrics
            self._places[probe, metric] = whole if all_of_them else whole[:0] if column is None else whole[column.rows]
        return self._places[probe, metric]

    def cells(self, probe: str, metric: str) -> tuple[np.ndarray, list[Any]]:
        """Places and whole cells of a metric."""
        column = self._column(probe, metric)
        return self.places(probe, metric), [] if column is None else column.cells()

    def under(self, probe: str, metric: str, key: str | None) -> tuple[np.ndarray, list[Any] | Column]:
        """The same of the parts under a key, or for None of cells that are no dicts; see ``Column.under``."""
        column = self._column(probe, metric)
        if column is None:
            return np.empty(0, np.int64), []
        rows, cells = column.under(key)
        return self.succeeded(probe)[rows], cells

    def _column(self, probe: str, metric: str) -> Column | None:
        columns = self.columns(probe)
        return None if columns is None else columns.get(metric)

    def succeeded(self, probe: str) -> np.ndarray:
        """Places of a probe's records that are no errors; none where what they hold is damaged."""
        if probe not in self._succeeded:
            places = self.of(probe)
            whole = self.error_codes[places] == 0
            self._succeeded[probe] = places[whole & (self.columns(probe) is not None)]
        return self._succeeded[probe]

    def numbers(self, probe: str, metric: str) -> np.ndarray:
        """(S,), of each record that succeeded a metric as a number; NaN of what is none, or is not there."""
        if (probe, metric) not in self._numbers:
            found = np.full(len(self.succeeded(probe)), np.nan)
            if (column := self._column(probe, metric)) is not None:
                found[column.rows] = column.numbers()
            self._numbers[probe, metric] = found
        return self._numbers[probe, metric]

    def texts(self, probe: str, metric: str) -> list[str]:
        """All there are in a metric's cells, and whole numbers beyond 64 bits."""
        if (probe, metric) not in self._texts:
            column = self._column(probe, metric)
            self._texts[probe, metric] = [] if column is None else column.texts
        return self._texts[probe, metric]

    def mapped(self, probe: str, metric: str, function: Callable[[Any], float]) -> np.ndarray:
        """(S,), of each record that succeeded what a function makes of a metric, of None where it is not there."""
        if (probe, metric, function) not in self._mapped:
            found: list[Any] = [None] * len(self.succeeded(probe))
            if (column := self._column(probe, metric)) is not None:
                for row, cell in zip(column.rows.tolist(), column.cells(), strict=True):
                    found[row] = cell
            self._mapped[probe, metric, function] = np.array(list(map(function, found)), float)
        return self._mapped[probe, metric, function]

    def layers(self, probe: str, metric: str) -> Layers:
        """Keys (K,) of a metric's cells that are dicts, and numbers (S, K) under them; NaN as in ``numbers``."""
        if (probe, metric) not in self._layers:
            column = self._column(probe, metric)
            names, numbers = ([], np.empty((0, 0))) if column is None else column.layers()
            found = np.full((len(self.succeeded(probe)), len(names)), np.nan)
            if column is not None:
                found[column.rows] = numbers
            self._layers[probe, metric] = names, found
        return self._layers[probe, metric]

    def lists(self, probe: str, metric: str, most: int) -> Lists:
        """Lengths (S,) of a metric's cells that are lists, else 0, and their first numbers (S, at most ``most``)."""
        key = (probe, metric, most)
        if key not in self._lists:
            column, count = self._column(probe, metric), len(self.succeeded(probe))
            lengths, numbers = (np.empty(0, int), np.empty((0, 0))) if column is None else column.lists(most)
            self._lists[key] = np.zeros(count, int), np.full((count, numbers.shape[1]), np.nan)
            if column is not None:
                for whole, found in zip(self._lists[key], (lengths, numbers), strict=True):
                    whole[column.rows] = found
        return self._lists[key]

    def records(self, places: np.ndarray) -> Iterator[Record]:
        """Those at these places."""
        each = (self.codes, self.steps, self.times, self.error_codes, self.rows)
        read: dict[int, dict[str, Column] | None] = {}
        for code, step, time, failed, row in zip(*(part[places].tolist() for part in each), strict=True):
            if not failed and code not in read:
                read[code] = _columns(ref(self), code)
            columns = None if failed else read[code]
            if columns is None:
                yield Record(step, time, self.probes[code], {}, self.errors[failed] or DAMAGED)
                continue
            yield of_columns(step, time, self.probes[code], columns, row)


@lru_cache(KEPT)
def _columns(known: ref[Block], code: int) -> dict[str, Column] | None:
    """Of a block's probe, by its number; None where the member is damaged. A block that nobody has is not held."""
    block = known()
    assert block is not None
    try:
        return unpack(read_member(block.path, block.members, str(code)))
    except ValueError:
        return None
