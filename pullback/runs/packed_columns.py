"""Values of one probe's records as columns: a metric's numbers together, in few bytes, and back without any loss.

A cell (what one record says of one metric) is a shape and its leaves. A shape is the cell as JSON, with ``"f"`` in
place of each number with a point, ``"i"`` of each whole number, ``"t"`` of each text, and ``"b"`` of each whole number
beyond 64 bits; flags and nulls stand in it as they are. Cells of a probe nearly always share one shape: a column then
is a matrix of leaves, stored leaf by leaf, byte by byte (``runs.planes``): what hardly changes takes next to no room.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from pullback.runs.column import Column
from pullback.runs.planes import size_of, spread
from pullback.runs.shape import Shape

SMALL = range(-(2**63), 2**63)


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
    """Columns by metric; what they hold is decoded when it is asked for.

    Raises:
        ValueError: bytes that ``pack`` did not make.
    """
    place = packed.index(b"\n") + 1
    count, told = json.loads(packed[:place])
    found: dict[str, Column] = {}
    for metric, (shapes, texts, specs) in told.items():
        stored = []
        for spec in specs:
            stored.append((spec, place))
            place += size_of(spec)
        found[metric] = Column(count, tuple(map(Shape, shapes)), texts, packed, tuple(stored))
    if place > len(packed):
        message = f"{len(packed)} bytes, where {place} are needed"
        raise ValueError(message)
    return found
