"""Watches training without touching it."""

from pullback.monitor.probes import PRESETS, PROBES, Probe
from pullback.monitor.schedule import Schedule
from pullback.monitor.session import Monitor

__all__ = ["PRESETS", "PROBES", "Monitor", "Probe", "Schedule"]
