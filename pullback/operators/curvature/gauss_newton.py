"""``GaussNewton``: the Hessian with the model replaced by its linearisation, ``J^T H_z J``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pullback._checks import check_positive, unsupported
from pullback._rng import make_generator
from pullback.functional import LossFunction, output_hessian
from pullback.functional.batch import Batch, quiet_vmap
from pullback.functional.batches import Data
from pullback.functional.likelihood import likelihood_of
from pullback.functional.own_losses import check_depends
from pullback.functional.target_checks import logits_of
from pullback.operators.curvature.base import CurvatureOperator
from pullback.operators.curvature.linearised import LinearisedOperator, Middle, Readout, scaled
from pullback.operators.flat_derivatives import derivative, put_flat


class GaussNewton(LinearisedOperator):
    """Generalised Gauss-Newton matrix (P, P) of the mean per-sample loss: (1/N) sum over i of J_i^T H_i J_i.

    J_i is the derivative of sample i's outputs in the parameters and H_i that of its loss in the outputs, twice.
    Positive semi-definite for losses convex in the outputs. It is the Hessian of the loss of the linearised model,
    and the Hessian itself where the model is linear in its parameters or every sample's loss is stationary in its
    outputs. The classical matrix of least squares, with H_i left out, is (1/N) sum of J_i^T J_i: half of this one
    for ``MSELoss(reduction="sum")``, C / 2 times it for the mean over C outputs.

    Args:
        model: as for ``Hessian``. Networks with kinks (ReLU) are no exception here: no second derivative is taken.
        loss_fn: as for ``Hessian``; any loss that can be differentiated twice in the outputs.
        data: as for ``Hessian``.
        params: as for ``Hessian``.
        classical: leave the output Hessian out: (1/N) J^T J over all outputs of a sample.

    Raises:
        InputError: as ``Hessian``.
        UnsupportedError: as ``Hessian``.

    Cost: per batch a forward and a backward pass, then per column J v and J^T u, each about the cost of a backward
        pass without or with the parameters' part. The graph of a lone batch is kept between products.

    References: Schraudolph (2002); Martens (2020), arXiv:1412.1193.

    Example:
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
        >>> x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
        >>> A = GaussNewton(model, torch.nn.CrossEntropyLoss(), (x, y))
        >>> dense = reference.dense_gauss_newton(model, torch.nn.CrossEntropyLoss(), x, y)
        >>> bool(torch.allclose(A.to_dense(), dense))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Data,
        *,
        params: Iterable[str] | None = None,
        classical: bool = False,
    ) -> None:
        self.classical = classical
        super().__init__(model, loss_fn, data, params=params)

    @classmethod
    def beside(cls, other: CurvatureOperator, *, confirmed: bool = False) -> GaussNewton:
        """That of the model, loss and data of another operator, whose checks of them stand: none is made again.

        ``confirmed``: as for ``once_more``.
        """
        made = cls.__new__(cls)
        vars(made).update(
            vars(other) | {"_where": cls.__name__, "_kept": None, "_confirmed": confirmed, "classical": False}
        )
        return made

    def _read(self, outputs: Any, losses: Tensor, y: Batch, index: int) -> tuple[list[Tensor], Middle]:
        if isinstance(self.loss_fn, nn.Module) or self.classical:
            outputs = logits_of(outputs)
        leaves, structure = tree_flatten(outputs)
        values = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if self.classical:
            return values, scaled(1 / self.num_samples)
        cut = [leaf.detach().requires_grad_() for leaf in values]
        stand_ins = iter(cut)
        whole = [next(stand_ins) if any(leaf is v for v in values) else leaf for leaf in leaves]
        loss = self._losses(tree_unflatten(whole, structure), y).sum() / self.num_samples
        if cut:
            check_depends(loss, self._where)
        slope = torch.autograd.grad(loss, cut, create_graph=True, materialize_grads=True) if cut else ()
        return values, lambda change, batched: derivative(slope, cut, change, batched)

    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Random vectors z (P, num_samples) with mean zero and E[z z^T] equal to this matrix.

        z = N^(-1/2) sum over i of J_i^T H_i^(1/2) xi_i with xi standard normal (the pullback sampling trick): the
        mean of z (z^T v) estimates the product with v, and that of |z|^2 the trace.

        Args:
            num_samples: number of vectors.
            seed: of the generator xi is drawn from.

        Raises:
            UnsupportedError: a loss that is not convex in the outputs, or a model with several outputs.

        Cost: one forward pass, and one backward pass a vector.

        References: Grosse (2021), Neural net training dynamics, chapters 2 and 3.
        """
        check_positive(f"{self._where}.sample", "num_samples", num_samples)
        generator = make_generator(seed, self.device)
        rows = torch.zeros(num_samples, self.shape[0], dtype=self.dtype, device=self.device)
        inputs = list(self.view.parameters.values())
        with self._evaluation(), quiet_vmap():
            for graph, (_, y) in zip(self._graphs(), self._batches, strict=True):
                for some in rows.split(self.columns_at_once):
                    bent = self._bent_noise(graph, y, len(some), generator)
                    put_flat(derivative(graph.values, inputs, bent, True), some, self.view, True)
        return rows.T

    def _bent_noise(self, graph: Readout, y: Batch, count: int, generator: torch.Generator) -> list[Tensor]:
        """(1/N)^(1/2) H_z^(1/2) xi, (count, *shape of the outputs)."""
        where = f"{self._where}.sample"
        if len(graph.values) != 1:
            got = f"{len(graph.values)} outputs that depend on the parameters"
            raise unsupported(where, "a model with one output tensor", got, "Return one tensor")
        z = graph.values[0].detach()
        noise = torch.randn((count, *z.shape), generator=generator, dtype=z.dtype, device=z.device)
        if not self.classical:
            noise = self._root(z, y, noise, where)
        return [noise / self.num_samples**0.5]

    def _root(self, z: Tensor, y: Batch, noise: Tensor, where: str) -> Tensor:
        """H_z^(1/2) xi, in closed form for natural losses, else from the eigenvectors of each sample's H_z."""
        family = likelihood_of(self.loss_fn)
        if family is not None and family.natural:
            return family.second_root(z, family.factors(self.loss_fn, z, y), noise)
        values, vectors = torch.linalg.eigh(output_hessian(self.loss_fn, z, y))
        if float(values.min()) < -1e-6 * float(values.abs().max()):
            raise unsupported(
                where,
                "a loss convex in the outputs",
                f"an output Hessian with eigenvalue {float(values.min()):.3g}",
                "Use the products, which need no square root",
            )
        weighted = values.clamp(min=0).sqrt() * (vectors.mT @ noise.flatten(2).unsqueeze(3)).squeeze(3)
        return (vectors @ weighted.unsqueeze(3)).view(noise.shape)
