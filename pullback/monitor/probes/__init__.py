"""What the monitor can measure: one file a probe, and the presets, which name each of them once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module

from torch import nn

from pullback._checks import check_names, check_option
from pullback.monitor.probes.base import Measurement, Observation, Probe

# The probes in the order they run, by the first preset that has them.
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
    "samples",
    "labels",
    "sharpness",
    "attention",
)
_FULL = (
    "tangent",
    "effective_lr",
    "shift",
    "jacobian",
    "initialisation",
)


def loaded(names: Iterable[str]) -> dict[str, Probe]:
    """The probes of files of this folder; what a probe does in one, and its name above, is all there is to it."""
    return {name: import_module(f"{__name__}.{name}").PROBE for name in names}


PROBES = loaded((*_LIGHT, *_STANDARD, *_FULL))
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
    return [replace(PROBES[name], by_name=True) for name in probes]
