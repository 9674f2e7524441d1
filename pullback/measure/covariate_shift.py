"""Internal covariate shift: how far a step of the layers before turns a layer's own gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_names, input_error
from pullback._results import Shown
from pullback.functional import LossFunction, ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.model_view import ROOT_LAYER
from pullback.measure.loss_gradient import check_repeats, loss_and_gradient, mean_loss

Step = float | Callable[[Iterable[Tensor]], torch.optim.Optimizer] | Mapping[str, Tensor]


@dataclass(frozen=True)
class CovariateShift(Shown):
    """What one step does to every layer's gradient through the layers before it.

    Attributes:
        layers: names of the modules that own parameters, in the order they first run; those that are used without a
            call (an attention's output projection) follow the one that is registered before them.
        norm: |g|, g the gradient of the mean loss in a layer's parameters before the step, (L,).
        shift: |g - g'|, with g' the gradient in the same parameters when the layers before have made the step and
            this one and those after it have not, (L,). 0 for the first layer.
        cosine: of g and g', (L,); nan where one of them is zero.
        loss: of the batch before the step.
        next_loss: of the same batch when all layers have made it.
    """

    layers: tuple[str, ...]
    norm: Tensor
    shift: Tensor
    cosine: Tensor
    loss: float
    next_loss: float

    def __str__(self) -> str:
        rows = zip(self.layers, self.norm.tolist(), self.shift.tolist(), self.cosine.tolist(), strict=True)
        lines = [f"{name}: |g| {g:.4g}, shift {s:.4g}, cosine {c:.4f}" for name, g, s, c in rows]
        return "\n".join([*lines, f"loss {self.loss:.6g}, {self.next_loss:.6g} after the step"])


def internal_covariate_shift(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch, step: Step) -> CovariateShift:
    """Change of every layer's gradient when only the layers before it make a step, on one batch.

        ICS_l = |grad_l L(w_1(t), ..., w_L(t)) - grad_l L(w_1(t+1), ..., w_{l-1}(t+1), w_l(t), ..., w_L(t))|

    The model is run in the modes it is in: batch norm in train mode normalises with the batch's own statistics, and
    gradients pass through them.

    Args:
        model: any module; left as it is.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample; the mean is taken.
        x: inputs (N, ...).
        y: targets.
        step: what leads from w(t) to w(t+1): the rate of plain gradient descent; a function from parameters to an
            optimiser (``lambda p: torch.optim.Adam(p, lr=1e-3)``), whose first step is taken; or the parameters after
            a step of your own, by name.

    Returns:
        CovariateShift, on the model's device and in its dtype.

    Raises:
        InputError: a bad step; bad data; a loss that is not finite after it.
        UnsupportedError: a model that answers differently the second time (dropout).

    Cost: L + 1 passes forward and back and 3 forward, L the number of layers with parameters; one copy of those.

    References: Ioffe and Szegedy (2015), arXiv:1502.03167; Santurkar et al. (2018), arXiv:1805.11604, definition 2.1.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
        >>> found = internal_covariate_shift(model, nn.CrossEntropyLoss(), x, y, 0.5)
        >>> found.layers, float(found.shift[0]), bool(found.shift[1] > 0), found.next_loss < found.loss
        (('0', '2'), 0.0, True, True)
    """
    where = "internal_covariate_shift"
    check_batch(where, x, y)
    view = ModelView.of(model, None, where)
    now = {name: p.detach() for name, p in view.parameters.items()}
    rows = []
    with undisturbed(view.model):
        order = _running_order(view, x)
        loss, before = loss_and_gradient(view, loss_fn, x, y, now, now, where)
        check_repeats(view, loss_fn, x, y, loss, now, where)
        after = _stepped(view, before, step, where)
        mixed = dict(now)  # layers move to w(t+1) one after another
        for names in (view.layers[layer] for layer in order):
            _, other = loss_and_gradient(view, loss_fn, x, y, mixed, names, where)
            rows.append(_compared([before[n] for n in names], [other[n] for n in names]))
            mixed |= {name: after[name] for name in names}
        next_loss = mean_loss(view, loss_fn, x, y, mixed, where)
    norm, shift, cosine = torch.stack(rows, 1)
    return CovariateShift(tuple(order), norm, shift, cosine, float(loss), float(next_loss))


def _compared(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Norm of the first gradient, of the difference, and the cosine between them."""
    g, other = (torch.cat([part.reshape(-1) for part in parts]) for parts in (first, second))
    sizes = g.norm() * other.norm()
    cosine = (g @ other / sizes).clamp(-1, 1) if float(sizes) > 0 else torch.full_like(sizes, torch.nan)
    return torch.stack([g.norm(), (g - other).norm(), cosine])


def _stepped(view: ModelView, gradient: dict[str, Tensor], step: Step, where: str) -> dict[str, Tensor]:
    """The parameters after the step, by name."""
    now = {name: p.detach() for name, p in view.parameters.items()}
    if isinstance(step, Mapping):
        check_names(where, "parameters in `step`", now, step)
        return {name: step[name].detach().to(p).reshape(p.shape) for name, p in now.items()}
    if not callable(step):
        if not 0 <= step < float("inf"):
            raise input_error(where, "a learning rate of at least 0", repr(step), "Pass a finite rate as `step`")
        return {name: p - step * gradient[name] for name, p in now.items()}
    moved = {name: p.clone().requires_grad_() for name, p in now.items()}
    for name, p in moved.items():
        p.grad = gradient[name].clone()
    rule: object = step(list(moved.values()))
    if not isinstance(rule, torch.optim.Optimizer):
        remedy = "Pass a function like lambda p: torch.optim.SGD(p, lr=0.1)"
        raise input_error(where, "`step` to return an optimiser", type(rule).__name__, remedy)
    rule.step()
    return {name: p.detach() for name, p in moved.items()}


def _running_order(view: ModelView, x: Batch) -> list[str]:
    """Layers in the order they first run; those whose module is never called follow the one registered before them."""
    homes = {name or ROOT_LAYER: module for name, module in view.model.named_modules()}
    ran: list[str] = []
    hooks = [
        homes[layer].register_forward_pre_hook(lambda module, args, layer=layer: ran.append(layer))
        for layer in view.layers
    ]
    try:
        with torch.no_grad():
            view(x)
    finally:
        for hook in hooks:
            hook.remove()
    order = list(dict.fromkeys(ran))
    before = -1
    for layer in view.layers:
        if layer not in order:
            order.insert(before + 1, layer)
        before = order.index(layer)
    return order
