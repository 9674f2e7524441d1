"""Plants every fault, asks ``pb.diagnose`` for it, and writes results and the table of README.md.

Usage: python -m benchmarks.pathologies.run [--preset small|full] [--out FOLDER]

Seeds 0 and 1 are those thresholds are set on; the table reports the others. Results are kept by run, so that a run
that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import pullback as pb
from benchmarks.pathologies.faults import FAULTS, HEALTHY
from benchmarks.pathologies.setups import ARCHITECTURES, watched

HERE = Path(__file__).parent
CALIBRATION = (0, 1)
SHARE = 0.01  # of the samples, where a finding has to name samples: one of 64
SEEDS = {"small": (2,), "full": (2, 3, 4, 0, 1)}  # those that are reported first, should it be stopped


def cases(preset: str) -> list[tuple[str, str, str, int]]:
    """Kind, fault or variant, architecture, seed."""
    found = []
    for seed in SEEDS[preset]:
        found += [("fault", name, each, seed) for name, fault in FAULTS.items() for each in fault.architectures]
        found += [("healthy", name, each, seed) for name in HEALTHY for each in ARCHITECTURES]
    return found


def result(kind: str, name: str, architecture: str, seed: int) -> dict[str, Any]:
    """Train one case and diagnose it."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    healthy = ARCHITECTURES[architecture](seed)
    setup = (FAULTS[name].plant if kind == "fault" else HEALTHY[name])(healthy, seed)
    with tempfile.TemporaryDirectory() as folder:
        run = watched(setup, Path(folder) / "run", seed)
        findings = pb.diagnose(run)
        return {
            "kind": kind,
            "name": name,
            "architecture": architecture,
            "seed": seed,
            "findings": {finding.name: finding.severity for finding in findings},
            "evidence": {finding.name: finding.evidence for finding in findings},
            "loss": run.series("loss", "loss")[1],
            "early": _early(run) if kind == "fault" and "divergence" in FAULTS[name].names else None,
            "failed_probes": sorted({r.probe for r in run.records if r.error and "a finite loss" not in r.error}),
            "seconds": round(time.perf_counter() - start, 2),
        }


def _early(run: pb.Run) -> int | None:
    """Steps by which a finding on the learning rate comes before the loss has doubled."""
    named = {"divergence", "learning-rate-too-high"}
    first = next((s for s in run.steps if named & {f.name for f in pb.diagnose(run.until(s))}), None)
    doubled = next((s for s in run.steps if "divergence" in {f.name for f in pb.diagnose(run.until(s))}), None)
    return None if first is None or doubled is None else doubled - first


def is_found(each: dict[str, Any]) -> bool:
    """Whether one of the fault's names is among the findings."""
    fault = FAULTS[each["name"]]
    found = [each["evidence"][name] for name in fault.names if name in each["findings"]]
    if fault.evidence is None:
        return bool(found)
    return any(numbers.get(fault.evidence, 0) >= SHARE * numbers["samples"] for numbers in found)


def is_false_alarm(each: dict[str, Any]) -> bool:
    """Whether a healthy run was given a warning or worse."""
    return any(severity != "info" for severity in each["findings"].values())


def table(results: list[dict[str, Any]]) -> str:
    """Faults found by architecture, in Markdown."""
    lines = [f"| planted | {' | '.join(ARCHITECTURES)} |", f"|---|{'---|' * len(ARCHITECTURES)}"]
    for title, kind, names, good in (
        ("", "fault", FAULTS, is_found),
        ("healthy, no warning: ", "healthy", HEALTHY, lambda each: not is_false_alarm(each)),
    ):
        for name in names:
            cells = []
            for architecture in ARCHITECTURES:
                found = [r for r in results if (r["kind"], r["name"], r["architecture"]) == (kind, name, architecture)]
                cells.append(f"{sum(map(good, found))} of {len(found)}" if found else "")
            lines.append(f"| {title}{name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=tuple(SEEDS), default="small")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.preset}.json"
    results = json.loads(path.read_text()) if path.is_file() else []
    done = {(r["kind"], r["name"], r["architecture"], r["seed"]) for r in results}
    warnings.simplefilter("ignore", UserWarning)  # a probe that a small batch leaves without numbers may say so
    for case in cases(options.preset):
        if case not in done:
            results.append(result(*case))
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(*case, results[-1]["findings"], f"{results[-1]['seconds']} s", flush=True)
    reported = [r for r in results if r["seed"] not in CALIBRATION] or results
    (options.out / f"{options.preset}.md").write_text(table(reported) + "\n")
    print(table(reported))


if __name__ == "__main__":
    main()
