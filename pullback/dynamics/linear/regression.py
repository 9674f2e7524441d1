"""``kernel_regression``: ridge regression with any kernel, the ridge chosen by what leaving samples out would give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pullback._checks import input_error
from pullback._results import Shown
from pullback.dynamics.linear.kernel_matrices import (
    Layout,
    Modes,
    as_matrix,
    cross_kernel,
    layout_of,
    modes_of,
    square_kernel,
    values_of,
)

_GRID = 61  # ridges looked at, from the rounding of the largest eigenvalue to a thousand times it; then refined
LARGEST = 1e3


@dataclass(frozen=True)
class KernelRegression(Shown):
    """A fitted kernel regression.

    Attributes:
        train: fitted values, (N, ...) like the targets.
        test: predictions on the samples of ``cross``, (M, ...); None without.
        ridge: added to the kernel's diagonal.
        left_out: what the fit without sample i says of sample i, (N, ...), exactly.
        loo_error: mean of (left_out - targets)^2.
        coefficients: (K + ridge)^-1 y, (N, ...); predictions are ``cross @ coefficients`` for kernels (M, N).
        degrees: effective number of parameters, sum of lambda / (lambda + ridge).
    """

    train: Tensor
    test: Tensor | None
    ridge: float
    left_out: Tensor
    loo_error: float
    coefficients: Tensor
    degrees: float


def kernel_regression(
    kernel: Any, targets: Any, *, cross: Any = None, ridge: float | Literal["leave_one_out"] = "leave_one_out"
) -> KernelRegression:
    """Ridge regression K (K + ridge)^-1 y with any kernel, at the ridge with the least leave-one-out error.

    Leaving out sample i needs no fit of its own: with G = (K + ridge)^-1, y_i less the prediction without i is
    (G y)_i / G_ii, exactly (a block of outputs where the kernel couples them). With the tangent kernel this is the end
    of training the linearised model from outputs 0; with the kernel of a trained network ("after kernel") it shows
    how much of what was learned is in the features.

    Args:
        kernel: between training samples, (N, N) or (N, N, C, C): of ``pb.tangent_kernel`` (summed over outputs, too),
            of ``theory``, or any other inner products.
        targets: (N,) or (N, ...); center them where the kernel holds no constant.
        cross: between test and training samples, (M, N) or (M, N, C, C).
        ridge: a number of at least 0, in units of the kernel; or "leave_one_out".

    Returns:
        KernelRegression, in float64.

    Raises:
        InputError: a kernel that is not symmetric, positive semi-definite and finite; shapes that do not fit; ridge 0
            with a singular kernel; "leave_one_out" with one sample.

    Cost: an eigendecomposition, N^3, and N^2 for each of some hundred ridges; coupled outputs (N C)^3, and
        (N C)^2 C a ridge.

    References: leave-one-out formula, Wahba (1990), Spline models for observational data, section 4.2; after kernel,
        Long (2021), arXiv:2105.10585.

    Example:
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)
        >>> kernel = (1 + x[:, None] * x) ** 2
        >>> found = kernel_regression(kernel, x**2, ridge=1e-9)
        >>> bool(torch.allclose(found.train, x**2, atol=1e-6)), round(found.degrees, 3)
        (True, 3.0)
    """
    where = "kernel_regression"
    matrix = square_kernel(kernel, "kernel", where, outputs=False)
    other = None if cross is None else cross_kernel(cross, matrix, "cross", where, outputs=False)
    y = values_of(targets, "targets", where).to(matrix.device)
    layout = layout_of(matrix, y.shape, "targets", where)
    modes = modes_of(matrix, "kernel", where)
    columns = layout.columns(y)
    if isinstance(ridge, str):
        if ridge != "leave_one_out" or layout.samples < 2:
            got = repr(ridge) if ridge != "leave_one_out" else "one sample"
            expected = "a number or 'leave_one_out' of several samples as `ridge`"
            raise input_error(where, expected, got, "Pass a ridge of at least 0")
        chosen = _least(lambda each: float(_residuals(modes, layout, columns, each).square().mean()), modes)
    else:
        chosen = _checked(ridge, modes, where)
    coefficients = modes.vectors @ ((modes.vectors.T @ columns) / (modes.values + chosen)[:, None])
    residuals = layout.values(_residuals(modes, layout, columns, chosen))
    return KernelRegression(
        layout.values(as_matrix(matrix) @ coefficients),
        None if other is None else layout.values(as_matrix(other) @ coefficients),
        chosen,
        y - residuals,
        float(residuals.square().mean()),
        layout.values(coefficients),
        float((modes.values / (modes.values + chosen)).sum()),
    )


def _checked(ridge: float, modes: Modes, where: str) -> float:
    if not 0 <= ridge < math.inf:
        raise input_error(where, "a finite `ridge` of at least 0", repr(ridge), "Pass a number in units of the kernel")
    if ridge + float(modes.values[0]) <= modes.floor:
        got = f"{ridge:g} beside a smallest eigenvalue of {float(modes.values[0]):.3g}"
        raise input_error(
            where, f"a `ridge` above the kernel's rounding, {modes.floor:.3g}", got, "Pass a larger ridge"
        )
    return float(ridge)


def _residuals(modes: Modes, layout: Layout, columns: Tensor, ridge: float) -> Tensor:
    """Targets less predictions without their own sample, as columns."""
    weights = 1 / (modes.values + ridge)
    solved = modes.vectors @ (weights[:, None] * (modes.vectors.T @ columns))
    if not layout.full:
        return solved / (modes.vectors.square() @ weights)[:, None]
    rows = modes.vectors.unflatten(0, (layout.samples, -1))  # (N, C, m)
    blocks = (rows * weights) @ rows.transpose(1, 2)
    each = solved.unflatten(0, (layout.samples, -1))
    return torch.linalg.solve(blocks, each).flatten(0, 1)


def _least(error: Callable[[float], float], modes: Modes) -> float:
    """The ridge with the least error: the best of a grid, then between its neighbours."""
    low, high = (math.log10(each or 1.0) for each in (modes.floor, LARGEST * modes.largest))
    grid = [low + (high - low) * place / (_GRID - 1) for place in range(_GRID)]
    errors = [error(10**each) for each in grid]
    best = errors.index(min(errors))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    refined = minimize_scalar(lambda each: error(10**each), bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return float(10 ** (refined.x if refined.fun < errors[best] else grid[best]))
