"""Rows of a layer seen through two random matrices: ``S_i = L^T W_i R`` without W_i.

For the block ``W_i = sum_t D_it (x) A_it``, (p, d), of a layer a sketch keeps S_i, (k, k), with L (p, k) and R (d, k)
of independent signs over root k: ``<S_i, S_j>`` has the mean ``<W_i, W_j>``. A bias is one more input that is always
one, groups are blocks of one large block-diagonal W, and a side no longer than k is left as it is. Why signs, the
variance and what it means for the choice of k: ``docs/sketches.md``.

What a kind of rows does in its own way is registered here (`functools.singledispatch`), also from outside; one that
registers nothing is projected from its rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import singledispatch
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

from pullback._checks import check_option, input_error
from pullback._results import Shown
from pullback._rng import make_generator
from pullback.functional.model_view import layer_of
from pullback.gradients.rows.contract import Tensors
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.outer import OuterFactor
from pullback.gradients.rows.tied import TiedFactor
from pullback.gradients.rows.tokens import TokenFactor

BLOCK_NUMBERS = 2**24  # numbers of a block of samples being projected: 64 MB in float32
Exact = Literal["cheaper", "smaller"]


@dataclass(frozen=True)
class Sketch(Shown):
    """How kernels are sketched; equal settings mean equal projections, whatever the data and its blocks.

    Args:
        size: k, the side of a sketched layer.
        repeats: R, independent draws; the estimate is their mean, its standard error comes from their spread.
        seed: of all draws; every (layer, repeat) has a generator of its own.
        exact: which layers are not sketched: "cheaper", those whose exact block needs no more operations, or
            "smaller", only those no longer than ``size`` on both sides. Norms and lone biases never are.

    Raises:
        InputError: size below 1, fewer than 2 repeats, or another ``exact``.

    Example:
        >>> Sketch(size=32)
        Sketch(size=32, repeats=16, seed=0, exact='cheaper')
    """

    size: int = 64
    repeats: int = 16
    seed: int = 0
    exact: Exact = "cheaper"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise input_error("Sketch", "a `size` of at least 1", f"{self.size}", "Pass a larger `size`")
        if self.repeats < 2:
            raise input_error(
                "Sketch", "at least 2 `repeats`", f"{self.repeats}", "Pass more: their spread is the standard error"
            )
        check_option("Sketch", "exact", self.exact, ("cheaper", "smaller"))


def key_of(factor: Factor) -> str:
    """The parameter a factor goes by."""
    return next(iter(factor.shapes))


def is_vector(factor: Factor) -> bool:
    """Whether all of a factor's parameters are vectors (norms, biases): these are never sketched."""
    return all(len(shape) <= 1 for shape in factor.shapes.values())


def split(factors: Iterable[Factor]) -> Iterator[Factor]:
    """Factors one after the other, parameter by parameter where one holds matrices as rows or spans layers."""
    for factor in factors:
        apart = factor.held_apart and len(factor.shapes) > 1
        across = len({layer_of(name) for name in factor.shapes}) > 1
        if (apart or across) and not is_vector(factor):
            yield from (factor.only(name) for name in factor.shapes)
        else:
            yield factor


@singledispatch
def matrix_shape(factor: Factor) -> tuple[int, int, int]:
    """(g, p, d): a row is g blocks of p x d numbers. A bias beside a weight is one more of the d."""
    shape = factor.shapes[key_of(factor)]
    return 1, shape[0], shape[1:].numel()


@matrix_shape.register
def _(factor: OuterFactor) -> tuple[int, int, int]:
    _, g, d, p = factor.dims
    return g, p, d + (factor.bias is not None)


@singledispatch
def as_matrix(factor: Factor, values: Tensors) -> Tensor:
    """Tensors shaped like the factor's parameters -> (g, p, d), as ``matrix_shape``."""
    return values[key_of(factor)].reshape(matrix_shape(factor))


@as_matrix.register
def _(factor: OuterFactor, values: Tensors) -> Tensor:
    weight = factor.from_weight(values[factor.weight])
    return weight if factor.bias is None else torch.cat([weight, values[factor.bias].view(*weight.shape[:2], 1)], 2)


def projections(factor: Factor, sketch: Sketch, repeat: int) -> tuple[Tensor, Tensor]:
    """L (g, p, k) and R (g, d, k) of one (layer, repeat): the same for any data with the same parameter."""
    g, p, d = matrix_shape(factor)
    key = f"{sketch.seed}/{repeat}/{key_of(factor)}"
    seed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) >> 1
    generator = make_generator(seed, factor.like.device)
    left = _side(g * p, sketch.size, g, generator, factor.like)
    return left, _side(g * d, sketch.size, g, generator, factor.like)


def _side(length: int, size: int, groups: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Signs over root k, (g, length / g, k), or the identity where that is no longer."""
    if length <= size:
        matrix = torch.eye(length, dtype=like.dtype, device=like.device)
    else:  # drawn as integers: the same signs in every dtype
        bits = torch.randint(2, (length, size), generator=generator, device=like.device, dtype=torch.int8)
        matrix = (2 * bits - 1).to(like.dtype) / math.sqrt(size)
    return matrix.unflatten(0, (groups, -1))


def project(factor: Factor, left: Tensor, right: Tensor) -> Tensor:
    """Sketched rows of one repeat, (N, C, m), in blocks of samples."""
    return torch.cat([projected(factor, left, right, index).flatten(2) for index in _blocks(factor, left, right)])


def project_matrix(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``sum_g L_g^T W_g R_g``, (m,), of W (g, p, d)."""
    return (left.mT @ matrix.to(left) @ right).sum(0).reshape(-1)


def _blocks(factor: Factor, left: Tensor, right: Tensor) -> Iterator[slice]:
    """Stretches of samples whose rows, projections and sketches stay near ``BLOCK_NUMBERS``."""
    numbers, _ = projection_cost(factor, left.shape[2], right.shape[2])
    step = max(1, BLOCK_NUMBERS // max(1, numbers))
    for start in range(0, factor.num_samples, step):
        yield slice(start, min(start + step, factor.num_samples))


@singledispatch
def projected(factor: Factor, left: Tensor, right: Tensor, index: slice) -> Tensor:
    """``L^T W_ic R`` of some samples, (n, C, k, m): from the rows, where their kind registers no shorter way."""
    _, p, d = matrix_shape(factor)
    (rows,) = factor.rows(index).values()
    rows = rows.reshape(*rows.shape[:2], p, d)
    if p * right.shape[2] <= left.shape[2] * d:
        return left[0].T @ (rows @ right[0])
    return (left[0].T @ rows) @ right[0]


@singledispatch
def projection_cost(factor: Factor, k: int, m: int) -> tuple[int, float]:
    """Of what ``projected`` does for one sample: numbers formed on the way, and multiplications."""
    C, (_, p, d) = factor.num_outputs, matrix_shape(factor)
    return C * (p * d + min(p * m, k * d) + k * m), C * min(p * m * (d + k), d * k * (p + m))


@projected.register
def _(factor: OuterFactor, left: Tensor, right: Tensor, index: slice) -> Tensor:
    """``sum_tg (L_g^T D_ictg) (x) (R_g^T A_itg)``."""
    a, d = factor.left(index), factor.right(index)  # (n, T, g, d), (n, C, T, g, p)
    images = torch.einsum("ntgd,gdm->ntgm", a, right[:, : a.shape[3]])
    if factor.bias is not None:  # its input is always one
        images += right[:, -1]
    returns = torch.einsum("nctgp,gpk->nctgk", d, left)
    return returns.flatten(2, 3).mT @ images.flatten(1, 2).unsqueeze(1)


@projection_cost.register
def _(factor: OuterFactor, k: int, m: int) -> tuple[int, float]:
    C, (_, p, d), (T, g) = factor.num_outputs, matrix_shape(factor), factor.dims[:2]
    return T * g * (d + m + C * (p + k)) + C * k * m, T * g * (d * m + C * p * k + C * k * m)


@projected.register
def _(factor: TokenFactor, left: Tensor, right: Tensor, index: slice) -> Tensor:
    """``sum over entries of (row of L at the token) (x) (R^T value)``; every sample padded to as many."""
    owner, token, values = factor.entries(index)
    images = values @ right[0]  # (M, C, m)
    counts = torch.bincount(owner, minlength=len(range(factor.num_samples)[index]))
    offset = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    longest = int(counts.max())
    a = images.new_zeros(len(counts), longest, left.shape[2])
    a[owner, offset] = left[0, token]
    b = images.new_zeros(len(counts), longest, *images.shape[1:])
    b[owner, offset] = images
    return a.mT.unsqueeze(1) @ b.transpose(1, 2)


@projection_cost.register
def _(factor: TokenFactor, k: int, m: int) -> tuple[int, float]:
    C, (_, _, d) = factor.num_outputs, matrix_shape(factor)
    numbers = C * k * m + int(factor.entries_each) * (k + 2 * C * m)
    return numbers, C * factor.entries_each * (d + k) * m


@projected.register
def _(factor: TiedFactor, left: Tensor, right: Tensor, index: slice) -> Tensor:
    return projected(factor.table, left, right, index) + projected(factor.head, left, right, index)


@projection_cost.register
def _(factor: TiedFactor, k: int, m: int) -> tuple[int, float]:
    (numbers, products), (others, more) = (projection_cost(part, k, m) for part in (factor.table, factor.head))
    return numbers + others, products + more
