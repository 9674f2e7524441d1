"""Runs one kernel under a memory limit in a process of its own; prints the plan's peak and the measured one."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import pullback as pb


def status(field: str) -> int:
    """Bytes of ``VmRSS`` or ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


class Language(nn.Module):
    """Token by token, with outputs that weigh more than what is captured."""

    def __init__(self) -> None:
        super().__init__()
        layer = lambda: nn.TransformerEncoderLayer(128, 4, 512, 0.0, batch_first=True, norm_first=True)
        self.embedding, self.head = nn.Embedding(500, 128), nn.Linear(128, 500)
        self.blocks = nn.Sequential(layer(), layer())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(x))).transpose(1, 2)


def problem(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    if name == "language":
        return Language(), torch.randint(500, (128, 64)), torch.randint(500, (128, 64))
    if name == "wide":  # one gradient is as large as what is captured
        layers = [layer for _ in range(3) for layer in (nn.Linear(2048, 2048), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(2048, 10)), torch.randn(2000, 2048), torch.arange(2000) % 10
    if name == "mlp":
        layers = [layer for _ in range(5) for layer in (nn.Linear(256, 256), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(3000, 256), torch.arange(3000) % 10
    layers = [layer for c in (3, 32) for layer in (nn.Conv2d(c, 32, 3), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(28 * 28 * 32, 10))
    return net, torch.randn(256, 3, 32, 32), torch.arange(256) % 10


def store(limit: int = 210_000_000) -> dict[str, int]:
    """A kernel of 3000 samples on disk, where its tiles do not all fit."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)]
    model, loss_fn = nn.Sequential(*layers), nn.CrossEntropyLoss()
    data = torch.randn(3000, 300), torch.randint(3, (3000,))
    with tempfile.TemporaryDirectory() as folder:
        few = data[0][:100], data[1][:100]
        pb.kernel_to_store(model, loss_fn, few, folder + "/first", tile=50, progress=False)  # libraries loaded
        gc.collect()
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        made = pb.kernel_to_store(model, loss_fn, data, folder + "/store", memory_limit=limit, progress=False)
        peak = status("VmHWM") - before
    return {"limit": limit, "planned": made.plan.peak_bytes, "measured": peak, "tile": made.tile_size}


def main() -> None:
    name, share = sys.argv[1], float(sys.argv[2])
    if name == "store":
        print(json.dumps(store()))
        return
    torch.set_num_threads(1)  # each thread more has buffers of its own, which no plan knows
    model, x, y = problem(name)
    loss_fn = nn.CrossEntropyLoss()
    limit = int(pb.plan_kernel(model, loss_fn, x, y).peak_bytes * share)
    with contextlib.redirect_stderr(io.StringIO()):
        pb.backward_kernel(model, loss_fn, x[:8], y[:8], memory_limit=10**10)  # libraries loaded, caches filled
        gc.collect()
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        kernel = pb.backward_kernel(model, loss_fn, x, y, memory_limit=limit)
        peak = status("VmHWM") - before
    passes = len(kernel.plan.passes)
    print(json.dumps({"limit": limit, "planned": kernel.plan.peak_bytes, "measured": peak, "passes": passes}))


if __name__ == "__main__":
    main()
