"""What the curvature operators share: the walk over the data, graphs, products in blocks of columns, sub-blocks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from pullback._checks import check_names, input_error
from pullback.functional import LossFunction, ModelView, undisturbed
from pullback.functional.batch import Batch, num_samples, quiet_vmap
from pullback.functional.batches import Batches, Data
from pullback.functional.differentiable import (
    differentiable,
    elementary,
    lacks_derivative,
    no_second_derivative,
    plain_attention,
    refuse_not_finite,
    say_plain_attention,
)
from pullback.functional.losses import check_finite, unchecked_loss
from pullback.functional.plain_calls import own_calls
from pullback.functional.refused import refuse_random_and_coupled
from pullback.functional.repeatable import Watch, check_same_answer, state_of
from pullback.functional.target_checks import check_targets
from pullback.functional.walk import named_parameters_of
from pullback.operators.curvature.block import Block
from pullback.operators.flat_derivatives import BLOCK_BYTES, GRAPH_TO_FORWARD, put_flat, unflatten
from pullback.operators.operator import Operator
from pullback.operators.own_samples import check_own_samples, output_values

__all__ = ["CurvatureOperator", "Data"]


Directions = Mapping[str, Tensor]  # parameter name -> (*shape), or (K, *shape) in a block


class CurvatureOperator(Operator):
    """A symmetric (P, P) matrix of the mean per-sample loss over data; columns in the model's parameter order.

    Attributes:
        view: the parameters covered, by name.
        num_samples: N, what the mean is over (counted positions with ``per="token"``).
        batched: whether several columns are carried through one pass; False once an operation of the model has
            turned out to have no batching rule, and columns are then taken one by one.
    """

    symmetric = True
    _known = False  # whether an operator of this model was checked before, at other weights
    _confirmed = False  # whether a first product was compared with another way to it

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, data: Data, *, params: Iterable[str] | None = None
    ) -> None:
        self._where = where = type(self).__name__
        self.view = ModelView.of(model, params, where)
        self.loss_fn = loss_fn
        self.batched = True
        self._kept: tuple[Any, Any] | None = None
        self._held = self._unchanged = False
        first = next(iter(self.view.parameters.values()))
        for name, p in self.view.parameters.items():
            if (p.dtype, p.device) != (first.dtype, first.device):
                expected, got = f"parameters all {first.dtype} on {first.device}", f"`{name}` {p.dtype} on {p.device}"
                raise input_error(where, expected, got, "Convert the model, or name the layers of one kind in `params`")
        self._batches = Batches(data, where)
        with undisturbed(model):
            watched = self._watched_values()
            with self._evaluation():
                self._first_look(watched)
        super().__init__((self.view.num_params, self.view.num_params), first.dtype, first.device)

    @classmethod
    def once_more(cls, model: nn.Module, loss_fn: LossFunction, data: Data, *, confirmed: bool) -> Self:
        """For callers that watch a model: an operator of one that was checked before, at other weights and data.

        What follows from its structure is not checked again: samples are not run alone and, where it was ``confirmed``,
        no product is compared with another way to it. What depends on weights, data and modes is looked at as ever.
        """
        made = cls.__new__(cls)
        made._known, made._confirmed = True, confirmed
        made.__init__(model, loss_fn, data)  # type: ignore[misc]
        return made

    @property
    def confirmed(self) -> bool:
        """Whether a product was compared with another way to it, and agreed."""
        return self._confirmed

    def block(self, rows: str | Iterable[str], columns: str | Iterable[str] | None = None) -> Operator:
        """The sub-block between two groups of parameters or modules; the diagonal block where ``columns`` is None.

        Args:
            rows: names of parameters or modules, or one such name.
            columns: as ``rows``; both are taken in the model's parameter order.

        Cost: products run through the named layers' parts of the graph only.
        """
        of_rows = self._names(rows)
        return Block(self, of_rows, of_rows if columns is None else self._names(columns))

    @property
    def layers(self) -> dict[str, Operator]:
        """Module name -> its diagonal block."""
        return {layer: Block(self, names, names) for layer, names in self.view.layers.items()}

    @property
    def _every(self) -> dict[str, nn.Parameter]:
        """All parameters of the model, also those that are not covered."""
        return named_parameters_of(self.view.model)

    def _names(self, asked: str | Iterable[str]) -> tuple[str, ...]:
        """Names of covered parameters, from those of parameters or modules."""
        wanted = [asked] if isinstance(asked, str) else list(asked)
        named = ModelView.of(self.view.model, wanted, f"{self._where}.block").parameters
        check_names(f"{self._where}.block", "covered parameters", named, self.view.parameters)
        return tuple(named)

    @property
    def columns_at_once(self) -> int:
        """Columns carried through one pass, so that their activations stay within ``BLOCK_BYTES``."""
        return max(1, int(BLOCK_BYTES / (1 + GRAPH_TO_FORWARD * self._forward_bytes)))

    def _matmat(self, matrix: Tensor) -> Tensor:
        every = tuple(self.view.parameters)
        return self.product(matrix, every, every)

    def product(self, matrix: Tensor, rows: tuple[str, ...], columns: tuple[str, ...]) -> Tensor:
        """Product of the block (rows, columns) of parameter names with a matrix, one column after another in memory."""
        into, out_of = self.view.restricted(columns), self.view.restricted(rows)
        vectors = matrix.T.contiguous()  # (K, columns); free where the matrix lies column by column
        copied = vectors.data_ptr() != matrix.data_ptr()
        # fresh pages for another K x P numbers cost a tenth of a block's time: results take the copy's place
        in_place = copied and self._batches.alone and rows == columns
        result = vectors if in_place else vectors.new_empty(len(vectors), out_of.num_params)
        at_once = self.columns_at_once
        with self._evaluation():
            for index, graph in enumerate(self._graphs()):
                with own_calls():  # the graph stands: what follows calls neither model nor loss
                    for some, total in zip(vectors.split(at_once), result.split(at_once), strict=True):
                        self._put_product(graph, some, total, into, out_of, index > 0)
        refuse_not_finite(result, matrix, self._where)
        return result.T

    def _put_product(
        self, graph: Any, vectors: Tensor, total: Tensor, into: ModelView, out_of: ModelView, adding: bool
    ) -> None:
        """Put a graph's products with ``vectors`` (K, columns) into ``total`` (K, rows), or add them to it."""
        names = tuple(out_of.parameters)
        found: Sequence[Tensor | None]
        if len(vectors) > 1 and self.batched:
            try:
                with quiet_vmap():
                    found = self._graph_product(graph, unflatten(into, vectors), names, True)
            except RuntimeError:  # no batching rule; a fault of another kind is raised again by the loop
                self.batched = False
            else:
                put_flat(found, total, out_of, adding)
                return
        for vector, row in zip(vectors, total, strict=True):
            directions = into.unflatten(vector)
            try:
                found = self._graph_product(graph, directions, names, False)
            except RuntimeError as error:
                if not lacks_derivative(error):
                    raise
                raise no_second_derivative(self._where, error) from None
            put_flat(found, row, out_of, adding)

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Nothing of the model is left changed, and no operation is used that has no second derivative."""
        with ExitStack() as stack:
            if not self._held:
                stack.enter_context(undisturbed(self.view.model, derivatives=False))
            stack.enter_context(elementary() if self._held else differentiable())
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """For several products between which nobody writes to model or data: both are looked at once.

        Around small models that look costs several times what a product does.
        """
        with undisturbed(self.view.model, derivatives=False), own_calls(), plain_attention():
            self._held = True
            try:
                yield
            finally:
                self._held = self._unchanged = False

    def _watched_values(self) -> dict[str, Tensor]:
        """Values of the first batch, evaluated as the model runs by itself; counts bytes, notices fused attention."""
        refuse_random_and_coupled(self.view.model, self._where)
        x, y = next(iter(self._batches))
        with torch.enable_grad(), elementary(), Watch() as watch:
            outputs = self.view(x)
        self._forward_bytes = watch.num_bytes
        if watch.fused_attention:
            say_plain_attention(self._where)
        with torch.no_grad(), elementary():
            check_targets(self.loss_fn, outputs, y, self._where)
            return self._values_of(outputs, y, num_samples(x))

    def _first_look(self, watched: dict[str, Tensor]) -> None:
        """Check model, loss and data in one walk, and remember sizes and losses."""
        where, sizes = self._where, []
        self._losses_seen: dict[int, Tensor] = {}
        for index, (x, y) in enumerate(self._batches):
            count = num_samples(x)
            with torch.no_grad():
                outputs = self.view(x)
                check_targets(self.loss_fn, outputs, y, where)
                losses = self._losses(outputs, y)
                values = self._values_of(outputs, y, count)
            sizes.append(self._size(losses, y))
            self._losses_seen[index] = losses
            if index == 0:
                again = partial(self._values, x, y)
                check_same_answer(watched, values, again, self._every, where, 0)
            if not self._known:
                check_own_samples(self._values, self.view.parameters, self._every, x, y, count, where)
        self._seen_at = state_of(self.view.model)
        self.num_samples = sum(sizes)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kept": None}  # a copy makes its own graph

    def _values(self, x: Batch, y: Batch, parameters: Directions | None = None) -> dict[str, Tensor]:
        """What is asked of samples on their own, (N, ...) each: of the model as it is, or at other parameters."""
        return self._values_of(self.view(x, parameters), y, num_samples(x))

    def _values_of(self, outputs: Any, y: Batch, count: int) -> dict[str, Tensor]:
        """Outputs and losses, by sample."""
        losses = self._losses(outputs, y).reshape(count, -1)
        check_finite(losses, self._where)
        return {"loss": losses, **output_values(outputs, count)}

    def _graphs(self) -> Iterator[Any]:
        """The graph of every batch; that of a lone batch is kept while weights, buffers, modes and data stay."""
        if self._unchanged and self._kept is not None:
            yield self._kept[1]
            return
        state = state_of(self.view.model)
        if self._batches.alone:
            stamp = state, self._batches.stamp()
            self._unchanged = self._held
            if self._kept is not None and self._kept[0] == stamp:
                yield self._kept[1]
                return
            self._kept = None  # frees the old graph before the new one is made
        refuse_random_and_coupled(self.view.model, self._where)
        if state != self._seen_at:
            self._seen_at, self._losses_seen = state, {}
        for index, (x, y) in enumerate(self._batches):
            with torch.enable_grad():
                outputs = self.view(x)
                losses = self._losses(outputs, y)
                seen = self._losses_seen.setdefault(index, losses.detach())
                again = partial(self._losses_at, x, y)
                check_same_answer({"loss": seen}, {"loss": losses}, again, self._every, self._where, index)
                graph = self._make_graph(outputs, losses, y, index)
            del outputs, losses
            if self._batches.alone:
                self._kept = stamp, graph
            yield graph
            del graph

    def _losses(self, outputs: Any, y: Batch) -> Tensor:
        """Losses of a batch's samples, (N,)."""
        return unchecked_loss(self.loss_fn, outputs, y, self._where)

    def _losses_at(self, x: Batch, y: Batch, parameters: Directions) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"loss": self._losses(self.view(x, parameters), y)}

    def _size(self, losses: Tensor, y: Batch) -> int:
        """What a batch counts for."""
        return len(losses)

    @abstractmethod
    def _make_graph(self, outputs: Any, losses: Tensor, y: Batch, index: int) -> Any:
        """What all products on one batch share, scaled by 1 / N."""

    @abstractmethod
    def _graph_product(
        self, graph: Any, directions: Directions, rows: tuple[str, ...], batched: bool
    ) -> Sequence[Tensor | None]:
        """A batch's part of the product, one tensor for each parameter of ``rows``; None stands for zeros."""
