"""Sums of layers' products in squares that stay in cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from pullback.kernels.plan.forms import TILE_ROWS
from pullback.kernels.plan.kernel_plan import KernelPlan

SMALLEST_SQUARE = 128  # below, products are no longer at their rate


CACHE_BYTES = 2**24  # a processor's share of a large cache


Result = TypeVar("Result")


class Squares:
    """Threads that make squares, as many as torch uses, each computing alone; on other devices than CPUs just one."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        self._local = threading.local()
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Results in the order of the items."""
        if self._pool is None:
            return [work(item) for item in items]
        mode = torch.is_inference_mode_enabled()  # a thread begins outside, and may not write to tensors made inside

        def alike(item: Any) -> Result:
            with torch.inference_mode(mode):
                return work(item)

        return list(self._pool.map(alike, items))

    def workspace(self, like: Tensor, size: int) -> Tensor:
        """Numbers for the calling thread to work in, the same from square to square."""
        known: Tensor | None = getattr(self._local, "work", None)
        if known is None or known.numel() < size or known.dtype != like.dtype:
            known = self._local.work = like.new_empty(size)
        return known[:size]

    def __enter__(self) -> Squares:
        if self.count > 1:
            self._pool = ThreadPoolExecutor(self.count)
            together = threading.Barrier(self.count)

            def begin() -> None:
                torch.get_num_threads()  # a thread's first look takes the number that is set then
                torch.set_num_threads(1)  # of this thread, and of threads that begin later
                together.wait()

            for begun in [self._pool.submit(begin) for _ in range(self.count)]:
                begun.result()
            torch.set_num_threads(self.count)
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool, self._local = None, threading.local()


def side_of_square(plan: KernelPlan, num_layers: int, element: int, device: torch.device) -> int:
    """Samples along the side of a square: what a processor's cache holds; other devices have no use for it."""
    side = TILE_ROWS
    while side > SMALLEST_SQUARE and (num_layers + 1) * side**2 * element > CACHE_BYTES:
        side //= 2
    return min(side, plan.samples[0]) if device.type == "cpu" else plan.samples[0]


def workspace_bytes(plan: KernelPlan, num_layers: int, element: int, device: torch.device) -> int:
    """Bytes of the squares of all layers, and of the row of ones below them, for every thread."""
    side = side_of_square(plan, num_layers, element, device)
    return Squares(device).count * (num_layers + 1) * side**2 * element
