"""Gradient norms: of the mean gradient, and of single samples'."""

from __future__ import annotations

from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(seen: Observation) -> Measurement:
    """``mean_gradient_norm`` = |mean_i g_i| = sqrt(1^T K 1) / N; ``rms_gradient_norm`` = sqrt(mean_i |g_i|^2)."""
    total = seen.kernel.total
    n = len(total)
    return Measurement(
        {
            "mean_gradient_norm": float(total.sum(1).double().sum().clamp(min=0).sqrt()) / n,
            "rms_gradient_norm": float((total.diagonal().sum() / n).clamp(min=0).sqrt()),
        }
    )


PROBE = Probe("gradients", measure)
