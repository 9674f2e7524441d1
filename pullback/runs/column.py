"""One metric of a probe's records, as it is read: cells when they are asked for, or their numbers alone as an array.

Leaves stand as they are stored, see ``runs.packed_columns``: leaf by leaf where all cells have one shape, so that one
leaf of all cells is one stretch of memory. Nothing is decoded before it is asked for.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from pullback.runs.planes import Spec, joined, size_of
from pullback.runs.shape import PLACES, Shape

KEPT = 48  # columns whose cells are kept once they were made

Layers = tuple[list[str], np.ndarray]  # keys (K,) and numbers (cells, K)
Lists = tuple[np.ndarray, np.ndarray]  # lengths (cells,) and numbers (cells, L)


@dataclass(frozen=True, eq=False)
class Column:
    """One metric of a probe's records.

    Attributes:
        num_rows: N, records there are.
        shapes: of cells.
        texts: all there are; leaves that are texts are places in them.
        packed: bytes with what is stored.
        stored: of rows, shapes and the three kinds of leaves how they are stored, and where they begin.
    """

    num_rows: int
    shapes: tuple[Shape, ...]
    texts: list[str]
    packed: bytes
    stored: tuple[tuple[Spec, int], ...]

    def _numbers(self, which: int) -> np.ndarray:
        return joined(self.stored[which][0], self.packed, self.stored[which][1])[0]

    @cached_property
    def rows(self) -> np.ndarray:
        """(cells,), the row of each cell."""
        rows = self._numbers(0)
        return rows if len(rows) or not len(self) else np.arange(self.num_rows)

    @cached_property
    def places(self) -> np.ndarray | None:
        """(N,), of each row the place of its cell, -1 where it has none; None where every row has one."""
        if not self.stored[0][0][1]:
            return None
        found = np.full(self.num_rows, -1)
        found[self.rows] = np.arange(len(self))
        return found

    def __len__(self) -> int:
        return int(self.stored[0][0][1]) or self.num_rows

    @cached_property
    def codes(self) -> np.ndarray | None:
        """(cells,), the shape of each; None where all have the first."""
        return self._numbers(1) if len(self.shapes) > 1 else None

    @cached_property
    def leaves(self) -> tuple[np.ndarray, ...]:
        """Of each kind: (leaves of a cell, cells) where all have one shape, else (leaves,), cell by cell."""
        found = [self._numbers(which) for which in (2, 3, 4)]
        return tuple(found if self.codes is not None else (each.reshape(-1, max(1, len(self))) for each in found))

    @cached_property
    def starts(self) -> np.ndarray:
        """(cells, 3), where the leaves of each kind begin, of cells of several shapes."""
        counts = np.array([shape.counts for shape in self.shapes])[self.codes]
        return np.cumsum(counts, 0) - counts

    def has(self, row: int) -> bool:
        """Whether a row has a cell."""
        return self.places is None or self.places.item(row) >= 0

    def get(self, row: int, default: Any = None) -> Any:
        """The cell of a row, or the default where it has none."""
        place = row if self.places is None else self.places.item(row)
        if place < 0:
            return default
        return (_made(self) if self.plain is None else self.plain)[place]

    def cells(self) -> list[Any]:
        """All there are, made anew; nothing of it is kept."""
        return _filled_in(replace(self))

    @cached_property
    def plain(self) -> list[Any] | None:
        """All cells, where they are single numbers, texts or flags: they take no more room than what points at them."""
        return None if any(isinstance(each.template, list | dict) for each in self.shapes) else _filled_in(self)

    def of_shape(self, number: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Places of the cells of one shape, and their leaves of each kind, (leaves of a cell, those cells)."""
        if self.codes is None:
            return np.arange(len(self)), list(self.leaves)
        places = np.flatnonzero(self.codes == number)
        starts, counts = self.starts[places].T, self.shapes[number].counts
        return places, [
            each[at + np.arange(k)[:, None]] for each, at, k in zip(self.leaves, starts, counts, strict=True)
        ]

    def numbers(self, key: str | None = None) -> np.ndarray:
        """(cells,), each cell as a number, or what stands under a key of it; NaN where that is none. Flags are none."""
        found = np.full(len(self), math.nan)
        for number, shape in enumerate(self.shapes):
            if key in shape.numbers:
                places, leaves = self.of_shape(number)
                found[places] = self._floats(leaves, *shape.numbers[key])
        return found

    def layers(self) -> Layers:
        """Keys of the cells that are dicts, as they first appear, and the numbers under them, or NaN."""
        names = dict.fromkeys(
            key for shape in self.shapes if isinstance(shape.template, dict) for key in shape.template
        )
        columns = {name: column for column, name in enumerate(names)}
        found = np.full((len(self), len(names)), math.nan)
        for number, shape in enumerate(self.shapes):
            if isinstance(shape.template, dict) and shape.numbers:
                places, leaves = self.of_shape(number)
                for key, where in shape.numbers.items():
                    found[places, columns[str(key)]] = self._floats(leaves, *where)
        return list(names), found

    def lists(self, most: int) -> Lists:
        """Lengths (cells,) of those that are lists, else 0; their first numbers (cells, at most ``most``), or NaN."""
        lengths = np.array([len(each.template) if isinstance(each.template, list) else 0 for each in self.shapes])
        found = np.full((len(self), min(most, int(lengths.max(initial=0)))), math.nan)
        for number, shape in enumerate(self.shapes):
            if isinstance(shape.template, list):
                places, leaves = self.of_shape(number)
                for at, where in shape.numbers.items():
                    if isinstance(at, int) and at < found.shape[1]:
                        found[places, at] = self._floats(leaves, *where)
        return lengths[0 if self.codes is None else self.codes] * np.ones(len(self), int), found

    def _floats(self, leaves: Sequence[np.ndarray], letter: str, place: int) -> np.ndarray:
        """One leaf of several cells, as float64."""
        found = leaves[PLACES[letter]][place]
        if letter == "b":
            return np.array([as_number(int(self.texts[each])) for each in found.tolist()])
        return found.astype(np.float64)

    def alone(self) -> Column:
        """The same with the bytes of this metric only, and nothing that was made of them."""
        begin = self.stored[0][1]
        stored = tuple((spec, at - begin) for spec, at in self.stored)
        packed = self.packed[begin : self.stored[-1][1] + size_of(self.stored[-1][0])]
        return Column(self.num_rows, self.shapes, self.texts, packed, stored)

    def under(self, key: str | None) -> tuple[np.ndarray, list[Any] | Column]:
        """Rows and parts of cells under a key, or all that are no dicts for None; lists as the column they stand in."""
        if key is None and all(isinstance(each.template, list) for each in self.shapes):
            return self.rows, self.alone()
        template = self.shapes[0].template
        if self.codes is None and key is None and not isinstance(template, dict):
            return self.rows, self.cells()
        if self.codes is None and isinstance(template, dict) and key in self.shapes[0].numbers:
            letter, place = self.shapes[0].numbers[key]
            if letter != "b":
                return self.rows, self.leaves[PLACES[letter]][place].tolist()
        kept, found = [], []
        cells = _made(self) if self.plain is None else self.plain  # asked for key by key
        for row, cell in zip(self.rows.tolist(), cells, strict=True):
            if isinstance(cell, dict) if key is not None else not isinstance(cell, dict):
                if key is not None and key not in cell:
                    continue
                kept.append(row)
                found.append(cell if key is None else cell[key])
        return np.array(kept, np.int64), found


def as_number(value: Any) -> float:
    """A cell of a record as a float; NaN of what is no number, flags among it."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@lru_cache(KEPT)
def _made(column: Column) -> list[Any]:
    """All cells of a column. Whoever goes through records asks for the same few columns in turn."""
    return _filled_in(column)


@contextmanager
def without_collecting() -> Iterator[None]:
    """While many cells are made: none of them points back, and millions of lists would be looked through each time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _filled_in(column: Column) -> list[Any]:
    found: list[Any] = [None] * len(column)
    for number, shape in enumerate(column.shapes):
        places, (floats, ints, words) = column.of_shape(number)
        texts = ([column.texts[each] for each in word] for word in words.tolist())
        cells = _filled(shape.template, len(places), _shared(floats), _shared(ints), texts)
        if len(places) == len(found):
            return cells
        for place, cell in zip(places.tolist(), cells, strict=True):
            found[place] = cell
    return found


def _shared(leaves: np.ndarray) -> Iterator[list[Any]]:
    """The values of each leaf; leaves that are alike, as the halves of a symmetric matrix, share their objects."""
    known: dict[bytes, list[Any]] = {}
    for leaf in leaves:
        key = leaf.tobytes()
        if key not in known:
            known[key] = leaf.tolist()
        yield known[key]


def _filled(template: Any, count: int, *leaves: Iterator[list[Any]]) -> list[Any]:
    """Cells of one shape: leaf by leaf, of each the values of all cells."""
    if isinstance(template, list | dict):
        inner = template.values() if isinstance(template, dict) else template
        parts = zip(*[_filled(each, count, *leaves) for each in inner], strict=True) if inner else [()] * count
        if isinstance(template, dict):
            return [dict(zip(template, part, strict=True)) for part in parts]
        return list(map(list, parts))
    if not isinstance(template, str):
        return [template] * count
    if template == "b":
        return [int(text) for text in next(leaves[2])]
    return next(leaves[PLACES[template]])
