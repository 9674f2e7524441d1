"""How far the last step moved the weights, relative to their size."""

from __future__ import annotations

from statistics import median

from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(seen: Observation) -> Measurement:
    """``ratio`` = |dw| / |w| of each layer in the last step, ``ratio_stderr`` where entries were sampled; ``median``.

    Nothing where the weights before the step are not known: at the first step, or where steps were left out.
    """
    ratios = {} if seen.before is None else seen.before.ratios(seen.model)
    if not ratios:
        return Measurement({})
    values = {"ratio": {layer: ratio for layer, (ratio, _) in ratios.items()}}
    errors = {layer: error for layer, (_, error) in ratios.items() if error > 0}
    return Measurement(
        values | ({"ratio_stderr": errors} if errors else {}) | {"median": median(values["ratio"].values())}
    )


PROBE = Probe("updates", measure)
