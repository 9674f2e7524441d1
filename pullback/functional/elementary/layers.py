"""Layers, activations and distances, from elementary operations; names and order of arguments are torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pullback._checks import unsupported


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """The line x / 6 + 1 / 2, cut off at 0 and 1; with the slope torch's own backward pass has, rounded to float32."""
    like = input.new_ones(())
    line = F.relu6(input + 3)
    sloped = line * torch.ops.aten.hardsigmoid_backward(like, torch.zeros_like(like))
    result = sloped + (line / 6 - sloped).detach()
    return input.copy_(result) if inplace else result


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """The first half times the sigmoid of the second."""
    first, second = input.chunk(2, dim)
    return first * second.sigmoid()


def sinc(input: Tensor) -> Tensor:
    """sin(t) / t with t = pi x: its series near zero, where torch differentiates 0 / 0."""
    t = torch.pi * input
    near = t.abs() < 0.5
    square, series, coefficient = t.square(), torch.ones_like(t), 1.0
    power = torch.ones_like(t)
    for k in range(1, 9):  # the next term is below the rounding of float64, also in its derivatives
        coefficient /= -(2 * k) * (2 * k + 1)
        power = power * square
        series = series + coefficient * power
    far = t.where(~near, 1.0)
    return series.where(near, far.sin() / far)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """G v / |v|, the norm over all axes but ``dim``, over all of them for -1."""
    axes = tuple(range(v.dim())) if dim == -1 else tuple(a for a in range(v.dim()) if a != dim % v.dim())
    return v * (g / v.square().sum(axes, keepdim=True).sqrt().reshape(g.shape))


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """What ``F.embedding_bag`` returns, row by row; ``max_norm`` writes to the table and is not for here."""
    if max_norm is not None or scale_grad_by_freq:
        raise unsupported(
            "F.embedding_bag", "a plain table", "`max_norm` or `scale_grad_by_freq`", "Leave them at their defaults"
        )
    factors = per_sample_weights
    if offsets is not None:
        ends = offsets[1:] if include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(input)])])
        starts = offsets[:-1] if include_last_offset else offsets
        bounds = list(zip(starts.tolist(), ends.tolist(), strict=True))
        counts = torch.ones_like(input)
        valid = pad_sequence([counts[a:b] for a, b in bounds], batch_first=True) > 0
        factors = None if factors is None else pad_sequence([factors[a:b] for a, b in bounds], batch_first=True)
        input = pad_sequence([input[a:b] for a, b in bounds], batch_first=True)
    else:
        valid = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        valid = valid & (input != padding_idx % len(weight))
    rows, counted = F.embedding(input, weight), valid.unsqueeze(2)  # (bags, L, features)
    if mode == "max":
        empty = ~valid.any(1, keepdim=True)
        return rows.masked_fill(~counted, -torch.inf).max(1).values.masked_fill(empty, 0.0)
    rows = rows * (counted if factors is None else counted * factors.unsqueeze(2))
    total = rows.sum(1)
    return total if mode == "sum" else total / valid.sum(1, keepdim=True).clamp(min=1)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    """Distances (..., P, R) of rows (..., P, M) and (..., R, M), from the differences."""
    return _length(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """Distances of all pairs of rows, the first before the second."""
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _length(input[first] - input[second], p)


def _length(difference: Tensor, p: float) -> Tensor:
    """p-norm over the last axis; the derivatives of a kink, where a difference or all of them are zero, are zero."""
    sizes = difference.abs()
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1)
    if p == 1:
        return sizes.sum(-1)
    if p == torch.inf:
        return sizes.amax(-1) if sizes.shape[-1] else sizes.sum(-1)
    powers = difference.square() if p == 2 else sizes.where(sizes > 0, 1.0).pow(p).where(sizes > 0, 0.0)
    total = powers.sum(-1)
    apart = total > 0
    return total.where(apart, 1.0).pow(1 / p).where(apart, 0.0)


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Mean zero and variance one over the last axes, then gain and shift."""
    axes = tuple(range(input.dim() - len(normalized_shape), input.dim()))
    result = _standardised(input, axes, eps)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Every channel of every sample by its own statistics; by the running ones without ``use_input_stats``."""
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:  # torch keeps them
        F.instance_norm(input.detach(), running_mean, running_var, None, None, True, momentum, eps)
    return _by_channel(_standardised(input, tuple(range(2, input.dim())), eps), weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Every channel by the batch's statistics, or by the running ones."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:  # torch keeps them
        F.batch_norm(input.detach(), running_mean, running_var, None, None, True, momentum, eps)
    return _by_channel(_standardised(input, (0, *range(2, input.dim())), eps), weight, bias)


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


def _by_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


LAYERS: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: hardsigmoid,
    F.embedding_bag: embedding_bag,
    F.pdist: pdist,
    torch.cdist: cdist,
    torch._weight_norm: weight_norm,
    **dict.fromkeys((torch._C._nn.hardsigmoid, torch.ops.aten.hardsigmoid), hardsigmoid),
    **dict.fromkeys((torch.sinc, torch.special.sinc, Tensor.sinc), sinc),
}
NORMS: dict[Any, Callable[..., Any]] = {  # right once and twice, wrong the third time and in nested forward derivatives
    F.layer_norm: layer_norm,
    F.instance_norm: instance_norm,
    F.batch_norm: batch_norm,
    F.glu: glu,
}
