"""Descent in the space of outputs, and what it is in that of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pullback._checks import check_count, check_option, check_rate, input_error
from pullback._results import Shown
from pullback.dynamics.quadratic.values import check_number_of, values

OutputMethod = Literal["parameters", "outputs", "gauss_newton"]
METHODS: tuple[OutputMethod, ...] = ("parameters", "outputs", "gauss_newton")
NEGATIVE = 1e-9  # of the largest curvature of a loss: what rounding leaves


@dataclass(frozen=True)
class OutputPath(Shown):
    """Where descent went.

    Attributes:
        x: parameters, (steps + 1, d).
        outputs: (steps + 1, m).
        loss: (steps + 1,).
    """

    x: Tensor
    outputs: Tensor
    loss: Tensor


def output_space_descent(
    function: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
    x0: Any,
    steps: int,
    lr: float,
    method: OutputMethod = "outputs",
) -> OutputPath:
    """Descend loss(function(x)) in parameters x, or in outputs z = function(x), pulled back to parameters.

    With J the Jacobian of the function, g and H_z gradient and Hessian of the loss in z:

    - "parameters": x - lr J^T g.
    - "outputs": x - lr J^+ g, the shortest step that moves outputs, to first order and as nearly as can be, by -lr g.
    - "gauss_newton": x - lr (J^T H_z J)^+ J^T g.

    Where H_z is c times the identity, as for squared errors, "outputs" at a rate lr is "gauss_newton" at c lr.

    Args:
        function: parameters (d,) -> outputs (m,), as torch operations.
        loss: outputs (m,) -> number.
        x0: start, (d,).
        steps: how many.
        lr: learning rate.
        method: one of the above.

    Returns:
        OutputPath.

    Raises:
        InputError: a start that is not finite, a rate that is not positive, a loss whose curvature in the outputs is
            negative (for "gauss_newton"), a path that does not stay finite (but for "parameters").

    Cost: a Jacobian and its pseudo-inverse a step, O(m d min(m, d)).

    References: Grosse (2021), Neural net training dynamics, chapter 3: Rosenbrock's function as outputs.

    Example:
        >>> rosenbrock = lambda x: torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])
        >>> square = lambda z: z.square().sum()
        >>> output_space_descent(rosenbrock, square, [-1.2, 1.0], 2, 1.0, "gauss_newton").x.round(decimals=6)[1:]
        tensor([[ 1.0000, -3.8400],
                [ 1.0000,  1.0000]], dtype=torch.float64)
    """
    where = "output_space_descent"
    check_option(where, "method", method, METHODS)
    check_rate(where, "lr", lr)
    steps = check_count(where, "steps", steps, 0)
    x = values(x0, "x0", where)
    z = function(x) if callable(function) and x.dim() == 1 else None
    if not isinstance(z, Tensor) or z.dim() != 1:
        got = f"{tuple(x.shape)} -> {tuple(z.shape) if isinstance(z, Tensor) else '?'}"
        raise input_error(where, "parameters (d,) -> outputs (m,)", got, "Flatten both")
    check_number_of(where, "loss", loss, z)
    path = [x]
    for _ in range(steps):
        path.append(path[-1] - lr * _step(function, loss, path[-1], method, where))
    points = torch.stack(path)
    if method != "parameters":
        _check_finite(where, points)
    outputs = torch.stack([function(each) for each in points])
    return OutputPath(points, outputs, torch.stack([loss(z) for z in outputs]))


def _step(function: Any, loss: Any, x: Tensor, method: OutputMethod, where: str) -> Tensor:
    z, J = function(x), torch.func.jacrev(function)(x)
    g = torch.func.grad(loss)(z)
    if method == "parameters":
        return J.T @ g
    H = torch.func.jacrev(torch.func.grad(loss))(z) if method == "gauss_newton" else g
    _check_finite(where, J, g, H)
    if method == "outputs":
        return _shortest(J, g)
    h, Q = torch.linalg.eigh((H + H.T) / 2)
    if float(h[0]) < -NEGATIVE * float(h.abs().max()):
        remedy = 'Use method="outputs", or another loss'
        raise input_error(where, "a loss that is convex in the outputs", f"a curvature of {float(h[0]):.3g}", remedy)
    root = h.clamp(min=0).sqrt()
    inner = torch.where(root > 0, Q.T @ g / root.where(root > 0, 1.0), 0.0)
    return _shortest(root[:, None] * (Q.T @ J), inner)


def _check_finite(where: str, *found: Tensor) -> None:
    """Refuse what LAPACK cannot solve for.

    Raises:
        InputError: NaN or Inf.
    """
    if not all(bool(each.isfinite().all()) for each in found):
        raise input_error(where, "a path that stays finite", "NaN or Inf on the way", "Pass a smaller `lr`")


def _shortest(J: Tensor, g: Tensor) -> Tensor:
    return torch.linalg.lstsq(J, g[:, None], driver="gelsd").solution[:, 0]
