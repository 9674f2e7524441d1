"""A damping that follows the ratio of actual to predicted decrease, as the radius of a trust region would."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.dynamics.second_order.problem import Problem
from pullback.dynamics.second_order.record import Step
from pullback.dynamics.second_order.systems import Direction, System

POOR, GOOD = 0.25, 0.75  # ratios below which the damping grows, and above which it shrinks (Nocedal and Wright)
WORST = 1e-4  # ratio from which a step is taken
MARGIN = 2.0  # times the negative curvature met, by which the damping is raised
ROUNDING = 8  # eps |loss|: decreases below it cannot be judged


@dataclass(frozen=True)
class Trust:
    """How the damping follows the ratio.

    Args:
        grow: factor after a poor step, and before another try.
        shrink: factor after a good step.
        tries: directions made at most; the weights stay where they are if none is taken.
        least: of the damping.
    """

    grow: float
    shrink: float
    tries: int
    least: float


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
    for tries in range(1, trust.tries + 1):  # reported
        found = system.solve(factor * d, g)
        if found.negative is not None and not found.usable:
            raised = factor + MARGIN * abs(found.negative) / lowest
            action = f"damped: raised to {raised * highest:.3g}, as the smallest curvature was {found.negative:.3g}"
            factor = max(trust.grow * factor, raised)
            continue
        p = -lr * found.x
        bent = system.product(p)
        predicted = -float((g * p + p * bent / 2).sum())
        new = problem.loss_at(p)
        judged = predicted > ROUNDING * eps * abs(loss)
        ratio = (loss - new) / predicted if predicted else 0.0
        if (judged and ratio > WORST) or (not judged and abs(new - loss) <= 2 * ROUNDING * eps * abs(loss)):
            if found.negative is not None:
                action = f"stopped at curvature {found.negative:.3g}"
            used = factor * highest
            if judged and ratio < POOR:
                factor *= trust.grow
            elif judged and ratio > GOOD:
                factor *= trust.shrink
            factor = max(factor, trust.least / lowest)
            record = _record(loss, new, predicted, used, system, found, tries, action)
            return Taken(p, found, factor, record)
        action, factor = (
            f"damped: a step that decreased nothing was taken back at {factor * highest:.3g}",
            factor * trust.grow,
        )
    used = factor * highest
    action = f"rejected: no decrease in {trust.tries} tries, the weights stay"
    return Taken(torch.zeros_like(g), found, factor, _record(loss, loss, 0.0, used, system, found, tries, action))


def _record(
    loss: float, new: float, predicted: float, damping: float, system: System, found: Direction, tries: int, action: str
) -> Step:
    return Step(
        loss, new, predicted, damping, system.smallest, found.residual, found.iterations, found.converged, tries, action
    )
