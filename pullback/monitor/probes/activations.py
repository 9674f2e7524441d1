"""What the units behind each layer do: dead, saturated, or all saying the same."""

from __future__ import annotations

import math

from pullback.diagnostics import unit_activity
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.work import Work


def measure(observed: Observation) -> Measurement:
    """By layer: ``effective_rank`` and ``width`` of activations, shares of ``dead`` and ``saturated`` units, ``kind``.

    As of ``diagnostics.unit_activity``. Nothing for models that call no activation.
    """
    found = unit_activity(observed.model, observed.x)
    if not found.layers:
        return Measurement({})
    ranks = zip(found.layers, found.effective_rank.tolist(), strict=True)
    return Measurement(
        {
            "effective_rank": {layer: rank for layer, rank in ranks if not math.isnan(rank)},
            "width": dict(zip(found.layers, found.widths, strict=True)),
            "dead": dict(zip(found.layers, found.dead_share.tolist(), strict=True)),
            "saturated": dict(zip(found.layers, found.saturated.tolist(), strict=True)),
            "kind": dict(zip(found.layers, found.kinds, strict=True)),
        }
    )


PROBE = Probe("activations", measure, work=Work(0.5))  # a forward pass
