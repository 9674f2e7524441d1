"""Sharpness as the optimiser feels it: by the rates of its groups, and in Adam's own metric."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.diagnostics.step_sizes import ADAM, Optimizers, StepGroup, stability_limit, step_groups
from pullback.functional import LossFunction, ModelView
from pullback.functional.batches import Data
from pullback.operators import Hessian
from pullback.operators.operator import Operator
from pullback.spectral import Eigenpairs, eigenvalues


def preconditioned_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    optimizer: Optimizers,
    *,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """Largest eigenvalue of P^(-1/2) H P^(-1/2), to be compared with ``stability_limit``.

    P is diagonal. Under Adam its entries are sqrt(v) + eps, v the second moments, bias-corrected; under gradient
    descent 1. (Cohen et al. have 1 - beta1^t before them, for the correction of the first moment: with beta1 = 0.9
    their number is 10 times as large after the first step, and the same once that has ended.) Where groups of
    parameters bear different curvature (rates, momenta), their entries are multiplied by their own limit over the
    lowest one. On a quadratic steps converge exactly as long as this eigenvalue is below the limit, whatever the
    groups' rates, momenta and kinds. Parameters that take no steps, since no group holds them or Adam was never given
    their gradient, are left out.

    Args:
        model: in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: ``(x, y)``, or an iterable of such pairs.
        optimizer: ``SGD``, ``Adam`` or ``AdamW`` of this model's parameters, or several; Adam's after a step.
        tol: relative residual at which the iteration stops.
        max_matvecs: products allowed.
        seed: of the start vector.

    Raises:
        InputError: another optimiser; no step made so far; no rate above 0.

    Cost: that of the Hessian's largest eigenvalue.

    References: Cohen et al. (2022), arXiv:2207.14484; unequal groups, ``docs/design.md``.

    Example:
        >>> model, loss_fn = nn.Linear(1, 1, bias=False), nn.MSELoss()
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)  # Hessian 10
        >>> optimizer = torch.optim.Adam(model.parameters(), eps=0)
        >>> loss_fn(model(x), y).backward()
        >>> slope = float(model.weight.grad.abs())
        >>> optimizer.step()  # v is the square of the first gradient
        >>> value = float(preconditioned_sharpness(model, loss_fn, (x, y), optimizer).values[0])
        >>> abs(value * slope / 10 - 1) < 1e-5
        True
    """
    preconditioned = precondition(Hessian(model, loss_fn, data), model, optimizer)
    return eigenvalues(preconditioned, tol=tol, max_matvecs=max_matvecs, seed=seed)


def precondition(H: Operator, model: nn.Module, optimizer: Optimizers) -> Operator:
    """P^(-1/2) H P^(-1/2) of an operator on all parameters, as of ``preconditioned_sharpness``."""
    return _Congruent(H, inverse_root(ModelView.of(model), optimizer).to(H.dtype))


def inverse_root(view: ModelView, optimizer: Optimizers) -> Tensor:
    """Diagonal of P^(-1/2), (P,)."""
    where = "preconditioned_sharpness"
    groups = step_groups(optimizer, view.parameters.values())
    for group in groups:
        if not isinstance(group.optimizer, torch.optim.SGD | ADAM):
            got = type(group.optimizer).__name__
            raise input_error(where, "SGD, Adam or AdamW", got, "Use pb.sharpness, which needs no optimiser")
    limit = stability_limit(optimizer, view.parameters.values())
    if limit is None:
        got = ", ".join(f"{group.rate:g}" for group in groups) or "no group with parameters of the model"
        raise input_error(where, "learning rates of which one is above 0", got, "Use pb.sharpness")
    group_of = {id(p): group for group in groups for p in group.params}
    parts = {name: _inverse(p, group_of.get(id(p)), limit) for name, p in view.parameters.items()}
    if not any(bool(part.any()) for part in parts.values()):
        first = next(iter(parts))
        raise input_error(where, "steps made on every parameter", f"none on `{first}`", "Call it after a step")
    return view.flatten({name: part.sqrt() for name, part in parts.items()}).detach()


def _inverse(p: Tensor, group: StepGroup | None, limit: float) -> Tensor:
    """Entries of P^-1 of one parameter: its steps in units of those of the group with the lowest limit."""
    if group is None:
        return torch.zeros_like(p)
    share = limit / group.limit
    if not isinstance(group.optimizer, ADAM):
        return torch.full_like(p, share)
    state = group.optimizer.state.get(p, {})
    if "exp_avg_sq" not in state:
        return torch.zeros_like(p)
    second = state["max_exp_avg_sq" if group.options["amsgrad"] else "exp_avg_sq"]
    corrected = second / (1 - float(group.options["betas"][1]) ** float(state["step"]))
    return share / (corrected.sqrt() + float(group.options["eps"]))


class _Congruent(Operator):
    """D A D of a symmetric A, D diagonal."""

    def __init__(self, inner: Operator, diagonal: Tensor) -> None:
        super().__init__(inner.shape, inner.dtype, inner.device)
        self.inner, self.diagonal, self.symmetric = inner, diagonal.unsqueeze(1), True

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.diagonal * (self.inner @ (self.diagonal * matrix))
