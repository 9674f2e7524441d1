"""A training loop that is deterministic and can be stopped, killed and resumed; also run as a program to be killed.

Usage: loop.py FOLDER forever | torn
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pullback as pb
from pullback.modules import MLP

CE = nn.CrossEntropyLoss()
CHECKPOINT_EVERY = 4
TORN_AT_STEP = 7
PROBES = ("loss", "gradients", "kernel", "alignment", "flow", "sharpness")


class Loop:
    """A model with dropout, its optimizer, and batches that follow from the step."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model: nn.Module = MLP([6, 12, 12, 3], dropout=0.2)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.step = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.step)
        return torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator)

    def steps(self, count: int, monitor: pb.Monitor | None = None) -> Iterator[int]:
        """Train; the number of each step made."""
        for _ in range(count):
            x, y = self.batch()
            self.model.train()
            self.optimizer.zero_grad()
            loss = CE(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.step += 1
            if monitor is not None:
                monitor.step(x, y, loss=loss)
            yield self.step

    def run(self, count: int, monitor: pb.Monitor | None = None) -> Loop:
        for _ in self.steps(count, monitor):
            pass
        return self

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        draft = path.with_suffix(".part")
        torch.save(state | {"random": torch.get_rng_state()}, draft)
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Loop:
        loop, state = cls(), torch.load(path)
        loop.model.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])
        loop.step = state["step"]
        torch.set_rng_state(state["random"])
        return loop

    def state(self) -> list[Tensor]:
        """All that training goes on from."""
        moments = [t for state in self.optimizer.state.values() for t in state.values()]
        return [*self.model.state_dict().values(), *moments, torch.get_rng_state()]

    def monitor(self, folder: Path, **options: Any) -> pb.Monitor:
        settings = {"every": 1, "budget": None, "probes": PROBES} | options
        return pb.Monitor(self.model, CE, folder, optimizer=self.optimizer, **settings)


def measured(run: pb.Run) -> dict[str, list[Any]]:
    """All columns but those of the clock, and of passes: a process that goes on reads its first batch once more."""
    passes = "work.passes", "work.counts", "schedule.work"
    return {name: cells for name, cells in run.table().items() if not name.startswith(("cost.", *passes))}


def kill_within_a_line() -> None:
    """From now on: half of the next line, and then no process."""

    def half(file: int, content: bytes, write: Any = os.write) -> int:
        write(file, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    os.write = half  # type: ignore[assignment]


def main(folder: Path, ending: str) -> None:
    torch.set_num_threads(1)
    loop = Loop()
    monitor = loop.monitor(folder / "run")
    for step in loop.steps(10_000, monitor):
        if step % CHECKPOINT_EVERY == 0:
            loop.save(folder / "checkpoint.pt")
        if ending == "torn" and step == TORN_AT_STEP - 1:
            kill_within_a_line()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
