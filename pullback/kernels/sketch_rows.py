"""Sketches of gradient rows: every layer's W_i is seen through two random matrices and never formed.

For the block ``W_i = sum_t D_it (x) A_it``, (p, d), of a layer a sketch keeps ``S_i = L^T W_i R``, (k, k), with L (p, k)
and R (d, k) of independent signs over root k: ``<S_i, S_j>`` has the mean ``<W_i, W_j>``. A bias is one more input
that is always one, groups are blocks of one large block-diagonal W, and a side no longer than k is left as it is.
Why signs, the variance and what it means for the choice of k: ``docs/sketches.md``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

from pullback._checks import check_option, input_error
from pullback._rng import make_generator
from pullback.kernels.factors import DenseFactor, Factor, Tensors, UnusedFactor, gram_flops
from pullback.kernels.outer import OuterFactor
from pullback.kernels.rules.embedding import TokenFactor
from pullback.kernels.tied import TiedFactor

BLOCK_NUMBERS = 2**24  # numbers of a block of samples being projected: 64 MB in float32
Exact = Literal["cheaper", "smaller"]


@dataclass(frozen=True)
class Sketch:
    """How kernels are sketched; equal settings mean equal projections, whatever the data and its blocks.

    Args:
        size: k, the side of a sketched layer.
        repeats: R, independent draws; the estimate is their mean, its standard error comes from their spread.
        seed: of all draws; every (layer, repeat) has a generator of its own.
        exact: which layers are not sketched: "cheaper", those whose exact block needs no more operations, or
            "smaller", only those no longer than ``size`` on both sides.

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


@dataclass(frozen=True)
class SketchFactor(DenseFactor):
    """Sketched rows of one factor, scaled so that their inner products are the mean over the repeats.

    Args:
        gradients: first covered parameter -> (N, C, R, m), m at most k^2.
        covers: the parameters whose gradients are in it.
    """

    covers: tuple[str, ...] = ()

    def repeat(self, index: int) -> DenseFactor:
        """Rows of one repeat, (N, C, m): their inner products are that repeat's estimate."""
        return DenseFactor({n: g[:, :, index] * math.sqrt(g.shape[2]) for n, g in self.gradients.items()})


def sketch_factors(factors: Iterable[Factor], sketch: Sketch, exact: Collection[str] | None = None) -> list[Factor]:
    """Rows of every factor as a kernel takes them: sketched, or the factor itself where it is kept exact.

    Inner products of ``SketchFactor`` rows are the estimate (the mean over the repeats), those of its ``repeat(r)``
    what that repeat found. Any two blocks of samples sketched with equal settings fit together.

    Args:
        factors: of one block of samples.
        sketch: the settings.
        exact: parameters kept exact, as ``exact_parameters`` names them; None takes this block for the whole kernel.
            Blocks of one kernel must be given the same.

    Returns:
        One factor or ``SketchFactor`` for each factor; those with rows of several parameters are split first.

    Cost: ``sketch_flops`` without the pairs; at most R k^2 numbers a row are held.
    """
    parts = list(split(factors))
    if exact is None:
        exact = exact_parameters(parts, sketch, parts[0].num_samples, None)
    rows: list[Factor] = []
    for factor in parts:
        name = next(iter(factor.shapes))
        if name in exact:
            rows.append(factor)
            continue
        repeats = [project(factor, sketch, repeat) for repeat in range(sketch.repeats)]
        stacked = torch.stack(repeats, 2) / math.sqrt(sketch.repeats)
        rows.append(SketchFactor({name: stacked}, covers=tuple(factor.shapes)))
    return rows


def split(factors: Iterable[Factor]) -> Iterator[Factor]:
    """Factors one after the other; those that hold rows of several parameters, parameter by parameter."""
    for factor in factors:
        if isinstance(factor, DenseFactor) and len(factor.shapes) > 1:
            yield from (factor.only(name) for name in factor.shapes)
        else:
            yield factor


def exact_parameters(factors: Iterable[Factor], sketch: Sketch, n1: int, n2: int | None) -> tuple[str, ...]:
    """Names of the parameters whose block of an n1 x n1 (n2 None) or n1 x n2 kernel is computed exactly."""
    kept = [f for f in split(factors) if _is_exact(f, sketch, n1, n2)]
    return tuple(name for factor in kept for name in factor.shapes)


def _is_exact(factor: Factor, sketch: Sketch, n1: int, n2: int | None) -> bool:
    g, p, d = matrix_shape(factor)
    if isinstance(factor, UnusedFactor) or max(g * p, g * d) <= sketch.size:
        return True
    return sketch.exact == "cheaper" and exact_flops(factor, n1, n2) <= sketch_flops(factor, sketch, n1, n2)


def exact_flops(factor: Factor, n1: int, n2: int | None) -> float:
    """Operations of the exact block in its cheapest form."""
    return min(factor.flops(form, n1, n2) for form in factor.forms())


def sketch_flops(factor: Factor, sketch: Sketch, n1: int, n2: int | None) -> float:
    """Operations of all repeats: the projections of every position and their products, then every pair of rows."""
    g, p, d = matrix_shape(factor)
    C, k, m = factor.num_outputs, min(sketch.size, g * p), min(sketch.size, g * d)
    rows = C * n1, None if n2 is None else C * n2
    return sketch.repeats * (2.0 * _products(factor, k, m) * (n1 + (n2 or 0)) + gram_flops(*rows) * k * m)


def _products(factor: Factor, k: int, m: int) -> float:
    """Multiplications that take one sample's rows to (C, k, m)."""
    C, (_, p, d) = factor.num_outputs, matrix_shape(factor)
    if isinstance(factor, TiedFactor):
        return _products(factor.table, k, m) + _products(factor.head, k, m)
    if isinstance(factor, TokenFactor):
        return C * len(factor.token) / max(1, factor.num_samples) * (d + k) * m
    if isinstance(factor, OuterFactor) and factor.weight is not None:
        T, g = factor.dims[:2]
        return T * g * (d * m + C * p * k + C * k * m)
    return C * min(p * m * (d + k), d * k * (p + m))


def matrix_shape(factor: Factor) -> tuple[int, int, int]:
    """(g, p, d): a row is g blocks of p x d numbers. A bias beside a weight is one more of the d."""
    if isinstance(factor, OuterFactor) and factor.weight is not None:
        _, g, d, p = factor.dims
        return g, p, d + (factor.bias is not None)
    shape = next(iter(factor.shapes.values()))
    p = shape[0] if shape else 1
    return 1, p, shape.numel() // max(1, p)


def as_matrix(factor: Factor, values: Tensors) -> Tensor:
    """Tensors shaped like the factor's parameters -> (g, p, d), as ``matrix_shape``."""
    g, p, d = matrix_shape(factor)
    if isinstance(factor, OuterFactor) and factor.weight is not None:
        weight = factor.piece_order(factor.weight, values[factor.weight]).view(g, p, -1)
        return weight if factor.bias is None else torch.cat([weight, values[factor.bias].view(g, p, 1)], 2)
    return next(iter(values.values())).reshape(g, p, d)


def projections(factor: Factor, sketch: Sketch, repeat: int) -> tuple[Tensor, Tensor]:
    """L (g, p, k) and R (g, d, k) of one (layer, repeat): the same for any data with the same parameter."""
    g, p, d = matrix_shape(factor)
    key = f"{sketch.seed}/{repeat}/{next(iter(factor.shapes))}"
    seed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) >> 1
    generator = make_generator(seed, factor.like.device)
    return tuple(_side(length, sketch.size, g, generator, factor.like) for length in (g * p, g * d))  # type: ignore[return-value]


def _side(length: int, size: int, groups: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Signs over root k, (g, length / g, k), or the identity where that is no longer."""
    if length <= size:
        matrix = torch.eye(length, dtype=like.dtype, device=like.device)
    else:  # drawn as integers: the same signs in every dtype
        bits = torch.randint(2, (length, size), generator=generator, device=like.device, dtype=torch.int8)
        matrix = (2 * bits - 1).to(like.dtype) / math.sqrt(size)
    return matrix.unflatten(0, (groups, -1))


def project(factor: Factor, sketch: Sketch, repeat: int) -> Tensor:
    """Sketched rows of one repeat, (N, C, m), in blocks of samples."""
    left, right = projections(factor, sketch, repeat)
    return torch.cat([_project(factor, left, right, index).flatten(2) for index in _blocks(factor, left, right)])


def _blocks(factor: Factor, left: Tensor, right: Tensor) -> Iterator[slice]:
    """Stretches of samples whose rows, projections and sketches stay near ``BLOCK_NUMBERS``."""
    step = max(1, BLOCK_NUMBERS // max(1, _numbers(factor, left.shape[2], right.shape[2])))
    for start in range(0, factor.num_samples, step):
        yield slice(start, min(start + step, factor.num_samples))


def _numbers(factor: Factor, k: int, m: int) -> int:
    """Numbers formed for one sample on the way."""
    C, (_, p, d) = factor.num_outputs, matrix_shape(factor)
    if isinstance(factor, TiedFactor):
        return _numbers(factor.table, k, m) + _numbers(factor.head, k, m)
    if isinstance(factor, TokenFactor):
        return C * k * m + len(factor.token) // max(1, factor.num_samples) * C * (k + 1) * m
    if isinstance(factor, OuterFactor) and factor.weight is not None:
        T, g = factor.dims[:2]
        return T * g * (d + m + C * (p + k)) + C * k * m
    return C * (p * d + min(p * m, k * d) + k * m)


def _project(factor: Factor, left: Tensor, right: Tensor, index: slice) -> Tensor:
    """``L^T W_ic R`` of some samples, (n, C, k, m)."""
    if isinstance(factor, TiedFactor):
        return _project(factor.table, left, right, index) + _project(factor.head, left, right, index)
    if isinstance(factor, TokenFactor):
        return _project_tokens(factor, left[0], right[0], index)
    if isinstance(factor, OuterFactor) and factor.weight is not None:
        return _project_outer(factor, left, right, index)
    _, p, d = matrix_shape(factor)
    (rows,) = factor.rows(index).values()
    rows = rows.reshape(*rows.shape[:2], p, d)
    if p * right.shape[2] <= left.shape[2] * d:
        return left[0].T @ (rows @ right[0])
    return (left[0].T @ rows) @ right[0]


def _project_outer(factor: OuterFactor, left: Tensor, right: Tensor, index: slice) -> Tensor:
    """``sum_tg (L_g^T D_ictg) (x) (R_g^T A_itg)``."""
    a, d = factor.left(index), factor.right(index)  # (n, T, g, d), (n, C, T, g, p)
    if factor.bias is not None:
        a = torch.cat([a, a.new_ones(*a.shape[:3], 1)], 3)
    a = torch.einsum("ntgd,gdm->ntgm", a, right).flatten(1, 2)
    d = torch.einsum("nctgp,gpk->nctgk", d, left).flatten(2, 3)
    return d.transpose(2, 3) @ a.unsqueeze(1)


def _project_tokens(factor: TokenFactor, left: Tensor, right: Tensor, index: slice) -> Tensor:
    """``sum over entries of (row of L at the token) (x) (R^T value)``."""
    owner, token, values = factor.entries(index)
    outer = left[token, None, :, None] * (values @ right).unsqueeze(2)  # (M, C, k, m)
    count = len(range(factor.num_samples)[index])
    return outer.new_zeros(count, *outer.shape[1:]).index_add(0, owner, outer)
