"""How the damping follows the ratio, of a curvature and losses that are set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.dynamics.second_order.systems import Direction
from pullback.dynamics.second_order.trust import USUAL, Taken, Trust, trusted

F64 = torch.float64


class Scripted:
    """No curvature; a direction that is the gradient, but where a curvature is to be met first."""

    smallest = None

    def __init__(self, met: Sequence[float] = ()) -> None:
        self.met, self.asked = list(met), list[Tensor]()

    def product(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v)

    def solve(self, d: Tensor, b: Tensor) -> Direction:
        self.asked.append(d)
        if self.met:
            return Direction(b, 0.0, 1, converged=True, negative=self.met.pop(0), usable=False)
        return Direction(b, 0.0, 1, converged=True)


def take(system: Scripted, slope: float, new: float, **trust: Any) -> Taken:
    """A step from a loss of 1 with two weights, whose damping is 2 and 6."""
    weights = {"w": torch.zeros(2, dtype=F64)}
    problem: Any = SimpleNamespace(
        gradient=torch.tensor([slope, 0.0], dtype=F64),
        loss=torch.tensor(1.0, dtype=F64),
        view=SimpleNamespace(parameters=weights),
        names=["w"],
        loss_at=lambda p: new,
    )
    given: Trust = {**USUAL, **trust}  # type: ignore[typeddict-item]
    damping = torch.tensor([2.0, 6.0], dtype=F64)
    return trusted(problem, system, torch.tensor(1.0, dtype=F64), damping, given)


def test_the_least_damping_is_that_of_the_smallest_group() -> None:
    """A step that does as it predicts: a third of 2 would be below 1."""
    assert take(Scripted(), 0.5, 0.75, least_damping=1.0).factor * 2 == 1.0


@pytest.mark.parametrize(("met", "factor"), [(-0.5, 4.0), (-5.0, 6.0)])
def test_negative_curvature_raises_the_damping(met: float, factor: float) -> None:
    """To twice that curvature beyond what it was in the smallest group, and at least as after a step that failed."""
    system = Scripted([met])
    taken = take(system, 0.5, 0.75, shrink=1.0)
    assert [d.tolist() for d in system.asked] == [[2.0, 6.0], [2 * factor, 6 * factor]]
    assert (taken.factor, taken.record.damping) == (factor, 6 * factor)
    assert taken.record.action == f"damped: raised to {6 * factor:g}, as the smallest curvature was {met:g}"


@pytest.mark.parametrize(("units", "tries", "action"), [(15, 1, "step"), (17, 2, "rejected")])
def test_a_step_whose_decrease_is_below_rounding(units: int, tries: int, action: str) -> None:
    """It is taken where the loss stays the same, up to 16 units of its last digit."""
    eps = 2.0**-52
    taken = take(Scripted(), 1e-9, 1 + units * eps, tries=2)
    assert (taken.record.tries, taken.record.action.split(":")[0]) == (tries, action)
