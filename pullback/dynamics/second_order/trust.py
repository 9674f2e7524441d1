"""A damping that follows the ratio of actual to predicted decrease, as the radius of a trust region would."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from pullback._checks import as_number, check_count, check_rate, input_error
from pullback.dynamics.second_order.problem import Problem
from pullback.dynamics.second_order.step import Step
from pullback.dynamics.second_order.systems import Direction, System

POOR, GOOD = 0.25, 0.75  # ratios below which the damping grows, and above which it shrinks (Nocedal and Wright)
WORST = 1e-4  # ratio from which a step is taken
MARGIN = 2.0  # times the negative curvature met, by which the damping is raised
ROUNDING = 8  # eps |loss|: decreases below it cannot be judged


class Trust(TypedDict, total=False):
    """How the damping follows the ratio; keywords of the optimizers whose damping does.

    Attributes:
        grow: factor after a poor step, and before another try; above 1.
        shrink: factor after a good step, in (0, 1].
        tries: directions made at most; then the weights stay where they are.
        least_damping: below which the smallest group's does not fall.
    """

    grow: float
    shrink: float
    tries: int
    least_damping: float


USUAL: Trust = {"grow": 4.0, "shrink": 1 / 3, "tries": 10, "least_damping": 1e-10}


def checked_trust(where: str, given: Trust, usual: Trust) -> Trust:
    """What was given, and of the rest the usual.

    Raises:
        TypeError: a keyword that is none of these, as Python has it.
        InputError: a value out of range.
    """
    for name in given:
        if name not in usual:
            message = f"{where}.__init__() got an unexpected keyword argument {name!r}"
            raise TypeError(message)
    trust: Trust = {**usual, **given}
    check_rate(where, "least_damping", trust["least_damping"])
    if not 1 < as_number(trust["grow"]) < math.inf or not 0 < as_number(trust["shrink"]) <= 1:
        got, remedy = f"{trust['grow']!r} and {trust['shrink']!r}", "Pass for example grow=4.0, shrink=0.5"
        raise input_error(where, "`grow` above 1 and `shrink` in (0, 1]", got, remedy)
    check_count(where, "tries", trust["tries"], 1)
    return trust


@dataclass(frozen=True)
class Taken:
    """A step, its direction, what the damping is multiplied by from now on, and the record."""

    p: Tensor
    direction: Direction
    factor: float
    record: Step


def trusted(problem: Problem, system: System, lr: Tensor, d: Tensor, trust: Trust) -> Taken:
    """Try directions with growing damping until one decreases the loss by a part of what it predicts."""
    g, loss = problem.gradient, float(problem.loss)
    eps, factor, action = torch.finfo(problem.view.parameters[problem.names[0]].dtype).eps, 1.0, "step"
    lowest, highest = float(d.min()), float(d.max())
    for tries in range(1, trust["tries"] + 1):  # reported
        direction = system.solve(factor * d, g)
        if direction.negative is not None and not direction.usable:
            factor = max(trust["grow"] * factor, factor + MARGIN * abs(direction.negative) / lowest)
            action = f"damped: raised to {factor * highest:.3g}, as the smallest curvature was {direction.negative:.3g}"
            continue
        p = -lr * direction.x
        bent = system.product(p)
        predicted = -float((g * p + p * bent / 2).sum())
        new = problem.loss_at(p)
        judged = predicted > ROUNDING * eps * abs(loss)
        ratio = (loss - new) / predicted if predicted else 0.0
        if (judged and ratio > WORST) or (not judged and abs(new - loss) <= 2 * ROUNDING * eps * abs(loss)):
            if direction.negative is not None:
                action = f"stopped at curvature {direction.negative:.3g}"
            used = factor * highest
            if judged and ratio < POOR:
                factor *= trust["grow"]
            elif judged and ratio > GOOD:
                factor *= trust["shrink"]
            factor = max(factor, trust["least_damping"] / lowest)
            step = Step(loss, new, predicted, used, system.smallest, *direction.reached, tries, action)
            return Taken(p, direction, factor, step)
        action, factor = (
            f"damped: a step that decreased nothing was taken back at {factor * highest:.3g}",
            factor * trust["grow"],
        )
    used = factor * highest
    action = f"rejected: no decrease in {trust['tries']} tries, the weights stay"
    step = Step(loss, loss, 0.0, used, system.smallest, *direction.reached, tries, action)
    return Taken(torch.zeros_like(g), direction, factor, step)
