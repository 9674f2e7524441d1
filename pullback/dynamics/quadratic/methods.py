"""What one step of each method does to one eigendirection of a quadratic, and what comes of many.

Along an eigenvector with eigenvalue h every method here is a linear recursion of two terms for the distance y to the
stationary point, ``y[k+1] = t y[k] - m y[k-1] + s``: t and m depend on h, and s, which only a direction without
curvature has, is the step along its constant slope. So a trajectory is known at any step without the ones before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.dynamics.quadratic.settings import Settings

Regime = Literal["monotone", "oscillating", "critical", "divergent", "escaping", "still"]
ROUNDINGS = 16  # of the dtype: a rate of growth this near to 1 is 1


def _rate(h: Tensor, s: Settings) -> Tensor:
    return torch.full_like(h, s.lr)


def _inverse(h: Tensor, s: Settings) -> Tensor:
    return s.lr / (h + s.damping)


def _positive(h: Tensor, s: Settings) -> Tensor:
    return torch.where(h > 0, s.lr / (h + s.damping), 0.0)


def _absolute(h: Tensor, s: Settings) -> Tensor:
    return s.lr / (h.abs() + s.damping)


# The step along an eigenvector, over the slope there
STEPS: dict[str, Callable[[Tensor, Settings], Tensor]] = {
    "gradient_descent": _rate,
    "heavy_ball": _rate,
    "nesterov": _rate,
    "newton": _inverse,
    "damped_newton": _inverse,
    "truncated_newton": _positive,
    "saddle_free_newton": _absolute,
    "natural_gradient": _inverse,
}


def recursion(method: str, h: Tensor, settings: Settings, where: str) -> tuple[Tensor, Tensor, Tensor]:
    """The recursion's t and m, and the step over the slope, each (d,).

    Raises:
        InputError: a direction in which the method has no step.
    """
    step = STEPS[method](h, settings)
    if not step.isfinite().all():
        place = float(h[~step.isfinite()][0])
        got = f"a direction of curvature {place:g}, damping {settings.damping:g}"
        raise input_error(
            where, "curvatures a step can be divided by", got, "Pass another `damping`, or another method"
        )
    kept, mu = 1 - step * h, settings.momentum  # kept: of the distance, by a step without momentum
    if method == "heavy_ball":
        return kept + mu, torch.full_like(h, mu), step
    if method == "nesterov":  # the slope is taken where the momentum leads
        return (1 + mu) * kept, mu * kept, step
    return kept, torch.zeros_like(h), step


def roots(t: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """The larger modulus of the recursion's two roots, and whether that root is a real, not negative number."""
    half, inner = t / 2, t.square() / 4 - m
    real = inner >= 0
    modulus = torch.where(real, half.abs() + inner.clamp(min=0).sqrt(), m.clamp(min=0).sqrt())
    return modulus, real & (t >= 0)


def regime(h: float, modulus: float, smooth: bool) -> Regime:
    """What a direction does, by its curvature and the root that decides."""
    if h == 0:
        return "still"
    if abs(modulus - 1) <= ROUNDINGS * torch.finfo(torch.float64).eps:
        return "critical"
    if modulus > 1:
        return "escaping" if h < 0 else "divergent"
    return "monotone" if smooth else "oscillating"


def followed(t: Tensor, m: Tensor, shift: Tensor, start: Tensor, steps: int) -> Tensor:
    """All of ``y[0], ..., y[steps]``, (..., d, steps + 1), from rest at ``start``, (..., d).

    The transition, a 3 x 3 matrix a direction, is squared again and again: log2(steps) products, not ``steps``.
    """
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    rows = [torch.stack([t, -m, shift], -1), torch.stack([one, zero, zero], -1), torch.stack([zero, zero, one], -1)]
    power = torch.stack(rows, -2)  # (d, 3, 3), of as many steps as there are states
    states = torch.stack([start, start, torch.ones_like(start)], -1).unsqueeze(-1)  # (..., d, 3, 1): y[k], y[k-1], 1
    while states.shape[-1] <= steps:
        states = torch.cat([states, power @ states], -1)
        power = power @ power
    path = states[..., 0, : steps + 1]
    path = torch.where(path.isnan(), torch.inf, path)  # inf - inf: beyond what a number can hold
    resting = (start == 0) & (shift == 0)
    return torch.where(resting.unsqueeze(-1), 0.0, path)
