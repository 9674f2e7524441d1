"""Kernels on disk: what a run of ``kernel_to_store`` by W workers computes, holds and moves.

The counts follow the run. Blocks of ``tile`` samples are captured once, each by one worker, checked and written.
Tiles on and below the diagonal are shared out in stretches of equal cost; from one tile to the next one block of
captures changes and is read, while the tile before is computed. Every tile is written once. Workers exchange nothing
else, so all that moves goes through the shared disk.
"""

from __future__ import annotations

from dataclasses import replace

from pullback.kernels.gram.squares import side_of_square
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.make import TOTAL, make_plan
from pullback.kernels.plan.rates import Rates, machine_rates
from pullback.kernels.store.count_passes import ALONE, PLAIN, Passes
from pullback.kernels.store.footprint import Footprint
from pullback.kernels.store.grid import Grid
from pullback.kernels.store.plan import StorePlan
from pullback.kernels.store.share import Share, areas

SQUARE_PASSES = 24  # what a number of a layer's square costs beside its products, in numbers streamed; fitted once
START_SECONDS = 0.15  # a sample's capture, the plan, the store's files, meetings of workers; measured on small runs
HASH_BYTES = 1.4e9  # bytes a second through SHA-256, which knows data and weights again


def store_plan(
    footprint: Footprint, count: int, pair: KernelPlan, workers: int, where: str, passes: Passes | None = None
) -> StorePlan:
    """Operations, bytes and seconds, from the counts of a sample, a tile and the largest share.

    Args:
        footprint: of a few samples.
        count: N.
        pair: the plan of one tile.
        workers: W.
        where: the caller.
        passes: operations of a sample's way through the model; None leaves out what they cost.
    """
    captured, tile = footprint.captured, pair.samples[0]
    like = captured.factors[0].like
    rates = footprint.rates or machine_rates(like.device, like.dtype)
    share = Share.of(Grid(count, tile), workers)
    element, blocks = footprint.dtype.itemsize, -(-count // tile)
    num_tiles = blocks * (blocks + 1) // 2
    forms = {name: layer.form for layer in pair.layers for name in layer.parameters}
    alone = make_plan(captured, tile, None, where, replace(TOTAL, forms=forms, rates=rates))
    side = side_of_square(pair, len(footprint.layers), element, captured.values.device)
    half = (1 + side / tile) / 2  # of a tile on the diagonal, the squares on and below it are made
    whole = areas(count, tile)
    kept, finished = _kept_bytes(footprint, count, tile), _finished_bytes(footprint, count, tile)
    block_bytes = kept // blocks
    beside = _square_seconds(len(footprint.layers), tile, rates)
    off, diagonal = pair.seconds + beside, alone.seconds * 2 * half + beside * half
    written = share.tiles * tile**2 * element
    read = share.reads * block_bytes
    weights = [*captured.view.model.parameters(), *captured.view.model.buffers()]
    model_bytes = sum(t.numel() * t.element_size() for t in weights)
    plan = StorePlan(
        num_samples=count,
        workers=workers,
        tile=tile,
        num_tiles=num_tiles,
        tile_flops=whole[0] * pair.flops + whole[1] * alone.flops * 2 * half,
        capture_bytes=footprint.factor_bytes // captured.num_samples,
        disk_bytes=finished + kept,
        finished_bytes=finished,
        model_bytes=model_bytes,
        peak_bytes=footprint.peak_bytes(tile, pair),
        written_bytes=share.blocks * block_bytes,
        read_bytes=read,
        tile_bytes=written,
        start_seconds=START_SECONDS + model_bytes / HASH_BYTES,
        tile_seconds=_overlapped(
            share.off * off + share.diagonal * diagonal, (read + written) / rates.wire, share.tiles
        ),
        sketched=footprint.sketched,
    )
    return plan if passes is None else _with_passes(plan, footprint, share, passes, rates)


def _finished_bytes(footprint: Footprint, count: int, tile: int) -> int:
    """Of a finished store: tiles on and below the diagonal, losses, and the diagonals of all layers."""
    blocks = -(-count // tile)
    numbers = blocks * (blocks + 1) // 2 * tile * tile + (len(footprint.layers) + 1) * count
    return numbers * footprint.dtype.itemsize


def _kept_bytes(footprint: Footprint, count: int, tile: int) -> int:
    """Of all captured blocks, which are on the disk until the tiles are made."""
    return -(-count // tile) * footprint.sum_bytes + footprint.factor_bytes * count // footprint.captured.num_samples


def _with_passes(plan: StorePlan, footprint: Footprint, share: Share, passes: Passes, rates: Rates) -> StorePlan:
    """And what goes through the model: every sample, and of each block the first again and some by plain autograd."""
    N, blocks = plan.num_samples, -(-plan.num_samples // plan.tile)
    ragged = N / (blocks * plan.tile)  # the last block is smaller
    computing = ragged * share.blocks * _block_seconds(footprint, passes, plan.tile, rates)
    return replace(
        plan,
        forward_flops=N * passes.forward + blocks * (1 + ALONE) * passes.forward,
        backward_flops=N * passes.backward + blocks * ALONE * (PLAIN - 1) * passes.forward,
        check_flops=N * passes.checks,
        passes=1 + (1 + ALONE) * blocks / N,
        capture_seconds=_overlapped(computing, plan.written_bytes / rates.wire, share.blocks),
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
