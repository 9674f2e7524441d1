"""Whether two ways to the same numbers agree: relative to those numbers, with the rounding of their dtype.

Numbers that come out of a cancellation (the loss of a confident prediction, a gradient that is zero but for rounding, a
unit at its kink) are known worse than their dtype has it. How well is not guessed: they are computed once more at
parameters that differ by rounding, and what that changes is no disagreement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from pullback._rng import make_generator

Tensors = Mapping[str, Tensor]

PIECE = 2**20  # numbers that are converted to float64 at a time
SMALLEST = 64  # roundings of a whole gradient, below which a part of it is rounding and nothing else
ROUNDINGS = 8  # draws that show how well numbers are known; each flips a unit at its kink with even chances


def tolerance(dtype: torch.dtype) -> float:
    """Relative error above which two ways to one number disagree: the root of the dtype's rounding error."""
    return math.sqrt(torch.finfo(dtype).eps)


def loosest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype with the largest rounding error."""
    return max((d for d in dtypes if d.is_floating_point), key=lambda d: torch.finfo(d).eps, default=torch.float32)


def norms(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norms, one a tensor, in float64: squares of small float32 numbers would underflow."""
    return torch.stack([row_norms(t.detach().reshape(1, -1))[0] for t in tensors])


def row_norms(tensor: Tensor) -> Tensor:
    """Euclidean norm of every sample's numbers, (N, ...) -> (N,), in float64."""
    flat = tensor.detach().reshape(len(tensor), -1)
    if tensor.dtype == torch.float64 or flat.numel() <= PIECE:
        return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    rows = max(1, PIECE // flat.shape[1])  # torch makes a whole copy in float64, of one piece at a time here
    parts = [
        torch.stack([torch.linalg.vector_norm(p, dim=1, dtype=torch.float64) for p in some.split(PIECE, dim=1)], 1)
        for some in flat.split(rows)
    ]
    return torch.linalg.vector_norm(torch.cat(parts), dim=1)


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether two evaluations agree as a whole, up to the rounding of their dtype; NaN never does."""
    error, *sizes = norms([first - second, first, second]).unbind()
    return bool(error <= tolerance(loosest([first.dtype, second.dtype])) * torch.maximum(*sizes))


def first_above(errors: Tensor, bounds: Tensor) -> int | None:
    """Place of the first error that is not within its bound; NaN is not."""
    bad = ~(errors <= bounds)
    return int(bad.nonzero()[0]) if bad.any() else None


def sample_weights(count: int, like: Tensor) -> Tensor:
    """Weights of samples, (N,): fixed, no two alike, of both signs, between 1 and 2 in size.

    Where samples are on their own, the derivative of ``sum_i w_i v_i`` in what belongs to sample i is w_i times that
    of ``sum_i v_i``; where sample j has a part in it, it is not.
    """
    draw = make_generator(count)
    sizes = 1 + torch.randperm(count, generator=draw, device=draw.device) / count
    return (sizes * (torch.randint(2, (count,), generator=draw, device=draw.device) * 2 - 1)).to(like)


def disagreement(
    errors: Tensors,
    own: Tensors,
    evaluate: Callable[..., Tensors],
    parameters: Tensors,
    dtype: torch.dtype,
    shared: float = 0.0,
) -> tuple[str, float, float] | None:
    """The first of several errors that rounding does not explain: its name, it, and the size it is an error of.

    Args:
        errors: name -> norm of a difference.
        own: name -> the numbers it is a difference from.
        evaluate: ``own`` once more, at the parameters given; of gradients those in all of these.
        parameters: all those of the model, by name.
        dtype: what the numbers were computed in, at its loosest.
        shared: how much of the size of all numbers together counts for each of them; of gradients alone.
    """
    names, sizes = list(errors), norms([own[name] for name in errors])
    sizes_of_errors = torch.stack([errors[name].to(sizes) for name in names])
    bounds = tolerance(dtype) * (sizes + shared * sizes.norm())
    if first_above(sizes_of_errors, bounds) is None:
        return None
    if shared:
        bounds = bounds.clamp(min=smallest(evaluate(leaves_of(parameters)).values(), dtype))
    needed = dict(zip(names, (sizes_of_errors - bounds) / 2, strict=True))
    bounds = bounds + 2 * rounding(own, evaluate, parameters, dtype, needed)
    place = first_above(sizes_of_errors, bounds)
    return None if place is None else (names[place], float(sizes_of_errors[place]), float(sizes[place]))


def leaves_of(parameters: Tensors) -> dict[str, Tensor]:
    """Copies of real parameters, that gradients can be taken in."""
    return {name: p.detach().clone().requires_grad_() for name, p in parameters.items() if p.is_floating_point()}


def smallest(whole: Iterable[Tensor], dtype: torch.dtype) -> float:
    """What rounding leaves of a gradient that is zero because its terms cancel, as in the bias of attention's keys.

    Its terms are not known; they are of the size of the gradient in the other parameters, asked for or not: ``whole``.
    In half precision, of which ``SMALLEST`` roundings are no small part, no more than is allowed beside those.
    """
    return smallest_share(dtype) * float(norms(whole).norm())


def smallest_share(dtype: torch.dtype) -> float:
    """Of a whole, what is rounding and nothing else."""
    return min(SMALLEST * torch.finfo(dtype).eps, 0.1 * tolerance(dtype))


def rounding(
    own: Tensors, evaluate: Callable[..., Tensors], parameters: Tensors, dtype: torch.dtype, enough: Tensors
) -> Tensor:
    """How far rounding all parameters moves the numbers ``own``, for each in ``enough``: the most of some draws.

    Draws end when all that is ``enough`` is explained, or after ``ROUNDINGS``.

    A unit of a ReLU network may lie so close to its kink that a batch of one, summed in another order, falls on the
    other side. With millions of units one does, and the gradient jumps by more than any rounding of its own. Zero if
    the numbers move with no cause at all: then the model is random.
    """
    draw, names, needed = make_generator(0), list(enough), torch.stack(list(enough.values()))
    sizes = norms([own[name] for name in names])
    moved = torch.zeros_like(sizes)
    for _ in range(ROUNDINGS):
        here, near = leaves_of(parameters), {}
        for name, p in here.items():
            signs = torch.randint(2, p.shape, generator=draw, device="cpu").to(p) * 2 - 1
            near[name] = (p.detach() * (1 + 4 * torch.finfo(dtype).eps * signs)).requires_grad_()
        again, there = evaluate(here), evaluate(near)
        if (norms([again[name] - own[name] for name in names]) > tolerance(dtype) * sizes).any():
            return torch.zeros_like(sizes)
        moved = torch.maximum(moved, norms([there[name] - own[name] for name in names]))
        if (moved >= needed).all():
            break
    return moved
