"""A training that goes on until it is killed, watched: ``python -m tests.report.live_training FOLDER [STEPS_MADE]``."""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

import pullback as pb

PAUSE = 0.02  # seconds between steps: a page is made beside it


def main(folder: str, made: int | None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pb.Monitor(
        model, loss_fn, folder, optimizer=optimizer, every=10, probes=["loss", "gradients"], budget=None, resume=made
    ) as monitor:
        while True:
            x = torch.randn(16, 6)
            loss = loss_fn(model(x), x[:, :3].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(x, x[:, :3].argmax(1), loss=loss)
            time.sleep(PAUSE)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
