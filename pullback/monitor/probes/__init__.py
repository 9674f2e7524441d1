"""What the monitor can measure: one file a probe, and the presets."""

from pullback.monitor.probes import alignment, flow, gradients, kernel, loss, sharpness
from pullback.monitor.probes.base import Measurement, Observation, Probe

PROBES: dict[str, Probe] = {
    probe.name: probe
    for probe in (loss.PROBE, gradients.PROBE, kernel.PROBE, alignment.PROBE, flow.PROBE, sharpness.PROBE)
}

PRESETS: dict[str, tuple[str, ...]] = {
    "light": ("loss", "gradients"),
    "standard": ("loss", "gradients", "kernel", "alignment", "flow", "sharpness"),
    "full": tuple(PROBES),
}

__all__ = ["PRESETS", "PROBES", "Measurement", "Observation", "Probe"]
