"""Gradient noise scale and signal-to-noise ratio."""

from __future__ import annotations

import math
from typing import Any

from pullback.diagnostics import gradient_noise
from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(observed: Observation) -> Measurement:
    """``noise_scale`` in samples, ``signal_to_noise`` of one sample, with ``…_stderr``; ``batch_size`` of the loop.

    Left out where they are not defined: the noise scale where no signal shows above the noise.
    """
    noise = gradient_noise(observed.kernel)
    numbers = {
        "noise_scale": noise.noise_scale,
        "noise_scale_stderr": noise.noise_scale_stderr,
        "signal_to_noise": noise.signal_to_noise,
        "signal_to_noise_stderr": noise.signal_to_noise_stderr,
    }
    values: dict[str, Any] = {name: number for name, number in numbers.items() if not math.isnan(number)}
    batch = noise.num_samples if observed.batch_size is None else observed.batch_size
    return Measurement(values | {"batch_size": batch, "num_samples": noise.num_samples})


PROBE = Probe("noise", measure, pairs=True)
