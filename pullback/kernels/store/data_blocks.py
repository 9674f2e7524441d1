"""The data of a store, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import default_collate

from pullback._checks import input_error
from pullback.functional import check_batch, num_samples, take
from pullback.functional.batch import Batch, mapped


class Blocks:
    """Samples in stretches: a pair (x, y) in memory, or a map-style data set whose items are such pairs.

    Args:
        dataset: ``(x, y)`` as a tuple, or anything with ``len`` and integer indexing; order is kept.
        device: where blocks are moved to.
        where: the caller, for error messages.
    """

    def __init__(self, dataset: Any, device: torch.device, where: str) -> None:
        self.device, self.where = device, where
        self.pair = dataset if isinstance(dataset, tuple) and len(dataset) == 2 else None
        self.dataset = dataset
        if self.pair is not None:
            labels = num_samples(self.pair[1], where, "y")
            if (count := num_samples(self.pair[0], where, "x")) != labels:
                raise input_error(
                    where,
                    "`x` and `y` of the same length",
                    f"{count} and {labels} samples",
                    "Pass one target per sample",
                )
            self.count = count
            return
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise input_error(
                where,
                "`dataset` to be a tuple (x, y) or a map-style data set with a length",
                type(dataset).__name__,
                "Wrap iterable data in a list of (x, y) samples",
            )
        self.count = len(dataset)
        if not self.count:
            raise input_error(where, "`dataset` with at least one sample", "no data", "Pass a non-empty data set")

    def __len__(self) -> int:
        return self.count

    def take(self, start: int, stop: int) -> tuple[Batch, Batch]:
        """Samples ``start`` to ``stop - 1``, checked to be finite and of matching lengths."""
        x, y = self._take(start, stop)
        try:
            check_batch(self.where, x, y)
        except ValueError as error:
            raise input_error(
                self.where,
                "data the model can take",
                f"this in samples {start} to {stop - 1}, counted from the first of them: {error}",
                "Repair those samples",
            ) from error
        return mapped(lambda t: t.to(self.device), x), mapped(lambda t: t.to(self.device), y)

    def _take(self, start: int, stop: int) -> tuple[Batch, Batch]:
        if self.pair is not None:
            return take(self.pair[0], slice(start, stop)), take(self.pair[1], slice(start, stop))
        batch = default_collate([self.dataset[k] for k in range(start, stop)])
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            got = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
            raise input_error(
                self.where, "items (x, y) from the data set", got, "Wrap the data set so that it returns such pairs"
            )
        return batch[0], batch[1]
