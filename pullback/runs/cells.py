"""``Cells``: a list whose entries stand as bytes and are made when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np

from pullback.runs.column import Column

Chunk = tuple[list[Any] | Column, np.ndarray | None]  # cells, and which of them count; None for all

FILLING = (  # what a list does and nobody does with a million lists of numbers: it becomes one like any other
    *("append", "clear", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"),
    *("__add__", "__contains__", "__delitem__", "__ge__", "__gt__", "__iadd__", "__imul__", "__le__", "__lt__"),
    *("__mul__", "__repr__", "__reversed__", "__rmul__", "__setitem__"),
)


class Cells(list[Any]):
    """A column of lists, as a list of them.

    A list in a record is ten to a hundred numbers at each measurement, and Python's own take 40 bytes each besides 64
    a list. So those of a long run stand as they are stored, eight bytes a number at most, and are made a stretch at a
    time. Whoever changes the list has an ordinary one from then on.

    Args:
        chunks: of cells, in order.
        rows: of each cell its place in the list, ascending; None where there are cells alone.
        count: entries of the list; those without a cell are None.

    Cost: of one entry, that of a stretch, a few hundred; of the next beside it nothing.
    """

    def __init__(self, chunks: Sequence[Chunk], rows: np.ndarray | None = None, count: int = 0) -> None:
        super().__init__()
        self._chunks, self._rows = list(chunks), rows
        self._ends = np.cumsum([len(cells if which is None else which) for cells, which in chunks])
        self._count = int(self._ends[-1]) if rows is None else count
        self._last: tuple[int, list[Any]] = (-1, [])
        self._is_plain = False

    def among(self, rows: np.ndarray, count: int) -> Cells:
        """These cells at their rows of a longer list."""
        return Cells(self._chunks, rows, count)

    def __len__(self) -> int:
        return super().__len__() if self._is_plain else self._count

    def __iter__(self) -> Iterator[Any]:
        if self._is_plain:
            return super().__iter__()
        cells = chain.from_iterable(_made(*chunk) for chunk in self._chunks)
        return cells if self._rows is None else self._among(cells, self._rows)

    def _among(self, cells: Iterator[Any], rows: np.ndarray) -> Iterator[Any]:
        begin = 0
        for row, cell in zip(rows.tolist(), cells, strict=True):
            yield from repeat(None, row - begin)
            yield cell
            begin = row + 1
        yield from repeat(None, self._count - begin)

    def __getitem__(self, place: Any) -> Any:
        if self._is_plain:
            return super().__getitem__(place)
        if isinstance(place, slice):
            return [self[each] for each in range(self._count)[place]]
        at = range(self._count)[place]  # of a list: places from the end, and none beyond it
        if self._rows is not None:
            row, at = at, int(np.searchsorted(self._rows, at))
            if at == len(self._rows) or self._rows[at] != row:
                return None
        number = int(np.searchsorted(self._ends, at, "right"))
        if self._last[0] != number:
            self._last = number, _made(*self._chunks[number])
        return self._last[1][at - int(self._ends[number])]  # from the end of the stretch

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list) or len(self) != len(other):
            return False
        return all(a is b or a == b for a, b in zip(self, other, strict=True))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __radd__(self, other: list[Any]) -> list[Any]:
        return [*other, *self]

    def copy(self) -> list[Any]:
        """A list like any other."""
        return list(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, (list(self),)


def _made(cells: list[Any] | Column, which: np.ndarray | None) -> list[Any]:
    found = cells.cells() if isinstance(cells, Column) else cells
    return found if which is None else [found[place] for place in which.tolist()]


def _filling(name: str) -> Callable[..., Any]:
    """What a list does under a name, once all entries are made."""
    does = getattr(list, name)

    def filled(self: Cells, *values: Any, **named: Any) -> Any:
        if not self._is_plain:
            entries = list(self)
            self._chunks, self._rows, self._last, self._is_plain = [], None, (-1, []), True
            list.extend(self, entries)
        return does(self, *values, **named)

    filled.__name__, filled.__doc__ = name, does.__doc__
    return filled


for _name in FILLING:
    setattr(Cells, _name, _filling(_name))


def joined_cells(chunks: Sequence[Chunk]) -> list[Any]:
    """All cells in order; a list like any other unless some stand as bytes."""
    if any(isinstance(cells, Column) for cells, _ in chunks):
        return Cells(chunks)
    return list(chain.from_iterable(_made(*chunk) for chunk in chunks))
