"""``plan_store``: what a kernel on disk will cost, from two samples, on one machine or many."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pullback._checks import check_positive, input_error
from pullback.functional import LossFunction, take
from pullback.functional.batch import Batch
from pullback.kernels.plan.make import PLAIN
from pullback.kernels.plan.rates import Rates, machine_rates
from pullback.kernels.request import Given, loss_request
from pullback.kernels.shapes_alone import from_few
from pullback.kernels.store.cost import store_plan
from pullback.kernels.store.count_passes import count_passes
from pullback.kernels.store.footprint import Footprint
from pullback.kernels.store.plan import StorePlan


def plan_store(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    *,
    params: Iterable[str] | None = None,
    memory_limit: int | None = None,
    num_samples: int | None = None,
    workers: int = 1,
    tile: int | None = None,
    rates: Rates | None = None,
) -> StorePlan:
    """What ``kernel_to_store`` will do and cost, tile by tile, on that many workers, from one pass over two samples.

    A model on the meta device (``with torch.device("meta")``) is planned from shapes alone and nothing is allocated,
    so a model that fits on no machine at hand can be planned too; every token then counts as a different one.

    Args:
        model: as ``kernel_to_store``; or on the meta device, then ``x`` and ``y`` are moved there.
        loss_fn: as ``kernel_to_store``.
        x: inputs, (N, ...); with ``num_samples`` one or two samples will do.
        y: targets, (N, ...).
        params: as ``kernel_to_store``.
        memory_limit: bytes of each worker, beyond model and data.
        num_samples: N, the samples the kernel would be made of; None takes those in ``x``.
        workers: processes that would share the run.
        tile: samples along the side of a tile; None chooses.
        rates: speeds of one worker; None measures this machine.

    Returns:
        StorePlan; print it. Bytes and operations are counted from shapes, seconds are estimates.

    Raises:
        InputError, UnsupportedError: as ``kernel_to_store`` would; a model on the meta device without ``rates``.

    Cost: a few forward and backward passes over two samples.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(512, 512)
        >>> x, y = torch.zeros(2, 512), torch.zeros(2, dtype=torch.long)
        >>> plan_store(model, torch.nn.CrossEntropyLoss(), x, y, num_samples=10**6, workers=8).num_tiles
        119805
    """
    where = "plan_store"
    for name, value in (("num_samples", num_samples), ("workers", workers), ("tile", tile)):
        if value is not None:
            check_positive(where, name, value)
    request = loss_request(Given(where, model, x, y, params=params), loss_fn, PLAIN)
    if rates is None and any(p.device.type == "meta" for p in model.parameters()):
        raise input_error(
            where,
            "`rates` of the workers for a model on the meta device",
            "None",
            "Pass pb.Rates(gemm=..., bmm=..., stream=..., wire=...)",
        )
    with from_few(request, num_samples) as (request, few):
        captured, rows = few.captured, request.rows
        like = captured.factors[0].like
        rates = rates or machine_rates(like.device, like.dtype)
        index = slice(0, captured.num_samples)
        pair = take(rows.x, index), take(rows.y, index)
        footprint = Footprint.of(captured, pair, few.graph_bytes * captured.num_samples, rates)
        if tile is None:
            limit = memory_limit
            if limit is None and captured.values.device.type == "meta":
                limit = 2**63  # whose memory it is to fit is not known
            tile = footprint.choose_tile(rows.count, limit, where)
        tile = min(tile, rows.count)
        footprint.check(tile, memory_limit, where)
        one = footprint.pair_plan(tile, where, memory_limit=memory_limit)
        passes = count_passes(captured, request.readout, *pair, where)
        return store_plan(footprint, rows.count, one, workers, where, passes)
