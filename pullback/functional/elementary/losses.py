"""Losses: those with a backward pass that cannot be differentiated, and those whose slope has no forward derivative.

Names and order of arguments are torch's own, since calls may be by keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IMPOSSIBLE = -1e30  # log-probability of paths that do not exist: infinity has no derivative


def stated(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction, or what the two older flags say in its place."""
    if size_average is None and reduce is None:
        return reduction
    return "none" if reduce is False else "sum" if size_average is False else "mean"


def reduced(losses: Tensor, reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> Tensor:
    """As ``reduction`` says, or the two older flags in its place."""
    reduction = stated(reduction, size_average, reduce)
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Squared differences; torch's slope of it cannot be differentiated forward where ``target`` is constant.

    The weighted mean is that of the weights, other than ``huber_loss``'s.
    """
    squares = (input - target).square()
    if weight is None:
        return reduced(squares, reduction, size_average, reduce)
    if weight.shape != input.shape:
        return F.mse_loss(input, target, weight=weight)  # type: ignore[call-arg]  # torch says what is wrong
    reduction = stated(reduction, size_average, reduce)
    return (squares * weight).sum() / weight.sum() if reduction == "mean" else reduced(squares * weight, reduction)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Squares near zero, absolute values beyond ``delta``."""
    if weight is not None and weight.shape != input.shape:
        return F.huber_loss(input, target, weight=weight)  # type: ignore[call-arg]  # torch says what is wrong
    distance = (input - target).abs()
    losses = torch.where(distance <= delta, 0.5 * distance.square(), delta * (distance - 0.5 * delta))
    return reduced(losses if weight is None else losses * weight, reduction)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sum over wrong classes of max(0, margin - x_y + x_j)^p, over C."""
    scores, labels = (input, target) if input.dim() == 2 else (input.unsqueeze(0), target.reshape(1))
    if weight is not None and weight.shape != scores.shape[1:]:
        return F.multi_margin_loss(input, target, p, margin, weight)  # torch says what is wrong
    own = scores.gather(1, labels.unsqueeze(1))
    wrong = torch.arange(scores.shape[1], device=scores.device) != labels.unsqueeze(1)
    terms = (margin - own + scores).clamp(min=0) ** p
    terms = terms if weight is None else terms * weight[labels].unsqueeze(1)
    losses = terms.where(wrong, 0.0).sum(1) / scores.shape[1]
    return reduced(losses if input.dim() == 2 else losses.squeeze(0), reduction, size_average, reduce)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sum over labels (up to the first -1) and classes that are none of max(0, 1 - x_label + x_class), over C."""
    scores, labels = (input, target) if input.dim() == 2 else (input.unsqueeze(0), target.unsqueeze(0))
    counted = (labels >= 0).long().cumprod(1) > 0
    classes = torch.arange(scores.shape[1], device=scores.device)
    of_sample = ((labels.unsqueeze(2) == classes) & counted.unsqueeze(2)).any(1)  # (N, C)
    own = scores.gather(1, labels.clamp(min=0)).unsqueeze(2)
    terms = (1 - own + scores.unsqueeze(1)).clamp(min=0)
    losses = terms.where(counted.unsqueeze(2) & ~of_sample.unsqueeze(1), 0.0).sum((1, 2)) / scores.shape[1]
    return reduced(losses if input.dim() == 2 else losses.squeeze(0), reduction, size_average, reduce)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Minus the log-probability of all alignments, by the forward recursion over time (Graves et al. 2006)."""
    alone = log_probs.dim() == 2
    log_probs = log_probs.unsqueeze(1) if alone else log_probs  # (T, N, C)
    steps, lengths = (
        torch.as_tensor(each, device=log_probs.device).reshape(-1) for each in (input_lengths, target_lengths)
    )
    targets = targets.to(log_probs.device)
    if alone:
        targets = targets.reshape(1, -1)
    elif targets.dim() == 1:  # one sequence after another
        targets = pad_sequence(list(targets.split(lengths.tolist())), batch_first=True)
    alphas = _log_forward(log_probs, targets, blank)  # (T, N, 2 S + 1)
    last = alphas.gather(0, (steps - 1).view(1, -1, 1).expand(1, -1, alphas.shape[2])).squeeze(0)
    ends = last.gather(1, torch.stack([2 * lengths, (2 * lengths - 1).clamp(min=0)], 1))
    both = torch.logsumexp(ends, 1)
    losses = -ends[:, 0].where(lengths == 0, both)
    infinite = losses > -0.5 * IMPOSSIBLE
    losses = losses.masked_fill(infinite, 0.0 if zero_infinity else torch.inf)
    if reduction == "mean":
        return (losses / lengths.clamp(min=1)).mean()
    return losses.sum() if reduction == "sum" else losses.squeeze(0) if alone else losses


def _log_forward(log_probs: Tensor, targets: Tensor, blank: int) -> Tensor:
    """Log-probability of every prefix of the labels, blanks between them, at every time."""
    N, S = targets.shape
    between = torch.full_like(targets, blank)
    labels = torch.stack([between, targets], 2).reshape(N, 2 * S)
    labels = torch.cat([labels, labels.new_full((N, 1), blank)], 1).long()  # b l1 b l2 ... b
    skips = (labels != blank) & (labels != torch.cat([labels.new_full((N, 2), blank), labels], 1)[:, :-2])
    emitted = log_probs.gather(2, labels.unsqueeze(0).expand(len(log_probs), -1, -1))
    nothing = torch.full_like(emitted[0], IMPOSSIBLE)
    alpha = torch.cat([emitted[0][:, :2], nothing[:, 2:]], 1)
    alphas = [alpha]
    for step in emitted[1:]:
        one = torch.cat([nothing[:, :1], alpha[:, :-1]], 1)
        two = torch.cat([nothing[:, :2], alpha], 1)[:, : alpha.shape[1]].where(skips, IMPOSSIBLE)
        alpha = (step + torch.logsumexp(torch.stack([alpha, one, two]), 0)).clamp(min=IMPOSSIBLE)
        alphas.append(alpha)
    return torch.stack(alphas)


LOSSES: dict[Any, Callable[..., Any]] = {
    F.mse_loss: mse_loss,
    F.huber_loss: huber_loss,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    F.ctc_loss: ctc_loss,
}
