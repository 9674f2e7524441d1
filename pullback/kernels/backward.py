"""``backward_kernel``: K_ij = <g_i, g_j>, whole and per layer, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn

from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.gradients.rows.contract import Form
from pullback.kernels.group.run_in_group import run_in_group
from pullback.kernels.kernel import Kernel, class_labels
from pullback.kernels.plan.make import PlanOptions
from pullback.kernels.request import Given, Request, loss_request
from pullback.kernels.run import run


def backward_kernel(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    *,
    x2: Batch | None = None,
    y2: Batch | None = None,
    model2: nn.Module | None = None,
    params: Iterable[str] | None = None,
    per: Literal["sample", "token"] = "sample",
    forms: Mapping[str, Form] | None = None,
    memory_limit: int | None = None,
    group: Any = None,
) -> Kernel:
    """Backward kernel K_ij = <g_i, g_j>, g_i the gradient of sample i's own loss; exact, no 1/N anywhere.

    One forward pass and two backward passes to the activations, one of them a check. Gradients are never formed where
    their inner products are cheaper from layer inputs and output gradients. It is not the tangent kernel (gradients of
    outputs), and what it shares its spectrum with is the empirical Fisher matrix G^T G, not the Hessian.

    Args:
        model: any module in eval mode; parameters no rule covers go through a fallback the plan reports.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample, (N,).
        x: inputs, (N1, ...): a tensor, or a tuple, list or dict of tensors for several model arguments.
        y: targets, (N1, ...).
        x2: other inputs, (N2, ...), for the cross-kernel between two sets; None for K(x, x).
        y2: their targets.
        model2: the same architecture with other weights for the columns: <g_i(w1), g_j(w2)>, for drift.
        params: names of parameters or modules to restrict the gradients to; None for all trainable ones.
        per: "sample", or "token": every position's loss has a row of its own, (N1 T, N2 T); one backward pass a
            position.
        forms: layer or parameter name -> "ghost", "shift", "materialise", ... where it is not left to the cost.
        memory_limit: bytes the kernel and all that is held for it must stay below; the work is then planned in as
            many passes and batches as it takes, and the plan printed first. None plans without a limit.
        group: None: this process alone, also where torch.distributed is initialised. "world" or a ProcessGroup: the
            same call with the same weights and all of the data on every rank of it; the ranks share the work, and all
            return the same kernel, to the bit. Not together with ``memory_limit``.

    Returns:
        Kernel with ``total`` (N1, N2), ``layers``, ``parameters``, ``plan``.

    Raises:
        InputError: empty, non-finite or mismatched data, labels out of range, a loss that returns a scalar.
        UnsupportedError: batch norm or dropout in train mode, a loss or a model that mixes samples.
        SelfCheckError: a result contradicts the ordinary gradient; see ``checks``.
        WorkerError: with ``group``, another rank failed; names it and the cause.

    Cost: a forward pass, two backward passes and three samples alone, then for a linear layer from d to p features
        N^2 (d + p) operations without positions and the lesser of N^2 T^2 (d + p) and N^2 d p + 2 N T d p with T
        positions. Without a memory limit the captured layer inputs and output gradients stay alive with the kernel.
        With a group of W ranks: passes over N / W samples and 1 / W of the operations on each rank; every rank
        receives (1 - 1 / W) of the captured tensors and holds all of them, and sends and receives about
        (1 - 1 / W) N^2 numbers for each layer's block; see ``docs/kernels.md``.

    References: ghost inner products, Goodfellow (2015), arXiv:1510.01799; forms and choice, ``docs/kernels.md``.

    Example:
        >>> import torch
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        >>> x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
        >>> kernel = backward_kernel(model, nn.CrossEntropyLoss(), x, y)
        >>> bool(torch.allclose(kernel.total, reference.total_kernel(model, nn.CrossEntropyLoss(), x, y)))
        True
    """
    where = "backward_kernel"

    def request() -> Request:
        given = Given(where, model, x, y, x2, y2, model2, params)
        return loss_request(given, loss_fn, PlanOptions(forms=forms, memory_limit=memory_limit), per)

    kernel = run(request()) if group is None else run_in_group(request, group, where)
    kernel.labels = class_labels(y, kernel.plan.shape[0])
    return kernel
