"""The data an operator walks over, again for every product: one pair, or batches of uneven size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.functional import check_batch
from pullback.functional.batch import Batch, tensors

Data = tuple[Batch, Batch] | Iterable[tuple[Batch, Batch]]

SAME_SUM = 1e-9  # sums in float64 differ by rounding only, for example on another number of threads


@dataclass(frozen=True)
class Mark:
    """What a batch is recognised by: its size, and for every tensor three sums (all, first sample, last sample)."""

    count: int
    shapes: tuple[tuple[int, ...], ...]
    sums: tuple[float, ...]

    @classmethod
    def of(cls, x: Batch, y: Batch, count: int) -> Mark:
        """Read the mark off a batch: a pass over its numbers."""
        leaves = [leaf.detach() for leaf in tensors(x) + tensors(y)]
        sums = [part.sum(dtype=torch.float64) for leaf in leaves for part in (leaf, leaf[0], leaf[-1])]
        values = [] if any(s.device.type == "meta" for s in sums) else [float(s) for s in sums]
        return cls(count, tuple(tuple(leaf.shape) for leaf in leaves), tuple(values))

    def same_as(self, other: Mark) -> bool:
        """Whether two marks are those of one batch."""
        if (self.count, self.shapes) != (other.count, other.shapes):
            return False
        pairs = zip(self.sums, other.sums, strict=True)
        return all(abs(a - b) <= SAME_SUM * (1 + abs(a) + abs(b)) for a, b in pairs)


def stamp_of(*batches: Batch) -> tuple[Any, ...]:
    """Differs once a tensor has been written to: sums notice what no version counts (NumPy, ``.data``)."""
    leaves = [leaf for batch in batches for leaf in tensors(batch)]
    sums = [float(leaf.detach().sum(dtype=torch.float64)) for leaf in leaves if leaf.device.type != "meta"]
    return tuple(id(leaf) for leaf in leaves), tuple(version_of(leaf) for leaf in leaves), tuple(sums)


def version_of(tensor: Tensor) -> int:
    """How often a tensor has been written to, as far as torch counts."""
    return 0 if tensor.is_inference() else tensor._version


class Batches:
    """Pairs (x, y) that are the same each time they are walked through; nothing is copied.

    Args:
        data: a tuple ``(x, y)``, or any iterable of pairs (a list, a DataLoader that does not shuffle).
        where: the caller, for error messages.

    Raises:
        InputError: no batches, something that is no pair, empty or non-finite data; on the second and any later
            walk, batches that are not those of the first (a shuffling loader, a generator that is used up).
    """

    def __init__(self, data: Data, where: str) -> None:
        self._data, self._where = data, where
        self.alone = isinstance(data, tuple)
        if isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise self._no_pair(data)
        marks = []
        for x, y in self._pairs():
            marks.append(Mark.of(x, y, check_batch(where, x, y)))
        if not marks:
            raise input_error(where, "at least one batch", "none", "Pass (x, y), or an iterable of such pairs")
        self.marks = marks

    def __len__(self) -> int:
        return len(self.marks)

    def __iter__(self) -> Iterator[tuple[Batch, Batch]]:
        """Walk through the data once more, comparing every batch with the first time."""
        seen = 0
        for x, y in self._pairs():
            if seen == len(self.marks):
                raise self._changed("more batches", seen)
            mark = self.marks[seen]
            leaves = tensors(x)
            if not leaves or not mark.same_as(Mark.of(x, y, len(leaves[0]))):
                raise self._changed("other samples", seen)
            yield x, y
            seen += 1
        if seen < len(self.marks):
            raise self._changed("no more batches", seen)

    def stamp(self) -> tuple[Any, ...]:
        """Of a lone batch: differs once its tensors have been written to."""
        x, y = next(self._pairs())
        return stamp_of(x, y)

    def _pairs(self) -> Iterator[tuple[Batch, Batch]]:
        for pair in [self._data] if self.alone else self._data:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise self._no_pair(pair)
            yield pair[0], pair[1]

    def _no_pair(self, given: Any) -> Exception:
        kind = type(given).__name__
        got = f"a {kind} of {len(given)}" if isinstance(given, tuple | list) else f"a {kind}"
        return input_error(
            self._where, "`data` as a tuple (x, y) or an iterable of pairs (x, y)", got, "Pass (inputs, targets)"
        )

    def _changed(self, what: str, batch: int) -> Exception:
        return input_error(
            self._where,
            "data that gives the same batches every time it is walked through",
            f"{what} at batch {batch} the second time",
            "Pass a list of batches, or a DataLoader with shuffle=False, instead of a generator or a shuffling loader",
        )
