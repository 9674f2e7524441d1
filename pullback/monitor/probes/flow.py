"""Gradient norms and kernel norms of every layer, and their slope over depth."""

from __future__ import annotations

from torch import Tensor

from pullback.diagnostics import layer_flow
from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(seen: Observation) -> Measurement:
    """Per layer ``gradient_norm``, ``frobenius``, ``spectral``, ``trace_share``; ``slope`` and ``verdict``."""
    flow = layer_flow(seen.kernel)

    def by_layer(values: Tensor) -> dict[str, float]:
        return dict(zip(flow.layers, values.tolist(), strict=True))

    return Measurement(
        {
            "gradient_norm": by_layer(flow.gradient_norms),
            "frobenius": by_layer(flow.frobenius),
            "spectral": by_layer(flow.spectral),
            "spectral_residual": by_layer(flow.spectral_residuals),
            "trace_share": by_layer(flow.trace_share),
            "slope": flow.slope,
            "verdict": flow.verdict,
            "balance": flow.balance,
        }
    )


PROBE = Probe("flow", measure)
