"""What watching costs: the training of `pullback demo`, with `pb.Monitor` at its defaults and without."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import methods
import targets as to_reach
import torch

TITLE = (
    "Training of `pullback demo` (digits, MLP 64-128x5-10, Adam, batch 512, 3,000 steps, a test pass each epoch), "
    "watched by `pb.Monitor` at its defaults (every 50 steps, 256 samples) or not"
)
REPEATS = 5
EPOCHS = 1000


def build(scale: float) -> int:
    return max(1, round(EPOCHS * scale))


def training(*, watched: bool) -> Callable[[int], methods.Call]:
    def prepare(epochs: int) -> methods.Call:
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
                monitor = pb.Monitor(model, loss_fn, run, optimizer=optimizer) if watched else None
                train(
                    model,
                    loss_fn,
                    data,
                    optimizer,
                    epochs=epochs,
                    batch_size=512,
                    seed=0,
                    monitor=monitor,
                    after_epoch=lambda epoch, loss: None,
                )
                if monitor is not None:
                    monitor.close()

        return call

    return prepare


METHODS: dict[str, Callable[[int], methods.Call]] = {
    "training": training(watched=False),
    "training, watched": training(watched=True),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [to_reach.share(rows, "training, watched", "training", 0.05)]
