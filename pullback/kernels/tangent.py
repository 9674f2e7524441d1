"""``tangent_kernel``: inner products of gradients of the model's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pullback.functional.batch import Batch
from pullback.gradients.rows.contract import Form
from pullback.kernels.group.run_in_group import run_in_group
from pullback.kernels.kernel import Kernel
from pullback.kernels.plan.make import PlanOptions
from pullback.kernels.request import Contraction, Given, Request, tangent_request
from pullback.kernels.run import run


def tangent_kernel(
    model: nn.Module,
    x: Batch,
    *,
    x2: Batch | None = None,
    model2: nn.Module | None = None,
    contract: Contraction = "trace",
    params: Iterable[str] | None = None,
    forms: Mapping[str, Form] | None = None,
    memory_limit: int | None = None,
    group: Any = None,
) -> Kernel:
    """Tangent kernel Theta[i, j, c, e] = <grad f_c(x_i), grad f_e(x_j)>, f the C flattened outputs; exact.

    It is not the backward kernel, whose gradients are those of losses. With r_i the derivative of sample i's loss in
    its outputs the two are related by K_ij = r_i^T Theta_ij r_j, but K needs one backward pass and Theta C of them.

    Args:
        model: any module in eval mode that returns one tensor (N, ...), or an object with ``logits``.
        x: inputs, (N1, ...).
        x2: other inputs, (N2, ...); None for Theta(x, x).
        model2: the same architecture with other weights for the columns, for drift.
        contract: "trace": (N1, N2), the sum over c = e. "diagonal": (N1, N2, C), c = e. "full": (N1, N2, C, C).
            "sum": (N1, N2), the kernel of the summed outputs, which is none of the others ("pseudo-NTK").
        params: names of parameters or modules; None for all trainable ones.
        forms: layer or parameter name -> form, where it is not left to the cost.
        memory_limit: as for ``backward_kernel``.
        group: as for ``backward_kernel``.

    Returns:
        Kernel. As an operator its rows are samples under "trace" and "sum", else (sample, output) pairs. Blocks of
        layers are computed when asked for.

    Raises:
        InputError: empty or non-finite data, a model that returns no tensor; with ``group`` as ``backward_kernel``.
        UnsupportedError: batch norm or dropout in train mode, a model that mixes samples.
        SelfCheckError: a result contradicts the ordinary gradient.

    Cost: a forward pass and C + 1 backward passes to the activations ("sum": two). A A^T is computed once for all pairs
        of outputs: a linear layer costs N^2 (d + C^2 p) operations for "full", N^2 (d + C p) for the others. Where
        the last layer is linear, its block is (A A^T + 1) times the identity and costs N^2 d.

    References: Jacot, Gabriel and Hongler (2018), arXiv:1806.07572; structured derivatives, Novak, Sohl-Dickstein and
        Schoenholz (2022), arXiv:2206.08720; sum of outputs, Mohamadi, Bae and Sutherland (2023), arXiv:2206.12543.

    Example:
        >>> import torch
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        >>> x = torch.randn(5, 4, dtype=torch.float64)
        >>> full = tangent_kernel(model, x, contract="full").total
        >>> bool(torch.allclose(full, reference.tangent_kernel(model, x)))
        True
    """
    where = "tangent_kernel"

    def request() -> Request:
        given = Given(where, model, x, None, x2, None, model2, params)
        return tangent_request(given, contract, PlanOptions(forms=forms, memory_limit=memory_limit))

    if group is not None:
        return run_in_group(request, group, where, by_output=contract == "full")
    return run(request(), by_output=contract == "full")
