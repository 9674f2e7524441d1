"""``Hessian``: the second derivative of the mean loss in the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.functional.batch import Batch
from pullback.operators.curvature import CurvatureOperator, Directions
from pullback.operators.passes import derivative


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
            mixes samples.

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
        gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        return {name: g for name, g in zip(names, gradient, strict=True) if g is not None}

    def _graph_product(
        self, graph: dict[str, Tensor], directions: Directions, rows: tuple[str, ...], batched: bool
    ) -> Sequence[Tensor | None]:
        moving = {name: d for name, d in directions.items() if name in graph}
        inputs = [self.view.parameters[name] for name in rows]
        return derivative([graph[name] for name in moving], inputs, list(moving.values()), batched)
