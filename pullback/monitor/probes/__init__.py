"""What the monitor can measure: one file a probe, and the presets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pullback._checks import check_names, check_option
from pullback.monitor.probes import (
    activations,
    alignment,
    attention,
    batch_norm,
    classes,
    effective_lr,
    flow,
    gradients,
    initialisation,
    inputs,
    jacobian,
    kernel,
    loss,
    noise,
    samples,
    sharpness,
    shift,
    tangent,
    targets,
    updates,
)
from pullback.monitor.probes.base import Measurement, Observation, Probe

_MODULES = (
    loss,
    gradients,
    updates,
    targets,
    kernel,
    noise,
    alignment,
    classes,
    flow,
    activations,
    inputs,
    batch_norm,
    sharpness,
    samples,
    attention,
    tangent,
    effective_lr,
    shift,
    jacobian,
    initialisation,
)
PROBES: dict[str, Probe] = {module.PROBE.name: module.PROBE for module in _MODULES}

_LIGHT = ("loss", "gradients", "updates", "targets")
_STANDARD = (
    "kernel",
    "noise",
    "alignment",
    "classes",
    "flow",
    "activations",
    "inputs",
    "batch_norm",
    "sharpness",
    "samples",
    "attention",
)
PRESETS: dict[str, tuple[str, ...]] = {
    "light": _LIGHT,
    "standard": (*_LIGHT, *_STANDARD),
    "full": tuple(PROBES),
}

__all__ = ["PRESETS", "PROBES", "Measurement", "Observation", "Probe", "chosen_probes"]


def chosen_probes(probes: str | Sequence[str], model: nn.Module, where: str) -> list[Probe]:
    """The probes of a preset that have something to measure in a model, or those of these names."""
    if isinstance(probes, str):
        check_option(where, "probes", probes, tuple(PRESETS))
        preset = [PROBES[name] for name in PRESETS[probes]]
        return [probe for probe in preset if probe.needs is None or probe.needs(model)]
    check_names(where, "probes", probes, tuple(PROBES))
    return [PROBES[name] for name in probes]
