"""Arrays of numbers as bytes that compress well: the first bytes of all, then the second, and so on.

Whole numbers are held by the narrowest type that takes them, or their differences where that is narrower (steps, rows);
numbers with a point in single precision where that has all of them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Spec = Sequence[Any]  # kind of number as NumPy spells it, how many, and whether they are differences

INTS = ("<i1", "<i2", "<i4", "<i8")


def spread(numbers: np.ndarray) -> tuple[Spec, bytes]:
    """How numbers are stored, and their bytes.

    Args:
        numbers: (S,), float64 or int64.
    """
    kind, differ = "<f8", False
    if numbers.dtype.kind == "f":
        if single(numbers):
            kind = "<f4"
    else:
        numbers = numbers.astype(np.int64)
        steps = np.diff(numbers, prepend=0)
        kind, apart = _narrowest(numbers), _narrowest(steps)
        differ = INTS.index(apart) < INTS.index(kind)
        kind, numbers = (apart, steps) if differ else (kind, numbers)
    return (kind, len(numbers), differ), planes(numbers.astype(kind))


def joined(spec: Spec, content: bytes, start: int) -> tuple[np.ndarray, int]:
    """The numbers whose bytes begin there, and where they end.

    Raises:
        ValueError: there are too few bytes.
    """
    kind, count, differ = spec
    end = start + size_of(spec)
    numbers = from_planes(content[start:end], kind)
    if len(numbers) != count:
        message = f"{count} numbers, where there are {len(numbers)}"
        raise ValueError(message)
    return (np.cumsum(numbers, dtype=np.int64) if differ else numbers), end


def size_of(spec: Spec) -> int:
    """Bytes that the numbers take."""
    return int(np.dtype(spec[0]).itemsize * spec[1])


def planes(numbers: np.ndarray) -> bytes:
    """First the lowest byte of all numbers, then the next, and so on."""
    return numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize).T.tobytes()


def from_planes(content: bytes, kind: str) -> np.ndarray:
    """The reverse of ``planes``."""
    width = np.dtype(kind).itemsize
    return np.frombuffer(content, np.uint8).reshape(width, -1).T.copy().view(kind).reshape(-1)


def single(values: np.ndarray) -> bool:
    """Whether single precision has all of them exactly."""
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float32), values, equal_nan=True)


def _narrowest(numbers: np.ndarray) -> str:
    """The narrowest kind of whole number that takes all."""
    least, most = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    return next(kind for kind in INTS if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max)
