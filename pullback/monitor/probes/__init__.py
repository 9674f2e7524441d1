"""What the monitor can measure: one file a probe, and the presets."""

from __future__ import annotations

from collections.abc import Sequence

from pullback._checks import check_names, check_option
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

__all__ = ["PRESETS", "PROBES", "Measurement", "Observation", "Probe", "chosen_probes"]


def chosen_probes(probes: str | Sequence[str], where: str) -> list[Probe]:
    """The probes of a preset, or those of these names."""
    if isinstance(probes, str):
        check_option(where, "probes", probes, tuple(PRESETS))
        probes = PRESETS[probes]
    check_names(where, "probes", probes, tuple(PROBES))
    return [PROBES[name] for name in probes]
