"""``Profile``: one number per layer with its standard error, over networks or over the units of one network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.spectral.statistics import mean_and_stderr, student

Statistic = Callable[[Tensor], Tensor]

GROUPS = 32  # of units; the jackknife leaves out one at a time


@dataclass(frozen=True)
class Profile:
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


def over_units(statistic: Statistic, total: Statistic, units: Tensor) -> tuple[Tensor, Tensor]:
    """A statistic of means over units, and its standard error by the jackknife over groups of units.

    Args:
        statistic: of the mean over units, numbers (...,).
        total: of some units (n, ...): the sum of what they add to the mean.
        units: all units, (units, ...).

    Returns:
        The statistic of the mean over all units, and its standard error: nan for a single unit.
    """
    count = len(units)
    groups = torch.tensor_split(units, min(GROUPS, count))
    parts = torch.stack([total(group) for group in groups])
    whole = parts.sum(0)
    value = statistic(whole / count)
    if count == 1:
        return value, torch.full_like(value, torch.nan)
    left = zip(parts, groups, strict=True)
    without = torch.stack([statistic((whole - part) / (count - len(group))) for part, group in left])
    freedom = len(groups) - 1
    return value, without.std(0, correction=0) * freedom**0.5 * student(freedom)
