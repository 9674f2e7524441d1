"""Measures one method of one case, in the process it was started in; prints one line of JSON.

The first call is a warm-up and only its result is used: for the checksums. Then calls are timed until they
fill ``--seconds`` or there are five of them. The peak is the largest resident memory during the timed calls,
above the level after everything was imported, built and prepared. With ``--once`` the only call is the timed one.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import warnings
from typing import Any

import torch

from benchmarks.harness import measuring
from benchmarks.methods.checks import checksum
from benchmarks.methods.kernels import gemm_flops
from benchmarks.methods.problem import Blocks, Columns, Elsewhere, Problem, Skip, Spectrum

COMPARED = (Blocks, Columns, Spectrum)


def measure(case: Any, method: str, scale: float, seconds: float, *, once: bool) -> dict[str, Any]:
    """Build, warm up, check, and time; see the module's first lines."""
    problem = case.build(scale)
    call = case.METHODS[method](problem)
    gc.collect()
    level = measuring.resident("VmRSS")
    before = measuring.clocks()
    checks = None
    if not once:
        result = call()
        if isinstance(result, Elsewhere):
            return {"others": measuring.share_of_others(before)} | result.report
        checks = checksum(result) if isinstance(result, COMPARED) else None
        del result
    report, result = measuring.repeat(call, level, seconds, most=1 if once else measuring.MOST_CALLS)
    if once and isinstance(result, COMPARED):
        checks = checksum(result)
    if isinstance(result, Spectrum) and result.vectors is not None:
        report |= case.verify(problem, result)
    report["checks"] = checks if report.get("reached", True) else None
    if isinstance(problem, Problem):
        report["flops"] = gemm_flops(problem)
    else:
        peak = report.pop("peak_bytes")  # the work was done in another process, or the call makes its own model
        if getattr(case, "WHOLE_PROCESS", False):
            report["process_peak_bytes"] = report["level_bytes"] + peak
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    try:
        case = importlib.import_module(f"benchmarks.cases.{options.case}")
        report = measure(case, options.method, options.scale, options.seconds, once=options.once)
    except Skip as reason:
        report = {"skipped": str(reason)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
