"""Kernels on more than one machine: what a run of ``kernel_to_store`` by W workers computes, holds and moves.

The counts follow the run. Blocks of ``tile`` samples are captured once, each by one worker, checked and written.
Tiles on and below the diagonal are shared out in stretches of equal cost; from one tile to the next one block of
captures changes and is read, while the tile before is computed. Every tile is written once. Workers exchange nothing
else, so all that moves goes through the shared disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pullback.functional import undisturbed
from pullback.functional.batch import Batch
from pullback.functional.readout import Readout
from pullback.kernels.assemble import forward_order
from pullback.kernels.capture import capture
from pullback.kernels.coverage import UNSEEN, Captured
from pullback.kernels.factors import Factor
from pullback.kernels.outer import OuterFactor
from pullback.kernels.plan import KernelPlan, make_plan
from pullback.kernels.rates import Rates
from pullback.kernels.store_captures import named_tensors
from pullback.kernels.store_plan import Footprint, StorePlan, data_bytes, duration
from pullback.kernels.store_run import Grid
from pullback.kernels.store_tile import side_of_square

SQUARE_PASSES = 24  # what a number of a layer's square costs beside its products, in numbers streamed; fitted once
HASH_BYTES = 1.4e9  # bytes a second through SHA-256, which knows data and weights again
PREFIXES = ("", *"kMGTPEZYR")
DAY = 86400
PLAIN = 3  # forward passes a forward and a backward pass of plain autograd cost
MOST_TILES = 2**17  # shared out one by one; beyond, stretches are taken to be even


@dataclass(frozen=True)
class Passes:
    """Operations of a sample's way through the model, an add and a multiply counted as two.

    Args:
        forward: matrix products, convolutions and attention of the forward pass.
        backward: those of the gradients that are recorded.
        checks: of the sums and norms of its gradients.
    """

    forward: float
    backward: float
    checks: float


@dataclass(frozen=True)
class ScalePlan:
    """The cost of a kernel made on disk by ``workers`` workers; ``str(plan)`` is a table.

    Bytes and seconds are those of the worker that has most to do; operations are of all workers.

    Args:
        num_samples: N.
        workers: W.
        tile: samples along the side of a tile.
        num_tiles: on and below the diagonal.
        forward_flops: of all forward passes.
        backward_flops: of all backward passes.
        check_flops: of the summed rows and norms every block is checked by.
        tile_flops: of all tiles.
        passes: samples run through the model, single ones that are checked included, by the number of samples.
        capture_bytes: gradient factors of a sample.
        disk_bytes: what is on the shared disk at the end of the captures and of the tiles together.
        model_bytes: weights and buffers, in every worker.
        peak_bytes: held at a time beyond the model and the data.
        written_bytes: captures a worker writes.
        read_bytes: captures a worker reads.
        tile_bytes: tiles a worker writes.
        start_seconds: weights hashed.
        capture_seconds: blocks run through the model, checked and written.
        tile_seconds: blocks read, tiles made and written.
    """

    num_samples: int
    workers: int
    tile: int
    num_tiles: int
    forward_flops: float
    backward_flops: float
    check_flops: float
    tile_flops: float
    passes: float
    capture_bytes: int
    disk_bytes: int
    model_bytes: int
    peak_bytes: int
    written_bytes: int
    read_bytes: int
    tile_bytes: int
    start_seconds: float
    capture_seconds: float
    tile_seconds: float

    @property
    def flops(self) -> float:
        """Operations of all workers."""
        return self.forward_flops + self.backward_flops + self.check_flops + self.tile_flops

    @property
    def wire_bytes(self) -> int:
        """Bytes between a worker and the shared disk."""
        return self.written_bytes + self.read_bytes + self.tile_bytes

    @property
    def seconds(self) -> float:
        """Expected time of the run."""
        return self.start_seconds + self.capture_seconds + self.tile_seconds

    def __str__(self) -> str:
        passes = self.forward_flops + self.backward_flops + self.check_flops
        rows = [
            ("", "operations", "to and from the disk, a worker", "time"),
            ("captures", count(passes, "FLOP"), count(self.written_bytes, "B"), span(self.capture_seconds)),
            (
                "tiles",
                count(self.tile_flops, "FLOP"),
                count(self.read_bytes + self.tile_bytes, "B"),
                span(self.tile_seconds),
            ),
            ("in all", count(self.flops, "FLOP"), count(self.wire_bytes, "B"), span(self.seconds)),
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = [
            f"{self.num_samples} samples in {self.num_tiles} tiles of {self.tile} x {self.tile} on {self.workers} "
            f"worker{'s' * (self.workers > 1)}"
        ]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(
            f"{self.passes:.3g} passes over the data; captures: {count(self.capture_bytes, 'B')} a sample; "
            f"on the disk: {count(self.disk_bytes, 'B')}"
        )
        lines.append(
            f"in each worker: {count(self.model_bytes, 'B')} of weights, {count(self.peak_bytes, 'B')} at the peak"
        )
        return "\n".join(lines)


def count(number: float, unit: str) -> str:
    """A count with a prefix: ``count(2.5e12, "B")`` is "2.5 TB"."""
    power = min(len(PREFIXES) - 1, math.floor(math.log10(number) / 3)) if number >= 1 else 0
    return f"{number / 1000**power:.3g} {PREFIXES[power]}{unit}"


def span(seconds: float) -> str:
    """A time that may be long: ``duration``, then days and years."""
    if seconds < 3 * DAY:
        return duration(seconds)
    return f"{seconds / DAY:.0f} days" if seconds < 1000 * DAY else f"{seconds / DAY / 365:.3g} years"


@dataclass(frozen=True)
class Share:
    """What the worker with most to do does, in whole blocks and tiles.

    Args:
        blocks: blocks it captures.
        off: tiles off the diagonal, by their area.
        diagonal: tiles on it, by their area.
        tiles: of both kinds.
        reads: blocks it reads.
    """

    blocks: int
    off: float
    diagonal: float
    tiles: int
    reads: int

    @classmethod
    def of(cls, grid: Grid, workers: int) -> Share:
        """The largest share, by the rule ``kernel_to_store`` shares out tiles."""
        blocks, tiles = grid.blocks, grid.blocks * (grid.blocks + 1) // 2
        captured = -(-blocks // workers)
        if tiles > MOST_TILES:
            each = -(-tiles // workers)
            return cls(captured, (tiles - blocks) / workers, blocks / workers, each, each + 1)
        order = grid.tiles()
        costs = np.array([0.5 if i == j else 1.0 for i, j in order])
        owner = ((np.cumsum(costs) - costs / 2) / costs.sum() * workers).astype(int)
        found = [cls(captured, 0.0, 0.0, 0, 0)]
        for worker in np.unique(owner):
            mine = [order[k] for k in np.flatnonzero(owner == worker)]
            held: set[int] = set()
            off = diagonal = 0.0
            reads = 0
            for i, j in mine:
                area = grid.size(i) * grid.size(j) / grid.tile**2
                off, diagonal = (off, diagonal + area) if i == j else (off + area, diagonal)
                reads += len({i, j} - held)
                held = {i, j}
            found.append(cls(captured, off, diagonal, len(mine), reads))
        return max(found, key=lambda share: share.off + share.diagonal / 2)


def make_scale_plan(
    captured: Captured,
    readout: Readout,
    pair: tuple[Batch, Batch],
    graph_bytes: int,
    num_samples: int,
    workers: int,
    tile: int | None,
    memory_limit: int | None,
    rates: Rates,
    where: str,
) -> ScalePlan:
    """The plan of ``num_samples`` samples on ``workers`` workers, from the few in ``captured``.

    Args:
        captured: factors of a few samples.
        readout: their losses.
        pair: their inputs and targets.
        graph_bytes: what autograd saves for one.
        num_samples: N.
        workers: W.
        tile: samples along the side of a tile; None chooses as ``kernel_to_store`` does.
        memory_limit: bytes of each worker beyond model and data.
        rates: of one worker.
        where: the caller.
    """
    footprint = _footprint(captured, pair, graph_bytes, rates)
    if tile is None:
        limit = memory_limit
        if limit is None and captured.values.device.type == "meta":
            limit = 2**63  # whose memory it is to fit is not known
        tile = footprint.choose_tile(num_samples, limit, where)
    tile = min(tile, num_samples)
    footprint.check(num_samples, tile, memory_limit, where)
    store, one = footprint.plan(num_samples, tile, where, memory_limit=memory_limit)
    passes = count_passes(captured, readout, *pair, where)
    return _timed(footprint, store, one, passes, Share.of(Grid(num_samples, tile), workers), workers, rates, where)


def _timed(
    footprint: Footprint,
    store: StorePlan,
    pair: KernelPlan,
    passes: Passes,
    share: Share,
    workers: int,
    rates: Rates,
    where: str,
) -> ScalePlan:
    """Operations, bytes and seconds, from the counts of a sample, a tile and the largest share."""
    captured, N, tile = footprint.captured, store.num_samples, store.tile
    n, element, blocks = captured.num_samples, footprint.dtype.itemsize, -(-store.num_samples // store.tile)
    forms = {name: layer.form for layer in pair.layers for name in layer.parameters}
    alone = make_plan(captured, tile, None, None, where, forms=forms, keep_layers=False, rates=rates)
    side = side_of_square(pair, len(footprint.layers), element, captured.values.device)
    half = (1 + side / tile) / 2  # of a tile on the diagonal, the squares on and below it are made
    areas = _areas(N, tile)

    each = passes.forward + passes.backward + passes.checks
    single = (1 + 2 * PLAIN) * passes.forward  # a block's first sample, and two samples by plain autograd
    block = tile * each + single
    streamed = tile * footprint.graph_bytes / n / element * 3
    hashed = tile * footprint.data_bytes / n / HASH_BYTES
    block_seconds = block / rates.gemm + streamed / rates.stream + hashed
    block_bytes = store.capture_bytes // blocks
    ragged = N / (blocks * tile)  # the last block is smaller
    capture_seconds = _overlapped(
        ragged * share.blocks * block_seconds, share.blocks * block_bytes / rates.wire, share.blocks
    )

    L, pairs = len(footprint.layers), tile * tile
    beside = pairs * (SQUARE_PASSES * (L + 1) / rates.stream + 2 * (L + 1) ** 2 / rates.gemm)
    off, diagonal = pair.seconds + beside, alone.seconds * 2 * half + beside * half
    written = share.tiles * pairs * element
    read = share.reads * block_bytes
    tile_seconds = _overlapped(share.off * off + share.diagonal * diagonal, (read + written) / rates.wire, share.tiles)
    weights = [*captured.view.model.parameters(), *captured.view.model.buffers()]
    model_bytes = sum(t.numel() * t.element_size() for t in weights)
    return ScalePlan(
        num_samples=N,
        workers=workers,
        tile=tile,
        num_tiles=store.num_tiles,
        forward_flops=N * passes.forward + blocks * 3 * passes.forward,
        backward_flops=N * passes.backward + blocks * 2 * (PLAIN - 1) * passes.forward,
        check_flops=N * passes.checks,
        tile_flops=areas[0] * pair.flops + areas[1] * alone.flops * 2 * half,
        passes=1 + 3 * blocks / N,
        capture_bytes=footprint.factor_bytes // n,
        disk_bytes=store.disk_bytes + store.capture_bytes,
        model_bytes=model_bytes,
        peak_bytes=store.peak_bytes,
        written_bytes=share.blocks * block_bytes,
        read_bytes=read,
        tile_bytes=written,
        start_seconds=model_bytes / HASH_BYTES,
        capture_seconds=capture_seconds,
        tile_seconds=tile_seconds,
    )


def _overlapped(computing: float, moving: float, steps: int) -> float:
    """Time of steps whose reading and writing go on beside the computing of others; the ends have no others."""
    return max(computing, moving) + min(computing, moving) / max(1, steps)


def _areas(count: int, tile: int) -> tuple[float, float]:
    """Tiles off and on the diagonal, in areas of a whole one."""
    whole, rest = divmod(count, tile)
    diagonal = whole + (rest / tile) ** 2
    return ((count / tile) ** 2 - diagonal) / 2, diagonal


def _footprint(captured: Captured, pair: tuple[Batch, Batch], graph_bytes: int, rates: Rates) -> Footprint:
    """Bytes by sample, as ``kernel_to_store`` counts them."""
    view = captured.view
    sizes = {layer: sum(view.parameters[name].numel() for name in names) for layer, names in view.layers.items()}
    layers = forward_order(captured)
    return Footprint(
        captured=captured,
        layers=tuple(layers),
        layer_sizes=tuple(sizes[layer] for layer in layers),
        dtype=captured.factors[0].like.dtype,
        data_bytes=data_bytes(*pair),
        factor_bytes=sum(t.numel() * t.element_size() for _, t in named_tensors(captured.factors)),
        graph_bytes=graph_bytes * captured.num_samples,
        parameter_bytes=sum(p.numel() * p.element_size() for p in view.parameters.values()),
        rates=rates,
    )


_ATTENTION = {  # of CPUs, which torch's counter leaves out
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}


def count_passes(captured: Captured, readout: Readout, x: Batch, y: Batch, where: str) -> Passes:
    """Operations of one sample, counted while the samples of ``captured`` go through the model once more."""
    seen: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter, undisturbed(captured.view.model):

        def values(outputs: Any, targets: Batch, caller: str) -> Tensor:
            seen.append(counter.get_total_flops())  # the forward pass is over
            return readout.values(outputs, targets, caller)

        capture(captured.view, replace(readout, values=values), x, y, where)
    forward, both = (flops / captured.num_samples for flops in (seen[0], counter.get_total_flops()))
    fallback = PLAIN * forward if UNSEEN[0] in captured.rules else 0.0
    return Passes(forward, both - forward + fallback, sum(_check_flops(f) for f in captured.factors))


def _check_flops(factor: Factor) -> float:
    """Operations of a sample's share in the summed rows, and of its norm, as ``check_block`` makes them."""
    outer = getattr(factor, "head", factor)  # of a tied table
    if not isinstance(outer, OuterFactor):
        return 0.0
    T, g, d, p = outer.dims
    rows = 2.0 * T * g * d * p
    return rows + (rows if T * (d + p) >= 2 * d * p else 2.0 * T * T * g * (d + p))
