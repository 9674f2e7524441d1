"""Weights whose length the loss does not see, as those before a normalisation: growth and effective rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._checks import as_number, check_count, check_rate, input_error
from pullback._results import Shown


@dataclass(frozen=True)
class ScaleGrowth(Shown):
    """Of gradient descent on a loss with L(c w) = L(w).

    Attributes:
        squared_norm: |w|^2 after 0, 1, ... steps, exactly, (steps + 1,).
        law: sqrt(|w_0|^4 + 2 lr^2 g^2 k), which it follows without weight decay, (steps + 1,).
        effective_rate: lr / |w|^2, the rate at which the direction of w moves, (steps + 1,).
        equilibrium: |w|^2 at which growth and decay balance; inf without decay.
    """

    squared_norm: Tensor
    law: Tensor
    effective_rate: Tensor
    equilibrium: float


def scale_invariant_growth(
    lr: float, gradient: float, steps: int, *, norm: float = 1.0, weight_decay: float = 0.0
) -> ScaleGrowth:
    """How weights of scale-invariant loss grow when the gradient at length 1 has a constant length.

    The gradient is at right angles to w and inversely as long, so a step takes |w|^2 to
    (1 - lr weight_decay)^2 |w|^2 + lr^2 g^2 / |w|^2. Without decay the effective rate falls like 1 / (g sqrt(2 k)),
    whatever the rate. Of gradient descent; Adam does not do this.

    Args:
        lr: learning rate.
        gradient: g, length of the gradient at |w| = 1.
        steps: how many.
        norm: |w| at the start.
        weight_decay: of each step.

    Returns:
        ScaleGrowth.

    Raises:
        InputError: a rate, a gradient or a norm that is not positive; a decay outside [0, 1 / lr).

    References: van Laarhoven (2017), arXiv:1706.05350; Arora, Li & Lyu (2018), arXiv:1812.03981.

    Example:
        >>> found = scale_invariant_growth(0.1, 1.0, 1000)
        >>> round(float(found.squared_norm[-1]), 3), round(float(found.law[-1]), 3)
        (4.584, 4.583)
    """
    where = "scale_invariant_growth"
    for name, value in (("lr", lr), ("gradient", gradient), ("norm", norm)):
        check_rate(where, name, value)
    steps = check_count(where, "steps", steps, 0)
    kept = 1 - lr * as_number(weight_decay)
    if not (as_number(weight_decay) >= 0 and kept > 0):
        raise input_error(where, "`weight_decay` in [0, 1 / lr)", repr(weight_decay), "Pass a smaller one")
    squares = [norm**2]
    for _ in range(steps):
        squares.append(kept**2 * squares[-1] + (lr * gradient) ** 2 / squares[-1])
    found = torch.tensor(squares, dtype=torch.float64)
    k = torch.arange(steps + 1, dtype=torch.float64)
    equilibrium = lr * gradient / math.sqrt(1 - kept**2) if kept < 1 else math.inf
    return ScaleGrowth(found, (norm**4 + 2 * (lr * gradient) ** 2 * k).sqrt(), lr / found, equilibrium)
