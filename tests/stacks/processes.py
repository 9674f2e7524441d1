"""Two processes that talk over gloo on this machine, each running functions of ``workers``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
PATIENCE = timedelta(minutes=10)  # a collective that only one process calls fails then instead of waiting for ever


def assert_in_two_processes(works: Sequence[Callable[[int], None]], folder: Path, method: str = "spawn") -> None:
    """Run ``work(rank)``, one after the other, in every process; an assertion that fails in one fails the test.

    Args:
        works: what is run.
        folder: where the processes meet.
        method: "fork" starts them in no time: for short work on one thread each.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        mp.start_processes(_run, (works, str(folder / "meeting")), nprocs=WORLD, start_method=method)  # type: ignore[attr-defined,no-untyped-call]


def _run(rank: int, works: Sequence[Callable[[int], None]], meeting: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD, timeout=PATIENCE)
    try:
        for work in works:
            work(rank)
            dist.barrier()  # nobody leaves while another still needs the connection
    finally:
        dist.destroy_process_group()
