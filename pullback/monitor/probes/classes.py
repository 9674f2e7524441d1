"""Which classes pull against each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.diagnostics import alignment
from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(observed: Observation) -> Measurement:
    """Mean ``cosine`` of gradients of classes ``labels`` (C, C), ``within`` and ``between`` them, the ``worst`` two.

    A pair counts once and no sample with itself. Classes with fewer than two measured samples are left out; without
    two classes nothing is measured.
    """
    return Measurement({} if observed.labels is None else _by_class(observed.alignment.cosine, observed.labels))


def measure_layers(observed: Observation) -> Measurement:
    """``layer_cosine``, the mean cosine of each layer's own gradients."""
    cosines = {layer: alignment(block, num_pairs=1).mean_cosine for layer, block in observed.kernel.layers.items()}
    return Measurement({"layer_cosine": cosines})


def _by_class(cosine: Tensor, y: Tensor) -> dict[str, Any]:
    labels, counts = y.unique(return_counts=True)
    labels = labels[counts >= 2]
    if len(labels) < 2:
        return {}
    members = (y.unsqueeze(1) == labels).to(torch.float64)  # (N, C)
    each = cosine.double() - torch.diag(cosine.diagonal().double())
    sums, sizes = members.T @ each @ members, members.sum(0)
    pairs = sizes.unsqueeze(1) * sizes - torch.diag(sizes)
    mean = sums / pairs
    own = torch.eye(len(labels), dtype=torch.bool, device=y.device)
    later = torch.ones_like(own).triu(1)  # each two classes once: the two halves differ by rounding
    a, b = divmod(int(mean.masked_fill(~later, torch.inf).argmin()), len(labels))
    return {
        "cosine": mean.tolist(),
        "labels": labels.tolist(),
        "within": float(sums[own].sum() / pairs[own].sum()),
        "between": float(sums[~own].sum() / pairs[~own].sum()),
        "worst": [int(labels[a]), int(labels[b]), float(mean[a, b])],
    }


PROBE = Probe("classes", measure, extra=measure_layers, pairs=True)
