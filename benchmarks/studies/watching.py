"""What watching costs: four kinds of training with ``pb.Monitor`` and without.

Usage: .bench/bin/python -m benchmarks.studies.watching [--steps 500] [--only NAME ...] [--time NAME ...] [--memory]
       [--render]

Work is counted, in passes of samples, and is the same on every machine: it follows from samples and steps, not from
what the weights are, so that the monitor is stepped and nothing trained. With ``--time`` stretches of the unwatched
training and of two watched ones take turns within one process (A B C A B C), so that a machine that grows slower does
so for all; processor time is what a busy machine disturbs least. With ``--memory`` the peak is that of a process of its
own for each, which makes as many steps as three measurements need. Writes ``results/watching.json`` and the table of
README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pullback as pb
from benchmarks.harness import environment, measuring
from benchmarks.methods import models
from pullback.functional import load_digits
from pullback.modules import MLP

RESULT = environment.RESULTS / "watching.json"
PRESETS = {"light": 0.05, "standard": 0.05}  # the share of the training's passes that each may cost
MEMORY = 1.2  # times the unwatched peak
STRETCHES = 20
COUNTED = (500, 3000)  # steps whose work is counted
FEW_STEPS = 160  # for the peak of memory: the first, dear measurement and two more


@dataclass(frozen=True)
class Training:
    """A loop on one batch, which costs what any loop costs without its data."""

    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]


def images(count: int, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *shape), torch.arange(count) % 10


def tokens(count: int, length: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(256, (count, length + 1))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def digits(count: int) -> tuple[Tensor, Tensor]:
    data = load_digits()
    return data.x_train[:count], data.y_train[:count]


def language_model(length: int, width: int, blocks: int) -> nn.Module:
    return models.ClassesSecond(models.GPT(256, length, width, 4, blocks, explicit=False))


TRAININGS = {
    "MLP 3072-128x5-10, batch 512": Training(lambda: models.mlp()[0], lambda: images(512, 3072)),
    "conv net 3-32-32-32, batch 32": Training(lambda: models.conv_net()[0], lambda: images(32, 3, 32, 32)),
    "transformer, 2 blocks, 64 wide, 32 tokens, batch 32": Training(
        lambda: language_model(32, 64, 2), lambda: tokens(32, 32)
    ),
    "network of `pullback demo`, batch 512": Training(lambda: MLP([64, *[128] * 5, 10]), lambda: digits(512)),
}


class Loop:
    """One training, watched or not, that can be made in stretches."""

    def __init__(self, training: Training, probes: str | None, folder: Path) -> None:
        torch.manual_seed(0)
        self.model, (self.x, self.y) = training.model(), training.data()
        self.loss_fn = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        options: dict[str, Any] = {"optimizer": self.optimizer, "probes": probes}
        self.seconds = self.processor = 0.0
        start = time.perf_counter(), time.process_time()
        self.monitor = pb.Monitor(self.model, self.loss_fn, folder, **options) if probes else None
        self._took(start)

    def _took(self, start: tuple[float, float]) -> None:
        self.seconds += time.perf_counter() - start[0]
        self.processor += time.process_time() - start[1]

    def make(self, steps: int) -> None:
        start = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss_fn(self.model(self.x), self.y)
            loss.backward()
            self.optimizer.step()
            if self.monitor is not None:
                self.monitor.step(self.x, self.y, loss=loss)
        self._took(start)


def counted(training: Training, probes: str, steps: int, folder: Path) -> dict[str, Any]:
    """The share of the training's passes, and what was left out for it."""
    loop = Loop(training, probes, folder)
    assert loop.monitor is not None
    for _ in range(steps):
        loop.monitor.step(loop.x, loop.y, loss=1.0)
    loop.monitor.close()
    (schedule,) = pb.load_run(folder).of("schedule")
    return {
        "work": schedule.values["work"] / schedule.values["training_work"],
        "left_out": schedule.values["left_out"],
        "measurements": loop.monitor.num_measurements,
    }


def side_by_side(training: Training, steps: int, folder: Path) -> dict[str, Any]:
    """Seconds of each, and the share of the monitors' own clocks."""
    for probes in (None, *PRESETS):  # what a process does once (loading modules, torch's own tables) is told apart
        warm = Loop(training, probes, folder / f"warm-{probes}")
        warm.make(20)
        if warm.monitor is not None:
            warm.monitor.close()
    loops: dict[str | None, Loop] = {
        probes: Loop(training, probes, folder / str(probes)) for probes in (None, *PRESETS)
    }
    before = measuring.clocks()
    for _ in range(STRETCHES):
        for loop in loops.values():
            loop.make(steps // STRETCHES)
    plain = loops[None]
    found: dict[str, Any] = {
        "others": measuring.share_of_others(before), "seconds": plain.seconds, "processor": plain.processor,
    }  # fmt: skip
    for probes in PRESETS:
        loop = loops[probes]
        assert loop.monitor is not None
        loop.monitor.close()
        own = loop.monitor.seconds / (loop.seconds - loop.monitor.seconds)
        found[probes] = {"seconds": loop.seconds, "processor": loop.processor, "own": own}
    return found


def loading() -> float:
    """Processor seconds that a process takes once, for the modules of a monitor."""
    start = time.process_time()
    pb.Monitor  # noqa: B018
    return time.process_time() - start


def peak(name: str, probes: str | None) -> int:
    """Peak of a process that trains, in bytes."""
    command = [sys.executable, "-m", "benchmarks.studies.watching", "--child", name, probes or ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=environment.ROOT)
    return int(done.stdout.splitlines()[-1])


def child(name: str, probes: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Loop(TRAININGS[name], probes or None, Path(folder) / "run").make(FEW_STEPS)
    print(measuring.resident("VmHWM"))


def table(result: dict[str, Any]) -> str:
    """In Markdown; a dash where a result has none."""
    lines = ["| training | preset | passes, " + " | passes, ".join(f"{n:,} steps" for n in COUNTED)]
    lines[0] += " | measured | left out | processor time | side by side | own clock | peak over unwatched |"
    lines.append("| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for name, row in result["rows"].items():
        for probes, limit in PRESETS.items():
            each = row.get(probes, {})
            of = [each.get("counted", {}).get(str(steps)) for steps in COUNTED]
            cells = [name, probes, *(_share(one, limit) for one in of)]
            cells += ["–", "–"] if of[-1] is None else [f"{of[-1]['measurements']}", f"{of[-1]['left_out']}"]
            for kind in ("processor", "seconds"):
                timed = kind in each and kind in row
                cells.append(f"{each[kind] / row[kind] - 1:+.1%}" if timed else "–")
            cells.append(f"{each['own']:.2%}" if "own" in each else "–")
            memory = each["peak_bytes"] / row["peak_bytes"] if "peak_bytes" in each else None
            held = "–" if memory is None else f"{memory:.2f}: {'met' if memory <= MEMORY else '**not met**'}"
            lines.append("| " + " | ".join([*cells, held]) + " |")
    facts = result["environment"]
    notes = [
        f"Passes are counted, over steps of one batch; measured and left out are of {COUNTED[-1]:,} steps. Where "
        f"there is a time it is of {result['steps']} steps of Adam, the making of the monitor included; the "
        f"{facts['loading']:.1f} s of processor time in which a process loads its modules, once, are not in it.",
        f"Measured {facts['date']} at commit {facts['commit']} on {facts['cpu']}, {facts['cores']} cores, "
        f"{facts['threads']} threads; load before: {facts['load_before']}; torch {facts['packages']['torch']}.",
    ]
    if (others := max(row.get("others", 0.0) for row in result["rows"].values())) > environment.BUSY:
        notes.append(f"Disturbed: other work took up to {others:.0%} of the machine.")
    return "\n".join([*lines, "", "\n".join(notes)])


def _share(found: dict[str, Any] | None, limit: float) -> str:
    return "–" if found is None else f"{found['work']:.2%}: {'met' if found['work'] <= limit else '**not met**'}"


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    training = TRAININGS[name]
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        timed = side_by_side(training, options.steps, folder) if name in options.time else {p: {} for p in PRESETS}
        row |= timed
        for probes in PRESETS:
            row[probes]["counted"] = {
                str(steps): counted(training, probes, steps, folder / f"{probes}-{steps}") for steps in COUNTED
            }
    if options.memory:
        row["peak_bytes"] = peak(name, None)
        for probes in PRESETS:
            row[probes]["peak_bytes"] = peak(name, probes)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500, help="that are timed")
    parser.add_argument("--time", nargs="*", default=list(TRAININGS), help="names of trainings to time; none for none")
    parser.add_argument("--only", nargs="*", default=[], help="names of trainings; without it all")
    parser.add_argument("--memory", action="store_true", help="also the peaks of memory")
    parser.add_argument("--render", action="store_true", help="only write the table")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if not options.render:
        described, rows = environment.describe(torch.get_num_threads()) | {"loading": loading()}, {}
        if options.only:  # the others as they were
            rows |= json.loads(RESULT.read_text())["rows"]
        for name in options.only or TRAININGS:
            rows[name] = measured(name, options)
            print(name, json.dumps(rows[name]), flush=True)
            found = {"environment": described, "steps": options.steps, "rows": rows}
            RESULT.write_text(json.dumps(found, indent=1) + "\n")
    text = table(json.loads(RESULT.read_text()))
    page = environment.README
    whole = page.read_text(encoding="utf-8")
    start = whole.index("<!-- table:watching -->") + len("<!-- table:watching -->")
    page.write_text(whole[:start] + f"\n{text}\n" + whole[whole.index("<!-- /table -->", start) :], encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
