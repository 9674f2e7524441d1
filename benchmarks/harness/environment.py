"""What the numbers were measured on; stored beside them."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BUSY = 0.05  # of the machine, used by others during the timed calls: worth a warning
ROOT = Path(__file__).parents[2]  # of the checkout, from which every script is run as a module
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "benchmarks" / "README.md"
PACKAGES = ("pullback", "torch", "numpy", "backpack-for-pytorch", "opacus", "nngeometry")  # and the case's own


def describe(threads: int, packages: Iterable[str] = ()) -> dict[str, object]:
    """Machine, software and commit; ``packages`` besides those every case names."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in (*PACKAGES, *packages)},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The short hash, with ``+changes`` if the package or the benchmarks differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    paths = ["pullback", "benchmarks", ":!benchmarks/*results*", ":!benchmarks/README.md"]
    status = subprocess.run([*git, "status", "--porcelain", "--", *paths], capture_output=True, text=True, check=True)
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
