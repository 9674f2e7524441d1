"""Which targets there are: how often each class, or where numbers lie and how far they spread."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pullback.functional.batch import tensors
from pullback.monitor.probes.base import Measurement, Observation, Probe

MOST_CLASSES = 256  # a record counts each; of more, vocabularies, none
MOST_OUTPUTS = 16  # whose means over all batches are kept; of more their average


def measure(observed: Observation) -> Measurement:
    """Over the loop's batch. Of classes (N,) the ``counts``, class -> number; of numbers ``mean`` and ``std`` of all.

    ``mean`` averages over a target's outputs too, ``largest_mean`` is that of one output, largest in size; ``std`` is
    the root mean square over the outputs of their standard deviations. ``sample_mean`` and ``sample_std`` are mean and
    standard deviation, over samples, of each sample's own average: by them batches can be compared. Numbers that are 0
    or 1, one a sample, are counted as classes. Nothing for tokens.
    """
    leaves = list(tensors(observed.batch[1]))
    if len(leaves) != 1:
        return Measurement({})
    y = leaves[0].detach()
    if (labels := _labels(y)) is not None:
        classes, counts = labels.unique(return_counts=True)
        if len(classes) > MOST_CLASSES:
            return Measurement({})
        found = zip(classes.tolist(), counts.tolist(), strict=True)
        return Measurement({"counts": {str(label): count for label, count in found}, "num_samples": len(labels)})
    return Measurement(_numbers(y) if y.is_floating_point() and len(y) > 1 else {})


def _labels(y: Tensor) -> Tensor | None:
    """One class a sample, of whole numbers, flags, or numbers that are all 0 or 1."""
    if y.dim() == 0 or y.numel() != len(y):
        return None
    flat = y.flatten()
    if not y.is_floating_point():
        return flat.long()
    return flat.long() if bool(((flat == 0) | (flat == 1)).all()) else None


def _numbers(y: Tensor) -> dict[str, Any]:
    each = y.flatten(1).double() if y.dim() > 1 else y.double().unsqueeze(1)
    means, own = each.mean(0), each.mean(1)
    return {
        "mean": float(means.mean()),
        "largest_mean": float(means[means.abs().argmax()]),
        "std": float(each.var(0, correction=0).mean().sqrt()),
        "sample_mean": float(own.mean()),
        "sample_std": float(own.std(correction=1)),
        "num_samples": len(each),
    }


PROBE = Probe("targets", measure)
