"""Columns of lists, of records in blocks: lists like any other to whoever looks at them."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pullback.runs import RunWriter, cells, load_run, writer
from pullback.runs.cells import FILLING, Cells

SPARSE = 4  # steps between measurements of one of the columns
USES: dict[str, Callable[[list[Any]], Any]] = {
    "length": len,
    "truth": bool,
    "entries": lambda column: [column[place] for place in range(-len(column), len(column))],
    "slices": lambda column: [column[1:5], column[::-3], column[:0], column[4:]],
    "loop": lambda column: [*column],
    "as numbers": lambda column: np.array(column[0]).tolist(),
    "as JSON": json.dumps,
    "pickled": lambda column: pickle.loads(pickle.dumps(column)),
    "copied": lambda column: [copy.copy(column), copy.deepcopy(column), column.copy()],
    "equal": lambda column: [column == [*column], [*column] == column, column != [*column], column == column[1:]],
    "other": lambda column: [column == 3, column == (1,), column == [0] * len(column)],
    "sum": lambda column: [column + [3], [3] + column, 2 * column, column * 2],  # noqa: RUF005
    "sought": lambda column: [column[0] in column, column.index(column[0]), column.count(column[-1]), 7 in column],
    "ordered": lambda column: [column < column[:1], column >= [*column], column > [], column <= [*column]],
    "turned": lambda column: [*reversed(column)],
    "printed": repr,
}
CHANGES: dict[str, Callable[[list[Any]], Any]] = {
    "one more": lambda column: column.append(3),
    "several more": lambda column: column.extend([1, 2]),
    "set": lambda column: column.__setitem__(0, None),
    "taken out": lambda column: column.pop(),
    "removed": lambda column: column.__delitem__(slice(2)),
    "turned": lambda column: column.reverse(),
    "repeated": lambda column: column.__imul__(2),
}


@pytest.fixture
def columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, list[Any]]]:
    """By name a column as it is read of several blocks, lines behind them, and what was written."""
    monkeypatch.setattr(writer, "MOST_BYTES", 500)
    spectra, pairs, sparse = [], [], []
    with RunWriter(tmp_path / "run", {}) as made:
        for step in range(1, 24):
            spectra.append([1 / step, 0.5, float(step)])
            pairs.append([[each, -0.25 * step] for each in range(step % 3)])
            sparse.append([step, "a"] if step % SPARSE == 0 else None)
            made.append(step, "kernel", {"spectrum": spectra[-1], "pairs": pairs[-1]})
            if sparse[-1]:
                made.append(step, "rare", {"list": sparse[-1]})
    table = load_run(tmp_path / "run").table()
    written = {"kernel.spectrum": spectra, "kernel.pairs": pairs, "rare.list": sparse}
    return {name: (table[name], expected) for name, expected in written.items()}


@pytest.mark.parametrize("use", USES)
def test_a_column_of_lists_answers_as_a_list_does(columns: dict[str, tuple[Any, list[Any]]], use: str) -> None:
    for name, (column, expected) in columns.items():
        assert isinstance(column, Cells), name
        assert USES[use](column) == USES[use](expected), name


@pytest.mark.parametrize("change", CHANGES)
def test_a_column_of_lists_is_changed_as_a_list_is(columns: dict[str, tuple[Any, list[Any]]], change: str) -> None:
    for name, (column, expected) in columns.items():
        assert CHANGES[change](column) == CHANGES[change](expected), name
        assert len(column) == len(expected), name
        assert [*column] == expected, name
        assert column[0] == expected[0], name


def test_nothing_that_a_list_does_is_left_to_a_list_without_entries() -> None:
    told = {name for name, does in vars(list).items() if callable(does)}
    left = told - set(FILLING) - set(vars(Cells))
    assert left <= {"__new__", "__getattribute__", "__class_getitem__", "__sizeof__"}, left


def test_a_place_beyond_the_end(columns: dict[str, tuple[Any, list[Any]]]) -> None:
    for column, expected in columns.values():
        with pytest.raises(IndexError, match="out of range"):
            column[len(expected)]


def test_one_stretch_is_made_for_neighbours(
    columns: dict[str, tuple[Any, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a column that is gone through by its places, each stretch is made once."""
    made: list[int] = []
    column, expected = columns["kernel.spectrum"]
    make = cells._made
    monkeypatch.setattr(cells, "_made", lambda *chunk: made.append(1) or make(*chunk))
    assert [column[place] for place in range(len(column))] == expected
    assert 1 < len(made) == len(column._chunks) < len(expected) / 2
