"""The last batches with classes, as references: samples of which a forward pass can still tell something."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from pullback.functional.batch import Batch
from pullback.monitor.recent import marks_of

CLASSES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MOST = 192  # samples
MOST_BYTES = 2**25  # of inputs that are held longer than the loop itself would


class SeenBatches:
    """Batches (B, ...) of one tensor with classes (B,), the newest first, ``MOST`` samples or so.

    Nothing is copied: what the loop has written over since, or fills again, is passed over.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[Tensor, Tensor, tuple[int, int], int]] = deque()
        self._samples = self._bytes = 0

    def see(self, x: Batch, y: Batch) -> None:
        """Keep a batch, and let go of those that are no longer needed."""
        try:
            size = _samples_of(x, y)
            versions = (x._version, y._version) if size else (0, 0)
        except RuntimeError:  # tensors of inference mode count no writes
            size = 0
        if not size:
            self.clear()
            return
        self._kept.appendleft((x, y, versions, size))
        self._samples += size
        self._bytes += x.nbytes
        while len(self._kept) > 1 and (self._samples - self._kept[-1][3] >= MOST or self._bytes > MOST_BYTES):
            old = self._kept.pop()
            self._samples -= old[3]
            self._bytes -= old[0].nbytes

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()
        self._samples = self._bytes = 0

    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """The batches, the newest first, each without samples that a newer one has."""
        found: list[tuple[Tensor, Tensor]] = []
        marks: set[Any] = set()
        places: set[int] = set()
        for x, y, versions, _ in self._kept:
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


def _samples_of(x: Batch, y: Batch) -> int:
    """B, of one tensor of inputs with a class for each sample; 0 of anything else."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or y.dtype not in CLASSES or x.layout is not torch.strided:
        return 0
    shape = y.shape
    return shape[0] if len(shape) == 1 and x.dim() > 1 and x.shape[0] == shape[0] else 0
