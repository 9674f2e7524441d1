"""``Jacobian``: the derivative of a model's outputs in its parameters, or in its inputs, by products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback._checks import check_option, input_error
from pullback.functional import ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch, check_rows, quiet_vmap, tensors
from pullback.functional.batches import stamp_of
from pullback.functional.differentiable import differentiable, elementary, refuse_not_finite, say_plain_attention
from pullback.functional.losses import check_finite
from pullback.functional.model_view import check_module, even
from pullback.functional.refused import refuse_random_and_coupled
from pullback.functional.repeatable import Watch, check_same_answer, state_of
from pullback.functional.target_checks import logits_of
from pullback.functional.unwrap import refuse_sharded, unwrap
from pullback.operators.flat_derivatives import BLOCK_BYTES, GRAPH_TO_FORWARD, derivative
from pullback.operators.operator import Operator
from pullback.operators.own_samples import check_own_samples, with_gradients
from pullback.operators.push import Push


class Graph(NamedTuple):
    """Outputs z (N, ...), what they are differentiated in, and products J v."""

    outputs: Tensor
    inputs: list[Tensor]
    push: Push


class Jacobian(Operator):
    """Jacobian of the outputs on a batch, not normalised: rows (sample, output), N C of them, sample by sample.

    ``wrt="params"``: (N C, P), columns in the model's parameter order; row (i, c) is the gradient of output c of
    sample i. ``wrt="input"``: (N C, N D), columns (sample, input), D the numbers of one sample's input; it is block
    diagonal, as samples do not depend on each other, and ``per_sample()`` gives the blocks. Outputs and inputs with
    several axes are flattened; of several inputs those that are floating count, one after another within a sample.

    Args:
        model: any module that treats samples on their own, in eval mode, with one tensor (or an object with
            ``logits``) as its output.
        x: inputs (N, ...), or a tuple or dict of them.
        wrt: "params" or "input".
        params: names of parameters or modules; None for all trainable ones.

    Attributes:
        num_samples: N.
        num_outputs: C, outputs of one sample.

    Raises:
        InputError: bad data, outputs that are not one tensor (N, ...), ``wrt="input"`` without floating inputs.
        UnsupportedError: dropout or batch norm in train mode, a model that answers differently the second time or
            mixes samples; on use, derivatives that are not finite.

    Cost: one forward and one backward pass, whose graph is kept while weights and inputs stay; then per column of
        ``J @ v`` or ``J.T @ u`` about a backward pass. Columns are carried through in blocks of bounded memory.

    References: Grosse (2021), Neural net training dynamics, chapter 2, section 1.

    Example:
        >>> from pullback import reference
        >>> model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double(), torch.ones(4, 3, dtype=torch.float64)
        >>> J = Jacobian(model, x)
        >>> J.shape, bool(torch.allclose(J.per_sample(), reference.output_gradients(model, x)))
        ((8, 8), True)
    """

    def __init__(self, model: nn.Module, x: Batch, wrt: str = "params", *, params: Iterable[str] | None = None) -> None:
        self._where = where = "Jacobian"
        check_option(where, "wrt", wrt, ("params", "input"))
        if wrt == "input" and params is not None:
            raise input_error(where, "`params` with wrt='params'", "wrt='input'", "Leave one of them out")
        self.num_samples = check_batch(where, x)
        self._x, self._wrt = x, wrt
        if wrt == "params":
            view = ModelView.of(model, params, where)
            variables: list[Tensor] = list(view.parameters.values())
            self.model, self._parameters = view.model, variables
            self._shapes = [(1, p.shape) for p in variables]
        else:
            check_module(model, where)
            self.model = unwrap(model)
            refuse_sharded(self.model, where)
            floating = [t for t in tensors(x) if t.is_floating_point()]
            if not floating:
                remedy = "Differentiate in embedded tokens, or use wrt='params'"
                raise input_error(where, "floating inputs with wrt='input'", "none", remedy)
            variables, self._parameters = floating, []
            self._shapes = [(self.num_samples, t.shape[1:]) for t in floating]
        if kinds := {(t.dtype, t.device) for t in variables} - {(variables[0].dtype, variables[0].device)}:
            got, expected = kinds.pop(), (variables[0].dtype, variables[0].device)
            raise input_error(where, f"all in {expected[0]} on {expected[1]}", f"{got[0]} on {got[1]}", "Convert them")
        self.batched = True
        self._confirmed = False
        self._kept: tuple[Any, Graph] | None = None
        outputs = self._first_look()
        self.num_outputs = outputs[0].numel()
        columns = sum(count * shape.numel() for count, shape in self._shapes)
        super().__init__((outputs.numel(), columns), variables[0].dtype, variables[0].device)

    def outputs(self) -> Tensor:
        """What the model returns now, (N, ...)."""
        with self._evaluation():
            return self._graph().outputs.detach()

    def per_sample(self) -> Tensor:
        """The blocks: (N, C, P), or (N, C, D) for ``wrt="input"`` by C backward passes for all samples at once."""
        if self._wrt == "params":
            return self.to_dense().unflatten(0, (self.num_samples, self.num_outputs))
        basis = torch.eye(self.num_outputs, dtype=self.dtype, device=self.device)
        rows = self._by_columns(basis.repeat(1, self.num_samples), transposed=True)
        return rows.unflatten(1, (self.num_samples, -1)).transpose(0, 1)

    def to_dense(self) -> Tensor:
        """The matrix, from its rows or its columns, whichever are fewer; for ``wrt="input"`` from its blocks."""
        if self._wrt == "input":
            return torch.block_diag(*self.per_sample())
        if self.shape[1] < self.shape[0]:
            return super().to_dense()
        return self._by_columns(torch.eye(self.shape[0], dtype=self.dtype, device=self.device), transposed=True)

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self._by_columns(matrix.T, transposed=False).T

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self._by_columns(matrix.T, transposed=True).T

    def _by_columns(self, vectors: Tensor, *, transposed: bool) -> Tensor:
        """Products with the rows of ``vectors`` (K, ...), one a row of the result, as many at a time as fit."""
        at_once = max(1, int(BLOCK_BYTES / (1 + GRAPH_TO_FORWARD * self._forward_bytes)))
        with self._evaluation():
            graph = self._graph()
            found = torch.cat([self._product(graph, some, transposed) for some in vectors.split(at_once)])
        refuse_not_finite(found, vectors, self._where)
        return found

    def _product(self, graph: Graph, vectors: Tensor, transposed: bool) -> Tensor:
        """Products with some vectors: J^T u from the outputs' graph, or J v."""
        given = [vectors.reshape(-1, *graph.outputs.shape)] if transposed else self._split(vectors)

        def product(along: list[Tensor], batched: bool) -> list[Tensor | None]:
            if transposed:
                return derivative([graph.outputs], graph.inputs, along, batched)
            return graph.push(along, batched) or [None]  # outputs that depend on nothing

        found: list[Tensor | None] | None = None
        if len(vectors) > 1 and self.batched:
            try:
                with quiet_vmap():
                    found = product(given, True)
            except RuntimeError:  # no batching rule; a fault of another kind is raised again by the loop
                self.batched = False
        if found is None:
            rows = [product([g[k] for g in given], False) for k in range(len(vectors))]
            found = [None if part[0] is None else torch.stack(part) for part in zip(*rows, strict=True)]
        starts = graph.inputs if transposed else [graph.outputs.detach()]
        whole = [s.new_zeros(len(vectors), *s.shape) if f is None else f for s, f in zip(starts, found, strict=True)]
        return self._join(whole) if transposed else whole[0].flatten(1)

    def _split(self, vectors: Tensor) -> list[Tensor]:
        """(K, columns) -> one tensor (K, *shape) for each parameter or input."""
        count = self._shapes[0][0]
        pieces = vectors.unflatten(1, (count, -1)).split([shape.numel() for _, shape in self._shapes], dim=2)
        lead = () if self._wrt == "params" else (count,)
        named = zip(pieces, self._shapes, strict=True)
        return [even(p, shape).reshape(len(vectors), *lead, *shape) for p, (_, shape) in named]

    def _join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of ``_split``."""
        count = self._shapes[0][0]
        return torch.cat([part.reshape(len(part), count, -1) for part in parts], dim=2).flatten(1)

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Nothing of the model is left changed, and no operation is used that has no second derivative."""
        with undisturbed(self.model), differentiable():
            yield

    def _values(self, x: Batch, y: Batch = None, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The outputs by sample, (N, C): of the model as it is, or at other parameters."""
        outputs = self._call(x, parameters)
        return {"output": outputs.reshape(len(outputs), -1)}

    def _call(self, x: Batch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """The outputs (N, ...), one floating tensor."""
        outputs = logits_of(ModelView(self.model, {}, (), {})(x, parameters))
        if not isinstance(outputs, Tensor) or outputs.dim() == 0 or not outputs.is_floating_point():
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            expected = "a model that returns one floating tensor (N, ...)"
            raise input_error(self._where, expected, got, "Wrap it to return one tensor")
        return outputs

    def _first_look(self) -> Tensor:
        """Check the model on the data, and count the bytes of a forward pass."""
        where = self._where
        refuse_random_and_coupled(self.model, where)
        with undisturbed(self.model):
            with torch.enable_grad(), elementary(), Watch() as watch:
                outputs = self._call(self._x).detach()
            check_rows(where, outputs, self.num_samples)
            check_finite(outputs, where, "output")
            with differentiable():
                every = dict(self.model.named_parameters())
                again = self._values(self._x)
                check_same_answer(
                    {"output": outputs.reshape(len(outputs), -1)},
                    again,
                    partial(self._values, self._x),
                    every,
                    where,
                    0,
                )
                trained = {name: p for name, p in every.items() if p.requires_grad}
                check_own_samples(self._values, trained, every, self._x, None, self.num_samples, where)
        self._forward_bytes = watch.num_bytes
        if watch.fused_attention:
            say_plain_attention(where)
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kept": None}  # a copy makes its own graph

    def _graph(self) -> Graph:
        """The graph, kept while weights, buffers, modes and inputs stay as they are."""
        stamp = state_of(self.model), stamp_of(self._x)
        if self._kept is not None and self._kept[0] == stamp:
            return self._kept[1]
        self._kept = None  # frees the old graph before the new one is made
        refuse_random_and_coupled(self.model, self._where)
        with torch.enable_grad():
            x, inputs = self._x, self._parameters
            if self._wrt == "input":
                x, inputs = with_gradients(self._x)
            outputs = self._call(x).to(self.dtype)
            push = Push([outputs] if outputs.requires_grad else [], inputs, self._where)
        if outputs.requires_grad and not self._confirmed:
            push.confirm()
            self._confirmed = not push.by_rows
        self._kept = stamp, Graph(outputs, inputs, push)
        return self._kept[1]
