"""J v and J^T u of one batch from graphs that are kept: what a linearised model needs at every step of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pullback._rng import make_generator
from pullback.functional.agreement import tolerance
from pullback.functional.differentiable import differentiable
from pullback.functional.linear_convolution import LinearConvolutions


class LinearMap:
    """The derivative of outputs in parameters, as a map that autograd differentiates any number of times.

    J^T u is a backward pass through the outputs' graph, and J v the derivative of J^T u in u, a backward pass through
    the graph of that one; the network itself is not run again.

    Args:
        outputs: from parameters by name to one tensor; called once.
        at: the parameters.
    """

    def __init__(self, outputs: Callable[[dict[str, Tensor]], Tensor], at: Mapping[str, Tensor]) -> None:
        with torch.enable_grad():
            inputs = {name: tensor.detach().requires_grad_() for name, tensor in at.items()}
            with differentiable(), LinearConvolutions():
                self._outputs = outputs(inputs)
                self._weights = torch.zeros_like(self._outputs, requires_grad=True)
                pulled = torch.autograd.grad(
                    self._outputs, list(inputs.values()), self._weights, create_graph=True, allow_unused=True
                )
        self._inputs = list(inputs.values())
        self._places = [k for k, each in enumerate(pulled) if each is not None and each.requires_grad]
        self._pulled = [pulled[k] for k in self._places]
        self.value = self._outputs.detach()

    def __call__(self, change: Sequence[Tensor]) -> Tensor:
        """J v for v by parameter, in the order of ``at``; differentiable in v."""
        found: Tensor = _Along.apply(self, *change)
        return found

    def push(self, change: Sequence[Tensor]) -> Tensor:
        """J v, a plain tensor."""
        along = [change[k].detach() for k in self._places]
        (pushed,) = torch.autograd.grad(self._pulled, self._weights, along, retain_graph=True)
        return pushed.detach()

    def pull(self, weights: Tensor) -> list[Tensor]:
        """J^T u by parameter, plain tensors."""
        pulled = torch.autograd.grad(
            self._outputs, self._inputs, weights.detach(), retain_graph=True, allow_unused=True
        )
        return [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(self._inputs, pulled, strict=True)]

    def agrees(self, with_slope: Callable[[list[Tensor]], tuple[Tensor, Tensor]]) -> bool:
        """Whether the outputs, J v and J^T u are those of another way, for random u and v.

        Args:
            with_slope: v to the outputs, computed again (those of a model that draws random numbers are others), and
                J v.
        """
        make = make_generator(0)
        v, u = (
            [torch.randn(t.shape, generator=make, device=make.device).to(t) for t in some]
            for some in (self._inputs, [self.value])
        )
        pushed, (value, expected) = self.push(v), with_slope(v)
        allowed = tolerance(value.dtype)
        same = [bool((a - b).norm() <= allowed * b.norm()) for a, b in ((self.value, value), (pushed, expected))]
        pulled = sum((float((a * b).sum()) for a, b in zip(self.pull(u[0]), v, strict=True)), start=0.0)
        return all(same) and abs(pulled - float((u[0] * pushed).sum())) <= allowed * float(u[0].norm() * pushed.norm())


class _Along(Function):
    """J v of a ``LinearMap``; the derivative of either of the two is the other."""

    @staticmethod
    def forward(ctx: Any, linear: LinearMap, *change: Tensor) -> Tensor:
        ctx.linear = linear
        return linear.push(change)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> Any:
        return None, *_Against.apply(ctx.linear, weights[0])


class _Against(Function):
    """J^T u of a ``LinearMap``."""

    @staticmethod
    def forward(ctx: Any, linear: LinearMap, weights: Tensor) -> Any:
        ctx.linear = linear
        return (*linear.pull(weights),)

    @staticmethod
    def backward(ctx: Any, *change: Tensor) -> Any:
        return None, _Along.apply(ctx.linear, *change)
