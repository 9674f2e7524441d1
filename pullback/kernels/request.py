"""What every kernel call does: check the data, capture, plan, run, in one pass or in as many as the memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from pullback._checks import check_option, input_error
from pullback.functional import LossFunction, ModelView, check_batch
from pullback.functional.batch import Batch
from pullback.functional.model_view import names_in
from pullback.functional.readout import Readout, loss_readout, output_readout, token_readout
from pullback.functional.refused import refuse_recurrent_dropout
from pullback.gradients.rows.contract import Contract, Form


@dataclass(frozen=True)
class Side:
    """Rows or columns of a kernel: a model's parameters and its data."""

    view: ModelView
    x: Batch
    y: Batch
    count: int


@dataclass(frozen=True)
class Request:
    """A kernel asked for.

    Args:
        readout: the values whose gradients are asked for.
        rows: the first set.
        columns: the second; None for the symmetric kernel.
        contract: of the output axes.
        keep_layers: keep every layer's block.
        forms: layer or parameter -> form, where it is not left to the cost.
        memory_limit: bytes, or None.
        where: the caller.
        several_outputs: the readout may have more than one value a sample.
    """

    readout: Readout
    rows: Side
    columns: Side | None
    contract: Contract
    keep_layers: bool
    forms: Mapping[str, Form] | None
    memory_limit: int | None
    where: str
    several_outputs: bool = False


def side_of(
    model: nn.Module,
    params: Iterable[str] | None,
    x: Batch,
    y: Batch,
    count: int,
    where: str,
    rows: Side | None = None,
) -> Side:
    """A side of a kernel, after the checks of the model; columns must have the parameters of the rows."""
    view = ModelView.of(model, params, where)
    refuse_recurrent_dropout(view.model, where)
    if rows is not None:
        own, other = ({name: tuple(p.shape) for name, p in v.parameters.items()} for v in (rows.view, view))
        if own != other:
            name = next(n for n in [*own, *other] if own.get(n) != other.get(n))
            raise input_error(
                where,
                f"`model2` with the trainable parameters of `model`, `{name}` of shape {own.get(name, 'none')}",
                f"{other.get(name, 'none')}",
                "Pass a copy of the model with other weights",
            )
    return Side(view, x, y, count)


def loss_request(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    x2: Batch | None,
    y2: Batch | None,
    model2: nn.Module | None,
    params: Iterable[str] | None,
    per: str,
    forms: Mapping[str, Form] | None,
    memory_limit: int | None,
    where: str,
) -> Request:
    """The request behind ``backward_kernel`` and ``plan_kernel``."""
    check_option(where, "per", per, ("sample", "token"))
    params = None if params is None else names_in(params, where)
    count = check_batch(where, x, y)
    rows = side_of(model, params, x, y, count, where)
    if (x2 is None) != (y2 is None):
        given, missing = ("x2", "y2") if y2 is None else ("y2", "x2")
        raise input_error(where, "`x2` and `y2` together", f"only `{given}`", f"Pass `{missing}` too")
    columns = None
    if x2 is not None:
        columns = side_of(model2 or model, params, x2, y2, check_batch(where, x2, y2, ("x2", "y2")), where, rows)
    elif model2 is not None:
        columns = side_of(model2, params, x, y, count, where, rows)
    readout = token_readout(loss_fn) if per == "token" else loss_readout(loss_fn)
    return Request(readout, rows, columns, "full", per == "sample", forms, memory_limit, where)


Contraction = Literal["trace", "diagonal", "full", "sum"]


def tangent_request(
    model: nn.Module,
    x: Batch,
    x2: Batch | None,
    model2: nn.Module | None,
    contract: Contraction,
    params: Iterable[str] | None,
    forms: Mapping[str, Form] | None,
    memory_limit: int | None,
    where: str,
) -> Request:
    """The rows and columns of a tangent kernel, checked."""
    check_option(where, "contract", contract, ("trace", "diagonal", "full", "sum"))
    params = None if params is None else names_in(params, where)
    count = check_batch(where, x)
    rows = side_of(model, params, x, None, count, where)
    columns = None
    if x2 is not None or model2 is not None:
        other = x if x2 is None else x2
        size = check_batch(where, other, None, ("x2", "y2"))
        columns = side_of(model2 or model, params, other, None, size, where, rows)
    kept: Contract = "full" if contract == "sum" else contract
    readout = output_readout(summed=contract == "sum")
    several = contract != "sum"
    return Request(readout, rows, columns, kept, False, forms, memory_limit, where, several_outputs=several)
