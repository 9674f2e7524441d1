"""Sums of layers' products in squares that stay in cache, and the Gram matrix of captured rows made so.

Every processor makes squares of its own: all layers are added up in one of them before it is written once, and once
more above the diagonal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.sum_checks import SumChecks
from pullback.gradients.rows.pieces import Piece
from pullback.kernels.gram.parts import Place, check_sums, fill, mirror, new_block, parts, scaled, tiles, within
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.make import TILE_ROWS

SMALLEST_SQUARE = 128  # below, products are no longer at their rate
CACHE_BYTES = 2**24  # a processor's share of a large cache
SQUARES = 6  # along a side at least, so that processors end together and little is made twice on the diagonal

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


@dataclass
class Summed:
    """What is added up in squares.

    Args:
        block: of what was made whole before, as its gradient rows are formed and would be again for every square.
        pieces: of all else, and the side of their tiles.
    """

    block: Tensor | None = None
    pieces: list[tuple[tuple[Piece, ...], int]] = field(default_factory=list)

    def write(self, out: Tensor, place: Place, rows_each: int = 1) -> None:
        """One square; ``place`` is in samples, of ``rows_each`` rows."""
        rows, columns = place
        add = self.block is not None
        if self.block is not None:
            out.copy_(self.block[scaled(rows, rows_each), scaled(columns, rows_each)])
        corner = rows.start, columns.start
        for pieces, tile in self.pieces:
            fill(out, pieces, within(place, tile), "full", corner=corner, rows_each=rows_each, add=add)
            add = True
        if not add:
            out.zero_()


def total_gram(captured: Captured, plan: KernelPlan, where: str) -> Tensor:
    """G G^T of all rows, (N C, N C), symmetric to the bit, its sums checked as a whole; no blocks of single layers.

    Args:
        captured: rows of N samples with C values.
        plan: the forms of the layers; contract "full".
        where: the caller.

    Raises:
        SelfCheckError: the sums contradict the ordinary gradient.
    """
    n, C = captured.num_samples, captured.num_outputs
    checks = SumChecks(where, captured.dtype)
    out = new_block(captured, None, plan.contract)
    side = max(1, min(TILE_ROWS, max(SMALLEST_SQUARE, -(-n * C // SQUARES))) // C)
    places = list(tiles(n, n, side, symmetric=True))
    done, layers = [], Summed()
    for part in parts(captured, None, plan):
        if part.formed:
            done.append((part, part.add_to(out, captured.combination, add=layers.block is not None)))
            layers.block = out
            continue
        tile = part.tile(triangle=False)
        unformed, sums = part.unformed(captured.combination)
        layers.pieces += [(each, tile) for each in unformed]
        done.append((part, sums))

    def square(place: Place) -> None:
        i, j = place
        shape = (i.stop - i.start) * C, (j.stop - j.start) * C
        work = squares.workspace(out, shape[0] * shape[1]).view(shape)
        layers.write(work, place, C)
        if i == j:
            mirror(work)
        else:
            out[scaled(j, C), scaled(i, C)] = work.T
        out[scaled(i, C), scaled(j, C)] = work

    with Squares(out.device) as squares:
        squares.run(square, places)
    check_sums(checks, out, done, "all layers", captured, None, plan)
    checks.evaluate()
    return out
