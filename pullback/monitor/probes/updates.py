"""How far the last step moved the weights, relative to their size."""

from __future__ import annotations

from statistics import median

from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(observed: Observation) -> Measurement:
    """``ratio`` = |dw| / |w| of each layer in the last step, ``ratio_stderr`` where entries were sampled; ``median``.

    ``norm`` is |w| of all weights before the step, ``shrink`` the share of the step that made them smaller by the same
    factor: the cosine between dw and -w, which is 1 where a step is nothing but weight decay.

    Nothing where the weights before the step are not known: where steps were left out, and at the first one where
    weights were loaded since the monitor was made, or its gradient is there no more.
    """
    ratios = {} if observed.before is None else observed.before.ratios(observed.model)
    if observed.before is None or not ratios:
        return Measurement({})
    values = {"ratio": {layer: ratio for layer, (ratio, _) in ratios.items()}}
    errors = {layer: error for layer, (_, error) in ratios.items() if error > 0}
    norm, shrink = observed.before.shrinkage(observed.model)
    return Measurement(
        values
        | ({"ratio_stderr": errors} if errors else {})
        | {"median": median(values["ratio"].values()), "norm": norm, "shrink": shrink}
    )


PROBE = Probe("updates", measure)
