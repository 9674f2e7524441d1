"""What a kernel call asks for: a model and its data, checked, the values, and what the plan has to keep to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from pullback._checks import check_option, input_error
from pullback.functional import LossFunction, ModelView, check_batch
from pullback.functional.batch import Batch
from pullback.functional.model_view import names_in
from pullback.functional.readout import Readout, loss_readout, output_readout, token_readout
from pullback.functional.refused import refuse_recurrent_dropout
from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Contract
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.make import PlanOptions, make_plan
from pullback.kernels.plan.rates import Rates


@dataclass(frozen=True)
class Side:
    """Rows or columns of a kernel: a model's parameters and its data."""

    view: ModelView
    x: Batch
    y: Batch
    count: int


@dataclass(frozen=True)
class Request:
    """A kernel asked for, checked.

    Args:
        readout: the values whose gradients are asked for.
        rows: the first set.
        columns: the second; None for the symmetric kernel.
        options: what its plan has to keep to.
        where: the caller.
        several_outputs: the readout may have more than one value a sample.
    """

    readout: Readout
    rows: Side
    columns: Side | None
    options: PlanOptions
    where: str
    several_outputs: bool = False

    def plan(self, captured: Captured, graph_bytes: int = 0, rates: Rates | None = None) -> KernelPlan:
        """The plan, from captured factors of any number of samples.

        Args:
            captured: of the rows.
            graph_bytes: what autograd saves for each sample.
            rates: of the machine; None takes this one's.
        """
        options = replace(self.options, graph_bytes=graph_bytes, rates=rates)
        columns = None if self.columns is None else self.columns.count
        return make_plan(captured, self.rows.count, columns, self.where, options)


@dataclass(frozen=True)
class Given:
    """A model and its data as a call was given them, and what the columns have others of.

    Args:
        where: the caller.
        model: of the rows.
        x: inputs, (N, ...).
        y: targets; None where gradients of outputs are asked for.
        x2: inputs of the columns; None for those of the rows.
        y2: their targets.
        model2: of the columns; None for that of the rows.
        params: names of parameters or modules; None for all trainable ones.
    """

    where: str
    model: nn.Module
    x: Batch
    y: Batch = None
    x2: Batch | None = None
    y2: Batch | None = None
    model2: nn.Module | None = None
    params: Iterable[str] | None = None

    def sides(self) -> tuple[Side, Side | None]:
        """Rows and columns; None for the symmetric kernel."""
        where = self.where
        params = None if self.params is None else names_in(self.params, where)
        rows = _side(self.model, params, (self.x, self.y), where)
        if self.x2 is not None:
            columns = _side(self.model2 or self.model, params, (self.x2, self.y2), where, ("x2", "y2"))
        elif self.model2 is not None:
            columns = _side(self.model2, params, (self.x, self.y), where)
        else:
            return rows, None
        own, other = ({name: tuple(p.shape) for name, p in s.view.parameters.items()} for s in (rows, columns))
        if own != other:
            name = next(n for n in [*own, *other] if own.get(n) != other.get(n))
            raise input_error(
                where,
                f"`model2` with the trainable parameters of `model`, `{name}` of shape {own.get(name, 'none')}",
                f"{other.get(name, 'none')}",
                "Pass a copy of the model with other weights",
            )
        return rows, columns


def _side(
    model: nn.Module,
    params: list[str] | None,
    data: tuple[Batch, Batch],
    where: str,
    names: tuple[str, str] = ("x", "y"),
) -> Side:
    """After the checks of data and model."""
    count = check_batch(where, *data, names)
    view = ModelView.of(model, params, where)
    refuse_recurrent_dropout(view.model, where)
    return Side(view, *data, count)


def loss_request(given: Given, loss_fn: LossFunction, options: PlanOptions, per: str = "sample") -> Request:
    """The request behind kernels of losses; ``per`` sample or token."""
    if (given.x2 is None) != (given.y2 is None):
        one, missing = ("x2", "y2") if given.y2 is None else ("y2", "x2")
        raise input_error(given.where, "`x2` and `y2` together", f"only `{one}`", f"Pass `{missing}` too")
    rows, columns = given.sides()
    check_option(given.where, "per", per, ("sample", "token"))
    options = replace(options, keep_layers=per == "sample")
    readout = token_readout(loss_fn) if per == "token" else loss_readout(loss_fn)
    return Request(readout, rows, columns, options, given.where)


Contraction = Literal["trace", "diagonal", "full", "sum"]


def tangent_request(given: Given, contract: Contraction, options: PlanOptions) -> Request:
    """The request behind ``tangent_kernel``."""
    check_option(given.where, "contract", contract, ("trace", "diagonal", "full", "sum"))
    kept: Contract = "full" if contract == "sum" else contract
    options = replace(options, contract=kept, keep_layers=False)
    rows, columns = given.sides()
    readout = output_readout(summed=contract == "sum")
    return Request(readout, rows, columns, options, given.where, several_outputs=contract != "sum")
