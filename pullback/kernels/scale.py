"""Kernels on more than one machine: what a run of ``kernel_to_store`` by W workers computes, holds and moves.

The counts follow the run. Blocks of ``tile`` samples are captured once, each by one worker, checked and written.
Tiles on and below the diagonal are shared out in stretches of equal cost; from one tile to the next one block of
captures changes and is read, while the tile before is computed. Every tile is written once. Workers exchange nothing
else, so all that moves goes through the shared disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pullback._progress import duration
from pullback.functional.batch import Batch
from pullback.functional.readout import Readout
from pullback.kernels.assemble import forward_order
from pullback.kernels.coverage import Captured
from pullback.kernels.plan import KernelPlan
from pullback.kernels.planning import make_plan
from pullback.kernels.rates import Rates
from pullback.kernels.scale_passes import PLAIN, Passes, count_passes
from pullback.kernels.scale_share import Share, areas
from pullback.kernels.store_captures import named_tensors
from pullback.kernels.store_plan import Footprint, StorePlan, data_bytes
from pullback.kernels.store_run import Grid
from pullback.kernels.store_tile import side_of_square

SQUARE_PASSES = 24  # what a number of a layer's square costs beside its products, in numbers streamed; fitted once
START_SECONDS = 0.15  # a sample's capture, the plan, the store's files, meetings of workers; measured on small runs
HASH_BYTES = 1.4e9  # bytes a second through SHA-256, which knows data and weights again
PREFIXES = ("", *"kMGTPEZYR")
DAY = 86400


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
        start_seconds: a sample captured, the plan, the files, weights hashed.
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
    element, blocks = footprint.dtype.itemsize, -(-store.num_samples // store.tile)
    forms = {name: layer.form for layer in pair.layers for name in layer.parameters}
    alone = make_plan(captured, tile, None, None, where, forms=forms, keep_layers=False, rates=rates)
    side = side_of_square(pair, len(footprint.layers), element, captured.values.device)
    half = (1 + side / tile) / 2  # of a tile on the diagonal, the squares on and below it are made
    whole = areas(N, tile)

    block_bytes = store.capture_bytes // blocks
    ragged = N / (blocks * tile)  # the last block is smaller
    capture_seconds = _overlapped(
        ragged * share.blocks * _block_seconds(footprint, passes, tile, rates),
        share.blocks * block_bytes / rates.wire,
        share.blocks,
    )

    beside = _square_seconds(len(footprint.layers), tile, rates)
    off, diagonal = pair.seconds + beside, alone.seconds * 2 * half + beside * half
    written = share.tiles * tile**2 * element
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
        tile_flops=whole[0] * pair.flops + whole[1] * alone.flops * 2 * half,
        passes=1 + 3 * blocks / N,
        capture_bytes=footprint.factor_bytes // captured.num_samples,
        disk_bytes=store.disk_bytes + store.capture_bytes,
        model_bytes=model_bytes,
        peak_bytes=store.peak_bytes,
        written_bytes=share.blocks * block_bytes,
        read_bytes=read,
        tile_bytes=written,
        start_seconds=START_SECONDS + model_bytes / HASH_BYTES,
        capture_seconds=capture_seconds,
        tile_seconds=tile_seconds,
    )


def _block_seconds(footprint: Footprint, passes: Passes, tile: int, rates: Rates) -> float:
    """Time to capture a block: products, what autograd saves (written, read, its gradient), and the data's hash."""
    n, element = footprint.captured.num_samples, footprint.dtype.itemsize
    each = passes.forward + passes.backward + passes.checks
    single = (1 + 2 * PLAIN) * passes.forward  # a block's first sample, and two samples by plain autograd
    streamed = tile * footprint.graph_bytes / n / element * 3
    hashed = tile * footprint.data_bytes / n / HASH_BYTES
    return (tile * each + single) / rates.gemm + streamed / rates.stream + hashed


def _square_seconds(num_layers: int, tile: int, rates: Rates) -> float:
    """What the squares of a tile cost beside its products: one a layer and their sum."""
    L = num_layers
    return tile**2 * (SQUARE_PASSES * (L + 1) / rates.stream + 2 * (L + 1) ** 2 / rates.gemm)


def _overlapped(computing: float, moving: float, steps: int) -> float:
    """Time of steps whose reading and writing go on beside the computing of others; the ends have no others."""
    return max(computing, moving) + min(computing, moving) / max(1, steps)


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
