"""Measures one method of one case, in the process it was started in; prints one line of JSON.

The first call is a warm-up and only its result is used: for the checksums. Then calls are timed until they
fill ``--seconds`` or there are five of them. The peak is the largest resident memory during the timed calls,
above the level after everything was imported, built and prepared.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from methods import Blocks, Problem, Skip, gemm_flops
from torch import Tensor

MOST_CALLS = 5


def resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (highest since the last reset) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    message = f"/proc/self/status has no {field}: the benchmarks need Linux"
    raise RuntimeError(message)


def reset_peak() -> None:
    """Set ``VmHWM`` back to the present level."""
    Path("/proc/self/clear_refs").write_text("5")


def clocks() -> tuple[float, float, float]:
    """Seconds so far: processor time of the machine, that of this process and its children, wall time."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    machine = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    return machine, sum(os.times()[:4]), time.perf_counter()


def checksum(result: Blocks) -> dict[str, list[float]]:
    """Of the total and of every block K: the Frobenius norm, and u^T K v for fixed random signs u, v.

    A deviation E of K shows in the second number as about |E|, whatever it does to the norm.
    """
    generator = torch.Generator().manual_seed(1)
    n = len(result.total)
    u, v = (torch.randint(2, (n,), generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))

    def numbers(block: Tensor) -> list[float]:
        block = block.double()
        return [float(torch.linalg.vector_norm(block)), float(u @ block @ v)]

    return {name: numbers(block) for name, block in {"total": result.total, **result.layers}.items()}


def measure(case: Any, method: str, scale: float, seconds: float) -> dict[str, Any]:
    """Build, warm up, check, and time; see the module's first lines."""
    problem = case.build(scale)
    call = case.METHODS[method](problem)
    gc.collect()
    level = resident("VmRSS")
    result = call()
    checks = None if result is None else checksum(result)
    del result
    used = clocks()
    times: list[float] = []
    peaks: list[int] = []
    while not times or (sum(times) < seconds and len(times) < MOST_CALLS):
        gc.collect()
        reset_peak()
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        peaks.append(resident("VmHWM") - level)
        del result
    machine, own, wall = (after - before for before, after in zip(used, clocks(), strict=True))
    others = max(0.0, machine - own) / (wall * (os.cpu_count() or 1))
    report = {
        "seconds": times,
        "others": others,
        "peak_bytes": max(peaks),
        "level_bytes": level,
        "checks": checks,
    }
    if isinstance(problem, Problem):
        report["flops"] = gemm_flops(problem)
    else:
        del report["peak_bytes"]  # the work was done in another process
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    try:
        case = importlib.import_module(f"cases.{options.case}")
        report = measure(case, options.method, options.scale, options.seconds)
    except Skip as reason:
        report = {"skipped": str(reason)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
