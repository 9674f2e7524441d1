"""How smooth a loss is along its own gradient: what a step of gradient descent meets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.functional import LossFunction, ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch
from pullback.measure.loss_gradient import check_repeats, loss_and_gradient


@dataclass(frozen=True)
class Smoothness(Shown):
    """Loss and gradient along w - eta g, g the gradient of the mean loss at w, for S step sizes eta.

    Attributes:
        step_sizes: eta, (S,).
        losses: L(w - eta g), (S,).
        gradient_changes: |grad L(w - eta g) - g|, (S,): how well a gradient predicts the next one.
        loss: L(w).
        gradient_norm: |g|.
    """

    step_sizes: Tensor
    losses: Tensor
    gradient_changes: Tensor
    loss: float
    gradient_norm: float

    @property
    def loss_range(self) -> tuple[float, float]:
        """Lowest and highest loss over the steps."""
        return float(self.losses.min()), float(self.losses.max())

    @property
    def gradient_range(self) -> tuple[float, float]:
        """Smallest and largest change of the gradient over the steps."""
        return float(self.gradient_changes.min()), float(self.gradient_changes.max())

    @property
    def effective_beta(self) -> float:
        """Largest change of the gradient per distance moved: a lower bound of its Lipschitz constant, seen this way."""
        return float((self.gradient_changes / (self.step_sizes * self.gradient_norm)).max())

    def __str__(self) -> str:
        (low, high), (least, most) = self.loss_range, self.gradient_range
        return (
            f"{len(self.step_sizes)} steps of {float(self.step_sizes.min()):.3g} to "
            f"{float(self.step_sizes.max()):.3g} times the gradient\n"
            f"loss {self.loss:.4g}, then {low:.4g} to {high:.4g}; gradient {self.gradient_norm:.4g}, "
            f"changes by {least:.4g} to {most:.4g}; effective beta {self.effective_beta:.4g}"
        )


def smoothness(
    model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch, step_sizes: Sequence[float] | Tensor
) -> Smoothness:
    """Range of the loss, change of the gradient and effective smoothness along the gradient, on one batch.

    The model is run in the modes it is in: batch norm in train mode normalises with the batch's own statistics, and
    gradients pass through them.

    Args:
        model: any module; left as it is.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample; the mean is taken.
        x: inputs (N, ...).
        y: targets.
        step_sizes: eta, multiples of the gradient (not of its direction), all above 0.

    Returns:
        Smoothness, on the model's device and in its dtype.

    Raises:
        InputError: no step sizes, or ones that are not positive; a gradient that is zero; a loss that is not finite
            at one of the steps; bad data.
        UnsupportedError: a model that answers differently the second time (dropout).

    Cost: S + 1 passes forward and back, and one forward.

    References: Santurkar et al. (2018), arXiv:1805.11604, figure 4.

    Example:
        >>> model, x = nn.Linear(2, 1, bias=False).double(), torch.eye(2, dtype=torch.float64)
        >>> found = smoothness(model, nn.MSELoss(), x, torch.zeros(2, 1).double(), [0.1, 0.5])
        >>> round(found.effective_beta, 6)  # the loss is |w|^2 / 2, whose gradient has slope 1
        1.0
    """
    where = "smoothness"
    check_batch(where, x, y)
    view = ModelView.of(model, None, where)
    sizes = [float(size) for size in step_sizes]
    if not sizes:
        raise input_error(where, "at least one step size", "none", "Pass multiples of the gradient, for example [0.1]")
    for size in sizes:
        check_positive(where, "step_sizes", size)
    now = {name: p.detach() for name, p in view.parameters.items()}
    losses, changes = [], []
    with undisturbed(view.model):
        loss, gradient = loss_and_gradient(view, loss_fn, x, y, now, now, where)
        check_repeats(view, loss_fn, x, y, loss, now, where)
        g = view.flatten(gradient)
        if not bool(g.any()):
            raise input_error(where, "a gradient to step along", "zero", "Move away from the stationary point")
        for size in sizes:
            there = {name: p - size * gradient[name] for name, p in now.items()}
            value, other = loss_and_gradient(view, loss_fn, x, y, there, there, where)
            losses.append(value)
            changes.append((view.flatten(other) - g).norm())
    return Smoothness(g.new_tensor(sizes), torch.stack(losses), torch.stack(changes), float(loss), float(g.norm()))
