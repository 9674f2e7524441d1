"""Kernels on more than one machine: what a run of ``kernel_to_store`` by W workers computes, holds and moves.

The counts follow the run. Blocks of ``tile`` samples are captured once, each by one worker, checked and written.
Tiles on and below the diagonal are shared out in stretches of equal cost; from one tile to the next one block of
captures changes and is read, while the tile before is computed. Every tile is written once. Workers exchange nothing
else, so all that moves goes through the shared disk.
"""

from __future__ import annotations

from pullback.functional.batch import Batch
from pullback.functional.memory import data_bytes
from pullback.functional.readout import Readout
from pullback.gradients.capture.aligned import forward_order
from pullback.gradients.capture.captured import Captured
from pullback.kernels.gram.squares import side_of_square
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.make import make_plan
from pullback.kernels.plan.rates import Rates
from pullback.kernels.store.factor_files import named_tensors
from pullback.kernels.store.grid import Grid
from pullback.kernels.store.operations import ALONE, PLAIN, Passes, count_passes
from pullback.kernels.store.plan import Footprint, StorePlan
from pullback.kernels.store.scale_plan import ScalePlan
from pullback.kernels.store.share import Share, areas

SQUARE_PASSES = 24  # what a number of a layer's square costs beside its products, in numbers streamed; fitted once
START_SECONDS = 0.15  # a sample's capture, the plan, the store's files, meetings of workers; measured on small runs
HASH_BYTES = 1.4e9  # bytes a second through SHA-256, which knows data and weights again


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
        forward_flops=N * passes.forward + blocks * (1 + ALONE) * passes.forward,
        backward_flops=N * passes.backward + blocks * ALONE * (PLAIN - 1) * passes.forward,
        check_flops=N * passes.checks,
        tile_flops=whole[0] * pair.flops + whole[1] * alone.flops * 2 * half,
        passes=1 + (1 + ALONE) * blocks / N,
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
    single = (1 + ALONE * PLAIN) * passes.forward  # a block's first sample, and some by plain autograd
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
