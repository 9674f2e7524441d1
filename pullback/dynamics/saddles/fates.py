"""What each method does near a saddle: whether it leaves, how fast, or goes there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.dynamics.quadratic import Quadratic
from pullback.dynamics.quadratic.methods import ROUNDINGS, recursion
from pullback.dynamics.quadratic.quadratic import check_quadratic
from pullback.dynamics.quadratic.settings import DAMPED, METHODS, MOMENTUM, settings_of
from pullback.dynamics.quadratic.values import values

Kind = Literal["escapes", "jumps across", "attracted", "held"]


@dataclass(frozen=True)
class Fate(Shown):
    """Of one method, along the direction of negative curvature that it leaves fastest.

    Attributes:
        kind: "escapes"; "jumps across": leaves from side to side; "attracted": goes to the saddle; "held": stays as
            far from it as it is.
        factor: by which a step multiplies the distance along that direction in the end.
        steps: the first at which the distance along all such directions is above the radius; inf if none is.
    """

    kind: Kind
    factor: float
    steps: float


def near_saddle(
    problem: Quadratic,
    x0: Any,
    radius: float = 1.0,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    damping: float = 0.0,
    most: int = 10_000,
) -> dict[str, Fate]:
    """Each method from one start near a saddle, exactly.

    Along a direction of curvature h < 0 gradient descent multiplies the distance by 1 + lr |h|, so that it needs
    log(radius / distance) / log(1 + lr |h|) steps: the fewer digits the start is away, the longer. Newton goes to the
    saddle; truncated Newton keeps the distance; damped Newton multiplies it by damping / (h + damping).

    Args:
        problem: with a direction of negative curvature.
        x0: start, (d,).
        radius: distance along directions of negative curvature at which the saddle is left behind.
        lr: of gradient descent, heavy ball and Nesterov; the others take whole steps.
        momentum: of heavy ball and Nesterov.
        damping: of the methods that have one.
        most: steps to look at.

    Returns:
        Fate by method; a method is missing where it has no step: a curvature it cannot divide by.

    Raises:
        InputError: no negative curvature; settings out of range.

    Cost: ``most`` states a method.

    Example:
        >>> fates = near_saddle(Quadratic([1.0, -1.0]), [1.0, 0.01])
        >>> fates["gradient_descent"].kind, fates["gradient_descent"].steps
        ('escapes', 49.0)
        >>> fates["newton"].kind, fates["truncated_newton"].kind, fates["saddle_free_newton"].steps
        ('attracted', 'held', 7.0)
    """
    where = "near_saddle"
    check_quadratic(where, problem)
    check_positive(where, "radius", radius)
    check_positive(where, "most", most)
    h = problem.eigenvalues.double()
    if not bool((h < 0).any()):
        got = f"curvatures of at least {float(h.min()):.3g}"
        raise input_error(where, "a direction of negative curvature", got, "Pass a Quadratic with a saddle")
    fates = {}
    for method in METHODS:
        setting: dict[str, float] = {"lr": lr} if method in ("gradient_descent", *MOMENTUM) else {}
        if method in MOMENTUM:
            setting["momentum"] = momentum
        if method in DAMPED:
            setting["damping"] = damping
        checked = settings_of(method, setting.get("lr"), setting.get("momentum"), setting.get("damping"), where)
        damped = h + checked.damping
        if method in ("newton", "damped_newton", "natural_gradient") and bool((damped == 0).any()):
            continue
        t, m, _ = recursion(method, h[h < 0], checked, where)
        factor = max((_factor(*pair) for pair in zip(t.tolist(), m.tolist(), strict=True)), key=abs)
        path = problem.trajectory(method, x0, most, **setting)  # type: ignore[arg-type]
        away = (path - problem.stationary_point) @ problem.eigenvectors[:, problem.eigenvalues < 0]
        fates[method] = Fate(_kind(factor), factor, float(_first(away.norm(dim=-1) > radius)))
    return fates


def _factor(t: float, m: float) -> float:
    """The root of z^2 - t z + m that is larger by modulus, with its sign; complex ones by their modulus."""
    inner = t * t / 4 - m
    if inner < 0:
        return math.sqrt(m)
    return t / 2 + math.copysign(math.sqrt(inner), t)


def _kind(factor: float) -> Kind:
    if abs(abs(factor) - 1) <= ROUNDINGS * torch.finfo(torch.float64).eps:
        return "held"
    if abs(factor) < 1:
        return "attracted"
    return "escapes" if factor > 1 else "jumps across"


def steps_away(x: Any, point: Any, radius: float, directions: Any = None) -> Tensor:
    """First step at which a trajectory is farther than ``radius`` from a point, (...); inf where it never is.

    Args:
        x: trajectories, (..., steps + 1, d).
        point: (d,).
        radius: distance.
        directions: orthonormal columns (d, k) along which the distance is taken; all of space if left out.

    Raises:
        InputError: a radius that is not positive.

    Example:
        >>> problem = Quadratic([1.0, -1.0])
        >>> path = problem.trajectory("gradient_descent", [1.0, 0.01], 60, lr=0.1)
        >>> steps_away(path, [0.0, 0.0], 1.0, [[0.0], [1.0]])
        tensor(49., dtype=torch.float64)
    """
    where = "steps_away"
    check_positive(where, "radius", radius)
    path, at = values(x, "x", where), values(point, "point", where)
    if path.dim() < 2 or at.shape != path.shape[-1:]:
        got = f"shapes {tuple(path.shape)} and {tuple(at.shape)}"
        raise input_error(where, "`x` (..., steps + 1, d) and `point` (d,)", got, "Pass a trajectory and one place")
    away = path - at
    if directions is not None:
        away = away @ values(directions, "directions", where).to(away.dtype)
    return _first(away.norm(dim=-1) > radius)


def _first(flags: Tensor) -> Tensor:
    """Place of the first, along the last axis; inf where there is none."""
    return torch.where(flags.any(-1), flags.to(torch.uint8).argmax(-1).double(), torch.inf)
