"""``ElasticPenalty``: what an earlier task asks of the weights, as a quadratic around where it left them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pullback._checks import check_option, input_error
from pullback.dynamics.second_order.kronecker import kfac_operator
from pullback.functional import LossFunction, ModelView, check_batch
from pullback.functional.batch import Batch
from pullback.functional.batches import Batches, Data
from pullback.functional.unwrap import without_autocast
from pullback.gradients.curvature_rows import Matrix, row_source

NAME = "ElasticPenalty"
MATRICES: dict[str, Matrix] = {"true": "true_fisher", "empirical": "empirical_fisher"}
Form = Callable[[Tensor], Tensor]  # delta (P,) -> delta^T F delta


class ElasticPenalty:
    """Elastic weight consolidation: strength / 2 times (w - w_A)^T F (w - w_A), differentiable in the weights.

    w_A are the weights at the time this is made, after task A; F is the Fisher matrix of A's data there. Add what a
    call returns to the loss of task B: what A depends on then stays where it was, and the rest is free.

    Args:
        model: the model as task A left it, in eval mode; the same one is trained on.
        loss_fn: of task A; "true" needs a loss that is a negative log-likelihood.
        data: of task A: a pair (x, y), or batches.
        strength: lambda, at least 0; may be changed later.
        fisher: "diagonal": the diagonal alone, sum of F_p (w_p - w_Ap)^2. "kronecker": a block a layer, by the package
            curvlinops-for-pytorch. "full": the whole matrix.
        kind: "true": targets in expectation over the model's prediction. "empirical": those of the data.
        params: names of parameters or modules; None for all trainable ones.

    Attributes:
        strength: lambda.
        anchor: w_A, parameter -> shape.
        diagonal: of F, parameter -> shape; None for "kronecker".

    Raises:
        InputError: bad data; a strength below 0; curvlinops is not installed ("kronecker").
        UnsupportedError: dropout or batch norm in train mode; a loss without a distribution ("true").

    Cost: the rows of ``GradientMatrix`` (or C of them a sample, "true") for every batch, formed: N r P numbers at a
        time; "full" keeps P times the smaller of P and N r of them. A call: P operations, or that number.

    References: Kirkpatrick et al. (2017), arXiv:1612.00796; Ritter et al. (2018), arXiv:1805.07810.

    Example:
        >>> model = nn.Linear(1, 1, bias=False).double()
        >>> _ = model.weight.data.zero_()
        >>> x, y = torch.full((1, 1), 2.0).double(), torch.zeros(1, 1).double()
        >>> loss_a = nn.MSELoss()  # of a normal distribution with variance 1/2: F = 2 x^2 = 8
        >>> penalty = ElasticPenalty(model, loss_a, (x, y), strength=0.5)
        >>> _ = model.weight.data.fill_(1.0)
        >>> round(penalty().item(), 6)
        2.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Data,
        strength: float = 1.0,
        *,
        fisher: str = "diagonal",
        kind: str = "true",
        params: Iterable[str] | None = None,
    ) -> None:
        check_option(NAME, "fisher", fisher, ("diagonal", "kronecker", "full"))
        check_option(NAME, "kind", kind, tuple(MATRICES))
        if not strength >= 0:
            raise input_error(NAME, "`strength` of at least 0", repr(strength), "Pass a non-negative `strength`")
        self.strength = strength
        self._view = ModelView.of(model, params, NAME)
        self.anchor = {name: p.detach().clone() for name, p in self._view.parameters.items()}
        self.diagonal: dict[str, Tensor] | None = None
        batches = Batches(data, NAME)
        if fisher == "kronecker":
            self._form = _kronecker(self._view, loss_fn, list(batches), kind)
            return
        rows = [_rows(self._view, loss_fn, x, y, kind) for x, y in batches]
        count = sum(check_batch(NAME, x, y) for x, y in batches)
        diagonal = torch.stack([each.square().sum(0) for each in rows]).sum(0) / count
        self.diagonal = self._view.unflatten(diagonal)
        self._form = _weighted(diagonal) if fisher == "diagonal" else _full(torch.cat(rows), count)

    def __call__(self) -> Tensor:
        """The penalty at the model's weights, a number."""
        with without_autocast():
            now = self._view.flatten(self._view.parameters)
            return self.strength / 2 * self._form(now - self._view.flatten(self.anchor).to(now))


def _rows(view: ModelView, loss_fn: LossFunction, x: Batch, y: Batch, kind: str) -> Tensor:
    """B, (N r, P), of F = B^T B / N; no rows where F is zero."""
    source = row_source(view, loss_fn, x, y, MATRICES[kind], NAME, otherwise="kind='empirical'")
    if not source.num_values:
        first = next(iter(view.parameters.values()))
        return first.new_zeros(1, view.num_params)
    return source.rows(NAME).to_dense()


def _weighted(diagonal: Tensor) -> Form:
    return lambda delta: (diagonal * delta.square()).sum()


def _full(rows: Tensor, count: int) -> Form:
    """By the rows, or by the matrix where it is the smaller of the two."""
    if len(rows) < rows.shape[1]:
        return lambda delta: (rows @ delta).square().sum() / count
    matrix = rows.T @ rows / count
    return lambda delta: delta @ (matrix @ delta)


def _kronecker(view: ModelView, loss_fn: LossFunction, batches: list[tuple[Batch, Batch]], kind: str) -> Form:
    """By products, whose derivative in delta is 2 K delta."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    op = kfac_operator(view.model, loss_fn, list(view.parameters.values()), (x, y), kind, 0, NAME)

    def form(delta: Tensor) -> Tensor:
        fixed = delta.detach()
        with torch.no_grad():
            image = op @ fixed
        return image @ (2 * delta - fixed)

    return form
