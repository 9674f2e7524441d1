"""Values of one probe's records as columns: a metric's numbers together, in few bytes, and back without any loss.

A cell (what one record says of one metric) is a shape and its leaves. A shape is the cell as JSON, with ``"f"`` in
place of each number with a point, ``"i"`` of each whole number, ``"t"`` of each text, and ``"b"`` of each whole number
beyond 64 bits; flags and nulls stand in it as they are. Cells of a probe nearly always share one shape: a column then
is a matrix of leaves, stored leaf by leaf, byte by byte (``runs.planes``): what hardly changes takes next to no room.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from pullback.runs.planes import joined, spread

SMALL = range(-(2**63), 2**63)
KEPT = 48  # columns whose cells are kept once they were made


@dataclass
class Builder:
    """A column that is being made."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    codes: array[int] = field(default_factory=lambda: array("q"))
    shapes: dict[str, int] = field(default_factory=dict)
    floats: array[float] = field(default_factory=lambda: array("d"))
    ints: array[int] = field(default_factory=lambda: array("q"))
    words: array[int] = field(default_factory=lambda: array("q"))
    texts: dict[str, int] = field(default_factory=dict)

    def add(self, row: int, cell: Any) -> None:
        """Take in the cell of a row."""
        self.rows.append(row)
        shape = self._shape(cell)
        self.codes.append(self.shapes.setdefault(shape, len(self.shapes)))

    def _shape(self, cell: Any) -> str:
        """The shape of a cell, as JSON, once its leaves are kept."""
        kind = type(cell)
        if kind is float:
            self.floats.append(cell)
            return '"f"'
        if kind is list:
            return f"[{','.join([self._shape(each) for each in cell])}]"
        if kind is dict:
            return f"{{{','.join([f'{_quoted(key)}:{self._shape(each)}' for key, each in cell.items()])}}}"
        if kind is int and cell in SMALL:
            self.ints.append(cell)
            return '"i"'
        if kind is str or kind is int:
            text = str(cell)
            self.words.append(self.texts.setdefault(text, len(self.texts)))
            return '"t"' if kind is str else '"b"'
        return json.dumps(cell)  # a flag or null

    def packed(self, num_rows: int) -> tuple[list[Any], bytes]:
        """What the header says of the column, and its bytes."""
        whole, alike = len(self.rows) == num_rows, len(self.shapes) == 1
        parts = [
            [] if whole else self.rows,
            [] if alike else self.codes,
            *(_by_leaf(each, len(self.rows), alike) for each in (self.floats, self.ints, self.words)),
        ]
        specs, content = zip(*(spread(np.asarray(part)) for part in parts), strict=True)
        return [[json.loads(shape) for shape in self.shapes], list(self.texts), specs], b"".join(content)


@lru_cache(4096)
def _quoted(key: str) -> str:
    return json.dumps(key)


def _by_leaf(leaves: Sequence[float], count: int, alike: bool) -> np.ndarray:
    """Leaves that stand row by row, leaf by leaf, where all rows have as many."""
    found = np.asarray(leaves)
    return found.reshape(count, -1).T.reshape(-1) if alike and count else found


def pack(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Values of records, in their order, as bytes."""
    builders: dict[str, Builder] = {}
    count = 0
    for values in rows:
        for metric, cell in values.items():
            builder = builders.get(metric)
            if builder is None:
                builder = builders[metric] = Builder()
            builder.add(count, cell)
        count += 1
    made = {metric: builder.packed(count) for metric, builder in builders.items()}
    header = json.dumps([count, {metric: told for metric, (told, _) in made.items()}])
    return header.encode("ascii") + b"\n" + b"".join(content for _, content in made.values())


def unpack(packed: bytes) -> dict[str, Column]:
    """Columns by metric.

    Raises:
        ValueError: bytes that ``pack`` did not make.
    """
    place = packed.index(b"\n")
    count, told = json.loads(packed[:place])
    found: dict[str, Column] = {}
    place += 1
    for metric, (shapes, texts, specs) in told.items():
        parts: list[np.ndarray] = []
        for spec in specs:
            part, place = joined(spec, packed, place)
            parts.append(part)
        found[metric] = Column.of(count, shapes, texts, parts)
    return found


@dataclass(frozen=True)
class Shape:
    """What cells of one shape have in common: the shape, and how many leaves of each kind it holds."""

    template: Any
    num_floats: int
    num_ints: int
    num_words: int
    only: str = ""  # the kind of all leaves, of a list or a dict of nothing but these

    @classmethod
    def of(cls, template: Any) -> Shape:
        """Counts the leaves."""
        leaves = list(_leaves(template))
        inner = template.values() if isinstance(template, dict) else template if isinstance(template, list) else []
        only = next((kind for kind in ("f", "i") if leaves and all(each == kind for each in inner)), "") if inner else ""
        return cls(template, leaves.count("f"), leaves.count("i"), leaves.count("t") + leaves.count("b"), only)


def _leaves(template: Any) -> Iterator[str]:
    if isinstance(template, str):
        yield template
    elif isinstance(template, list | dict):
        for each in template.values() if isinstance(template, dict) else template:
            yield from _leaves(each)


@dataclass(frozen=True, eq=False)
class Column:
    """One metric of a probe's records.

    Attributes:
        places: (N,), of each row the place of its cell among the ``len(self)`` there are, -1 where it has none; None
            where every row has one.
        codes: of each cell its shape; None where all have the first.
        floats, ints, words: leaves of all cells, one after the other; words are places in ``texts``.
        starts: (cells, 3), where the leaves of each kind begin; None where all cells have as many.
    """

    num_rows: int
    shapes: tuple[Shape, ...]
    texts: list[str]
    places: np.ndarray | None
    codes: np.ndarray | None
    floats: np.ndarray
    ints: np.ndarray
    words: np.ndarray
    starts: np.ndarray | None

    @classmethod
    def of(cls, count: int, shapes: list[Any], texts: list[str], parts: list[np.ndarray]) -> Column:
        """From what is stored."""
        rows, codes, floats, ints, words = parts
        kinds = tuple(Shape.of(each) for each in shapes)
        places = None
        if len(rows):
            places = np.full(count, -1)
            places[rows] = np.arange(len(rows))
        if len(kinds) > 1:
            counts = np.array([(kind.num_floats, kind.num_ints, kind.num_words) for kind in kinds])[codes]
            starts = np.cumsum(counts, 0) - counts
            return cls(count, kinds, texts, places, codes, floats, ints, words, starts)
        cells = len(rows) or count
        floats, ints, words = (each.reshape(-1, cells).T.reshape(-1) for each in (floats, ints, words))
        return cls(count, kinds, texts, places, None, floats, ints, words, None)

    def __len__(self) -> int:
        return self.num_rows if self.places is None else int(self.places.max(initial=-1)) + 1

    @property
    def rows(self) -> np.ndarray:
        """(cells,), the row of each cell."""
        return np.arange(self.num_rows) if self.places is None else np.flatnonzero(self.places >= 0)

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
        """All there are."""
        return list(_made(self) if self.plain is None else self.plain)

    @cached_property
    def plain(self) -> list[Any] | None:
        """All cells, where they are single numbers, texts or flags: these take no more room than what points at them."""
        return None if any(isinstance(each.template, list | dict) for each in self.shapes) else _made(self)

    def matrices(self, number: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Places of the cells of one shape, and their floats, ints and words, each (cells, leaves)."""
        shape, leaves = self.shapes[number], (self.floats, self.ints, self.words)
        counts = (shape.num_floats, shape.num_ints, shape.num_words)
        if self.codes is None or self.starts is None:
            return np.arange(len(self)), [each.reshape(len(self), k) for each, k in zip(leaves, counts, strict=True)]
        places = np.flatnonzero(self.codes == number)
        starts = self.starts[places].T[:, :, None]
        return places, [each[at + np.arange(k)] for each, at, k in zip(leaves, starts, counts, strict=True)]

    def under(self, key: str | None) -> tuple[np.ndarray, list[Any]]:
        """Rows and parts of cells under a key, or all that are no dicts for None."""
        shape = self.shapes[0]
        if self.codes is None and shape.only and isinstance(shape.template, dict) and key in shape.template:
            numbers = self.floats if shape.only == "f" else self.ints
            return self.rows, numbers.reshape(-1, len(shape.template))[:, list(shape.template).index(key)].tolist()
        if self.codes is None and key is None and not isinstance(shape.template, dict):
            return self.rows, self.cells()
        kept, found = [], []
        for row, cell in zip(self.rows.tolist(), self.cells(), strict=True):
            if isinstance(cell, dict) if key is not None else not isinstance(cell, dict):
                if key is not None and key not in cell:
                    continue
                kept.append(row)
                found.append(cell if key is None else cell[key])
        return np.array(kept, np.int64), found


@lru_cache(KEPT)
def _made(column: Column) -> list[Any]:
    """All cells of a column. Whoever goes through records asks for the same few columns in turn."""
    found: list[Any] = [None] * len(column)
    for number, shape in enumerate(column.shapes):
        places, (floats, ints, words) = column.matrices(number)
        texts = ([column.texts[each] for each in word] for word in words.T.tolist())
        cells = _filled(shape.template, len(places), iter(floats.T.tolist()), iter(ints.T.tolist()), texts)
        if len(places) == len(found):
            return cells
        for place, cell in zip(places.tolist(), cells, strict=True):
            found[place] = cell
    return found


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
    return next(leaves["fit".index(template)])
