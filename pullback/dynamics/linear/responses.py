"""How far each mode of a kernel has been learned after some time: the one function of eigenvalues all answers share.

Outputs of a linear model under squared loss are f(t) = f(0) - Theta s(Theta, t) (f(0) - y), on training samples and on
any others (Theta between them and the training samples). s is between 0 at the start and 1 / lambda at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.dynamics.linear.kernel_matrices import Modes


@dataclass(frozen=True)
class Schedule:
    """How a model is trained, and when it is looked at.

    Attributes:
        times: of gradient flow, or numbers of steps; infinity is the end.
        single: whether one time was asked for and not a list.
        lr: the rate of gradient descent; None is gradient flow.
        momentum: of heavy ball, as in ``torch.optim.SGD``.
    """

    times: tuple[float, ...]
    single: bool
    lr: float | None
    momentum: float

    def shown(self, answers: Sequence[Tensor]) -> Tensor:
        """Answers at all times, with an axis of times in front if several were asked for."""
        return answers[0] if self.single else torch.stack(list(answers))

    def stable_rate(self, curvature: float) -> float:
        """The rate above which steps along this largest curvature grow."""
        return 2 * (1 + self.momentum) / curvature if curvature > 0 else math.inf


def schedule_of(time: Any, lr: float | None, momentum: float, where: str) -> Schedule:
    """The arguments of the calls, checked."""
    times = torch.as_tensor(time, dtype=torch.float64).detach()
    if times.dim() > 1 or not times.numel() or not bool((times >= 0).all()):
        shown = f"shape {tuple(times.shape)}" if times.dim() > 1 or not times.numel() else repr(time)
        raise input_error(where, "`time` of at least 0, one or a list", shown, "Pass times, or numbers of steps")
    if not 0 <= momentum < 1:
        raise input_error(where, "`momentum` in [0, 1)", repr(momentum), "Pass the momentum of torch.optim.SGD")
    if lr is not None:
        if not 0 < lr < math.inf:
            raise input_error(where, "a finite `lr` above 0, or None", repr(lr), "Leave it out for gradient flow")
        finite = times[torch.isfinite(times)]
        if bool((finite != finite.round()).any()):
            raise input_error(where, "whole numbers of steps as `time`", repr(time), "Leave `lr` out for gradient flow")
    return Schedule(tuple(times.reshape(-1).tolist()), times.dim() == 0, lr, momentum)


def responses(modes: Modes, count: int, schedule: Schedule, where: str) -> list[Tensor]:
    """Find s of every mode, (m,), at every time, for the loss sum (f - y)^2 / (2 count).

    Raises:
        InputError: infinitely many steps at a rate that is not stable.
    """
    curvatures = modes.values / count
    largest = schedule.stable_rate(modes.largest / count)
    if schedule.lr is not None and schedule.lr >= largest and math.inf in schedule.times:
        got = f"{schedule.lr:g}, {schedule.lr / largest:.3g} times the largest stable rate {largest:.6g}"
        raise input_error(where, "a stable `lr` for time=inf", got, "Pass a smaller rate, or a number of steps")
    found = []
    for time in schedule.times:
        if time == math.inf:
            learned = torch.where(modes.values > modes.floor, 1 / modes.values, 0.0)
        elif schedule.lr is None:
            learned = _flow(curvatures, time / (1 - schedule.momentum)) / count
        else:
            learned = _descent(curvatures, schedule.lr, schedule.momentum, int(time)) / count
        found.append(learned)
    return found


def _flow(curvatures: Tensor, time: float) -> Tensor:
    """(1 - exp(-h t)) / h, which is t where h is 0."""
    done = -torch.expm1(-curvatures * time)
    return torch.where(curvatures > 0, done / curvatures, time)


def _descent(curvatures: Tensor, lr: float, momentum: float, steps: int) -> Tensor:
    """The same after steps of heavy ball: the power of one step's matrix, by squaring.

    With s learned and p the sum of gradients that momentum keeps: p <- m p + 1 - h s, then s <- s + lr p. Nothing is
    divided by h, so that modes next to 0 lose no digits.
    """
    h = curvatures
    one, zero = torch.ones_like(h), torch.zeros_like(h)
    p = torch.stack([-h, momentum * one, one], -1)
    s = torch.stack([one, zero, zero], -1) + lr * p
    step = torch.stack([s, p, torch.stack([zero, zero, one], -1)], -2)  # (m, 3, 3), acts on (s, p, 1)
    return torch.linalg.matrix_power(step, steps)[:, 0, 2]
