"""The learning rates of an optimizer's groups as one number: what they are to each other stays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_positive
from pullback.diagnostics.step_sizes import number_of


class GroupRates:
    """One rate for all groups, each by its ratio to the largest the optimizer was made with.

    Args:
        optimizer: whose rates these are; a group added later gets its own rate over that largest as its ratio.
        where: the caller.

    Raises:
        InputError: no rate is above 0, or one is below.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, where: str) -> None:
        rates = [number_of(group["lr"]) for group in optimizer.param_groups]
        self._largest = max(rates) if all(rate >= 0 for rate in rates) else math.nan
        check_positive(where, "optimizer.param_groups[…]['lr']", self._largest)
        self._optimizer = optimizer
        self._ratios = [rate / self._largest for rate in rates]

    @property
    def a_group_was_added(self) -> bool:
        """Since the rate was last set."""
        return len(self._optimizer.param_groups) > len(self._ratios)

    def last(self) -> list[float]:
        """Of each group, as torch's schedulers give it."""
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    def set(self, rate: float) -> None:
        """Give each group its part of a rate."""
        groups = self._optimizer.param_groups
        self._ratios += [float(group["lr"]) / self._largest for group in groups[len(self._ratios) :]]
        for group, ratio in zip(groups, self._ratios, strict=False):
            _put(group, rate * ratio)

    @contextmanager
    def at(self, rate: float) -> Iterator[None]:
        """For as long as a block runs; then the groups have what they had."""
        before = self.last()
        self.set(rate)
        try:
            yield
        finally:
            for group, own in zip(self._optimizer.param_groups, before, strict=True):
                _put(group, own)

    def gradient_norm(self) -> float:
        """Of what the optimizer steps along, each group by its ratio."""
        squares = 0.0
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=False):
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            squares += (ratio * _length(gradients)) ** 2 if gradients else 0.0
        return math.sqrt(squares)

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs."""
        return {"largest": self._largest, "ratios": list(self._ratios)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        self._largest, self._ratios = state["largest"], list(state["ratios"])


def _length(gradients: list[Tensor]) -> float:
    parts = torch._foreach_norm([g.coalesce().values() if g.is_sparse else g for g in gradients])
    return float(torch.linalg.vector_norm(torch.stack([part.to(parts[0]) for part in parts])))


def _put(group: dict[str, Any], rate: float) -> None:
    """Set a group's rate; one that is a tensor stays that tensor, which captured graphs and compiled steps hold."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
