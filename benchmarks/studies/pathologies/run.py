"""Plants every fault, asks ``pb.diagnose`` for it, and writes results and, of the full preset, the table of README.md.

Usage: python -m benchmarks.studies.pathologies.run [--preset small|full] [--out FOLDER]

Seeds 0 and 1 are those thresholds are set on; the table reports the others. Results are kept by run, so that a run
that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import pullback as pb
from benchmarks.studies.pathologies.faults import FAULTS, HEALTHY, TOO_HIGH
from benchmarks.studies.pathologies.setups import ARCHITECTURES, Setup, rows, watched

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MARK, END = "<!-- table -->", "<!-- /table -->"
CALIBRATION = (0, 1)
SHARE = 0.01  # of the samples, where a finding has to name samples: one of 64
SEEDS = {"small": (2,), "full": (2, 3, 4, 0, 1)}  # those that are reported first, should it be stopped


def cases(preset: str) -> list[tuple[str, str, str, int]]:
    """Kind, fault or variant, architecture, seed."""
    found = []
    for seed in SEEDS[preset]:
        for kind, names in (("fault", FAULTS), ("healthy", HEALTHY)):
            found += [(kind, name, each, seed) for name in names for each in architectures(name)]
    return found


def architectures(name: str) -> tuple[str, ...]:
    """Where a fault or a variant is tried."""
    only = FAULTS[name].only if name in FAULTS else None
    return tuple(ARCHITECTURES) if only is None else (only,)


def planted(kind: str, name: str, architecture: str, seed: int) -> Setup:
    """The setup of a case."""
    torch.manual_seed(seed)
    if kind == "healthy":
        return HEALTHY[name](ARCHITECTURES[architecture](seed), seed)
    fault = FAULTS[name]
    make = rows if fault.classes and architecture == "transformer" else ARCHITECTURES[architecture]
    return fault.plant(make(seed), seed)


def result(kind: str, name: str, architecture: str, seed: int) -> dict[str, Any]:
    """Train one case and diagnose it."""
    start = time.perf_counter()
    warnings.simplefilter("ignore", UserWarning)  # a probe that a small batch leaves without numbers may say so
    setup = planted(kind, name, architecture, seed)
    with tempfile.TemporaryDirectory() as folder:
        run, losses = watched(setup, Path(folder) / "run", seed)
        findings = pb.diagnose(run)
        return {
            "kind": kind,
            "name": name,
            "architecture": architecture,
            "seed": seed,
            "findings": {finding.name: finding.severity for finding in findings},
            "evidence": {finding.name: finding.evidence for finding in findings},
            "loss": [round(value, 4) for value in run.series("loss", "loss")[1]],
            "early": _early(run, losses) if kind == "fault" and FAULTS[name].diverges else None,
            "failed_probes": sorted({r.probe for r in run.records if r.error and "a finite loss" not in r.error}),
            "seconds": round(time.perf_counter() - start, 2),
        }


def _early(run: pb.Run, losses: list[float]) -> int | None:
    """Steps by which the finding comes before the loop's loss is twice its first; None if it never is.

    The loss of step k is that of the weights after k - 1 steps, which is what a measurement of step k - 1 looks at.
    """
    shown = next((step for step, loss in enumerate(losses) if not loss <= 2 * losses[0]), None)
    said = next((step for step in run.steps if set(TOO_HIGH) & {f.name for f in pb.diagnose(run.until(step))}), None)
    if shown is None:
        return None
    return shown - (len(losses) if said is None else said)


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


def summary(results: list[dict[str, Any]]) -> str:
    """The shares the suite is held to, in Markdown."""
    faults, healthy = ([r for r in results if r["kind"] == kind] for kind in ("fault", "healthy"))
    shown = [r["early"] for r in faults if r["early"] is not None]
    rows = (
        ("faults found", sum(map(is_found, faults)), len(faults), "at least 95 %"),
        ("healthy runs with a warning", sum(map(is_false_alarm, healthy)), len(healthy), "at most 5 %"),
        ("divergences named before the loss had doubled", sum(early > 0 for early in shown), len(shown), "half"),
    )
    lines = [f"| {what} | {some} of {all_} | {some / max(all_, 1):.1%} | {limit} |" for what, some, all_, limit in rows]
    return "\n".join(["| | | | asked |", "|---|---|---|---|", *lines])


def made(missing: list[tuple[str, str, str, int]], processes: int) -> Iterator[dict[str, Any]]:
    """The results of these cases, in order; several processes work with one thread each."""
    if processes == 1:
        yield from (result(*case) for case in missing)
        return
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(_result, missing)


def _result(case: tuple[str, str, str, int]) -> dict[str, Any]:
    return result(*case)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=tuple(SEEDS), default="small")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--processes", type=int, default=2, help="at once")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.preset}.json"
    results = json.loads(path.read_text()) if path.is_file() else []
    done = {(r["kind"], r["name"], r["architecture"], r["seed"]) for r in results}
    missing = [case for case in cases(options.preset) if case not in done]
    for found in made(missing, options.processes):
        results.append(found)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(*list(found.values())[:4], found["findings"], f"{found['seconds']} s", flush=True)
    parts = {"": results}
    if options.preset == "full":
        held_out = [r for r in results if r["seed"] not in CALIBRATION]
        set_on = [r for r in results if r["seed"] in CALIBRATION]
        parts = {"### Seeds thresholds were not set on": held_out, "### Seeds they were set on": set_on}
    text = "\n\n".join(f"{title}\n\n{summary(part)}\n\n{table(part)}".strip() for title, part in parts.items())
    minutes = sum(r["seconds"] for r in results) / 60 / options.processes
    text += f"\n\n{len(results)} runs, about {minutes:.0f} minutes in {options.processes} processes."
    print(text)
    if options.preset == "full" and options.out == RESULTS:
        page = HERE / "README.md"
        before, _, rest = page.read_text().partition(MARK)
        page.write_text(f"{before}{MARK}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
