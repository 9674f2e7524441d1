"""Loss and accuracy on the measured samples, in eval mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.diagnostics.constant_answer import CLOSE, OF_NUMBERS, ConstantAnswer, constant_answer
from pullback.functional import loss_readout
from pullback.functional.batch import Batch, mapped, tensors
from pullback.functional.plain_calls import plain_calls
from pullback.functional.target_checks import logits_of
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.targets import MOST_OUTPUTS

_OPTIONS = {"label_smoothing": "smoothing", "ignore_index": "ignored"}  # what cross-entropy calls them


def measure(observed: Observation) -> Measurement:
    """``loss``: mean per-sample loss. Where targets are class labels ``accuracy``, the share of right classes.

    Beside it ``constant_accuracy``, that of the best answer that is the same for every sample. Of a loss whose form is
    known (``diagnostics.constant_answer``) its ``form``, that answer's ``constant_loss``, and whether the ``outputs``
    are scores or probabilities; of a squared one of few outputs ``constant_scale``, that over the mean of their
    variances: a half, a sum over the outputs. Of errors of numbers whose outputs are never below 0 ``cut_off``, the
    share that are 0 beside a target below. Of a binary cross-entropy of targets that are no shares
    ``targets_beyond``, how far they lie below 0 or above 1. Of a loss of another form ``swapped_loss``, which
    the samples have with the outputs of others: a model that tells them apart does better with its own.
    """
    losses, outputs = observed.evaluated
    values: dict[str, Any] = {"loss": float(losses.mean())}
    labels = observed.labels
    if labels is not None and isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1:
        values["accuracy"] = float((outputs.argmax(1) == labels).to(torch.float32).mean())
        values["constant_accuracy"] = int(labels.unique(return_counts=True)[1].max()) / len(labels)
    options = {name: getattr(observed.loss_fn, own) for own, name in _OPTIONS.items() if hasattr(observed.loss_fn, own)}
    answer = constant_answer(logits_of(outputs), observed.y, losses, **options)
    if answer is not None:
        values |= {"form": answer.form, "constant_loss": answer.loss, "outputs": answer.outputs}
        if (scale := _scale(answer, observed.y)) is not None:
            values["constant_scale"] = scale
        if (share := _cut_off(answer, outputs, observed.y)) is not None:
            values["cut_off"] = share
    elif (beyond := _beyond(logits_of(outputs), observed.y, losses)) is not None:
        values["targets_beyond"] = beyond
    if answer is None and (swapped := _swapped(observed, outputs, losses)) is not None:
        values["swapped_loss"] = swapped
    if observed.batch_loss is not None:
        values["batch_loss"] = observed.batch_loss
    return Measurement(values)


def _scale(answer: ConstantAnswer, y: Batch) -> float | None:
    if answer.form != "squared" or not isinstance(y, Tensor) or y[0].numel() > MOST_OUTPUTS:
        return None
    variance = float(y.detach().double().reshape(len(y), -1).var(0, correction=0).mean())
    return answer.loss / variance if variance > 0 else None


def _cut_off(answer: ConstantAnswer, outputs: Any, y: Batch) -> float | None:
    o = logits_of(outputs)
    if answer.form not in OF_NUMBERS or not isinstance(y, Tensor) or bool((o < 0).any()) or not bool((y < 0).any()):
        return None
    return float(((o.reshape(y.shape) == 0) & (y < 0)).double().mean())


def _beyond(outputs: Any, y: Batch, losses: Tensor) -> float | None:
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor) or outputs.numel() != y.numel() or len(y) < 2:
        return None
    o, t = outputs.detach().reshape(len(y), -1).double(), y.detach().reshape(len(y), -1).double()
    each = torch.nn.functional.binary_cross_entropy_with_logits(o, t, reduction="none")
    alike = any(
        torch.allclose(way(each, 1), losses.double(), rtol=CLOSE, atol=1e-6) for way in (Tensor.mean, Tensor.sum)
    )
    beyond = float(torch.maximum(t - 1, -t).max())
    return beyond if alike and beyond > 0 else None


def _swapped(observed: Observation, outputs: Any, losses: Tensor) -> float | None:
    """Mean loss where each sample has the outputs of one half the samples on; None where it goes with the outputs.

    A loss without targets does, and of single samples, or outputs that have no axis of samples, nothing is known.
    """
    count, half = len(losses), len(losses) // 2
    if count < 2 or not tensors(outputs) or any(not t.dim() or len(t) != count for t in tensors(outputs)):
        return None
    with torch.no_grad(), plain_calls():
        others = mapped(lambda t: t.detach().roll(half, 0), outputs)
        swapped = loss_readout(observed.loss_fn)(others, observed.y, "Monitor").squeeze(1)
    same, moved = (torch.allclose(swapped, each, rtol=CLOSE, atol=0.0) for each in (losses, losses.roll(half)))
    return None if moved and not same else float(swapped.mean())


PROBE = Probe("loss", measure)
