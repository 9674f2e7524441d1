"""Critical points of a function: what kind, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count, check_positive, input_error
from pullback._results import Shown
from pullback.dynamics.landscapes import Function, Landscape, as_landscape
from pullback.dynamics.quadratic.values import values
from pullback.spectral import StationaryPoint, classify_stationary_point


@dataclass(frozen=True)
class CriticalPoint(Shown):
    """A point without slope.

    Attributes:
        x: (d,).
        value: of the function there.
        eigenvalues: of its Hessian, ascending, (d,).
        kind: with its counts of negative, zero and positive eigenvalues.
    """

    x: Tensor
    value: float
    eigenvalues: Tensor
    kind: StationaryPoint

    @property
    def index(self) -> int | None:
        """Morse index: how many directions lead down. None where it is degenerate, for which it is not defined."""
        return None if self.kind.zero else self.kind.negative


def critical_point(landscape: Any, x: Any, *, tol: float | None = None, gradient_tol: float = 1e-6) -> CriticalPoint:
    """What kind of critical point a function has at a place.

    Args:
        landscape: a name, a ``Landscape``, a ``Quadratic``, or a function (..., d) -> (...).
        x: the place, (d,).
        tol: what counts as a zero eigenvalue, relative to the largest; None: what rounding leaves.
        gradient_tol: largest slope that counts as zero.

    Returns:
        CriticalPoint.

    Raises:
        InputError: a slope; a place of another shape, or not finite.

    Cost: d backward passes.

    Example:
        >>> from pullback import dynamics
        >>> signs = torch.tensor([-1.0, -2.0, 3.0], dtype=torch.float64)
        >>> found = dynamics.critical_point(lambda x: (signs * x**2).sum(-1), [0, 0, 0])
        >>> found.index, found.kind.kind
        (2, 'saddle')
        >>> dynamics.critical_point("monkey_saddle", [0.0, 0.0]).kind.kind
        'degenerate'
    """
    where = "critical_point"
    world, at = as_landscape(landscape, where), _point(x, where)
    gradient, H = _derivatives(world.function, at)
    kind = classify_stationary_point(H, gradient, tol=tol, gradient_tol=gradient_tol)
    return CriticalPoint(at, float(world.function(at)), torch.linalg.eigvalsh(H), kind)


def critical_points(
    landscape: Any, starts: Any, *, steps: int = 50, gradient_tol: float = 1e-9, apart: float = 1e-5
) -> list[CriticalPoint]:
    """The critical points that Newton's method finds from some starts, each once: minima, saddles and maxima alike.

    Newton's method is drawn to any of them, which is what makes it useless for descent and useful here. A step is
    halved until the slope falls by it.

    Args:
        landscape: as for ``critical_point``.
        starts: (B, d).
        steps: most steps from each start.
        gradient_tol: slope at which a start has arrived; others are left out.
        apart: distance below which two are one.

    Returns:
        By value, lowest first.

    Raises:
        InputError: starts of another shape.

    Cost: B times ``steps`` times d backward passes at most.

    Example:
        >>> from pullback import dynamics
        >>> starts = torch.cartesian_prod(*[torch.linspace(-1.2, 1.2, 7, dtype=torch.float64)] * 2)
        >>> [point.index for point in dynamics.critical_points("double_well", starts)]
        [0, 0, 0, 0, 1, 1, 1, 1, 2]
    """
    where = "critical_points"
    for name, value in (("gradient_tol", gradient_tol), ("apart", apart)):
        check_positive(where, name, value)
    steps = check_count(where, "steps", steps, 0)
    world, points = as_landscape(landscape, where), values(starts, "starts", where)
    if points.dim() != 2:
        raise input_error(where, "`starts` (B, d)", f"shape {tuple(points.shape)}", "Pass one start a row")
    places: list[Tensor] = []
    for start in points:
        x = _settled(world, start, steps, gradient_tol)
        if x is not None and all(float((x - other).norm()) > apart for other in places):
            places.append(x)
    each = [critical_point(world, x, gradient_tol=gradient_tol) for x in places]
    return sorted(each, key=lambda point: (round(point.value, 9), point.x.tolist()))


def _settled(world: Landscape, start: Tensor, steps: int, tol: float) -> Tensor | None:
    """Where Newton's method comes to rest; None if it does not."""
    x = start
    for _ in range(steps + 1):
        g, H = _derivatives(world.function, x)
        size = float(g.norm())
        if size <= tol:
            return x
        step = torch.linalg.lstsq(H, g[:, None], driver="gelsd").solution[:, 0]
        for _ in range(20):
            ahead = torch.func.grad(world.function)(x - step)
            if float(ahead.norm()) < size:
                break
            step = step / 2
        else:
            return None
        x = x - step
    return None


def _derivatives(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (d,) and Hessian (d, d)."""
    slope = torch.func.grad(function)
    H = torch.func.jacrev(slope)(x)
    return slope(x), (H + H.T) / 2


def _point(x: Any, where: str) -> Tensor:
    at = values(x, "x", where)
    if at.dim() != 1:
        raise input_error(where, "`x` (d,)", f"shape {tuple(at.shape)}", "Pass one point")
    return at
