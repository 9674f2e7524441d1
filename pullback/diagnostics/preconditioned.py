"""Sharpness as the optimiser feels it: the limit of its learning rate, and Adam's own metric."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.functional import LossFunction, ModelView
from pullback.operators import Hessian
from pullback.operators.base import Operator
from pullback.operators.data import Data
from pullback.spectral import Eigenpairs, eigenvalues

ADAM = torch.optim.Adam | torch.optim.AdamW


def stability_limit(optimizer: torch.optim.Optimizer) -> float | None:
    """Curvature above which steps on a quadratic diverge, for the first group's rate; None where it is not known.

    Plain gradient descent: 2 / lr; with momentum m: 2 (1 + m) / lr; Nesterov's: 2 (1 + m) / ((1 + 2 m) lr). All are of
    the Hessian. Adam: 2 (1 + beta1) / ((1 - beta1) lr), of the preconditioned one, see ``preconditioned_sharpness``.
    Weight decay, dampening and noise shift them.

    References: Cohen et al. (2021), arXiv:2103.00065, appendix B; Cohen et al. (2022), arXiv:2207.14484.

    Example:
        >>> w = [torch.zeros(1, requires_grad=True)]
        >>> [round(stability_limit(o), 6) for o in (torch.optim.SGD(w, 0.1, momentum=0.9), torch.optim.Adam(w, 0.1))]
        [38.0, 380.0]
    """
    group = optimizer.param_groups[0]
    rate = float(group["lr"])
    if not rate > 0:
        return None
    if isinstance(optimizer, ADAM):
        beta = float(group["betas"][0])
        return 2 * (1 + beta) / ((1 - beta) * rate)
    if isinstance(optimizer, torch.optim.SGD):
        m = float(group["momentum"])
        return 2 * (1 + m) / ((1 + 2 * m if group["nesterov"] else 1) * rate)
    return None


def preconditioned_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    optimizer: torch.optim.Optimizer,
    *,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """Largest eigenvalue of P^(-1/2) H P^(-1/2), P = diag(sqrt(v) + eps), v Adam's second moments, bias-corrected.

    It is what Adam's learning rate bears a limit on, ``stability_limit``. Where groups of parameters have other rates,
    their entries of P are divided by their rate over the first group's.

    Args:
        model: in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: ``(x, y)``, or an iterable of such pairs.
        optimizer: ``Adam`` or ``AdamW`` of this model's parameters, after a step.
        tol: relative residual at which the iteration stops.
        max_matvecs: products allowed.
        seed: of the start vector.

    Raises:
        InputError: another optimiser; parameters it has not made a step on.

    Cost: that of the Hessian's largest eigenvalue.

    References: Cohen et al. (2022), arXiv:2207.14484.

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


def precondition(H: Operator, model: nn.Module, optimizer: torch.optim.Optimizer) -> Operator:
    """P^(-1/2) H P^(-1/2) of an operator on all parameters, as of ``preconditioned_sharpness``."""
    return _Congruent(H, _inverse_root(ModelView.of(model), optimizer).to(H.dtype))


def _inverse_root(view: ModelView, optimizer: torch.optim.Optimizer) -> Tensor:
    """Diagonal of P^(-1/2), (P,)."""
    where = "preconditioned_sharpness"
    if not isinstance(optimizer, ADAM):
        got = type(optimizer).__name__
        raise input_error(where, "Adam or AdamW", got, "Use pb.sharpness, which needs no optimiser")
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    first = float(optimizer.param_groups[0]["lr"])
    parts = {}
    for name, p in view.parameters.items():
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" not in state or id(p) not in groups or not first > 0:
            raise input_error(where, "steps made on every parameter", f"none on `{name}`", "Call it after a step")
        group = groups[id(p)]
        second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        corrected = second / (1 - float(group["betas"][1]) ** float(state["step"]))
        parts[name] = (float(group["lr"]) / first / (corrected.sqrt() + float(group["eps"]))).sqrt()
    return view.flatten(parts).detach()


class _Congruent(Operator):
    """D A D of a symmetric A, D diagonal."""

    def __init__(self, inner: Operator, diagonal: Tensor) -> None:
        super().__init__(inner.shape, inner.dtype, inner.device)
        self.inner, self.diagonal, self.symmetric = inner, diagonal.unsqueeze(1), True

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.diagonal * (self.inner @ (self.diagonal * matrix))
