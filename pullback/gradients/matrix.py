"""``GradientMatrix``: G, (N, P), known by its products and never formed unless asked; and rows of several values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from pullback.functional import LossFunction, ModelView, check_batch
from pullback.functional.batch import Batch
from pullback.functional.readout import loss_readout
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import captured_rows
from pullback.gradients.capture.sum_checks import SumChecks, squared_size
from pullback.gradients.rows.factor import Factor
from pullback.operators.operator import Operator

COLUMNS = 32  # taken at a time where there are many: what is formed for them stays a few times a layer's inputs


@dataclass(frozen=True)
class _Held:
    """What rows are made of, without the model: it can be saved.

    Args:
        factors: of all parameters.
        shapes: parameter -> shape, in the model's order.
        layers: module name -> its parameters.
        values: those whose gradients the rows are, (N, C).
    """

    factors: tuple[Factor, ...]
    shapes: dict[str, torch.Size]
    layers: dict[str, tuple[str, ...]]
    values: Tensor

    @classmethod
    def of(cls, captured: Captured) -> _Held:
        view = captured.view
        return cls(captured.factors, {n: p.shape for n, p in view.parameters.items()}, view.layers, captured.values)


class GradientRows(Operator):
    """Rows g_ic, (N C, P): gradients of the C values a readout takes from every sample, sample by sample.

    Rows are held as layer inputs and output gradients, which is what is saved of them. Columns follow the model's
    parameter order.

    Attributes:
        num_samples: N.
        num_outputs: C.
        layers: module name -> its columns, as an operator (N C, P_l).
        gram: G G^T, (N C, N C), as an operator that never forms it.
    """

    num_samples: int
    num_outputs: int

    @classmethod
    def of(cls, captured: Captured, where: str | None) -> GradientRows:
        """The rows of captured factors, after the check of their sums; None where the caller has made it."""
        made = cls.__new__(cls)
        made._fill(_Held.of(captured), tuple(captured.view.parameters))
        if where is not None:
            made._check_sums(captured, where)
        return made

    def _check_sums(self, captured: Captured, where: str) -> None:
        checks = SumChecks(where, captured.dtype)
        with without_autocast():
            count = captured.num_samples * captured.num_outputs
            bound = (count * squared_size(captured.factors)).sqrt()
            for factor in captured.factors:
                checks.add_rows(factor, captured, factor.total(captured.combination), bound)
        checks.evaluate()

    def _fill(self, held: _Held, names: tuple[str, ...]) -> None:
        self._held = held
        self._shapes = {name: held.shapes[name] for name in names}
        self._factors = [
            factor if set(factor.shapes) <= set(names) else factor.only(name)
            for factor in held.factors
            for name in (factor.shapes if not set(factor.shapes) <= set(names) else [next(iter(factor.shapes))])
            if name in names
        ]
        self.num_samples, self.num_outputs = held.values.shape
        columns = sum(shape.numel() for shape in self._shapes.values())
        shape = self.num_samples * self.num_outputs, columns
        Operator.__init__(self, shape, self.like.dtype, self.like.device)

    @property
    def layers(self) -> Mapping[str, Self]:
        """Module name -> that module's columns."""
        return {layer: self._restricted(names) for layer, names in self._held.layers.items()}

    def _restricted(self, names: tuple[str, ...]) -> Self:
        part = type(self).__new__(type(self))
        part._fill(self._held, names)
        return part

    @property
    def like(self) -> Tensor:
        """Any tensor of the rows' dtype and device."""
        return self._factors[0].like

    @property
    def gram(self) -> RowGram:
        """G G^T by its products."""
        return RowGram(self._factors)

    def _split(self, matrix: Tensor) -> dict[str, Tensor]:
        """(P, K) -> parameter -> (K, *shape)."""
        pieces = matrix.T.split([shape.numel() for shape in self._shapes.values()], dim=1)
        return {
            n: piece.reshape(len(piece), *shape) for (n, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }

    @without_autocast()
    def _matmat(self, matrix: Tensor) -> Tensor:
        parts = []
        for block in matrix.split(COLUMNS, dim=1):
            vectors = self._split(block)
            parts.append(sum(factor.times(vectors) for factor in self._factors).flatten(0, 1))  # type: ignore[union-attr]
        return torch.cat(parts, dim=1)

    @without_autocast()
    def _rmatmat(self, matrix: Tensor) -> Tensor:
        result = matrix.new_empty(self.shape[1], matrix.shape[1])
        for start in range(0, matrix.shape[1], COLUMNS):
            columns = slice(start, start + COLUMNS)
            weights = matrix[:, columns].unflatten(0, (self.num_samples, self.num_outputs))
            products = {n: v for factor in self._factors for n, v in factor.transposed_times(weights).items()}
            flat = [products[name].reshape(weights.shape[2], shape.numel()) for name, shape in self._shapes.items()]
            result[:, columns] = torch.cat(flat, dim=1).T
        return result

    @without_autocast()
    def squared_norms(self) -> Tensor:
        """|g_ic|^2, (N C,), without forming G."""
        return torch.stack([factor.squared_norms() for factor in self._factors]).sum(0).flatten()

    def norms(self) -> Tensor:
        """|g_ic|, (N C,), without forming G."""
        return self.squared_norms().clamp(min=0).sqrt()

    @without_autocast()
    def to_dense(self) -> Tensor:
        """G itself, (N C, P)."""
        rows = {n: r for factor in self._factors for n, r in factor.rows(slice(0, self.num_samples)).items()}
        return torch.cat([rows[n].reshape(self.shape[0], shape.numel()) for n, shape in self._shapes.items()], dim=1)


class RowGram(Operator):
    """G G^T of gradient rows, (N C, N C), by products; what layers with few samples share is formed once."""

    symmetric = True

    def __init__(self, factors: Sequence[Factor]) -> None:
        first, self._factors = factors[0], factors
        self._samples = first.num_samples, first.num_outputs
        with without_autocast():
            self._products = [factor.gram_product() for factor in factors]
        count = first.num_samples * first.num_outputs
        super().__init__((count, count), first.like.dtype, first.like.device)

    def __reduce__(self) -> tuple[type[RowGram], tuple[Sequence[Factor]]]:
        return RowGram, (self._factors,)

    @without_autocast()
    def _matmat(self, matrix: Tensor) -> Tensor:
        weights = matrix.unflatten(0, self._samples)
        return sum(product(weights) for product in self._products).flatten(0, 1)  # type: ignore[union-attr]


class GradientMatrix(GradientRows):
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
        captured = captured_rows(view, loss_readout(loss_fn), x, y, where)
        self._fill(_Held.of(captured), tuple(view.parameters))
        self._check_sums(captured, where)

    @property
    def losses(self) -> Tensor:
        """Each sample's loss, (N,)."""
        return self._held.values.squeeze(1)
