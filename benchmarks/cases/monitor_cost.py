"""What watching costs: three kinds of training with `pb.Monitor` and without, and that of `pullback demo`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
import models
import targets as to_reach
import torch
from torch import Tensor, nn

TITLE = (
    "Training with Adam, watched by `pb.Monitor` (every 50 steps, 256 samples) or not. Demo: `pullback demo` (digits, "
    "MLP 64-128x5-10, batch 512, 3,000 steps, a test pass each epoch) at the defaults. MLP 3072-128x5-10, batch 512, "
    "conv net 3-32-32-32, batch 32; GPT (vocabulary 256, 32 tokens, width 64, 4 heads, 2 blocks), batch 32: 3,000 "
    "steps each, presets light and standard"
)
REPEATS = 5
EPOCHS = 1000
WHOLE_PROCESS = True  # peak memory is that of the process: what is added to it is what a user sees


@dataclass(frozen=True)
class Training:
    """A loop on one batch, which costs what any loop costs without its data."""

    steps: int
    make: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]


def images(count: int, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *shape), torch.arange(count) % 10


def tokens(count: int, length: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(256, (count, length + 1))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


TRAININGS = {
    "MLP": Training(3000, lambda: models.mlp()[0], lambda: images(512, 3072)),
    "conv net": Training(3000, lambda: models.conv_net()[0], lambda: images(32, 3, 32, 32)),
    "transformer": Training(
        3000,
        lambda: models.ClassesSecond(models.GPT(256, 32, 64, 4, 2, explicit=False)),
        lambda: tokens(32, 32),
    ),
}


def build(scale: float) -> float:
    return scale


def watched(name: str, probes: str | None) -> Callable[[float], methods.Call]:
    def prepare(scale: float) -> methods.Call:
        import pullback as pb

        training, loss_fn = TRAININGS[name], nn.CrossEntropyLoss()
        steps = max(1, round(scale * training.steps))

        def call() -> None:
            torch.manual_seed(0)
            model, (x, y) = training.make(), training.data()
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
            with tempfile.TemporaryDirectory() as folder:
                options: dict[str, Any] = {"optimizer": optimizer, "probes": probes}
                monitor = pb.Monitor(model, loss_fn, Path(folder) / "run", **options) if probes else None
                for _ in range(steps):
                    optimizer.zero_grad()
                    loss = loss_fn(model(x), y)
                    loss.backward()
                    optimizer.step()
                    if monitor is not None:
                        monitor.step(x, y, loss=loss)
                if monitor is not None:
                    monitor.close()

        return call

    return prepare


def demo(*, watch: bool) -> Callable[[float], methods.Call]:
    def prepare(scale: float) -> methods.Call:
        import pullback as pb
        from pullback.cli.training import make_optimizer, train
        from pullback.functional import load_digits
        from pullback.modules import MLP

        data, loss_fn = load_digits(), torch.nn.CrossEntropyLoss()

        def call() -> None:
            torch.manual_seed(0)
            model = MLP([64, *[128] * 5, 10])
            optimizer = make_optimizer("adam", model, 1e-3)
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                monitor = pb.Monitor(model, loss_fn, run, optimizer=optimizer) if watch else None
                train(
                    model,
                    loss_fn,
                    data,
                    optimizer,
                    epochs=max(1, round(scale * EPOCHS)),
                    batch_size=512,
                    seed=0,
                    monitor=monitor,
                    after_epoch=lambda epoch, loss: None,
                )
                if monitor is not None:
                    monitor.close()

        return call

    return prepare


PRESETS = {"light": 0.01, "standard": 0.05}  # the share of the time that each may cost
METHODS: dict[str, Callable[[float], methods.Call]] = {
    "training": demo(watch=False),
    "training, watched": demo(watch=True),
    **{
        f"{name}, {preset}" if preset else name: watched(name, preset)
        for name in TRAININGS
        for preset in (None, *PRESETS)
    },
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    verdicts = [to_reach.share(rows, "training, watched", "training", 0.05)]
    for name in TRAININGS:
        for preset, limit in PRESETS.items():
            verdicts.append(to_reach.share(rows, f"{name}, {preset}", name, limit))
            verdicts.append(to_reach.heavier(rows, f"{name}, {preset}", name, 1.2))
    return verdicts
