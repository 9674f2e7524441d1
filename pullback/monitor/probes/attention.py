"""Do tokens stay apart behind the layers of a transformer, and do its heads tell them apart?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pullback.functional import take
from pullback.measure.networks.profile import Profile
from pullback.measure.rank_collapse import NothingToMeasure, may_attend, rank_collapse
from pullback.monitor.probes.base import Measurement, Observation, Probe, without_frames
from pullback.monitor.probes.work import Work

NUM_SAMPLES = 4


def measure(observed: Observation) -> Measurement:
    """By layer: ``cosine``, ``relative_residual`` and ``effective_rank`` of tokens, and means over its heads.

    Those are ``entropy`` of rows, relative to its most, the share of the ``first_token`` and ``score_gradient``: as of
    ``measure.rank_collapse``, of the first ``NUM_SAMPLES`` samples. ``start``: relative residual before the first one.
    ``floor``: what rounding leaves of it. ``unread``: names of attention that could not be read. Nothing for models
    without attention, and for single tokens.
    """
    try:
        collapse = rank_collapse(observed.model, take(observed.x, slice(0, NUM_SAMPLES)), spectrum=False)
    except NothingToMeasure as error:
        return Measurement({}, missing=without_frames(error))
    values = {
        "cosine": _finite(collapse.layers, collapse.cosine),
        "relative_residual": _finite(collapse.layers, collapse.relative_residual),
        "effective_rank": _finite(collapse.layers, collapse.effective_rank),
        "entropy": _means(collapse.layers, [each.relative_entropy for each in collapse.attention]),
        "first_token": _means(collapse.layers, [each.first_token for each in collapse.attention]),
        "score_gradient": _means(collapse.layers, [each.score_gradient for each in collapse.attention]),
        "floor": collapse.floor,
    }
    if collapse.start is not None:
        values["start"] = float(collapse.start.relative_residual.value)
    return Measurement(values | ({"unread": sorted(collapse.unread)} if collapse.unread else {}))


def _finite(layers: Sequence[str], profile: Profile) -> dict[str, float]:
    pairs = zip(layers, profile.value.tolist(), strict=True)
    return {layer: value for layer, value in pairs if math.isfinite(value)}


def _means(layers: Sequence[str], heads: Sequence[Profile]) -> dict[str, float]:
    """Over the heads of each layer."""
    pairs = ((layer, float(profile.value.mean())) for layer, profile in zip(layers, heads, strict=True))
    return {layer: value for layer, value in pairs if math.isfinite(value)}


PROBE = Probe("attention", measure, sparse=True, work=Work(1.0, most=NUM_SAMPLES), needs=may_attend)  # two forward ones
