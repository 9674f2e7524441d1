"""``Problem``: the loss of a batch around the weights, as a step of an optimizer sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.dynamics.second_order.closures import Closure, run_closure, run_watched
from pullback.functional import LossFunction, ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.differentiable import elementary
from pullback.functional.losses import check_finite, unchecked_loss
from pullback.functional.refused import refuse_random_and_coupled
from pullback.functional.target_checks import check_targets


@dataclass(frozen=True)
class Problem:
    """Loss and gradient at the weights, and the batch that curvature is measured on.

    Args:
        view: the parameters that take part: trainable ones that the loss depends on.
        loss_fn: the loss.
        x: inputs of the batch, (N, ...).
        y: targets.
        closure: what else evaluates the loss, or None.
        loss: mean of the samples' own losses, or what the closure returned.
        gradient: (P,), of the same; float32 at least.
        where: the caller.
    """

    view: ModelView
    loss_fn: LossFunction
    x: Batch
    y: Batch
    closure: Closure | None
    loss: Tensor
    gradient: Tensor
    where: str

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return list(self.view.parameters)

    def loss_at(self, p: Tensor) -> float:
        """Loss with the weights moved by p, (P,); infinite where it is no number. Weights are then as they were."""
        if self.closure is not None:
            with self._moved(p):
                value = float(run_closure(self.closure, self.where))
        else:
            moved = {n: w.detach() + d.to(w.dtype) for (n, w), d in self._pieces(p)}
            with undisturbed(self.view.model), torch.no_grad(), elementary():
                losses = unchecked_loss(self.loss_fn, self.view(self.x, moved), self.y, self.where)
                value = float(losses.double().mean())
        return math.inf if math.isnan(value) else value

    def move(self, p: Tensor) -> None:
        """Add p, (P,), to the weights."""
        with torch.no_grad():
            for (_, w), d in self._pieces(p):
                w.add_(d.to(w.dtype))

    def _pieces(self, p: Tensor) -> Iterator[tuple[tuple[str, nn.Parameter], Tensor]]:
        return zip(self.view.parameters.items(), self.view.unflatten(p).values(), strict=True)

    @contextmanager
    def _moved(self, p: Tensor) -> Iterator[None]:
        kept = {name: w.detach().clone() for name, w in self.view.parameters.items()}
        try:
            self.move(p)
            yield
        finally:
            with torch.no_grad():
                for name, w in self.view.parameters.items():
                    w.copy_(kept[name])


def make_problem(
    model: nn.Module,
    names: list[str],
    loss_fn: LossFunction,
    batch: tuple[Batch, Batch],
    closure: Closure | None,
    where: str,
) -> Problem:
    """Evaluate loss and gradient; parameters the loss does not depend on are left out, as torch's optimizers do.

    Raises:
        InputError: neither a batch nor a closure; no gradient at all; one, or a loss, that is not finite.
        UnsupportedError: dropout or batch norm in train mode.
    """
    x, y = batch
    if (x is None) != (y is None) or (x is None and closure is None):
        got = "neither a batch nor a closure" if x is None and y is None else "one of them alone"
        raise input_error(where, "a batch, inputs `x` and targets `y`", got, "Call step(x, y)")
    view = ModelView.of(model, names, where)
    refuse_random_and_coupled(view.model, where)
    if closure is None:
        loss, gradients = _differentiated(view, loss_fn, x, y, where)
    else:
        loss, x, y = run_watched(closure, model, loss_fn, where) if x is None else (run_closure(closure, where), x, y)
        check_batch(where, x, y)
        gradients = {name: w.grad.detach() for name, w in view.parameters.items() if w.grad is not None}
    if not gradients:
        remedy = "Call loss.backward() in the closure" if closure else "Check that the loss depends on the parameters"
        raise input_error(where, "a gradient for some parameter", "none", remedy)
    view = view.restricted(gradients)
    flat = view.flatten(gradients)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    if not bool(torch.isfinite(flat).all()) or not bool(torch.isfinite(loss)):
        remedy = "Check the batch, and whether the weights have diverged"
        raise input_error(where, "a finite loss and gradient", "nan or inf", remedy)
    return Problem(view, loss_fn, x, y, closure, loss, flat, where)


def _differentiated(
    view: ModelView, loss_fn: LossFunction, x: Batch, y: Batch, where: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of the samples' own losses, and its gradient where there is one; ``.grad`` is not touched."""
    check_batch(where, x, y)
    with undisturbed(view.model), torch.enable_grad(), elementary():
        outputs = view(x)
        check_targets(loss_fn, outputs, y, where)
        losses = unchecked_loss(loss_fn, outputs, y, where)
        check_finite(losses, where)
        loss = losses.mean()
        if not loss.requires_grad:
            return loss.detach(), {}
        slopes = torch.autograd.grad(loss, list(view.parameters.values()), allow_unused=True)
    return loss.detach(), {n: g for n, g in zip(view.parameters, slopes, strict=True) if g is not None}
