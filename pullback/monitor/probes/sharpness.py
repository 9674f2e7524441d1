"""Largest and smallest curvature against what the optimiser bears."""

from __future__ import annotations

from typing import Any

import torch

from pullback.diagnostics import preconditioned_sharpness, stability_limit
from pullback.diagnostics.preconditioned import ADAM
from pullback.functional import num_samples, take
from pullback.functional.unwrap import full_precision
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.operators import GaussNewton, Hessian
from pullback.spectral import eigenvalues

NUM_SAMPLES = 64  # curvature of fewer samples than the kernel's: its cost is tens of gradients
TOLERANCE = 1e-1  # relative residual, stored beside the value, whose own error is of the order of its square
MAX_MATVECS = 12  # for an end of a spectrum


def measure(seen: Observation) -> Measurement:
    """Largest eigenvalue of ``hessian`` and ``gauss_newton``, the Hessian's ``smallest``, all with ``…_residual``.

    With an optimiser its ``learning_rate`` and the ``limit`` it sets: 2 / lr, for SGD with ``momentum`` as of
    ``stability_limit``. With Adam ``preconditioned``, the largest eigenvalue of its preconditioned Hessian, and
    ``preconditioned_limit``. Without autocast: products in half precision are not symmetric to what eigenvalues need.
    """
    count = min(NUM_SAMPLES, num_samples(seen.x))
    data = take(seen.x, slice(0, count)), take(seen.y, slice(0, count))
    with full_precision(seen.model):
        ends = eigenvalues(
            Hessian(seen.model, seen.loss_fn, data), which="both", tol=TOLERANCE, max_matvecs=2 * MAX_MATVECS
        )
        gauss_newton = eigenvalues(GaussNewton(seen.model, seen.loss_fn, data), tol=TOLERANCE, max_matvecs=MAX_MATVECS)
        values: dict[str, Any] = {
            "hessian": float(ends.values[0]),
            "hessian_residual": float(ends.residuals[0]),
            "smallest": float(ends.values[-1]),
            "smallest_residual": float(ends.residuals[-1]),
            "gauss_newton": float(gauss_newton.values[0]),
            "gauss_newton_residual": float(gauss_newton.residuals[0]),
            "num_samples": count,
        }
        if seen.optimizer is not None:
            values |= _limits(seen, seen.optimizer, data)
    return Measurement(values)


def _limits(seen: Observation, optimizer: torch.optim.Optimizer, data: tuple[Any, Any]) -> dict[str, Any]:
    """The learning rate and what it bears."""
    rate = float(optimizer.param_groups[0]["lr"])
    values: dict[str, Any] = {"learning_rate": rate, "optimizer": type(optimizer).__name__}
    limit = stability_limit(optimizer)
    if isinstance(optimizer, torch.optim.SGD):
        values["momentum"] = float(optimizer.param_groups[0]["momentum"])
        return values | ({} if limit is None else {"limit": limit})
    if rate > 0:
        values["limit"] = 2 / rate
    if limit is not None and isinstance(optimizer, ADAM) and optimizer.state:
        pairs = preconditioned_sharpness(
            seen.model, seen.loss_fn, data, optimizer, tol=TOLERANCE, max_matvecs=MAX_MATVECS
        )
        values["preconditioned"] = float(pairs.values[0])
        values["preconditioned_residual"] = float(pairs.residuals[0])
        values["preconditioned_limit"] = limit
    return values


PROBE = Probe("sharpness", measure, sparse=True)
