"""What a model reaches that gives one answer to every sample: the level below which it has learnt something."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback._results import Shown

CLOSE = 1e-3  # relative; in half precision a few of its last digits
UNIT_SUM = 1e-3  # sums of probabilities in half precision
OF_NUMBERS = frozenset({"squared", "absolute", "huber"})  # forms of errors
HUBER_STEPS = 8  # of Newton's method, to the best constant


@dataclass(frozen=True)
class ConstantAnswer(Shown):
    """Of samples and their losses.

    Attributes:
        form: "cross-entropy" (of scores), "nll" (of log-probabilities), "binary" (of scores), "binary-nll" (of
            probabilities), "squared", "absolute" or "huber" (of threshold 1, which ``smooth_l1_loss`` has too).
        loss: mean loss of the best answer that is the same for every sample: the entropy of the labels' frequencies,
            the variance of the targets, or their mean distance from the median, an answer for each output by itself.
        outputs: "probabilities" where the outputs are such (of each sample or position from 0 to 1 and, of several
            classes, summing to 1), "log-probabilities" where they are theirs, else "scores".
    """

    form: str
    loss: float
    outputs: str


def constant_answer(
    outputs: Any, targets: Any, losses: Tensor, smoothing: float = 0.0, ignored: int = -100
) -> ConstantAnswer | None:
    """The form of a loss, told by its values sample by sample, and what one answer for all would reach.

    Recognised are cross-entropy of classes, tokens and next tokens (classes on the second axis or the last), binary
    cross-entropy, the (half) squared error, the absolute one and Huber's, each as the mean or the sum over a sample's
    own positions or outputs. Outputs (N, 1) may meet targets (N,), or the other way round.

    Args:
        outputs: of the model, (N, ...).
        targets: labels or numbers, (N, ...).
        losses: of the samples, (N,).
        smoothing: of the labels.
        ignored: a label that stands for none.

    Returns:
        None where the loss is none of these, or is not finite.

    Cost: a pass over the outputs for each form that is tried.

    Example:
        >>> scores, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
        >>> losses = F.cross_entropy(scores, labels, reduction="none")
        >>> found = constant_answer(scores, labels, losses)
        >>> found.form, round(found.loss, 4)  # - 3/4 ln 3/4 - 1/4 ln 1/4
        ('cross-entropy', 0.5623)
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return None
    outputs, targets, losses = outputs.detach(), targets.detach(), losses.detach().double()
    tolerance = max(CLOSE, 4 * torch.finfo(outputs.dtype).eps)
    forms = (
        _of_numbers(outputs.double(), targets)
        if targets.is_floating_point()
        else _of_labels(outputs.double(), targets, smoothing, ignored)
    )
    for each, answer in forms:
        if each.shape == losses.shape and torch.allclose(each, losses, rtol=tolerance, atol=1e-6):
            return answer()
    return None


def _of_labels(outputs: Tensor, labels: Tensor, smoothing: float, ignored: int) -> Iterator[tuple[Tensor, Any]]:
    for scores, y in _layouts(outputs, labels):
        kept = (y != ignored) & (y >= 0) & (y < scores.shape[1])
        index = y.where(kept, 0).long()
        for form, logs in (("cross-entropy", scores.log_softmax(1)), ("nll", scores)):
            s = smoothing if form == "cross-entropy" else 0.0
            each = -(1 - s) * logs.gather(1, index.unsqueeze(1)).squeeze(1) - s * logs.mean(1)
            sums = (each * kept).flatten(1).sum(1) if each.dim() > 1 else each * kept
            counts = kept.flatten(1).sum(1) if kept.dim() > 1 else kept.long()
            one_hot = kept.flatten(1) if kept.dim() > 1 else kept.unsqueeze(1)
            for total, weights in (
                (sums / counts, one_hot / counts.unsqueeze(1)),
                (sums, one_hot.double()),
            ):
                yield total, _entropy(form, scores, index, weights, s)


def _entropy(form: str, scores: Tensor, index: Tensor, weights: Tensor, smoothing: float) -> Any:
    def answer() -> ConstantAnswer:
        classes = scores.shape[1]
        frequencies = torch.zeros(classes, dtype=torch.float64, device=scores.device)
        frequencies.index_add_(0, index.flatten(), weights.flatten().double())
        whole = frequencies.sum()
        smooth = (1 - smoothing) * frequencies / whole + smoothing / classes
        loss = float(torch.special.entr(smooth).sum() * whole / len(scores))
        return ConstantAnswer(form, loss, _kind_of(scores))

    return answer


def _layouts(outputs: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores with the classes on the second axis, and labels of their other axes."""
    if outputs.dim() < 2:
        return
    last = outputs.movedim(-1, 1)
    for scores in (outputs,) if outputs.dim() == 2 else (outputs, last):
        if labels.shape == (scores.shape[0], *scores.shape[2:]):
            yield scores, labels
    if labels.dim() == 2 and outputs.shape[:-1] == labels.shape and labels.shape[1] > 1:
        yield last[:, :, :-1], labels[:, 1:]  # a language model's own loss: labels are the inputs


def _kind_of(scores: Tensor) -> str:
    if bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < UNIT_SUM).all()):
        return "probabilities"
    if bool((scores <= 0).all()) and bool(((scores.exp().sum(1) - 1).abs() < UNIT_SUM).all()):
        return "log-probabilities"
    return "scores"


def _of_numbers(outputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Any]]:
    if not _differ_by_ones(outputs.shape, targets.shape):
        return
    outputs = outputs.reshape(targets.shape)
    o, t = (each.double().flatten(1) if each.dim() > 1 else each.double().unsqueeze(1) for each in (outputs, targets))
    between = bool(((o >= 0) & (o <= 1)).all())
    for form, each, least in (
        ("binary", F.binary_cross_entropy_with_logits(o, t, reduction="none"), _binary_entropy),
        (
            "binary-nll",
            F.binary_cross_entropy(o, t, reduction="none") if between and _is_share(t) else None,
            _binary_entropy,
        ),
        ("squared", (o - t).square(), lambda t: t.var(0, correction=0)),
        ("half", (o - t).square() / 2, lambda t: t.var(0, correction=0) / 2),
        ("absolute", (o - t).abs(), lambda t: (t - t.median(0).values).abs().mean(0)),
        ("huber", F.huber_loss(o, t, reduction="none"), _least_huber),
    ):
        if each is None or (form == "binary" and not _is_share(t)):
            continue
        for reduce in (Tensor.mean, Tensor.sum):

            def answer(form: str = form, least: Any = least, reduce: Any = reduce) -> ConstantAnswer:
                kind = "probabilities" if between and form.startswith("binary") else "scores"
                return ConstantAnswer("squared" if form == "half" else form, float(reduce(least(t))), kind)

            yield reduce(each, 1), answer


def _differ_by_ones(a: torch.Size, b: torch.Size) -> bool:
    """Whether two shapes are the same but for axes of one after the first."""
    return a[:1] == b[:1] and [size for size in a[1:] if size != 1] == [size for size in b[1:] if size != 1]


def _least_huber(t: Tensor) -> Tensor:
    """Of each output, (K,), by Newton's steps from the median: of a slope that is piecewise linear a few are exact."""
    centre = t.median(0).values
    for _ in range(HUBER_STEPS):
        away = t - centre
        centre = centre + away.clamp(-1, 1).mean(0) / (away.abs() <= 1).double().mean(0).clamp_min(1 / len(t))
    return F.huber_loss(centre.expand_as(t), t, reduction="none").mean(0)


def _is_share(t: Tensor) -> bool:
    return bool(((t >= 0) & (t <= 1)).all())


def _binary_entropy(t: Tensor) -> Tensor:
    share = t.mean(0)
    return torch.special.entr(share) + torch.special.entr(1 - share)
