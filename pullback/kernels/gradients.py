"""``GradientMatrix``: G, (N, P), known by its products and never formed unless asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pullback.functional import LossFunction, ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.readout import loss_readout
from pullback.functional.unwrap import without_autocast
from pullback.kernels.checks import SumChecks
from pullback.kernels.coverage import Captured, capture_factors
from pullback.kernels.refused import refuse_recurrent_dropout
from pullback.operators.base import Operator


class GradientMatrix(Operator):
    """Matrix G, (N, P), whose row i is the gradient g_i of sample i's own loss (no 1/N).

    Columns follow the model's parameter order. Rows are held as layer inputs and output gradients; products cost
    about one forward pass each.

    Args:
        model: any module in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        x: inputs, (N, ...).
        y: targets, (N, ...).
        params: names of parameters or modules; None for all trainable ones.

    Attributes:
        layers: module name -> its columns, as a GradientMatrix (N, P_l).
        losses: (N,).

    Raises:
        InputError, UnsupportedError, SelfCheckError: as ``backward_kernel``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(3, 2).double()
        >>> x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
        >>> G = GradientMatrix(model, nn.CrossEntropyLoss(), x, y)
        >>> nn.CrossEntropyLoss(reduction="sum")(model(x), y).backward()
        >>> bool(torch.allclose((G.T @ torch.ones(4, dtype=torch.float64))[:6], model.weight.grad.flatten()))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        x: Batch,
        y: Batch,
        *,
        params: Iterable[str] | None = None,
    ) -> None:
        where = "GradientMatrix"
        check_batch(where, x, y)
        view = ModelView.of(model, params, where)
        refuse_recurrent_dropout(view.model, where)
        with undisturbed(view.model):
            captured = capture_factors(view, loss_readout(loss_fn), x, y, where)
        self._fill(captured, tuple(view.parameters))
        checks = SumChecks(where, captured.dtype)
        with without_autocast():
            bound = (captured.num_samples * self.squared_norms().sum()).sqrt()
            for factor in captured.factors:
                totals = factor.total(captured.combination)
                sums = {name: factor.piece_order(name, value) for name, value in totals.items()}
                checks.add_totals(factor, captured, sums, bound)
        checks.evaluate()

    def _fill(self, captured: Captured, names: tuple[str, ...]) -> None:
        parameters = captured.view.parameters
        self._captured = captured
        self._names = names
        self._shapes = {name: parameters[name].shape for name in names}
        self._factors = [
            factor if set(factor.shapes) <= set(names) else factor.only(name)
            for factor in captured.factors
            for name in (factor.shapes if not set(factor.shapes) <= set(names) else [next(iter(factor.shapes))])
            if name in names
        ]
        self.losses = captured.values.squeeze(1)
        columns = sum(shape.numel() for shape in self._shapes.values())
        like = self._factors[0].like
        super().__init__((captured.num_samples, columns), like.dtype, like.device)

    @property
    def layers(self) -> Mapping[str, GradientMatrix]:
        """Module name -> that module's columns."""
        return {layer: self._restricted(names) for layer, names in self._captured.view.layers.items()}

    def _restricted(self, names: tuple[str, ...]) -> GradientMatrix:
        part = GradientMatrix.__new__(GradientMatrix)
        part._fill(self._captured, names)
        return part

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        pieces = vector.split([shape.numel() for shape in self._shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    @without_autocast()
    def _matmat(self, matrix: Tensor) -> Tensor:
        columns = [self._split(column) for column in matrix.T]
        return torch.cat([sum(f.matvec(v) for f in self._factors) for v in columns], dim=1)  # type: ignore[misc]

    @without_autocast()
    def _rmatmat(self, matrix: Tensor) -> Tensor:
        columns = []
        for weights in matrix.T:
            found = {name: value for f in self._factors for name, value in f.rmatvec(weights.unsqueeze(1)).items()}
            columns.append(torch.cat([found[name].reshape(-1) for name in self._names]))
        return torch.stack(columns, dim=1)

    @without_autocast()
    def squared_norms(self) -> Tensor:
        """|g_i|^2, (N,), without forming G."""
        return torch.stack([factor.squared_norms() for factor in self._factors]).sum(0).squeeze(1)

    def norms(self) -> Tensor:
        """|g_i|, (N,), without forming G."""
        return self.squared_norms().clamp(min=0).sqrt()

    @without_autocast()
    def to_dense(self) -> Tensor:
        """G itself, (N, P)."""
        rows = {n: r for factor in self._factors for n, r in factor.rows(slice(0, self.shape[0])).items()}
        return torch.cat([rows[name].flatten(1) for name in self._names], dim=1)
