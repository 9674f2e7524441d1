"""The largest curvature as an optimizer sees it, followed from batch to batch with two products each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pullback._rng import make_generator
from pullback.diagnostics.preconditioned_sharpness import inverse_root
from pullback.functional import LossFunction, ModelView, num_samples, take, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.differentiable import differentiable, refuse_not_finite
from pullback.functional.losses import unchecked_loss
from pullback.functional.unwrap import full_precision
from pullback.operators import Hessian
from pullback.operators.flat_derivatives import derivative

WHERE = "CurvatureLR.step"
ROUNDING = 1e-6  # of the value: no direction of its own
PART, LEAST = 4, 16  # of a batch that is measured on: a quarter, and 16 samples
CHECKED = 4  # samples on which model and loss are checked, once
FIRST_TIMES = 2  # pairs of products of the first search, which starts anywhere


class TopCurvature:
    """Largest eigenvalue of the Hessian as ``preconditioned_sharpness`` has it, of one batch after another.

    The first measurement, and the first after other parameters take steps, is a search with the checks that ``Hessian``
    makes of model, loss and data: a vector of the old ones may have no part in the new. Each later one takes two
    products, of the vector found before and of what its image adds: the largest value in their plane.

    Attributes:
        vector: the last found, (P,), where the next measurement starts; None before the first.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, count: int | None, seed: int) -> None:
        self.model, self.loss_fn, self.count, self.seed = model, loss_fn, count, seed
        self.vector: Tensor | None = None
        self._moving: Tensor | None = None  # which parameters take steps, (P,)

    def measure(self, optimizer: torch.optim.Optimizer, x: Batch, y: Batch) -> float:
        """Of the first samples of a batch; the model is in eval mode for as long."""
        wanted = max(LEAST, num_samples(x) // PART) if self.count is None else self.count
        some = slice(0, min(wanted, num_samples(x)))
        x, y = take(x, some), take(y, some)
        view = ModelView.of(self.model, where=WHERE)
        with undisturbed(self.model, training=False), full_precision(self.model):
            root = inverse_root(view, optimizer)
            before, self._moving = self._moving, root > 0
            same = before is None or torch.equal(before, self._moving)
            if same and self.vector is not None and len(self.vector) == view.num_params:
                return self._followed(view, root, x, y)
            few = slice(0, min(CHECKED, num_samples(x)))
            Hessian(self.model, self.loss_fn, (take(x, few), take(y, few)))  # refuses what has no answer
            generator = make_generator(self.seed)
            self.vector = torch.randn(view.num_params, generator=generator, device=generator.device).to(root)
            for _ in range(FIRST_TIMES - 1):
                self._followed(view, root, x, y)
            return self._followed(view, root, x, y)

    def _followed(self, view: ModelView, root: Tensor, x: Batch, y: Batch) -> float:
        """Two steps of Lanczos from the last vector."""
        params = list(view.parameters.values())
        assert self.vector is not None
        with differentiable(), torch.enable_grad():
            loss = unchecked_loss(self.loss_fn, view(x), y, WHERE).mean()
            slopes = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
            known = {name: g for name, g in zip(view.parameters, slopes, strict=True) if g is not None}
            moving = {name: g for name, g in known.items() if g.requires_grad}

            def product(vector: Tensor) -> Tensor:
                along = view.unflatten(root * vector)
                derived = derivative(list(moving.values()), params, [along[name] for name in moving], False)
                pieces = zip(params, derived, strict=True)
                image = root * torch.cat([(torch.zeros_like(p) if f is None else f).reshape(-1) for p, f in pieces])
                refuse_not_finite(image, vector, WHERE)
                return image

            value, self.vector = two_steps(product, self.vector)
        return value


def two_steps(product: Callable[[Tensor], Tensor], start: Tensor) -> tuple[float, Tensor]:
    """Largest eigenvalue of a symmetric operator on the plane of a vector and its image, and its vector there."""
    first = start / start.norm()
    image = product(first)
    a = float(first @ image)
    rest = image - a * first
    b = float(rest.norm())
    if b <= ROUNDING * abs(a) or b == 0:  # an eigenvector, as far as rounding tells
        return a, first
    second = rest / b
    second = second - (second @ first) * first
    c = float(second @ product(second))
    top = (a + c) / 2 + math.hypot((a - c) / 2, b)
    vector = b * first + (top - a) * second
    return top, vector / vector.norm()
