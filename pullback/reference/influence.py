"""What training again gives: ridge regression by its normal equations, minima by dense Newton steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pullback._checks import self_check_error


def ridge(x: Tensor, y: Tensor, decay: float, *, without: int | None = None) -> Tensor:
    """Minimiser of 1/2 |y - x w|^2 + decay/2 |w|^2; ``decay`` is not rescaled where sample ``without`` is left out."""
    kept = [i for i in range(len(x)) if i != without]
    x, y = x[kept], y[kept]
    return torch.linalg.solve(x.T @ x + decay * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def minimise(cost: Callable[[Tensor], Tensor], start: Tensor, *, tol: float = 1e-11, max_steps: int = 300) -> Tensor:
    """A minimum near ``start`` (P,), by Newton steps with the dense Hessian.

    The eigenvalues are made positive, and a step is halved until the cost falls.

    Raises:
        SelfCheckError: no entry of the gradient below ``tol`` times the largest parameter within ``max_steps``.
    """
    w = start.detach().clone()
    for _ in range(max_steps):
        slope = torch.func.grad(cost)(w)
        if float(slope.abs().max()) <= tol * max(1.0, float(w.abs().max())):
            return w
        values, vectors = torch.linalg.eigh(torch.func.jacrev(torch.func.jacrev(cost))(w))
        size = values.abs().clamp(min=1e-10 * float(values.abs().max()))
        step, here = -vectors @ ((vectors.T @ slope) / size), cost(w)
        length = 1.0
        while cost(w + length * step) > here + 1e-14 * here.abs() and length > 1e-8:
            length /= 2
        w = w + length * step
    size = f"{float(slope.abs().max()):.1e} after {max_steps} steps"
    raise self_check_error("minimise", f"a gradient below {tol:.0e}", size, "Start closer, or allow more steps")


def dense_mixed_derivative(cost: Callable[[Tensor, Tensor], Tensor], w: Tensor, theta: Tensor) -> Tensor:
    """d^2 cost / dw dtheta (P, M) at flat vectors, entry by entry."""
    return torch.func.jacrev(torch.func.jacrev(cost, argnums=0), argnums=1)(w, theta).reshape(w.numel(), -1)


def dense_response(cost: Callable[[Tensor, Tensor], Tensor], w: Tensor, theta: Tensor) -> Tensor:
    """dw*/dtheta (P, M) = -(d^2 cost / dw^2)^{-1} d^2 cost / dw dtheta at a minimum w, by a dense solve."""
    hessian = torch.func.jacrev(torch.func.jacrev(cost, argnums=0), argnums=0)(w, theta)
    return -torch.linalg.solve(hessian, dense_mixed_derivative(cost, w, theta))
