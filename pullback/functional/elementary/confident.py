"""Losses of class scores and bits without cancellation: digits stay where one class is all but certain.

In float32 the slope p - y and the second derivative diag(p) - p p^T of a class with 1 - p below 1e-7 are zero where
they are computed as differences. Here scores are taken relative to the largest, which enters by itself: then its slope
is minus the sum of the others', and every second derivative is a sum of terms of one sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.functional.elementary.losses import reduced, stated


def relative(z: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the largest score is, that score, and all others less it (0 for itself, a constant)."""
    place = z.detach().argmax(dim, keepdim=True)
    top = z.gather(dim, place)
    axis = torch.arange(z.shape[dim], device=z.device).view(*[-1 if a == dim % z.dim() else 1 for a in range(z.dim())])
    is_top = axis == place
    return is_top, top, (z - top).masked_fill(is_top, 0.0)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """Scores less the largest, less log(1 + the sum of the others' exponentials); in float32 for shorter types."""
    own = input.dtype if dtype is None else dtype
    if dim is None or not input.dim() or not own.is_floating_point:
        return F.log_softmax(input, dim, _stacklevel, dtype)
    is_top, top, less = relative(input.to(torch.promote_types(own, torch.float32)), dim)
    rest = less.exp().masked_fill(is_top, 0.0).sum(dim, keepdim=True)
    undefined = (top - top).detach()  # nan for infinite scores, else 0
    return (less - (rest.log1p() + undefined)).to(own)


def builtin_log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """As ``torch.log_softmax``."""
    return log_softmax(input, dim, dtype=dtype)


def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """The largest score and log(1 + the sum of the others' exponentials), along one axis."""
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    if len(axes) != 1 or not input.dim() or not input.is_floating_point():
        return torch.logsumexp(input, dim, keepdim)
    z = input.to(torch.promote_types(input.dtype, torch.float32))
    is_top, top, _ = relative(z, axes[0])
    less = z - top.masked_fill(~top.detach().isfinite(), 0.0)
    total = (top + less.exp().masked_fill(is_top, 0.0).sum(axes[0], keepdim=True).log1p()).to(input.dtype)
    return total if keepdim else total.squeeze(axes[0])


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta, on each side of zero from the exponential that is at most one."""
    x = beta * input.to(torch.promote_types(input.dtype, torch.float32))
    positive = x >= 0
    return ((x.where(positive, 0.0) + torch.where(positive, -x, x).exp().log1p()) / beta).to(input.dtype)


def logsigmoid(input: Tensor) -> Tensor:
    """Log of the sigmoid."""
    return -softplus(-input)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Minus the log-likelihood of bits."""
    if input.shape != target.shape:
        return F.binary_cross_entropy_with_logits(input, target)  # torch says what is wrong
    ones = target if pos_weight is None else target * pos_weight
    losses = ones * softplus(-input) + (1 - target) * softplus(input)
    losses = losses if weight is None else losses * weight
    return reduced(losses, reduction, size_average, reduce)


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """log(1 + exp(-y x))."""
    return reduced(softplus(-target * input), reduction, size_average, reduce)


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Minus the log-likelihood of bits, the mean over those of a sample."""
    losses = target * softplus(-input) + (1 - target) * softplus(input)
    losses = losses if weight is None else losses * weight
    return reduced(losses.mean(-1), reduction, size_average, reduce)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Minus the log-likelihood of classes (N, ...) or of probabilities (N, C, ...)."""
    reduction = stated(reduction, size_average, reduce)
    axis = 0 if input.dim() == 1 else 1
    one_each = weight is None or weight.shape == input.shape[axis : axis + 1]
    if not one_each or (target.is_floating_point() and target.shape != input.shape):
        return F.cross_entropy(input, target, weight)  # torch says what is wrong
    log_p = log_softmax(input, axis)
    weights = None if weight is None else weight.view(-1, *[1] * (input.dim() - axis - 1))
    smooth = label_smoothing / input.shape[axis]
    if target.is_floating_point():
        wanted = target * (1 - label_smoothing) + smooth
        losses = -(log_p * (wanted if weights is None else wanted * weights)).sum(axis)
        return losses.sum() / max(1, losses.numel()) if reduction == "mean" else reduced(losses, reduction)
    kept = target != ignore_index
    place = target.where(kept, 0).long()
    own = torch.ones_like(place, dtype=log_p.dtype) if weight is None else weight[place]
    own = own.masked_fill(~kept, 0.0)
    losses = -(1 - label_smoothing) * own * log_p.gather(axis, place.unsqueeze(axis)).squeeze(axis)
    if label_smoothing:
        every = (log_p if weights is None else log_p * weights).sum(axis)
        losses = losses - smooth * every.masked_fill(~kept, 0.0)
    return losses.sum() / own.sum() if reduction == "mean" else reduced(losses, reduction)


CONFIDENT: dict[Any, Callable[..., Any]] = {
    F.cross_entropy: cross_entropy,
    F.soft_margin_loss: soft_margin_loss,
    F.multilabel_soft_margin_loss: multilabel_soft_margin_loss,
    F.binary_cross_entropy_with_logits: binary_cross_entropy_with_logits,
    F.log_softmax: log_softmax,
    **dict.fromkeys((torch.log_softmax, torch.special.log_softmax, Tensor.log_softmax), builtin_log_softmax),
    **dict.fromkeys((torch.logsumexp, torch.special.logsumexp, Tensor.logsumexp), logsumexp),
    F.softplus: softplus,
    F.logsigmoid: logsigmoid,
}
