"""Measures the controllers beside constants, and writes results.json and the tables of docs/controllers.md.

Usage: python -m benchmarks.controllers.run [--processes N] [--render]

Trainings that were made are not made again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.controllers.training import CASES, call

PATH = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[2] / "docs" / "controllers.md"
MARK, END = "<!-- table -->", "<!-- /table -->"
SEEDS = range(5)
GRID = [2.0**power for power in range(-3, 2)]
FAR = 30.0  # times the best constant rate, and its inverse
WITHIN = 0.1  # of the best constant's final loss
Job = tuple[str, str, int, float]
Results = list[dict[str, Any]]


def first_jobs() -> list[Job]:
    """All that does not depend on what is best."""
    jobs: list[Job] = [("constant", case, seed, lr) for case in CASES for seed in SEEDS for lr in GRID]
    jobs += [("fixed batch", "mlp", seed, size) for seed in SEEDS for size in (4, 16, 64, 256)]
    jobs += [("noise batch", "mlp", seed, 16) for seed in SEEDS]
    return jobs + [("conflict", "mlp", seed, strength) for seed in SEEDS for strength in (0.0, 3.0, 10.0)]


def best(results: Results, case: str) -> float:
    """The constant rate with the least mean final loss."""
    return min(GRID, key=lambda lr: mean(losses(results, "constant", case, lr)))


def losses(results: Results, kind: str, case: str, value: float, metric: str = "loss") -> list[float]:
    """Over seeds."""
    return [r[metric] for r in results if (r["kind"], r["case"], r["value"]) == (kind, case, value)]


def curvature_table(results: Results) -> str:
    head = "| network | best constant rate | its loss | started at | steered loss | ratio of means | |"
    head += " diverged | processor time, steered over constant |"
    lines = [head.replace("| | diverged", "| within 10 % | diverged"), "|---|---|---|---|---|---|---|---|---|"]
    for case in CASES:
        rate = best(results, case)
        constant = losses(results, "constant", case, rate)
        plain = mean(losses(results, "constant", case, rate, "seconds"))
        for name, factor in (("30 x", FAR), ("1 / 30", 1 / FAR)):
            steered = losses(results, "curvature", case, rate * factor)
            ratio = mean(steered) / mean(constant)
            cells = [case, f"{rate:g}", _range(constant), name, _range(steered), f"{ratio:.2f}"]
            cells += ["yes" if ratio <= 1 + WITHIN else "**no**", f"{sum(map(math.isinf, steered))} of {len(steered)}"]
            cells.append(f"{mean(losses(results, 'curvature', case, rate * factor, 'seconds')) / plain:.1f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def other_tables(results: Results) -> str:
    lines = ["| batches, MLP, 40,000 samples | final loss | steps | processor seconds |", "|---|---|---|---|"]
    for kind, value in [("fixed batch", size) for size in (4, 16, 64, 256)] + [("noise batch", 16)]:
        found, steps, seconds = (losses(results, kind, "mlp", value, m) for m in ("loss", "samples", "seconds"))
        title = f"fixed, {value}" if kind == "fixed batch" else "by the noise scale, from 16, at most 256"
        lines.append(f"| {title} | {_range(found)} | {mean(steps):.0f} | {mean(seconds):.1f} |")
    lines += ["", "| strength, MLP, a tenth of the labels wrong | held-out accuracy | training loss |", "|---|---|---|"]
    for strength in (0.0, 3.0, 10.0):
        found, right = (losses(results, "conflict", "mlp", strength, m) for m in ("loss", "accuracy"))
        lines.append(f"| {strength:g} | {_range(right)} | {_range(found)} |")
    return "\n".join(lines)


def _range(values: list[float]) -> str:
    return f"{mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def make(jobs: list[Job], results: Results, processes: int) -> None:
    """Make the trainings that are missing; each is written when it is there."""
    done = {(r["kind"], r["case"], r["seed"], r["value"]) for r in results}
    missing = [job for job in jobs if job not in done]
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        for found in pool.imap(_call, missing):
            results.append(found)
            PATH.write_text(json.dumps(results, indent=1) + "\n")
            print(found["kind"], found["case"], found["seed"], found["value"], f"{found['loss']:.4g}", flush=True)


def _call(job: Job) -> dict[str, Any]:
    warnings.simplefilter("ignore", UserWarning)
    return call(*job)


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--render", action="store_true", help="only write the tables")
    options = parser.parse_args()
    results: Results = json.loads(PATH.read_text()) if PATH.is_file() else []
    if not options.render:
        make(first_jobs(), results, options.processes)
        starts = {case: (FAR * best(results, case), best(results, case) / FAR) for case in CASES}
        jobs = [("curvature", case, seed, lr) for case, rates in starts.items() for seed in SEEDS for lr in rates]
        make(jobs, results, options.processes)
    text = f"{curvature_table(results)}\n\n{other_tables(results)}"
    before, _, rest = PAGE.read_text().partition(MARK)
    PAGE.write_text(f"{before}{MARK}\n{text}\n{END}{rest.partition(END)[2]}")
    print(text)


if __name__ == "__main__":
    main()
