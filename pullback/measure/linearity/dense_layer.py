"""A linear layer with an elementwise activation behind it: norms of its derivatives, of matrices, by products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback._results import Shown
from pullback.measure.linearity.tensor_norms import NormBounds
from pullback.modules.activations import Elementwise
from pullback.modules.composed_activations import of_module
from pullback.modules.wide_network import ScaledLinear
from pullback.operators.operator import Operator
from pullback.spectral import eigenvalues
from pullback.theory.expectations.calls import MODULES

_TOLERANCE = 1e-3  # residual of a squared norm, relative; its error is of the order of the square of that


@dataclass(frozen=True)
class MapNorms(Shown):
    """Norms of the derivatives of z = g(w, a), w the trained weights; all 0 in w where none are trained.

    Attributes:
        weights: |dz/dw|_2.
        inputs: |dz/da|_2.
        second_weights: |d2z/dw2|_{2,2,1}.
        mixed: |d2z/da dw|_{2,2,1}.
        second_inputs: |d2z/da2|_{2,2,1}.
        bend: of a layer with an activation the part of ``mixed`` that has its second derivative; inf for others.
        slope: the factor of the other part, against the 2-norm of a combination; inf for others.
    """

    weights: float
    inputs: float
    second_weights: NormBounds
    mixed: NormBounds
    second_inputs: NormBounds
    bend: float = math.inf
    slope: float = math.inf


class Products(Operator):
    """A symmetric matrix (n, n) by a function that multiplies (n, K) with it."""

    symmetric = True

    def __init__(self, size: int, like: Tensor, multiply: Callable[[Tensor], Tensor]) -> None:
        super().__init__((size, size), like.dtype, like.device)
        self.multiply = multiply

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.multiply(matrix)

    def norm(self) -> float:
        """Largest eigenvalue, of a positive semi-definite one."""
        return max(float(eigenvalues(self, tol=_TOLERANCE).values[0]), 0.0)


@dataclass(frozen=True)
class DenseLayer:
    """z = sigma(s W a + b), the weights W and the biases b trained or not."""

    weight: Tensor
    scale: float
    bias: Tensor | None
    activation: Callable[[Tensor], Tensor]
    weight_trained: bool
    bias_trained: bool

    def norms(self, a: Tensor, output: int | None) -> MapNorms:
        """At the input a, (d,)."""
        s, rows = self.scale, slice(None) if output is None else slice(output, output + 1)
        weight = self.weight.detach()[rows]
        before = s * (weight @ a) + (0 if self.bias is None else self.bias.detach()[rows])
        first, second = self._derivatives(before)
        # squared length of what a unit's own weights meet: the scaled input, and the 1 of the bias
        met = float(self.weight_trained) * float((s * a).square().sum()) + float(self.bias_trained)
        bends = second.abs()
        bent = self._gram(weight, bends, s)
        mixed_bend = math.sqrt(met * self._gram(weight, second.square(), s))
        return MapNorms(
            weights=float(first.abs().max()) * math.sqrt(met),
            inputs=math.sqrt(self._gram(weight, first.square(), s)),
            second_weights=_exactly(float(bends.max()) * met),
            mixed=_exactly(self._mixed(weight, a, first, second, met)),
            second_inputs=_exactly(bent),
            bend=mixed_bend,
            slope=float(self.weight_trained) * s * float(first.abs().max()),
        )

    def _derivatives(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative of the activation."""
        with torch.enable_grad():
            z = before.clone().requires_grad_()
            value = self.activation(z.clone())
            (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            second = torch.autograd.grad(first.sum(), z)[0] if first.requires_grad else torch.zeros_like(z)
        return first.detach(), second.detach()

    @staticmethod
    def _gram(weight: Tensor, diagonal: Tensor, s: float) -> float:
        """|s^2 W^T D W|_2 for D of no negative entries."""
        if not bool(diagonal.any()):
            return 0.0
        if len(weight) < weight.shape[1]:
            half = diagonal.sqrt().unsqueeze(1) * weight
            return s * s * Products(len(weight), weight, lambda v: half @ (half.T @ v)).norm()
        rows = diagonal.unsqueeze(1)
        return s * s * Products(weight.shape[1], weight, lambda v: weight.T @ (rows * (weight @ v))).norm()

    def _mixed(self, weight: Tensor, a: Tensor, first: Tensor, second: Tensor, met: float) -> float:
        """The norm of v -> (s'' s (W v)_k (s a, 1) + s' s (v, 0))_k: for every v the best weights are along it."""
        if met == 0:
            return 0.0
        s, trained = self.scale, float(self.weight_trained)
        squares, cross = second.square().unsqueeze(1), weight.T @ (first * second)
        rest = trained * float(first.square().sum())

        def multiply(v: Tensor) -> Tensor:
            product = met * (weight.T @ (squares * (weight @ v))) + rest * v
            return product + trained * s * (torch.outer(cross, a @ v) + torch.outer(a, cross @ v))

        return s * math.sqrt(Products(len(a), a, multiply).norm())


def _exactly(value: float) -> NormBounds:
    return NormBounds(value, value)


def dense_layer(layer: nn.Module) -> DenseLayer | None:
    """The layer as a linear map with elementwise activations behind it, None if it is another kind."""
    parts = [part for part in _leaves(layer) if not isinstance(part, nn.Flatten | nn.Identity)]
    if not parts or type(parts[0]) not in (nn.Linear, ScaledLinear) or _hooked(layer):
        return None
    if not all(_is_elementwise(part) for part in parts[1:]):
        return None
    linear: Any = parts[0]
    bias = linear.bias if isinstance(linear, nn.Linear) else None

    def activation(z: Tensor) -> Tensor:
        for part in parts[1:]:
            z = part(z)
        return z

    scale = linear.scale if isinstance(linear, ScaledLinear) else 1.0
    trained = bias is not None and bias.requires_grad
    return DenseLayer(linear.weight, scale, bias, activation, linear.weight.requires_grad, trained)


def _leaves(layer: nn.Module) -> list[nn.Module]:
    """Modules in the order of a chain; what is no plain chain is one."""
    if type(layer) is nn.Sequential:
        return [leaf for child in layer for leaf in _leaves(child)]
    return [layer]


def _hooked(layer: nn.Module) -> bool:
    """Whether hooks or parametrisations make another function of it."""
    modules = list(layer.modules())
    return any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "parametrizations") for m in modules)


def _is_elementwise(part: nn.Module) -> bool:
    """Whether it does the same to every number, and has nothing to train."""
    if any(p.requires_grad for p in part.parameters()):
        return False
    return (isinstance(part, (*MODULES, Elementwise)) and not isinstance(part, nn.PReLU)) or of_module(part) is not None
