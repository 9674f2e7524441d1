"""``plan_kernel``: what a kernel will cost, from two samples, on this machine or on others."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pullback._checks import check_positive, input_error, unsupported
from pullback.functional import LossFunction, take
from pullback.functional.batch import Batch, mapped, tensors
from pullback.kernels.backward import loss_request
from pullback.kernels.factors import Form
from pullback.kernels.plan import KernelPlan
from pullback.kernels.planning import make_plan
from pullback.kernels.rates import Rates, machine_rates
from pullback.kernels.request import Request, template
from pullback.kernels.scale import make_scale_plan


def plan_kernel(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    *,
    x2: Batch | None = None,
    y2: Batch | None = None,
    params: Iterable[str] | None = None,
    forms: Mapping[str, Form] | None = None,
    memory_limit: int | None = None,
    num_samples: int | None = None,
    workers: int = 1,
    tile: int | None = None,
    rates: Rates | None = None,
) -> KernelPlan:
    """What ``backward_kernel`` with the same arguments will do and cost, from one pass over two samples.

    A model on the meta device (``with torch.device("meta")``) is planned from shapes alone and nothing is allocated,
    so a model that fits on no machine at hand can be planned too. Data checks that read numbers are then left out,
    and every token counts as a different one. With ``num_samples``, ``workers`` or ``tile`` the plan also has
    ``scale``: the cost of the same kernel made by ``kernel_to_store``, tile by tile, on that many workers.

    Args:
        model: as ``backward_kernel``; or on the meta device, then ``x`` and ``y`` are moved there.
        loss_fn: as ``backward_kernel``.
        x: inputs, (N, ...); with ``num_samples`` one or two samples will do.
        y: targets, (N, ...).
        x2: as ``backward_kernel``.
        y2: as ``backward_kernel``.
        params: as ``backward_kernel``.
        forms: as ``backward_kernel``.
        memory_limit: as ``backward_kernel``; of each worker, where there are several.
        num_samples: N, the samples the kernel would be made of; None takes those in ``x``.
        workers: processes that would share a run of ``kernel_to_store``.
        tile: samples along the side of its tiles; None chooses.
        rates: speeds of one worker; None measures this machine.

    Returns:
        KernelPlan; print it. Bytes and operations are counted from shapes, seconds are estimates.

    Raises:
        InputError, UnsupportedError: as ``backward_kernel`` would; workers asked for on the meta device without
            ``rates``, or for a kernel of two sets.

    Cost: a few forward and backward passes over two samples.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(512, 512)
        >>> x, y = torch.zeros(8, 512), torch.zeros(8, dtype=torch.long)
        >>> plan_kernel(model, torch.nn.CrossEntropyLoss(), x, y).layers[0].form
        'ghost'
        >>> plan_kernel(model, torch.nn.CrossEntropyLoss(), x, y, num_samples=10**6, workers=8).scale.num_tiles
        119805
    """
    where = "plan_kernel"
    scaled = num_samples is not None or tile is not None or workers > 1
    for name, value in (("num_samples", num_samples), ("workers", workers), ("tile", tile)):
        if value is not None:
            check_positive(where, name, value)
    on_meta = isinstance(model, nn.Module) and any(p.device.type == "meta" for p in model.parameters())
    if scaled and x2 is not None:
        raise input_error(
            where,
            "one set of samples with `num_samples`, `workers` or `tile`",
            "two",
            "Leave out `x2` and `y2`: kernels on disk are of one set",
        )
    if scaled and on_meta and rates is None:
        raise input_error(
            where,
            "`rates` of the workers for a model on the meta device",
            "None",
            "Pass pb.Rates(gemm=..., bmm=..., stream=..., wire=...)",
        )
    if not on_meta and any(leaf.device.type == "meta" for leaf in (*tensors(x), *tensors(y))):
        raise input_error(
            where,
            "data with numbers in it for a model with numbers in it",
            "tensors on the meta device",
            'Make the model under torch.device("meta") too',
        )
    limit = None if scaled else memory_limit
    request = loss_request(model, loss_fn, x, y, x2, y2, None, params, "sample", forms, limit, where)
    request = _of(request, num_samples, on_meta=on_meta)
    with _shapes_alone(where) if on_meta else nullcontext():
        few = template(request)
        captured, graph_bytes = few.captured, few.graph_bytes
        like = captured.factors[0].like
        rates = rates or machine_rates(like.device, like.dtype)
        rows, columns = request.rows, request.columns
        plan = make_plan(
            captured,
            rows.count,
            None if columns is None else columns.count,
            limit,
            where,
            forms=forms,
            graph_bytes=graph_bytes,
            rates=rates,
        )
        if not scaled:
            return plan
        index = slice(0, captured.num_samples)
        pair = take(rows.x, index), take(rows.y, index)
        scale = make_scale_plan(
            captured, request.readout, pair, graph_bytes, rows.count, workers, tile, memory_limit, rates, where
        )
    return replace(plan, scale=scale)


@contextmanager
def _shapes_alone(where: str) -> Iterator[None]:
    """Tensors made in the block are on the meta device; an error because they hold no numbers says so."""
    try:
        with torch.device("meta"):
            yield
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
        apart = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))  # code that is not the model's
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(apart)]
        if not frames:
            raise
        raise unsupported(
            where,
            "a model and a loss that read no numbers, on the meta device",
            f"`{frames[-1].line}` in {frames[-1].name} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})",
            "Pass what makes that needless (a mask in full, for example), or plan a small model with numbers",
        ) from error


def _of(request: Request, count: int | None, *, on_meta: bool) -> Request:
    """The request for ``count`` samples like those given: one is taken twice, for it does not show the sample axis."""
    rows = request.rows
    x, y, count = rows.x, rows.y, rows.count if count is None else count
    if count > 1 and rows.count == 1:
        x, y = take(x, [0, 0]), take(y, [0, 0])
    columns = request.columns
    if on_meta:
        x, y = _moved(x), _moved(y)
        if columns is not None:
            columns = replace(columns, x=_moved(columns.x), y=_moved(columns.y))
    return replace(request, rows=replace(rows, x=x, y=y, count=count), columns=columns)


def _moved(batch: Batch) -> Any:
    """A batch on the meta device."""
    return mapped(lambda leaf: leaf.to("meta"), batch)
