"""First and second derivatives of one layer's map (weights, inputs) -> outputs, as norms, at one input.

For a linear layer with an elementwise activation behind it all of them are norms of matrices, found by products. For
other maps second derivatives are bounded from below by alternation and, where the tensor is small, from above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback._rng import make_generator
from pullback.functional.differentiable import differentiable, forward_derivatives
from pullback.functional.stand_in import stand_in
from pullback.measure.tensor_norms import NormBounds, norm_221
from pullback.modules.activations import Elementwise
from pullback.modules.elementwise import of_module
from pullback.modules.wide_network import ScaledLinear
from pullback.operators.base import Operator
from pullback.spectral import eigenvalues
from pullback.theory.calls import MODULES

LARGEST = 2**21  # entries of a tensor of second derivatives that is formed for an upper bound
_TOLERANCE = 1e-3  # residual of a squared norm, relative; its error is of the order of the square of that
_STARTS, _ROUNDS = 3, 30
ZERO = NormBounds(0.0, 0.0)


@dataclass(frozen=True)
class MapNorms:
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


def map_norms(layer: nn.Module, a: Tensor, output: int | None = None) -> MapNorms:
    """Norms at one input a, (1, ...), of the whole map or, with ``output``, of that one of its outputs alone."""
    dense = dense_layer(layer)
    return _of_any(layer, a, output) if dense is None else dense.norms(a.flatten().detach(), output)


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
            found = met * (weight.T @ (squares * (weight @ v))) + rest * v
            return found + trained * s * (torch.outer(cross, a @ v) + torch.outer(a, cross @ v))

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


def _of_any(layer: nn.Module, a: Tensor, output: int | None) -> MapNorms:
    """By derivatives of the map as a function of two vectors."""
    parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    shapes, sizes = [p.shape for p in parameters.values()], [p.numel() for p in parameters.values()]
    flat = torch.cat([p.detach().flatten() for p in parameters.values()]) if parameters else a.new_zeros(0)
    at = (flat, a.detach().flatten())

    def g(w: Tensor, v: Tensor) -> Tensor:
        tensors = [part.view(shape) for part, shape in zip(w.split(sizes), shapes, strict=True)] if sizes else []
        with stand_in(layer, dict(zip(parameters, tensors, strict=True))):
            z = layer(v.view(a.shape).clone()).flatten()
        return z if output is None else z[output : output + 1]

    with (
        differentiable(every_order=True),
        forward_derivatives("linearity", "Write that operation with elementary ones"),
    ):
        count = len(g(*at))
        second = {
            pair: _second(g, at, pair, count) if all(len(at[k]) for k in pair) else ZERO
            for pair in ((0, 0), (0, 1), (1, 1))
        }
        slopes = [_slope(g, at, k, count) if len(at[k]) else 0.0 for k in (0, 1)]
    return MapNorms(slopes[0], slopes[1], second[0, 0], second[0, 1], second[1, 1])


Map = Callable[[Tensor, Tensor], Tensor]
func: Any = torch.func


def _along(g: Map, place: int, direction: Tensor) -> Map:
    """The derivative of g in one argument along a direction, as a function of both."""

    def slope(w: Tensor, v: Tensor) -> Tensor:
        one = (lambda x: g(x, v)) if place == 0 else (lambda x: g(w, x))
        return func.jvp(one, ((w, v)[place],), (direction,))[1]

    return slope


def _slope(g: Map, at: tuple[Tensor, Tensor], place: int, count: int) -> float:
    """|dg|_2 in one argument."""
    value, back = func.vjp(g, *at)

    def multiply(matrix: Tensor) -> Tensor:
        columns = [_along(g, place, back(u)[place])(*at) for u in matrix.T]
        return torch.stack(columns, 1)

    return math.sqrt(Products(count, value, multiply).norm())


def _second(g: Map, at: tuple[Tensor, Tensor], pair: tuple[int, int], count: int) -> NormBounds:
    """The (2,2,1) norm of a second derivative: whole where it is small, else from below alone."""
    i, j = pair
    if len(at[i]) * len(at[j]) * count <= LARGEST:
        tensor = func.jacfwd(func.jacrev(g, argnums=i), argnums=j)(*at)  # (count, I, J)
        return norm_221(tensor.movedim(0, 2))
    best = max(_from_below(g, at, pair, count, seed) for seed in range(_STARTS))
    return NormBounds(best, math.inf)


def _from_below(g: Map, at: tuple[Tensor, Tensor], pair: tuple[int, int], count: int, seed: int) -> float:
    """Alternate between the two vectors and the signs, each the best for the others."""
    i, j = pair
    make = make_generator(seed)
    u, v = (_unit(torch.randn(len(at[k]), generator=make, dtype=torch.float64).to(at[k])) for k in pair)
    value = 0.0
    for _ in range(_ROUNDS):
        sums = _along(_along(g, j, v), i, u)(*at)
        now = float(sums.abs().sum())
        if now <= value * (1 + 1e-6):
            break
        value, signs = now, torch.where(sums < 0, -1.0, 1.0).to(sums)
        u = _unit(func.vjp(_along(g, j, v), *at)[1](signs)[i])
        v = _unit(func.vjp(_along(g, i, u), *at)[1](signs)[j])
    return value


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
