"""Holds the predictions of ``plan_kernel`` to measured runs: one worker and two, one thread each.

The MLP of ``models``. Every run is in child processes of its own. A child measures its rates right before and right
after the run, all workers at the same time, for the machine may be slower when all of it works; the prediction is
made from the mean of both. Start-up is not timed: a small store is written first. Writes
``results/scale_check.json`` and the table between the marks of ``docs/scale.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.harness import environment, measuring
from benchmarks.harness.environment import RESULTS, ROOT
from benchmarks.harness.render import MARKED
from benchmarks.methods import models
from pullback.kernels.backward import backward_kernel
from pullback.kernels.plan.rates import Rates
from pullback.kernels.plan_kernel import plan_kernel
from pullback.kernels.plan_store import plan_store

PAGE = ROOT / "docs" / "scale.md"
LOSS = nn.CrossEntropyLoss(reduction="sum")
RUNS = (("memory", 1), ("store", 1), ("store", 2))
SIZES = (4000, 8000)
WITHIN = 0.25  # what a prediction of time may be off by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all runs; the median one is reported")
    parser.add_argument("--folder", type=Path, help="where stores are written; a temporary folder by default")
    parser.add_argument("--render", action="store_true", help="only write the table")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "RANK", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        method, rank, workers = options.child
        child(method, int(rank), int(workers), options.samples[0], options.folder)
        return
    path = RESULTS / "scale_check.json"
    if not options.render:
        described = environment.describe(1)
        rounds = [
            [run(method, workers, count, options.folder) for method, workers in RUNS for count in options.samples]
            for _ in range(options.repeats)
        ]
        rows = [median(list(each)) for each in zip(*rounds, strict=True)]
        path.write_text(json.dumps({"environment": described, "within": WITHIN, "rows": rows}, indent=1) + "\n")
    text = table(json.loads(path.read_text()))
    fill(PAGE, "scale_check", text)
    print(text)


def run(method: str, workers: int, count: int, folder: Path | None) -> dict[str, Any]:
    """One run in ``workers`` processes: what was predicted and what was measured."""
    settings = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        script = [sys.executable, "-m", "benchmarks.studies.scale.check"]
        command = [*script, "--samples", str(count), "--folder", place, "--child", method]
        errors = [(Path(place) / f"errors-{rank}").open("w+") for rank in range(workers)]
        children = [
            subprocess.Popen([*command, str(rank), str(workers)], env=settings, stderr=errors[rank])
            for rank in range(workers)
        ]
        codes = [each.wait() for each in children]
        for code, error in zip(codes, errors, strict=True):
            error.seek(0)
            if code:
                sys.exit(f"a worker ended with {code}\n{error.read()[-4000:]}")
            error.close()
        found = [json.loads((Path(place) / f"report-{rank}.json").read_text()) for rank in range(workers)]
    row: dict[str, Any] = max(found, key=lambda report: report["seconds"])
    row |= {"method": method, "workers": workers, "samples": count}
    row["others"] = max(0.0, row["others"] - sum(r["busy"] for r in found if r is not row))
    print(f"{method} {workers} {count}: {row['predicted']['seconds']:.3g} s predicted, {row['seconds']:.3g} s measured")
    return row


def child(method: str, rank: int, workers: int, count: int, folder: Path) -> None:
    """Measure one worker; writes ``report-<rank>.json``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, _ = models.mlp()
    x, y = torch.randn(count, models.MLP_WIDTHS[0]), torch.randint(10, (count,))
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    call(method, model, x[:64], y[:64], folder / "warm-up", 16)
    gc.collect()
    before = rates_of(folder, workers)
    level = measuring.resident("VmRSS")
    measuring.reset_peak()
    meet(workers)
    clocks = measuring.clocks()
    start = time.perf_counter()
    store = call(method, model, x, y, folder / "store", None)
    seconds = time.perf_counter() - start
    others = measuring.share_of_others(clocks)
    busy = (measuring.clocks()[1] - clocks[1]) / seconds / (os.cpu_count() or 1)
    peak = measuring.resident("VmHWM") - level
    meet(workers)
    rates = mean_rates([*before, *rates_of(folder, workers)])
    report = {"seconds": seconds, "peak_bytes": peak, "others": others, "busy": busy, "rates": asdict(rates)}
    report["predicted"] = predicted(method, model, x, y, count, workers, rates)
    if method == "store" and rank == 0:
        lines = "".join(ledger.read_text() for ledger in (folder / "store").glob("ledger-*")).splitlines()
        entries = [json.loads(line) for line in lines]
        report["disk_bytes"] = sum(f.stat().st_size for f in (folder / "store").rglob("*") if "c" in f.parts)
        report["disk_bytes"] += sum(entry["bytes"] for entry in entries if "block" in entry)
    (folder / f"report-{rank}.json").write_text(json.dumps(report))
    del store
    if workers > 1:
        dist.destroy_process_group()


def call(method: str, model: nn.Module, x: Tensor, y: Tensor, path: Path, tile: int | None) -> Any:
    """The timed call."""
    if method == "memory":
        return backward_kernel(model, LOSS, x, y)
    from pullback.kernels.store.kernel_to_store import kernel_to_store

    return kernel_to_store(model, LOSS, (x, y), path, tile=tile, progress=False)


def predicted(
    method: str, model: nn.Module, x: Tensor, y: Tensor, count: int, workers: int, rates: Rates
) -> dict[str, Any]:
    """From two samples and rates. In memory it is a run with one tile and nothing to move."""
    options: dict[str, Any] = {"num_samples": count, "workers": workers, "rates": rates}
    if method == "memory":
        options |= {"tile": count, "rates": replace(rates, wire=1e18)}
    few = x[:2].clone(), y[:2]
    plan = plan_store(model, LOSS, *few, **options)
    numbers = asdict(plan) | {"seconds": plan.seconds, "flops": plan.flops}
    if method == "memory":
        numbers["peak_bytes"] = plan_kernel(model, LOSS, *few, num_samples=count, rates=rates).peak_bytes
    return numbers


def rates_of(folder: Path, workers: int) -> list[Rates]:
    """Rates measured twice, while the other workers measure theirs."""
    meet(workers)
    return [Rates.measure(folder) for _ in range(2)]


def mean_rates(found: list[Rates]) -> Rates:
    """Rates whose times are the means of the times."""
    return Rates(**{f.name: statistics.harmonic_mean([getattr(r, f.name) for r in found]) for f in fields(Rates)})


def meet(workers: int) -> None:
    """Until all workers are here."""
    if workers > 1:
        dist.barrier()


def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round with the median ratio of measured to predicted time, and all ratios."""
    ordered = sorted(rounds, key=lambda row: row["seconds"] / row["predicted"]["seconds"])
    ratios = [row["seconds"] / row["predicted"]["seconds"] for row in ordered]
    return ordered[(len(ordered) - 1) // 2] | {"ratios": ratios}


def table(result: dict[str, Any]) -> str:
    """Predicted and measured, in Markdown."""
    head = ["run", "N", "workers", "GFLOP", "s predicted", "s measured", "measured / predicted, all rounds"]
    head += ["on disk, MB predicted", "measured", "peak, MB predicted", "measured"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" + " ---: |" * (len(head) - 1)]
    for row in result["rows"]:
        plan, stored = row["predicted"], row.get("disk_bytes")
        cells = ["`kernel_to_store`" if row["method"] == "store" else "`backward_kernel`", str(row["samples"])]
        cells += [str(row["workers"]), f"{plan['flops'] / 1e9:.0f}", f"{plan['seconds']:.2f}", f"{row['seconds']:.2f}"]
        cells.append(", ".join(f"{ratio:.2f}" for ratio in row["ratios"]))
        cells += ["", ""] if stored is None else [f"{plan['disk_bytes'] / 1e6:.0f}", f"{stored / 1e6:.0f}"]
        cells += [f"{plan['peak_bytes'] / 1e6:.0f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    middle = [row["seconds"] / row["predicted"]["seconds"] for row in result["rows"]]
    off = max(abs(ratio - 1) for ratio in middle)
    verdict = "met" if off <= result["within"] else "**not met**"
    notes = [f"Times within {result['within']:.0%} of the prediction: {verdict}, the farthest is off by {off:.0%}."]
    if (others := max(row["others"] for row in result["rows"])) > environment.BUSY:
        notes.append(f"Disturbed: other work took up to {others:.0%} of the machine.")
    facts = result["environment"]
    notes.append(
        f"Measured {facts['date']} at commit {facts['commit']} on {facts['cpu']}, {facts['cores']} cores, one thread a "
        f"worker; load before: {facts['load_before']}; torch {facts['packages']['torch']}."
    )
    return "\n".join([*lines, "", *notes])


def fill(page: Path, name: str, text: str) -> None:
    """Write ``text`` between the marks of table ``name``."""
    old = page.read_text()
    page.write_text(MARKED.sub(lambda m: f"{m[1]}{text}\n{m[3]}" if m[2] == name else m[0], old))


if __name__ == "__main__":
    main()
