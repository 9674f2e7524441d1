"""Measures the controllers beside constants, and writes results.json and the tables of docs/controllers.md.

Usage: python -m benchmarks.studies.controllers.run [--processes N] [--render]

Trainings that were made are not made again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.studies.controllers.training import CASES, call

PATH = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[3] / "docs" / "controllers.md"
MARK, END = "<!-- table -->", "<!-- /table -->"
SEEDS = range(5)
GRID = [2.0**power for power in range(-3, 2)]
MANY = range(20)  # of the best constant rate, and of the steered trainings
PAIRS = range(3)  # of which processor times are taken
Job = tuple[str, str, int, float]
Results = list[dict[str, Any]]


def first_jobs() -> list[Job]:
    """All that does not depend on what is best."""
    return [("constant", case, seed, lr) for case in CASES for seed in SEEDS for lr in GRID]


def steered_jobs(results: Results, case: str) -> list[Job]:
    """The best constant rate on all seeds, and what is held against it; the rate to begin with is no matter, and 0."""
    rate = best(results, case)
    jobs: list[Job] = [("paired", case, seed, rate) for seed in PAIRS]
    jobs += [(kind, case, seed, 0.0) for seed in MANY for kind in ("curvature", "perturbed")]
    return jobs + [("constant", case, seed, rate) for seed in MANY]


def best(results: Results, case: str) -> float:
    """The constant rate with the least mean final loss of the first seeds."""
    few = [r for r in results if r["seed"] in SEEDS]
    return min(GRID, key=lambda lr: mean(losses(few, "constant", case, lr)))


def losses(results: Results, kind: str, case: str, value: float, metric: str = "loss") -> list[float]:
    """Over seeds."""
    return [r[metric] for r in results if (r["kind"], r["case"], r["value"]) == (kind, case, value)]


def curvature_table(results: Results) -> str:
    head = "| network | best constant rate | its median | steered median | over it (at most 1.1) |"
    head += " worst over median, seeds and perturbed starts (at most 1.5) | seeds | processor time over constant |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for case in CASES:
        rate = best(results, case)
        steered = losses(results, "curvature", case, 0.0)
        if not steered:
            lines.append(f"| {case} | {rate:g} | not measured yet | | | | 0 | |")
            continue
        constant = median(losses(results, "constant", case, rate))
        perturbed, middle = losses(results, "perturbed", case, 0.0), median(steered)
        beside = [r for r in results if (r["kind"], r["case"]) == ("paired", case)]
        ratios = [r["seconds"] / r["controller_seconds"] for r in beside]
        most = 1.5 if case == "mlp" else 1.25
        cells = [case, f"{rate:g}", f"{constant:.3g}", f"{middle:.3g}", f"{middle / constant:.2f}"]
        cells += [f"{max(steered + perturbed) / middle:.2f}", f"{len(steered)} and {len(perturbed)}"]
        cells.append(f"{median(ratios):.2f} (at most {most:g}; {len(ratios)} pairs)" if ratios else "not measured yet")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
        for case in CASES:
            make(steered_jobs(results, case), results, options.processes)
    text = curvature_table(results)
    before, _, rest = PAGE.read_text().partition(MARK)
    PAGE.write_text(f"{before}{MARK}\n{text}\n{END}{rest.partition(END)[2]}")
    print(text)


if __name__ == "__main__":
    main()
