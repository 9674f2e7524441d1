"""First and second derivatives of one layer's map (weights, inputs) -> outputs, as norms, at one input.

For a linear layer with an elementwise activation behind it all of them are norms of matrices, found by products. For
other maps second derivatives are bounded from below by alternation and, where the tensor is small, from above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pullback._rng import make_generator
from pullback.functional.differentiable import differentiable, forward_derivatives
from pullback.functional.stand_in import stand_in
from pullback.measure.linearity.dense_layer import MapNorms, Products, dense_layer
from pullback.measure.linearity.tensor_norms import NormBounds, norm_221

LARGEST = 2**21  # entries of a tensor of second derivatives that is formed for an upper bound
_STARTS, _ROUNDS = 3, 30
ZERO = NormBounds(0.0, 0.0)


def map_norms(layer: nn.Module, a: Tensor, output: int | None = None) -> MapNorms:
    """Norms at one input a, (1, ...), of the whole map or, with ``output``, of that one of its outputs alone."""
    dense = dense_layer(layer)
    return _of_any(layer, a, output) if dense is None else dense.norms(a.flatten().detach(), output)


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
    best = max(_from_below(g, at, pair, seed) for seed in range(_STARTS))
    return NormBounds(best, math.inf)


def _from_below(g: Map, at: tuple[Tensor, Tensor], pair: tuple[int, int], seed: int) -> float:
    """Alternate between the two vectors and the signs, each the best for the others."""
    i, j = pair
    make = make_generator(seed)
    u, v = (
        _unit(torch.randn(len(at[k]), generator=make, dtype=torch.float64, device=make.device).to(at[k])) for k in pair
    )
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
