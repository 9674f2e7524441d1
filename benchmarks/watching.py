"""What watching costs: four kinds of training with ``pb.Monitor`` and without, side by side in one process.

Usage: .bench/bin/python benchmarks/watching.py [--steps 3000] [--render]

Stretches of the unwatched training and of two watched ones take turns (A B C A B C), so that a machine that grows
slower does so for all. What watching costs is the share of the training's passes, which is the same on every machine;
beside it stand the wall time and the monitor's own clock, ``Monitor.seconds``, over the rest of its loop. The peak of
memory is that of a process of its own for each, which makes as many steps as three measurements need. Writes
``results/watching.json`` and the table of README.md.
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

import environment
import measuring
import models
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.functional import load_digits
from pullback.modules import MLP

HERE = Path(__file__).parent
RESULT = HERE / "results" / "watching.json"
PRESETS = {"light": 0.05, "standard": 0.05}  # the share of the training's passes that each may cost
MEMORY = 1.2  # times the unwatched peak
STRETCHES = 20
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
        self.seconds = 0.0
        start = time.perf_counter()
        self.monitor = pb.Monitor(self.model, self.loss_fn, folder, **options) if probes else None
        self.seconds += time.perf_counter() - start

    def make(self, steps: int) -> None:
        start = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss_fn(self.model(self.x), self.y)
            loss.backward()
            self.optimizer.step()
            if self.monitor is not None:
                self.monitor.step(self.x, self.y, loss=loss)
        self.seconds += time.perf_counter() - start


def side_by_side(training: Training, steps: int, folder: Path) -> dict[str, Any]:
    """Seconds of each, and the share of the monitors' own clocks."""
    warm = Loop(training, None, folder / "warm")
    warm.make(20)
    loops: dict[str | None, Loop] = {
        probes: Loop(training, probes, folder / str(probes)) for probes in (None, *PRESETS)
    }
    before = measuring.clocks()
    for _ in range(STRETCHES):
        for loop in loops.values():
            loop.make(steps // STRETCHES)
    found: dict[str, Any] = {"others": measuring.share_of_others(before), "seconds": loops[None].seconds}
    for probes in PRESETS:
        loop = loops[probes]
        assert loop.monitor is not None
        loop.monitor.close()
        (schedule,) = pb.load_run(folder / probes).of("schedule")
        found[probes] = {
            "work": schedule.values["work"] / schedule.values["training_work"],
            "left_out": schedule.values["left_out"],
            "seconds": loop.seconds,
            "own": loop.monitor.seconds / (loop.seconds - loop.monitor.seconds),
            "measurements": loop.monitor.num_measurements,
        }
    return found


def peak(name: str, probes: str | None) -> int:
    """Peak of a process that trains, in bytes."""
    command = [sys.executable, __file__, "--child", name, probes or ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def child(name: str, probes: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Loop(TRAININGS[name], probes or None, Path(folder) / "run").make(FEW_STEPS)
    print(measuring.resident("VmHWM"))


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = ["| training | preset | unwatched, s | watched, s | side by side | own clock | passes | measured |"]
    lines[0] += " peak, MB | over unwatched |"
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- |")
    for name, row in result["rows"].items():
        for probes, limit in PRESETS.items():
            each = row[probes]
            wall, memory = each["seconds"] / row["seconds"] - 1, each["peak_bytes"] / row["peak_bytes"]
            share = each["work"]
            cost = f"{share:.2%} of {limit:.0%}: {'met' if share <= limit else '**not met**'}"
            held = f"{memory:.2f}: {'met' if memory <= MEMORY else '**not met**'}"
            cells = [name, probes, f"{row['seconds']:.1f}", f"{each['seconds']:.1f}", f"{wall:+.1%}"]
            cells += [f"{each['own']:.2%}", cost, f"{each['measurements']}", f"{each['peak_bytes'] / 1e6:.0f}", held]
            lines.append("| " + " | ".join(cells) + " |")
    facts = result["environment"]
    notes = [
        f"{result['steps']} steps of Adam on one batch each; whether a cost is met is told by the passes counted.",
        f"Measured {facts['date']} at commit {facts['commit']} on {facts['cpu']}, {facts['cores']} cores, "
        f"{facts['threads']} threads; load before: {facts['load_before']}; torch {facts['packages']['torch']}.",
    ]
    if (others := max(row["others"] for row in result["rows"].values())) > environment.BUSY:
        notes.append(f"Disturbed: other work took up to {others:.0%} of the machine.")
    return "\n".join([*lines, "", "\n".join(notes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--render", action="store_true", help="only write the table")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if not options.render:
        described, rows = environment.describe(torch.get_num_threads()), {}
        for name, training in TRAININGS.items():
            with tempfile.TemporaryDirectory() as folder:
                rows[name] = side_by_side(training, options.steps, Path(folder))
            rows[name]["peak_bytes"] = peak(name, None)
            for probes in PRESETS:
                rows[name][probes]["peak_bytes"] = peak(name, probes)
            print(name, json.dumps(rows[name]), flush=True)
        found = {"environment": described, "steps": options.steps, "rows": rows}
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    text = table(json.loads(RESULT.read_text()))
    page = HERE / "README.md"
    whole = page.read_text(encoding="utf-8")
    start = whole.index("<!-- table:watching -->") + len("<!-- table:watching -->")
    page.write_text(whole[:start] + f"\n{text}\n" + whole[whole.index("<!-- /table -->", start) :], encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
