"""The loss of a whole batch, called with one sample after another: what each of them costs alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.functional import num_samples
from pullback.functional.batch import Batch, filled, quiet_vmap, tensors

Call = Callable[[Any, Batch], Any]  # outputs and targets, as the loop has them, to what the loss returns


@dataclass(frozen=True)
class Alone:
    """A loss of a batch as one loss per sample, (N,): that of each sample as a batch of one.

    Args:
        call: the loss, of outputs and targets shaped as the loop has them.
        merged: of every tensor of outputs and targets, whether the loop has a sample's positions as rows of their own,
            (N T, ...); here it is (N, T, ...).
    """

    call: Call
    merged: tuple[bool, ...]

    def __call__(self, outputs: Any, targets: Batch) -> Tensor:
        """Losses (N,), differentiable."""
        leaves, count = [*tensors(outputs), *tensors(targets)], num_samples(targets)
        own = [leaf.dim() > 0 and len(leaf) == count for leaf in leaves]

        def one(*rows: Tensor) -> Tensor:
            given = [_alone(*each) for each in zip(rows, own, self.merged, strict=True)]
            value = self._called(outputs, targets, given)
            return value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value

        axes = tuple(0 if each else None for each in own)
        try:
            with quiet_vmap():
                return torch.func.vmap(one, axes)(*leaves)
        except RuntimeError:  # a loss that vmap cannot batch
            rows = ([leaf[i] if each else leaf for leaf, each in zip(leaves, own, strict=True)] for i in range(count))
            return torch.stack([one(*row) for row in rows])

    def of_batch(self, outputs: Any, targets: Batch) -> Any:
        """What the loop's loss returns for the batch."""
        leaves = [*tensors(outputs), *tensors(targets)]
        given = [leaf.flatten(0, 1) if merged else leaf for leaf, merged in zip(leaves, self.merged, strict=True)]
        return self._called(outputs, targets, given)

    def _called(self, outputs: Any, targets: Batch, given: list[Tensor]) -> Any:
        count = len(tensors(outputs))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using a target size")  # the loop has heard it
            return self.call(filled(outputs, given[:count]), filled(targets, given[count:]))


def _alone(row: Tensor, own: bool, merged: bool) -> Tensor:
    if own:
        return row if merged else row.unsqueeze(0)
    return torch.full_like(row, torch.nan) if row.is_floating_point() else row  # the batch's own belongs to no sample
