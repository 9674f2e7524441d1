"""Methods of the cases on disk: ``harness/worker.py`` in its own processes, and the floor of its matrix products."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness.environment import ROOT
from benchmarks.methods import models
from benchmarks.methods.problem import Call, Elsewhere

MEMORY_LIMIT = 2 * 10**9
SIDE = 4096  # of the matrices whose product gives the machine's rate
SUM_OF_WIDTHS = sum(d + p for d, p in zip(models.MLP_WIDTHS[:-1], models.MLP_WIDTHS[1:], strict=True))


def to_store(
    *, threads: int | None = None, workers: int = 1, factor: float = 1, level: str = "above_data"
) -> Callable[[int], Call]:
    """``kernel_to_store`` of ``factor`` times the samples the case was built with.

    Args:
        threads: of each worker; None for those of the run.
        workers: processes; more than one run under torchrun.
        factor: of the number of samples.
        level: ``above_data`` or ``above_imports``, what the reported peak memory leaves out.
    """

    def prepare(num_samples: int) -> Call:
        samples, each = max(2, round(num_samples * factor)), threads or torch.get_num_threads()
        launcher = [sys.executable]
        if workers > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        settings = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(each))

        def call() -> Elsewhere:
            with tempfile.TemporaryDirectory() as folder:
                command = [*launcher, "-m", "benchmarks.harness.worker", "--folder", folder]
                command += ["--samples", str(samples), "--threads", str(each), "--memory-limit", str(MEMORY_LIMIT)]
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings, cwd=ROOT)
                if done.returncode:
                    sys.exit(f"a worker ended with {done.returncode}\n{done.stderr[-4000:]}")
                found = [json.loads((Path(folder) / f"report-{rank}.json").read_text()) for rank in range(workers)]
            return Elsewhere(
                {
                    "seconds": [max(report["seconds"] for report in found)],
                    "peak_bytes": sum(report[level] for report in found),
                    "process_peak_bytes": sum(report["process"] for report in found),
                    "checks": found[0]["checks"] if factor == 1 else None,  # another size is another kernel
                }
            )

        return call

    return prepare


def product_floor(num_samples: int) -> Call:
    """Time for N^2 sum (d + p) operations, the products of one triangle, at the rate of one large product here."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    flops = float(num_samples**2 * SUM_OF_WIDTHS)

    def call() -> Elsewhere:
        times = []
        for i in range(6):
            start = time.perf_counter()
            _ = a @ b
            if i:  # the first is a warm-up
                times.append(time.perf_counter() - start)
        return Elsewhere({"seconds": [flops * t / (2 * SIDE**3) for t in times], "checks": None, "flops": flops})

    return call
