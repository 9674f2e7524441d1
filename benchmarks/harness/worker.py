"""Makes a backward kernel on disk in a process of its own, alone or under torchrun; writes one JSON per process.

The model is the MLP of ``models``, the data random. Everything is imported, the data is made and a small store is
written first, so that start-up is not timed. The result is then held to the ordinary gradient: for signs u and v,
u^T K v is the inner product of the gradients of sum_i u_i loss_i and sum_i v_i loss_i.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import zarr  # noqa: F401 - part of the level of memory after imports
from torch import Tensor, nn

from benchmarks.harness import measuring
from benchmarks.methods import models
from benchmarks.methods.checks import signs
from pullback import kernel_to_store

if TYPE_CHECKING:
    from pullback.kernels.store.kernel_to_store import KernelStore

STRIP = 1000  # samples at a time, in the checks
TOLERANCE = 1e-3  # of the Frobenius norm, as in ``run.py``
LOSS = nn.CrossEntropyLoss(reduction="sum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory-limit", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    imported = measuring.resident("VmRSS")
    torch.manual_seed(0)
    model, _ = models.mlp()
    x, y = torch.randn(options.samples, models.MLP_WIDTHS[0]), torch.randint(10, (options.samples,))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if several else 0
    built = measuring.resident("VmRSS")

    def make(name: str, count: int, tile: int | None = None) -> KernelStore:
        data, path = (x[:count], y[:count]), options.folder / name
        return kernel_to_store(model, LOSS, data, path, tile=tile, memory_limit=options.memory_limit, progress=False)

    make("warm-up", 64, tile=16)  # several tiles: some for every worker
    gc.collect()
    measuring.reset_peak()
    if several:
        dist.barrier()
    start = time.perf_counter()
    store = make("store", options.samples)
    if several:
        dist.barrier()
    seconds = time.perf_counter() - start
    peak = measuring.resident("VmHWM")
    report = {"seconds": seconds, "process": peak, "above_imports": peak - imported, "above_data": peak - built}
    if rank == 0:
        report["checks"] = {"total": check(model, x, y, store)}
    (options.folder / f"report-{rank}.json").write_text(json.dumps(report))
    if several:
        dist.destroy_process_group()


def check(model: nn.Module, x: Tensor, y: Tensor, store: KernelStore) -> list[float]:
    """The two numbers of ``checks.numbers``; ends the process if the store is not the kernel."""
    u, v = signs(len(x))
    squares, probe = 0.0, 0.0
    for start in range(0, len(x), STRIP):
        rows = store.rows(slice(start, start + STRIP)).double()
        squares += float(rows.square().sum())
        probe += float(u[start : start + STRIP] @ rows @ v)
    norm = squares**0.5
    expected = float(weighted_gradient(model, x, y, u) @ weighted_gradient(model, x, y, v))
    error = abs(probe - expected) / norm
    if not error <= TOLERANCE:
        sys.exit(f"the store and the ordinary gradients disagree by {error:.2e}")
    return [norm, probe]


def weighted_gradient(model: nn.Module, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Of sum_i w_i loss_i, all parameters in one row, in float64."""
    parameters = list(model.parameters())
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for start in range(0, len(x), STRIP):
        part = slice(start, start + STRIP)
        losses = nn.functional.cross_entropy(model(x[part]), y[part], reduction="none")
        gradients = torch.autograd.grad(losses @ weights[part].float(), parameters)
        total += torch.cat([g.flatten() for g in gradients])
    return total


if __name__ == "__main__":
    main()
