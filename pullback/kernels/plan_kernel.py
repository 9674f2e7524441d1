"""``plan_kernel``: what a kernel in memory will cost, from two samples, on this machine or on others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from pullback._checks import check_positive
from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.gradients.rows.contract import Form
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.make import PlanOptions
from pullback.kernels.plan.rates import Rates, machine_rates
from pullback.kernels.request import Given, loss_request
from pullback.kernels.shapes_alone import from_few


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
    rates: Rates | None = None,
) -> KernelPlan:
    """What ``backward_kernel`` with the same arguments will do and cost, from one pass over two samples.

    A model on the meta device (``with torch.device("meta")``) is planned from shapes alone and nothing is allocated,
    so a model that fits on no machine at hand can be planned too. Data checks that read numbers are then left out,
    and every token counts as a different one. ``plan_store`` plans the same kernel on disk.

    Args:
        model: as ``backward_kernel``; or on the meta device, then ``x`` and ``y`` are moved there.
        loss_fn: as ``backward_kernel``.
        x: inputs, (N, ...); with ``num_samples`` one or two samples will do.
        y: targets, (N, ...).
        x2: as ``backward_kernel``.
        y2: as ``backward_kernel``.
        params: as ``backward_kernel``.
        forms: as ``backward_kernel``.
        memory_limit: as ``backward_kernel``.
        num_samples: N, the samples the kernel would be made of; None takes those in ``x``.
        rates: speeds of a machine; None measures this one.

    Returns:
        KernelPlan; print it. Bytes and operations are counted from shapes, seconds are estimates.

    Raises:
        InputError, UnsupportedError: as ``backward_kernel`` would.

    Cost: a few forward and backward passes over two samples.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(512, 512)
        >>> x, y = torch.zeros(8, 512), torch.zeros(8, dtype=torch.long)
        >>> plan_kernel(model, torch.nn.CrossEntropyLoss(), x, y).layers[0].form
        'ghost'
    """
    where = "plan_kernel"
    if num_samples is not None:
        check_positive(where, "num_samples", num_samples)
    options = PlanOptions(forms=forms, memory_limit=memory_limit)
    request = loss_request(Given(where, model, x, y, x2, y2, None, params), loss_fn, options)
    with from_few(request, num_samples) as (request, few):
        like = few.captured.factors[0].like
        return request.plan(few.captured, few.graph_bytes, rates or machine_rates(like.device, like.dtype))
