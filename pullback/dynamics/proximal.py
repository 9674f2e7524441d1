"""Steps as trade-offs: less of a function, at the price of a distance, each as it is or expanded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_option, check_rate, input_error
from pullback._results import Shown
from pullback.dynamics.landscapes import as_landscape
from pullback.dynamics.quadratic.values import check_number_of, values

Distance = Callable[[Tensor, Tensor], Tensor]  # of a new point and the old one, (d,) each -> ()
Scalar = Callable[[Tensor], Tensor]
ITERATIONS, HALVINGS, SETTLED = 100, 40, 1e-10


@dataclass(frozen=True)
class Proximal(Shown):
    """A step and what it is called.

    Attributes:
        step: (d,).
        method: "gradient descent", "natural gradient", "damped Newton", "mirror descent" or "proximal point".
        gradient: of the function, (d,).
        hessian: of the function, (d, d); None where it was not needed.
        metric: second derivative of the distance, G, (d, d).
    """

    step: Tensor
    method: str
    gradient: Tensor
    hessian: Tensor | None
    metric: Tensor


def half_square(new: Tensor, old: Tensor) -> Tensor:
    """Half the squared Euclidean distance, |new - old|^2 / 2, a scalar; both of one shape.

    Example:
        >>> half_square(torch.tensor([3.0, 4.0]), torch.zeros(2))
        tensor(12.5000)
    """
    return (new - old).square().sum() / 2


def proximal_step(
    landscape: Any,
    x: Any,
    weight: float = 1.0,
    *,
    distance: Distance = half_square,
    loss_order: int | None = 1,
    distance_order: int | None = 2,
) -> Proximal:
    """The step that makes f(x + step) + weight * distance(x + step, x) least, with either of them expanded at x.

    With g and H of f, and G the second derivative of the distance at x:

    ============  ================  ==============================================
    f             distance          step
    ============  ================  ==============================================
    first order   second order      -G^-1 g / weight: natural gradient; gradient descent for G = 1
    first order   as it is (None)   mirror descent
    second order  second order      -(H + weight G)^-1 g: damped Newton
    as it is      either            proximal point
    ============  ================  ==============================================

    Small steps come with a large weight, not a small one. With the distance |.|^2 in place of half of it, a step is
    half as long.

    Args:
        landscape: a name, a ``Landscape``, a ``Quadratic``, or a function (..., d) -> (...).
        x: place, (d,).
        weight: of the distance.
        distance: of a new point from an old one; least, 0, and without slope where they are one.
        loss_order: 1, 2, or None for f as it is.
        distance_order: 2, or None for the distance as it is.

    Returns:
        Proximal.

    Raises:
        InputError: a weight that is not positive; a distance with a slope at 0 or a G that is not positive definite;
            H + weight G that is not, so that no step is best; no least value nearby.

    Cost: two or three Hessians; one an iteration where something is left as it is.

    References: Parikh & Boyd (2014), Proximal Algorithms; Grosse (2021), Neural net training dynamics, chapter 3.

    Example:
        >>> from pullback.dynamics import Quadratic
        >>> problem = Quadratic(torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
        >>> [proximal_step(problem, [1.0, -2.0], loss_order=order).step.round(decimals=4).tolist() for order in (1, 2)]
        [[-1.0, 3.0], [-0.5455, 1.1818]]
    """
    where = "proximal_step"
    check_rate(where, "weight", weight)
    check_option(where, "loss_order", loss_order, (1, 2, None))
    check_option(where, "distance_order", distance_order, (2, None))
    f, at = as_landscape(landscape, where).function, values(x, "x", where)
    if at.dim() != 1:
        raise input_error(where, "`x` (d,)", f"shape {tuple(at.shape)}", "Pass one point")
    g, G = torch.func.grad(f)(at), _metric(distance, at, where)
    H = None if loss_order == 1 else torch.func.jacrev(torch.func.grad(f))(at)
    B = weight * G if H is None else H + weight * G
    exact = loss_order is None or distance_order is None
    if exact:
        fall = f if loss_order is None else _expanded(f(at), g, H, at)
        price = (lambda new: distance(new, at)) if distance_order is None else _expanded(torch.zeros(()), 0 * g, G, at)
        step = _least(lambda new: fall(new) + weight * price(new), at, where) - at
    else:
        step = -_positive_solve(B, g, where, "weight")
    return Proximal(step, _name(loss_order, distance_order, G), g, H, G)


def _name(loss_order: int | None, distance_order: int | None, G: Tensor) -> str:
    euclidean = torch.allclose(G, G[0, 0] * torch.eye(len(G), dtype=G.dtype), rtol=1e-9, atol=0)
    if loss_order is None:
        return "proximal point"
    if loss_order == 2:
        return "damped Newton" if distance_order == 2 else "proximal point"
    if distance_order is None:
        return "mirror descent"
    return "gradient descent" if euclidean else "natural gradient"


def _metric(distance: Distance, at: Tensor, where: str) -> Tensor:
    """Second derivative of the distance where it is 0, (d, d)."""
    check_number_of(where, "distance", distance, at, at)
    slope = torch.func.grad(distance)
    if float(slope(at, at).norm()) > SETTLED * (1 + float(at.norm())):
        got = f"one of {float(slope(at, at).norm()):.3g}"
        raise input_error(
            where, "a distance without slope at distance 0", got, "Pass a squared distance, or a divergence"
        )
    G = torch.func.jacrev(slope)(at, at)
    _positive_solve(G, at, where, "distance")
    return (G + G.T) / 2


def _positive_solve(B: Tensor, g: Tensor, where: str, blamed: str) -> Tensor:
    """B^-1 g for a positive definite B.

    Raises:
        InputError: it is not.
    """
    low, high = torch.linalg.eigvalsh((B + B.T) / 2)[[0, -1]].tolist()
    if low <= len(B) * torch.finfo(B.dtype).eps * abs(high):
        if blamed == "distance":
            remedy = "Pass one that grows in every direction"
            raise input_error(where, "a distance with positive curvature", f"{low:.3g}", remedy)
        remedy = f"Raise `{blamed}` above what balances it"
        raise input_error(where, "H + weight G without negative curvature", f"an eigenvalue {low:.3g}", remedy)
    return torch.linalg.solve(B, g)


def _expanded(value: Tensor, slope: Tensor, H: Tensor | None, at: Tensor) -> Scalar:
    """A Taylor polynomial around ``at``."""

    def polynomial(new: Tensor) -> Tensor:
        d = new - at
        return value + slope @ d + (0 if H is None else d @ H @ d / 2)

    return polynomial


def _least(objective: Scalar, start: Tensor, where: str) -> Tensor:
    """Where it is least, downhill from ``start``, by Newton's method with curvatures made positive.

    Raises:
        InputError: it does not settle.
    """
    x, slope = start, torch.func.grad(objective)
    first = float(slope(start).norm())
    for _ in range(ITERATIONS):
        g = slope(x)
        if float(g.norm()) <= SETTLED * max(first, 1.0):
            return x
        H = torch.func.jacrev(slope)(x)
        h, Q = torch.linalg.eigh((H + H.T) / 2)
        step = Q @ ((Q.T @ g) / h.abs().clamp(min=1e-12 * float(h.abs().max())))
        here, fall = objective(x), float(g @ step)
        for _ in range(HALVINGS):
            ahead = objective(x - step)
            if bool(ahead <= here - 1e-4 * fall) or float(slope(x - step).norm()) < 0.5 * float(g.norm()):
                break
            step, fall = step / 2, fall / 2
        x = x - step
    got = f"a slope of {float(slope(x).norm()):.3g} after {ITERATIONS} iterations"
    raise input_error(where, "a least value nearby", got, "Raise `weight`, or expand the function to an order")
