"""A process that fills a store and may kill itself on the way: ``python -m tests.kernels.store.child PATH [WHEN]``.

WHEN is ``event:number``; at that event the process sends itself SIGKILL:

    draft     an array file is written, but not yet renamed
    record    a file has its name, but its ledger line is not written
    torn      half of a ledger line is written
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from pullback.kernels.store.disk_format import Folder
from pullback.kernels.store.kernel_to_store import kernel_to_store
from tests.cases import CASES, build

SAMPLES, TILE = 11, 3  # 4 blocks, the last one smaller; 10 tiles


def arguments(name: str = "mlp") -> tuple[Any, Any, Any]:
    """Model, loss and data of a case."""
    model, loss_fn, x, y = build(next(case for case in CASES if case.name == name), SAMPLES)
    return model, loss_fn, (x, y)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(when: str) -> None:
    """Make the process die at an event."""
    event, _, number = when.partition(":")
    left = int(number)
    record, replace = Folder.record, Path.replace

    def counted() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def recording(self: Folder, entry: dict[str, Any]) -> None:
        if event == "record" and counted():
            die()
        if event == "torn" and counted():
            os.write(self._ledger, json.dumps(entry).encode()[:40])
            die()
        record(self, entry)

    def replacing(self: Path, target: Path) -> Path:
        if event == "draft" and self.name.startswith("worker-") and counted():
            die()
        return replace(self, target)

    Folder.record = recording  # type: ignore[method-assign]
    Path.replace = replacing  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        arm(sys.argv[2])
    kernel_to_store(*arguments(), sys.argv[1], tile=TILE, progress=False)
