"""Clocks and memory of this process. Imports no array library: a peer's child process uses it too."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_CALLS = 5


def resident(name: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (highest since the last reset) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    message = f"/proc/self/status has no {name}: the benchmarks need Linux"
    raise RuntimeError(message)


def reset_peak() -> None:
    """Set ``VmHWM`` back to the present level."""
    Path("/proc/self/clear_refs").write_text("5")


def clocks() -> tuple[float, float, float]:
    """Seconds so far: processor time of the machine, that of this process and its children, wall time."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    machine = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    return machine, sum(os.times()[:4]), time.perf_counter()


def share_of_others(before: tuple[float, float, float]) -> float:
    """Share of the machine that other processes took since ``before``, a reading of ``clocks``."""
    machine, own, wall = (b - a for a, b in zip(before, clocks(), strict=True))
    return max(0.0, machine - own) / (wall * (os.cpu_count() or 1))


def repeat(call: Callable[[], Any], level: int, seconds: float, most: int = MOST_CALLS) -> tuple[dict[str, Any], Any]:
    """Call until ``seconds`` are full or ``most`` calls are made: what was measured, and the last call's result.

    The peak is the highest resident memory of all calls, above ``level`` bytes.
    """
    times: list[float] = []
    processor: list[float] = []
    peaks: list[int] = []
    result = None
    before = clocks()
    while not times or (sum(times) < seconds and len(times) < most):
        result = None
        gc.collect()
        reset_peak()
        start, spent = time.perf_counter(), time.process_time()
        result = call()
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - spent)
        peaks.append(resident("VmHWM") - level)
    others = share_of_others(before)
    report = {"seconds": times, "processor_seconds": processor, "others": others}
    return report | {"peak_bytes": max(peaks), "level_bytes": level}, result
