"""What a long record costs: bytes on disk, seconds and memory of each thing that reads it.

    python -m benchmarks.studies.records                # 20,000 measurements, 10^6 logged numbers, 10^6 steps
    python -m benchmarks.studies.records --scale 0.1

A short real training gives one measurement of every probe of the standard preset; the record is made of it through the
product's own writer, with the numbers drawn anew at each measurement (a measurement has hardly two that are alike).
Each reader runs in a process of its own; of a page that is watched, what is told is the next one, once a record was
added, and the memory is of both. Memory is the most that process ever held, less what it held once the
package and what the reader imports were loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MEASUREMENTS, LOGGED, STEPS = 20_000, 1_000_000, 1_000_000
A_STEP = 50  # numbers logged together, at as many steps as it takes
LIMITS = {"load_run": 1.0, "diagnose": 3.0, "report": 5.0, "table": 2.0, "next page": 2.0}
MOST_MB, MOST_MEMORY = 60, 300

READERS = {
    "load_run": "pb.load_run(path)",
    "diagnose": "pb.diagnose(path)",
    "report": "pb.write_report(path, path + '/report.html', overwrite=True)",
    "table": "table = pb.load_run(path).table(); list(table.values())",
    "its cells": "sum(1 for column in pb.load_run(path).table().values() for cell in column)",
    "one column": "pb.load_run(path).table()['kernel.M1']",
    "all records": "sum(1 for _ in pb.load_run(path).records)",
    "next page": "pages.of('run').current()",
}
BEFORE = {  # of the page of a run that is watched: it is there, and a record was added
    "next page": """
import shutil
from pathlib import Path
from pullback.report.live.folders import Folders
from pullback.report.live.pages import Pages
path = shutil.copytree(path, sys.argv[3] + "/run")
pages = Pages(Folders([path]))
pages.of("run").current()
with Path(path, "records.jsonl").open("a") as file:
    file.write(json.dumps({"step": 10**9, "time": 10.0**6, "probe": "loss", "values": {"loss": 1.0}}) + "\\n")
"""
}
CHILD = """
import json, sys, time, warnings
import pullback as pb
from benchmarks.harness.measuring import resident
pb.load_run, pb.diagnose, pb.write_report
path = sys.argv[1]
pb.write_report(sys.argv[2], sys.argv[2] + "/report.html", overwrite=True)  # imports all there is to import
before = resident("VmHWM")
{before}
start, cpu = time.perf_counter(), time.process_time()
{what}
print(json.dumps([time.process_time() - cpu, time.perf_counter() - start,
                  (resident("VmHWM") - before) / 2**20]))
"""


def measured(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Values by probe of a measurement in whose turn everything is, and of one without what is sparse."""
    import torch

    import pullback as pb
    from pullback.modules import MLP

    torch.manual_seed(0)
    model, loss_fn = MLP([64, *[64] * 5, 10], "relu"), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(64, 64), torch.arange(64) % 10
    with pb.Monitor(model, loss_fn, folder, optimizer=optimizer, every=4, budget=None, max_samples=64) as monitor:
        for _ in range(16):
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(x, y, loss=loss)
    run = pb.load_run(folder)
    once = {"loss_form", "schedule", "end"}
    found = {probe: list(run.of(probe)) for probe, _ in run.metrics if probe not in once}
    first = {probe: dict(records[0].values) for probe, records in found.items()}
    return first, {probe: dict(records[-1].values) for probe, records in found.items() if len(records) > 1}


def drawn(value: Any, rng: np.random.Generator) -> Any:
    """A value with other numbers of the same size, with as many digits."""
    if isinstance(value, float) and np.isfinite(value):
        found = value * (1 + 0.05 * rng.random())
        return float(np.float32(found)) if float(np.float32(value)) == value else found
    if isinstance(value, list):
        return [drawn(each, rng) for each in value]
    return {key: drawn(each, rng) for key, each in value.items()} if isinstance(value, dict) else value


def write(path: Path, whole: dict[str, Any], probes: dict[str, Any], scale: float) -> float:
    """The record; processor seconds of the writer alone."""
    from pullback.runs import RunWriter

    rng = np.random.default_rng(0)
    every = STEPS // MEASUREMENTS
    num_steps, seconds = int(scale * STEPS), 0.0
    meta = {"model": {"class": "MLP", "num_params": 25_000}, "optimizer": {"class": "SGD", "learning_rate": 0.1}}
    meta |= {"loss": "CrossEntropyLoss", "least_loss": 0.0, "settings": {"every": every}}
    variants = [{probe: drawn(values, rng) for probe, values in probes.items()} for _ in range(64)]
    with RunWriter(path, meta) as writer:
        for step in range(1, num_steps + 1):
            loss = 2.3 * np.exp(-step / num_steps) * (1 + 0.1 * rng.random())
            logged = rng.random(A_STEP).tolist() if step % A_STEP == 0 else []
            kept = variants[step // every % len(variants)]
            if step % every == 0:
                number = step // every
                kept = whole if number & (number - 1) == 0 and (number.bit_length() - 1) % 3 == 0 else kept  # 1, 8, 64
                kept = {probe: jitter(values, 1 + 1e-3 * rng.random()) for probe, values in kept.items()}
            start = time.process_time()
            writer.course.add(step, {"loss": loss, "learning_rate": 0.1, "gradient_norm": float(np.float32(loss / 3))})
            if logged:
                writer.append(step, "loop", {f"number_{place}": value for place, value in enumerate(logged)})
            if step % every == 0:
                for probe, values in kept.items():
                    writer.append(step, probe, values)
            seconds += time.process_time() - start
        writer.append(num_steps, "end", {"steps": num_steps, "error": ""})
    return seconds


def jitter(value: Any, factor: float) -> Any:
    """As ``drawn``, without drawing a number for each."""
    if isinstance(value, float):
        found = value * factor
        return float(np.float32(found)) if float(np.float32(value)) == value else found
    if isinstance(value, list):
        return [jitter(each, factor) for each in value]
    return {key: jitter(each, factor) for key, each in value.items()} if isinstance(value, dict) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--keep", type=Path, help="folder of the record, made if it does not exist")
    asked = parser.parse_args()
    folder = asked.keep or Path(tempfile.mkdtemp())
    small, path = folder / "small", folder / "long"
    if not path.exists():
        whole, probes = measured(small)
        seconds = write(path, whole, probes, asked.scale)
        print(
            f"writing: {seconds:.1f} s of the processor; {asked.scale * MEASUREMENTS:,.0f} measurements of "
            f"{len(probes)} probes, {asked.scale * LOGGED:,.0f} logged numbers, {asked.scale * STEPS:,.0f} steps"
        )
    size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and each.suffix != ".html")
    print(f"on disk: {size / 1e6:.1f} MB (at most {MOST_MB})")
    print(f"{'':12} {'processor s':>12} {'wall s':>8} {'at most':>8} {'memory MB':>10} (at most {MOST_MEMORY})")
    for name, what in READERS.items():
        code = CHILD.replace("{what}", what).replace("{before}", BEFORE.get(name, ""))
        with tempfile.TemporaryDirectory() as free:
            command = [sys.executable, "-W", "ignore", "-c", code, str(path), str(small), free]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        cpu, wall, memory = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:12} {cpu:12.2f} {wall:8.2f} {LIMITS.get(name, float('nan')):8.1f} {memory:10.0f}")


if __name__ == "__main__":
    main()
