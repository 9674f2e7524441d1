"""Watches training without touching it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pullback.monitor.probes import PRESETS, PROBES, Probe
from pullback.monitor.schedule import Schedule
from pullback.monitor.session import Monitor
from pullback.monitor.sinks import to_tensorboard, to_wandb

if TYPE_CHECKING:
    from pullback.monitor.adapters.lightning import LightningCallback
    from pullback.monitor.adapters.transformers import TransformersCallback

__all__ = [
    "PRESETS",
    "PROBES",
    "LightningCallback",
    "Monitor",
    "Probe",
    "Schedule",
    "TransformersCallback",
    "to_tensorboard",
    "to_wandb",
]

_ADAPTERS = {"LightningCallback": "lightning", "TransformersCallback": "transformers"}  # each imports its package


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return getattr(import_module(f"pullback.monitor.adapters.{_ADAPTERS[name]}"), name)
    message = f"module 'pullback.monitor' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted(__all__)
