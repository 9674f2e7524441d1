"""Where the starting weights stand: the phase of every layer, before the first step."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from pullback._checks import InputError
from pullback.functional.unwrap import unwrap
from pullback.monitor.probes.base import Measurement, Observation, Probe, without_frames

NORMALISES = nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm  # the first: batch, instance


def measure(observed: Observation) -> Measurement:
    """By layer ``sigma_w`` and ``sigma_b``, as of ``measure.effective_variances``.

    For layers with an activation behind them also ``chi``, ``phase`` and ``critical_sigma_w``, where chi is 1; and
    ``chi_product``, the factor of mean squared gradients over the depth. Where the model normalises they are left out,
    since the normalisation sets that factor. Nothing where the code alone does not show which activation follows which
    layer: before the first step there is no sample to run.
    """
    from pullback.measure import effective_variances  # loads SciPy with it

    try:
        variances = effective_variances(observed.model)
    except InputError as error:  # no layer with weights, no activation to be found, or no order: no phase to tell
        return Measurement({}, missing=without_frames(error))
    sigma_w, sigma_b, chi = (
        profile.value.tolist() for profile in (variances.sigma_w, variances.sigma_b, variances.chi)
    )
    rows = list(zip(variances.layers, variances.activations, sigma_w, sigma_b, chi, variances.phase, strict=True))
    values: dict[str, Any] = {
        "sigma_w": {layer: w for layer, _, w, *_ in rows},
        "sigma_b": {layer: b for layer, _, _, b, *_ in rows},
    }
    if any(isinstance(module, NORMALISES) for module in unwrap(observed.model).modules()):
        return Measurement(values)
    hidden = [row for row in rows if row[1] != "linear"]
    critical = {layer: _critical(activation, w, b, factor) for layer, activation, w, b, factor, _ in hidden}
    return Measurement(
        values
        | {
            "chi": {layer: factor for layer, _, _, _, factor, _ in hidden},
            "phase": {layer: phase for layer, *_, phase in hidden},
            "chi_product": math.prod(factor for *_, factor, _ in hidden),
            "critical_sigma_w": {layer: value for layer, value in critical.items() if value is not None},
        }
    )


def _critical(activation: str, sigma_w: float, sigma_b: float, chi: float) -> float | None:
    """The sigma_w at which chi is 1; None where there is none, or the activation is one the theory has no name for."""
    from pullback.theory import critical_sigma_w
    from pullback.theory.expectations.activations import BUILT_IN

    if activation not in BUILT_IN:
        return None
    if BUILT_IN[activation].homogeneous:  # chi grows with sigma_w^2 whatever the lengths, which biases keep growing
        return sigma_w / math.sqrt(chi) if chi > 0 else None
    try:
        return critical_sigma_w(activation, sigma_b)
    except InputError:
        return None


PROBE = Probe("initialisation", measure, at_start=True)
