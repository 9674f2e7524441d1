"""Influence by gradient inner products, along the checkpoints of a training run: no inverse, no minimum needed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pullback._checks import check_option, input_error
from pullback.functional import LossFunction, check_batch
from pullback.functional.batch import Batch
from pullback.functional.batches import Data
from pullback.functional.model_view import names_in
from pullback.kernels import GradientMatrix, backward_kernel


def gradient_influence(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    x_query: Batch,
    y_query: Batch,
    *,
    checkpoints: Iterable[Mapping[str, Tensor]] | None = None,
    learning_rates: Sequence[float] | None = None,
    normalise: Literal["dot", "cosine"] = "dot",
    params: Iterable[str] | None = None,
) -> Tensor:
    """Inner products of query and training gradients over checkpoints: sum_k eta_k <g_q(w_k), g_i(w_k)>, (Q, N).

    To first order, what plain gradient descent with rate eta on sample i alone takes off the query's loss: positive for
    samples that helped. It has the opposite sign of ``query_influence``, knows no curvature and needs no minimum.

    Args:
        model: any module in eval mode; left as it is.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: the training samples: one pair ``(x, y)``, or an iterable of pairs, walked through once a checkpoint.
        x_query: query inputs, (Q, ...).
        y_query: their targets.
        checkpoints: state dicts of the model, taken one at a time (a generator that loads them is welcome); None for
            the model's present weights alone.
        learning_rates: eta_k, one a checkpoint; None means 1 each.
        normalise: "dot", or "cosine": sum_k eta_k cos(g_q, g_i) / sum_k eta_k, which keeps samples with large gradients
            from being everyone's neighbour; 0 where a gradient vanishes.
        params: names of parameters or modules; None for all trainable ones.

    Returns:
        Tensor (Q, N), exact; training samples in the order of ``data``.

    Raises:
        InputError: no checkpoints, another number of rates, a state dict that does not fit, empty data.

    Cost: per checkpoint one ``backward_kernel`` between queries and every batch, that is a pass forward and back over
        both and about Q N (d + p) operations a linear layer; gradients are not formed. One copy of the model.

    References: Pruthi, Liu, Kale and Sundararajan (2020), TracIn, arXiv:2002.08484, eq. 1.

    Example:
        >>> from pullback import reference
        >>> model, x, y = nn.Linear(3, 2).double(), torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
        >>> found = gradient_influence(model, nn.CrossEntropyLoss(), (x, y), x[:2], y[:2], learning_rates=[0.1])
        >>> bool(torch.allclose(found, 0.1 * reference.total_kernel(model, nn.CrossEntropyLoss(), x, y)[:2]))
        True
    """
    where = "gradient_influence"
    check_option(where, "normalise", normalise, ("dot", "cosine"))
    check_batch(where, x_query, y_query, ("x_query", "y_query"))
    names = None if params is None else names_in(params, where)
    moved = model if checkpoints is None else copy.deepcopy(model)
    total, weight, count = None, 0.0, 0
    for k, state in enumerate([None] if checkpoints is None else checkpoints):
        if state is not None:
            _load(moved, state, k, where)
        rate = _rate(learning_rates, k, where)
        influences = _at(moved, loss_fn, data, (x_query, y_query), normalise, names, where)
        total = rate * influences if total is None else total + rate * influences
        weight, count = weight + rate, k + 1
    if total is None:
        raise input_error(where, "at least one checkpoint", "none", "Pass state dicts, or None for the present weights")
    if learning_rates is not None and len(learning_rates) != count:
        raise _rates_error(where, len(learning_rates), f"{count} checkpoints")
    return total / weight if normalise == "cosine" else total


def _at(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    query: tuple[Batch, Batch],
    normalise: str,
    params: list[str] | None,
    where: str,
) -> Tensor:
    """(Q, N) at one checkpoint."""
    columns = []
    for x, y in [data] if isinstance(data, tuple) else data:
        products = backward_kernel(model, loss_fn, *query, x2=x, y2=y, params=params).total
        if normalise == "cosine":
            sizes = [GradientMatrix(model, loss_fn, *pair, params=params).norms() for pair in (query, (x, y))]
            scale = sizes[0].unsqueeze(1) * sizes[1]
            products = torch.where(scale > 0, products / torch.where(scale > 0, scale, 1), 0)
        columns.append(products)
    if not columns:
        raise input_error(where, "at least one batch of training samples", "none", "Pass (x, y), or a list of pairs")
    return torch.cat(columns, 1)


def _load(model: nn.Module, state: Mapping[str, Tensor], k: int, where: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise input_error(where, "state dicts of this model", f"checkpoint {k}: {first}", "Check the order") from None


def _rate(rates: Sequence[float] | None, k: int, where: str) -> float:
    if rates is not None and k >= len(rates):
        raise _rates_error(where, len(rates), "more checkpoints")
    return 1.0 if rates is None else rates[k]


def _rates_error(where: str, rates: int, got: str) -> Exception:
    return input_error(where, f"as many checkpoints as `learning_rates`, {rates}", got, "Pass one rate a checkpoint")
