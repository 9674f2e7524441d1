"""Largest curvature against 2 / learning rate."""

from __future__ import annotations

from typing import Any

from pullback.diagnostics import sharpness
from pullback.functional import num_samples, take
from pullback.functional.unwrap import full_precision
from pullback.monitor.probes.base import Measurement, Observation, Probe

NUM_SAMPLES = 64  # curvature of fewer samples than the kernel's: its cost is tens of gradients
TOLERANCE = 1e-1  # relative residual, stored beside the value, whose own error is of the order of its square
MAX_MATVECS = 12


def measure(seen: Observation) -> Measurement:
    """Largest eigenvalue of ``hessian`` and ``gauss_newton`` with residuals; ``learning_rate`` and ``limit``.

    Without autocast: products in half precision are not symmetric to what eigenvalues need.
    """
    count = min(NUM_SAMPLES, num_samples(seen.x))
    data = take(seen.x, slice(0, count)), take(seen.y, slice(0, count))
    with full_precision(seen.model):
        found = sharpness(seen.model, seen.loss_fn, data, tol=TOLERANCE, max_matvecs=MAX_MATVECS)
    values: dict[str, Any] = {
        "hessian": float(found.hessian.values[0]),
        "hessian_residual": float(found.hessian.residuals[0]),
        "gauss_newton": float(found.gauss_newton.values[0]),
        "gauss_newton_residual": float(found.gauss_newton.residuals[0]),
        "num_samples": count,
    }
    if seen.optimizer is not None:
        rate = float(seen.optimizer.param_groups[0]["lr"])
        values |= {"learning_rate": rate, "optimizer": type(seen.optimizer).__name__}
        if rate > 0:
            values["limit"] = 2 / rate
    return Measurement(values)


PROBE = Probe("sharpness", measure, sparse=True)
