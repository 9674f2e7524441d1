"""The phase diagram: where in (sigma_w, sigma_b) signals and gradients survive depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pullback._checks import input_error
from pullback._results import Shown
from pullback.theory.expectations.activations import Activation, Array, activation_of
from pullback.theory.mean_field.critical import critical_points
from pullback.theory.mean_field.phase_grid import phase_grid


@dataclass(frozen=True)
class PhaseDiagram(Shown):
    """``MeanField`` over a grid; every array is (len(sigma_b), len(sigma_w)).

    Attributes:
        sigma_w: of the columns.
        sigma_b: of the rows.
        q_star: length that layers settle at.
        chi: chi_1.
        c_star: correlation that pairs settle at; nan where lengths grow without bound and it is not defined.
        xi_c: depth scale of correlations: signals are told apart over about 6 of them (Schoenholz et al. 2017).
        xi_grad: depth scale of gradients; negative where they explode.
        critical: sigma_w of the critical line at each sigma_b; nan where there is none.
    """

    sigma_w: Array
    sigma_b: Array
    q_star: Array
    chi: Array
    c_star: Array
    xi_c: Array
    xi_grad: Array
    critical: Array


def phase_diagram(
    activation: str | Callable[..., object] | Activation, sigma_w: Sequence[float], sigma_b: Sequence[float]
) -> PhaseDiagram:
    """Fixed points, depth scales and the critical line over a grid of weight and bias variances.

    Args:
        activation: as of ``MeanField``.
        sigma_w: columns of the grid.
        sigma_b: rows of the grid.

    Raises:
        InputError: a sigma_w that is not above 0, a sigma_b below 0, an empty axis; see ``MeanField`` for activations.

    Cost: about a second for 30 times 30 points; docs/theory.md has the time of every activation.

    Example:
        >>> diagram = phase_diagram("tanh", [0.9, 2.5], [0.3])
        >>> [[round(float(x), 3) for x in diagram.chi[0]], round(float(diagram.critical[0]), 4)]
        [[0.6, 1.585], 1.3956]
    """
    phi = activation_of(activation, "phase_diagram")
    columns, rows = _axis("sigma_w", sigma_w, above=True), _axis("sigma_b", sigma_b, above=False)
    grid = np.meshgrid(columns, rows)
    quantities = phase_grid(phi, grid[0].ravel(), grid[1].ravel())
    return PhaseDiagram(
        columns,
        rows,
        **{name: values.reshape(grid[0].shape) for name, values in quantities.items()},
        critical=np.array([_critical_or_nan(phi, float(b)) for b in rows]),
    )


def _critical_or_nan(phi: Activation, sigma_b: float) -> float:
    """sigma_w of the critical point that layers settle at."""
    return next((point.sigma_w for point in critical_points(phi, sigma_b) if point.reached), math.nan)


def _axis(name: str, values: Sequence[float], *, above: bool) -> Array:
    """One axis of the grid."""
    axis = np.asarray(values, dtype=np.float64)
    good = axis.ndim == 1 and axis.size and np.isfinite(axis).all() and (axis > 0 if above else axis >= 0).all()
    if not good:
        bound = "above 0" if above else "of at least 0"
        raise input_error("phase_diagram", f"a list `{name}` of finite numbers {bound}", repr(values), "Pass a list")
    return axis
