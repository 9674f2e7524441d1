"""Which samples' gradients fight."""

from __future__ import annotations

import torch

from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(observed: Observation) -> Measurement:
    """``mean_cosine``, ``conflict_fraction`` and the most conflicting pairs, by index in the measured samples."""
    alignment = observed.alignment
    return Measurement(
        {
            "mean_cosine": alignment.mean_cosine,
            "conflict_fraction": alignment.conflict_fraction,
            "worst_pairs": [list(pair) for pair in alignment.worst_pairs],
        }
    )


def measure_matrix(observed: Observation) -> Measurement:
    """Arrays ``cosine`` (N, N) and ``labels`` (N,), samples sorted by class where the targets are classes."""
    cosine, classes = observed.alignment.cosine, observed.labels
    if classes is not None:
        order = torch.argsort(classes, stable=True)
        labels = classes[order]
    else:
        order = torch.arange(len(cosine), device=cosine.device)
        labels = torch.zeros_like(order)
    arrays = {"cosine": cosine[order][:, order].float().cpu().numpy(), "labels": labels.cpu().numpy()}
    return Measurement({}, arrays)


PROBE = Probe("alignment", measure, extra=measure_matrix, pairs=True)
