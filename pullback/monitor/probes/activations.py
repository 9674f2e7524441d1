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
    activity = unit_activity(observed.model, observed.x)
    if not activity.layers:
        return Measurement({})
    ranks = zip(activity.layers, activity.effective_rank.tolist(), strict=True)
    return Measurement(
        {
            "effective_rank": {layer: rank for layer, rank in ranks if not math.isnan(rank)},
            "width": dict(zip(activity.layers, activity.widths, strict=True)),
            "dead": dict(zip(activity.layers, activity.dead_share.tolist(), strict=True)),
            "saturated": dict(zip(activity.layers, activity.saturated.tolist(), strict=True)),
            "kind": dict(zip(activity.layers, activity.kinds, strict=True)),
        }
    )


PROBE = Probe("activations", measure, work=Work(0.5))  # a forward pass
