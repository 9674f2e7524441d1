"""Runs the cases side by side with the peers, writes one JSON per case, and fills the tables of README.md."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.harness import environment, render
from benchmarks.harness.environment import README, RESULTS, ROOT

CASES = sorted(path.stem for path in (ROOT / "benchmarks" / "cases").glob("*.py") if path.stem != "__init__")
TOLERANCE = 1e-3  # of the Frobenius norm: what float32 sums in another order may differ by, with room to spare

Reports = dict[str, list[dict[str, Any]]]  # method -> what its child processes reported, one per round


def family(method: str) -> str:
    """``name`` of a method called ``name[variant]``."""
    return method.partition("[")[0]


def run_child(case: str, method: str, options: argparse.Namespace, *, once: bool) -> dict[str, Any]:
    """Measure one method in a process of its own; ``once``: the first call is timed, and no other."""
    arguments = [
        "--case",
        case,
        "--method",
        method,
        "--scale",
        str(options.scale),
        "--threads",
        str(options.threads),
        *(["--once"] if once else []),
    ]
    settings = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    child = [sys.executable, "-m", "benchmarks.harness.child", *arguments]
    done = subprocess.run(child, capture_output=True, text=True, env=settings, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{case}, {method}: the child process ended with {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_rounds(name: str, case: ModuleType, options: argparse.Namespace) -> Reports:
    """A B C A B C: drift of the machine hits all methods alike. After a round, slower variants drop out."""
    reports: Reports = {}
    methods = list(case.METHODS)
    slow = getattr(case, "ONCE", ())
    for i in range(getattr(case, "ROUNDS", max(options.repeats, getattr(case, "REPEATS", 1)))):
        for method in methods:
            report = run_child(name, method, options, once=method in slow)
            reports.setdefault(method, []).append(report)
            shown = report.get("skipped") or ", ".join(f"{s:.3f} s" for s in report["seconds"])
            shown += f"  (other work: {report['others']:.0%})" if report.get("others", 0) > environment.BUSY else ""
            print(f"{name}  round {i + 1}  {method}: {shown}", flush=True)
        if i == 0:
            check_agreement(name, reports)
            methods = [method for method in fastest_variants(reports) if method not in slow]
    check_agreement(name, reports)
    return {method: reports[method] for method in fastest_variants(reports)} | reports


def fastest_variants(reports: Reports) -> list[str]:
    """One method per family, by the first round; skipped methods are left out.

    Variants that missed the residual asked of them come after all that reached it, the closest of them first.
    """
    best: dict[str, tuple[float, float, str]] = {}
    for method, (first, *_) in reports.items():
        if "seconds" in first:
            missed = 0.0 if first.get("reached", True) else first["residual"]
            entry = (missed, min(first["seconds"]), method)
            best[family(method)] = min(entry, best.get(family(method), entry))
    return [method for _, _, method in best.values()]


def check_agreement(name: str, reports: Reports) -> None:
    """End the run unless all methods, in all rounds, computed the same kernel and the same blocks.

    A method that has no blocks of layers is held to its total.
    """
    found = [(method, r["checks"]) for method, rounds in reports.items() for r in rounds if r.get("checks")]
    found.sort(key=lambda entry: -len(entry[1]))
    for method, checks in found[1:]:
        first_method, first = found[0]
        if set(checks) not in (set(first), {"total"}):
            sys.exit(f"{name}: {method} has the blocks {sorted(checks)}, {first_method} has {sorted(first)}")
        for block, (norm, probe) in checks.items():
            error = max(abs(norm - first[block][0]), abs(probe - first[block][1])) / first[block][0]
            if not error <= TOLERANCE:
                sys.exit(f"{name}: {method} and {first_method} disagree on `{block}` by {error:.2e}")


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: the median and the least of all timed calls, the highest peak."""
    if "skipped" in rounds[0]:
        return {"skipped": rounds[0]["skipped"]}
    seconds = [s for report in rounds for s in report["seconds"]]
    row: dict[str, Any] = {
        "median_seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "seconds": seconds,
        "rounds": len(rounds),
        "others": max(report["others"] for report in rounds),
    }
    if "processor_seconds" in rounds[0]:
        row["median_processor_seconds"] = statistics.median(s for r in rounds for s in r["processor_seconds"])
    for peak in ("peak_bytes", "process_peak_bytes"):
        if peak in rounds[0]:
            row[peak] = max(report[peak] for report in rounds)
    row |= {name: rounds[0][name] for name in ("residual", "reached", "num_products") if name in rounds[0]}
    if rounds[0]["checks"]:
        row["checks"] = rounds[0]["checks"]
    return row


def run_case(name: str, options: argparse.Namespace) -> None:
    """Measure a case and write its JSON."""
    case = importlib.import_module(f"benchmarks.cases.{name}")
    described: dict[str, Any] = environment.describe(options.threads, getattr(case, "PACKAGES", ()))
    reports = run_rounds(name, case, options)
    rows = {method: summarise(rounds) for method, rounds in reports.items()}
    for report in itertools.chain(*reports.values()):
        described["packages"] |= report.get("packages", {})
    compared = {family(method): rows[method] for method in fastest_variants(reports)}
    result = {"case": name, "title": case.TITLE, "scale": options.scale, "environment": described}
    if flops := next((r["flops"] for rounds in reports.values() for r in rounds if "flops" in r), None):
        result["gemm_flops"] = flops
    result |= {"methods": rows, "reported": fastest_variants(reports), "targets": case.targets(compared)}
    suffix = "" if options.scale == 1 else f"-scale-{options.scale:g}"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}{suffix}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(render.table(result), f"\nwritten: {path}\n", sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all methods of a case")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of samples; 1 is what is published")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=RESULTS, help="README.md shows only the default folder")
    parser.add_argument("--render", action="store_true", help="only write the tables of the results into README.md")
    options = parser.parse_args()
    if not options.render:
        for name in options.only:
            run_case(name, options)
    if options.out == RESULTS:
        render.write_readme(RESULTS, README)


if __name__ == "__main__":
    main()
