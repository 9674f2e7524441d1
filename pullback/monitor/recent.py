"""The samples a measurement looks at: those of the batch at hand and, of one or two, of the batches before it."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pullback.functional import num_samples
from pullback.functional.batch import Batch, joined, mapped, plain, tensors

FEW = 3  # samples: below it no kernel tells noise from signal, and few rows of it are a matrix
TOGETHER = 32  # samples measured then
COLUMNS = 512  # of a batch that are copied in double precision at a time


class Recent:
    """Copies of the last batches, where they are of one sample or two.

    Attributes:
        batch_size: B of the loop's batch; None before its first step, and where it shows none.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[Batch, Batch]] = deque()
        self._stopped = False
        self.batch_size: int | None = None

    def stop(self) -> None:
        """From now on the batch at hand is all there is: memory does not take more."""
        self._stopped = True
        self._kept.clear()

    def see(self, x: Batch) -> None:
        """Note the size of the loop's batch, before it is measured."""
        try:
            self.batch_size = num_samples(x)
        except Exception:  # no batch; whoever measures it says so, and training goes on
            self.batch_size = None

    @property
    def num_available(self) -> int:
        """Samples that a measurement can look at, at most."""
        size = self.batch_size or 1
        return size if size >= FEW else min(TOGETHER, size * (1 + len(self._kept)))

    def add(self, x: Batch, y: Batch) -> None:
        """Keep the batch just seen, if it is small, and let go of those that are no longer needed."""
        size = self.batch_size
        if size is None:
            return
        if size >= FEW or self._stopped:
            self._kept.clear()
            return
        try:
            self._kept.appendleft((_copied(x), _copied(y)))
        except Exception:  # no memory: training goes on
            self.stop()
        while len(self._kept) > -(-TOGETHER // size):
            self._kept.pop()

    def together(self, x: Batch, y: Batch) -> tuple[Batch, Batch]:
        """The batch itself or, with those before it that are shaped alike, the samples of several, newest first.

        A batch that shows a sample again, as in the next epoch, is left out: it would pass for a copy in the data.
        """
        count, parts = num_samples(x), [(x, y)]
        if count >= FEW or not self._kept:
            return x, y
        marks = set(marks_of(x))
        for pair in self._kept:
            if count < TOGETHER and _alike(pair, (x, y)) and marks.isdisjoint(found := marks_of(pair[0])):
                marks.update(found)
                parts.append(pair)
                count += num_samples(pair[0])
        return parts[0] if len(parts) == 1 else _joined(parts)


def marks_of(x: Batch) -> list[float]:
    """A number for every sample, the same for the same sample; empty where the batch holds no tensor."""
    total: Tensor | float = 0.0
    for leaf in tensors(x):
        rows = leaf.detach().flatten(1) if leaf.dim() > 1 else leaf.detach().unsqueeze(1)
        places = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float64)
        for part, along in zip(rows.split(COLUMNS, 1), (places * 0.618).cos().split(COLUMNS), strict=True):
            total = total + (part.double() * along).sum(1)  # row by row: a product may sum rows in different orders
    return total.tolist() if isinstance(total, Tensor) else []


def _copied(batch: Batch) -> Batch:
    """A copy: loops may fill the same tensor again."""
    return mapped(lambda leaf: leaf.detach().clone(), batch)


def _alike(a: Any, b: Any) -> bool:
    """Whether two batches can be joined: the same structure, and tensors that differ in their first axis alone."""
    (some, kind), (others, other_kind) = (tree_flatten((plain(pair[0]), plain(pair[1]))) for pair in (a, b))
    return kind == other_kind and all(
        p.dim() and q.dim() and p.shape[1:] == q.shape[1:] and p.dtype == q.dtype and p.device == q.device
        if isinstance(p, Tensor) and isinstance(q, Tensor)
        else type(p) is type(q) and p == q
        for p, q in zip(some, others, strict=True)
    )


def _joined(parts: list[tuple[Batch, Batch]]) -> tuple[Batch, Batch]:
    x, y = zip(*parts, strict=True)
    return joined(x), joined(y)
