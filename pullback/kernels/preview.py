"""``plan_kernel``: what a kernel will cost, from one sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.kernels.backward import loss_request
from pullback.kernels.factors import Form
from pullback.kernels.plan import KernelPlan
from pullback.kernels.request import plan_of, template


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
) -> KernelPlan:
    """What ``backward_kernel`` with the same arguments will do and cost, from one pass over a single sample.

    Returns:
        KernelPlan; print it. Bytes and operations are estimates from shapes, not measurements.

    Raises:
        InputError, UnsupportedError: as ``backward_kernel`` would.

    Cost: one forward and one backward pass over one sample.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.zeros(8, 4), torch.zeros(8, dtype=torch.long)
        >>> plan_kernel(model, torch.nn.CrossEntropyLoss(), x, y).layers[0].form
        'ghost'
    """
    where = "plan_kernel"
    request = loss_request(model, loss_fn, x, y, x2, y2, None, params, "sample", forms, memory_limit, where)
    return plan_of(request, *template(request))
