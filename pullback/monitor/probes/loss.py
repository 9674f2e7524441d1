"""Loss and accuracy on the measured samples, in eval mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(seen: Observation) -> Measurement:
    """``loss``: mean per-sample loss. Where targets are class labels ``accuracy``, the share of right classes.

    Beside it ``constant_accuracy``, that of the best answer that is the same for every sample.
    """
    values: dict[str, Any] = {"loss": float(seen.kernel.losses.mean())}
    outputs, labels = seen.kernel.outputs, seen.labels
    if labels is not None and isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1:
        values["accuracy"] = float((outputs.argmax(1) == labels).to(torch.float32).mean())
        values["constant_accuracy"] = int(labels.unique(return_counts=True)[1].max()) / len(labels)
    if seen.batch_loss is not None:
        values["batch_loss"] = seen.batch_loss
    return Measurement(values)


PROBE = Probe("loss", measure)
