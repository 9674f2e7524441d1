"""The last batches with classes, as references: samples of which a forward pass can still tell something."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from pullback.functional.batch import Batch
from pullback.monitor.recent import marks_of

MOST = 192  # samples
MOST_BYTES = 2**25  # of inputs that are held longer than the loop itself would


class SeenBatches:
    """Batches (B, ...) of one tensor with classes (B,), the newest first, ``MOST`` samples or so.

    Nothing is copied: what the loop has written over since, or fills again, is passed over.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[Tensor, Tensor, tuple[int, int]]] = deque()
        self._samples = self._bytes = 0

    def see(self, x: Batch, y: Batch) -> None:
        """Keep a batch, and let go of those that are no longer needed."""
        if not _has_classes(x, y):
            self.clear()
            return
        self._kept.appendleft((x, y, (x._version, y._version)))
        self._samples += len(y)
        self._bytes += x.nbytes
        while len(self._kept) > 1 and (self._samples - len(self._kept[-1][1]) >= MOST or self._bytes > MOST_BYTES):
            x, y, _ = self._kept.pop()
            self._samples -= len(y)
            self._bytes -= x.nbytes

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()
        self._samples = self._bytes = 0

    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """The batches, the newest first, each without samples that a newer one has."""
        found: list[tuple[Tensor, Tensor]] = []
        marks: set[Any] = set()
        places: set[int] = set()
        for x, y, versions in self._kept:
            here = {x.data_ptr(), y.data_ptr()}
            if versions != (x._version, y._version) or not places.isdisjoint(here):
                continue
            places |= here
            new = []
            for place, mark in enumerate(marks_of(x)):
                if mark not in marks:
                    new.append(place)
                    marks.add(mark)
            if new:
                found.append((x, y) if len(new) == len(y) else (x[new], y[new]))
        return found


def _has_classes(x: Batch, y: Batch) -> bool:
    return (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and y.dim() == 1
        and not (y.is_floating_point() or y.is_complex() or x.is_sparse or x.is_inference() or y.is_inference())
        and x.dim() > 1
        and len(x) == len(y)
    )
