"""``Hessian``: the second derivative of the mean loss in the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pullback._checks import self_check_error
from pullback.functional.agreement import leaves_of, norms, smallest_share
from pullback.functional.batch import Batch
from pullback.functional.differentiable import differentiable, open_functions, refuse_unreliable
from pullback.operators.curvature.base import CurvatureOperator, Directions
from pullback.operators.flat_derivatives import derivative


class Hessian(CurvatureOperator):
    """Hessian (P, P) of the mean per-sample loss over the data: of (1/N) sum over i of loss_i.

    With z the outputs and J their derivative in the parameters it is J^T H_z J plus the sum over outputs of
    d loss / d z_c times the second derivative of z_c. ``GaussNewton`` is the first term alone.

    Kinks (ReLU, max pooling): the second derivative of the kink itself counts as zero, as autograd has it, and what
    the kink adds when it is crossed is left out. That does not make the second term vanish: derivatives across
    layers remain (for w2 relu(w1 x) the mixed one is x), so the Hessian of a ReLU network is still not its
    Gauss-Newton matrix. Where a curvature is to stand for the loss over a step, use ``GaussNewton`` there.

    Fused attention has no second derivative: products run torch's plain attention, say so once in the log
    ``pullback``, and put the backend back.

    Args:
        model: any module that treats samples on their own, in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: a pair ``(x, y)``, or an iterable of pairs of any sizes, which is walked through again for every
            product and weighted by the true counts. ``x`` may be a dict (keyword inputs) or a tuple.
        params: names of parameters or modules; None for all trainable ones.

    Raises:
        InputError: bad data; data that changes between two walks (a generator, a shuffling loader).
        UnsupportedError: dropout or batch norm in train mode, a model that answers differently the second time or
            mixes samples; an operation without a second derivative, or one that is not finite.
        SelfCheckError: second derivatives that are not symmetric (once per operator, on the first full product).

    Cost: per batch one gradient with its graph, then one backward pass through that graph for every column: a
        linear layer takes 6 d p multiplications a sample and column (the first layer 2 d p) where its gradient takes
        3 d p (2 d p). The graph of a lone batch is kept between products; columns are carried through in blocks.

    References: Pearlmutter (1994); Martens (2010).

    Example:
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
        >>> x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
        >>> H = Hessian(model, torch.nn.CrossEntropyLoss(), (x, y))
        >>> bool(torch.allclose(H.to_dense(), reference.dense_hessian(model, torch.nn.CrossEntropyLoss(), x, y)))
        True
    """

    def _make_graph(self, outputs: Any, losses: Tensor, y: Batch, index: int) -> dict[str, Tensor]:
        """The gradient, by parameter, with its graph."""
        loss = losses.sum() / self.num_samples
        names, parameters = list(self.view.parameters), list(self.view.parameters.values())
        if not loss.requires_grad:
            return {}
        refuse_unreliable([loss], self._where)
        with open_functions([loss], self._where):
            gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        return {name: g for name, g in zip(names, gradient, strict=True) if g is not None}

    def _graph_product(
        self, graph: dict[str, Tensor], directions: Directions, rows: tuple[str, ...], batched: bool
    ) -> Sequence[Tensor | None]:
        moving = {name: d for name, d in directions.items() if name in graph}
        inputs = [self.view.parameters[name] for name in rows]
        product = derivative([graph[name] for name in moving], inputs, list(moving.values()), batched)
        if not self._confirmed and len(directions) == len(rows) == len(self.view.parameters):
            first = {name: d[0] if batched else d for name, d in directions.items()}
            self._confirm(
                graph, first, {n: f[0] if batched else f for n, f in zip(rows, product, strict=True) if f is not None}
            )
            self._confirmed = True
        return product

    def _confirm(self, graph: dict[str, Tensor], v: Directions, product: Directions) -> None:
        """Compare u^T (H v) with v^T (H u) for random u: second derivatives that are wrong are not symmetric."""
        make = torch.Generator().manual_seed(0)
        u = {
            name: torch.randn(d.shape, generator=make, dtype=torch.float64, device=make.device).to(d)
            for name, d in v.items()
        }
        inputs = [self.view.parameters[name] for name in v]
        found = derivative(list(graph.values()), inputs, [u[name] for name in graph], False)
        image = {name: f for name, f in zip(v, found, strict=True) if f is not None}
        sizes = _norm(u) * _norm(product) + _norm(v) * _norm(image)
        difference = abs(_inner(u, product) - _inner(v, image))
        if difference > torch.finfo(self.dtype).eps ** 0.5 * sizes and difference > self._smallest() * _norm(u) * _norm(
            v
        ):
            raise self_check_error(
                self._where,
                "a symmetric matrix",
                f"u^T H v and v^T H u that differ by {difference / sizes:.2g} of the vectors' lengths",
                "Look for an operation with a backward pass of its own, and let autograd make that one",
            )

    def _smallest(self) -> float:
        """What rounding leaves of a product with a unit vector that is zero: as in a bias of attention's keys alone.

        Its terms are of the size of a product of the Hessian in all parameters of the model, asked for or not.
        """
        x, y = next(iter(self._batches))
        make = torch.Generator().manual_seed(0)
        with differentiable(), torch.enable_grad():
            parameters = leaves_of(self._every)
            loss = self._losses(self.view(x, parameters), y).sum() / self.num_samples
            slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
            known = [slope for slope in slopes if slope is not None]
            u = [torch.randn(s.shape, generator=make, dtype=torch.float64, device=make.device).to(s) for s in known]
            found = derivative(known, list(parameters.values()), u, False)
        size = norms(f for f in found if f is not None).norm() / norms(u).norm()
        return smallest_share(self.dtype) * float(size)


def _inner(a: Directions, b: Directions) -> float:
    return sum(float((a[name].double() * part.double()).sum()) for name, part in b.items())


def _norm(a: Directions) -> float:
    return _inner(a, a) ** 0.5
