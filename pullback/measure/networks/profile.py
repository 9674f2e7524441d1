"""``Profile``: one number per layer with its standard error, over networks or over the units of one network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._results import Shown
from pullback._statistics import mean_and_stderr, student

Batched = Callable[[Tensor], Tensor]

GROUPS = 32  # of units; the jackknife leaves out one at a time


@dataclass(frozen=True)
class Profile(Shown):
    """A quantity by layer.

    Attributes:
        value: (L,), mean over the networks that were drawn, or of the one network.
        stderr: its standard error, (L,), as ``Estimate`` states it: with few networks widened by Student's
            distribution, so that three of it cover what three of a normal standard error would. nan where nothing
            varies that it could be taken over.

    Example:
        >>> Profile.over_seeds(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).value
        tensor([2., 2.])
    """

    value: Tensor
    stderr: Tensor

    @classmethod
    def over_seeds(cls, samples: Tensor) -> Profile:
        """Mean and standard error over the first axis of (S, L), S >= 2."""
        return cls(*mean_and_stderr(samples))

    def __len__(self) -> int:
        return len(self.value)


def over_units(statistic: Batched, total: Batched, units: Tensor) -> tuple[Tensor, Tensor]:
    """A statistic of means over units, and its standard error by the jackknife over groups of units.

    Args:
        statistic: of G means over units, (G, ...) to (G, K).
        total: from G groups of units, (G, size, ...), to the sum of what they add to the means. Zeros add nothing.
        units: all units, (units, ...).

    Returns:
        The statistic of the mean over all units, (K,), and its standard error: nan for a single unit.
    """
    count = len(units)
    size = -(-count // GROUPS)
    groups = -(-count // size)
    missing = groups * size - count
    padded = torch.cat([units, units.new_zeros(missing, *units.shape[1:])]).unflatten(0, (groups, size))
    parts = total(padded)  # (G, ...)
    whole = parts.sum(0, keepdim=True)
    value = statistic(whole / count)[0]
    if groups == 1:
        return value, torch.full_like(value, torch.nan)
    left = torch.full((groups, *[1] * (parts.dim() - 1)), count - size, dtype=units.dtype, device=units.device)
    left[-1] += missing
    without = statistic((whole - parts) / left)
    freedom = groups - 1
    return value, without.std(0, correction=0) * freedom**0.5 * student(freedom)
