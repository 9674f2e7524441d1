"""Gradient norms and kernel norms of every layer, and their slope over depth."""

from __future__ import annotations

from torch import Tensor

from pullback.diagnostics import LayerFlow, layer_flow
from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(observed: Observation) -> Measurement:
    """Per layer ``gradient_norm``, ``frobenius``, ``trace_share``; ``slope``, ``verdict`` and ``balance``."""
    flow = layer_flow(observed.kernel, num_matvecs=0)
    return Measurement(
        {
            "gradient_norm": _by_layer(flow, flow.gradient_norms),
            "frobenius": _by_layer(flow, flow.frobenius),
            "trace_share": _by_layer(flow, flow.trace_share),
            "slope": flow.slope,
            "verdict": flow.verdict,
            "balance": flow.balance,
        }
    )


def measure_spectral(observed: Observation) -> Measurement:
    """Per layer the ``spectral`` norm and its ``spectral_residual``."""
    flow = layer_flow(observed.kernel)
    return Measurement(
        {"spectral": _by_layer(flow, flow.spectral), "spectral_residual": _by_layer(flow, flow.spectral_residuals)}
    )


def _by_layer(flow: LayerFlow, values: Tensor) -> dict[str, float]:
    return dict(zip(flow.layers, values.tolist(), strict=True))


PROBE = Probe("flow", measure, extra=measure_spectral, pairs=True)
