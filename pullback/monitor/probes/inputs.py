"""Are the inputs on one scale, and around zero?"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from pullback.functional.batch import Batch, tensors
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.recent import marks_of

FAR = 10.0  # times the distance of the median sample, from which on samples are named
MOST_FAR = 20
MOST_NUMBERS = 2**18  # that are looked at
FEW = 8  # samples of which a median says what is usual


def far(observed: Observation) -> Measurement:
    """``furthest_sample``: the largest distance of a sample from the median of each feature, in the median sample's.

    ``far_samples``, [index, distance], at most ``MOST_FAR`` of the ``num_far`` that are beyond ``FAR``. Of many
    features by an even choice of them. Nothing for tokens.
    """
    parts = _numbers(observed)
    return Measurement(_far(parts) if parts else {})


def measure(observed: Observation) -> Measurement:
    """Over the features of all inputs that are real numbers, standard deviations over the loop's batch.

    ``largest_mean_over_std``: largest |mean| / std of a feature; ``std_ratio``: largest over smallest std, both over
    features that vary; ``constant_features`` do not; ``largest_abs`` of all numbers. Where samples of the batch are
    equal, inputs and targets, ``copies``, of each that is there several times how many times, ``copied``, indices of at
    most ``MOST_FAR`` that repeat an earlier one, and ``num_samples``. Nothing for tokens.
    """
    parts = _numbers(observed)
    if not parts:
        return Measurement({})
    blocks = (block.double() for part in parts for block in part.split(512, 1))  # copies of a few columns at a time
    std, mean, largest = (
        torch.cat(found)
        for found in zip(*((b.std(0, correction=0), b.mean(0).abs(), b.abs().amax(0)) for b in blocks), strict=True)
    )
    varies = std > 1e-7 * largest
    values = {
        "largest_abs": float(largest.max()),
        "num_features": len(std),
        "constant_features": int((~varies).sum()),
    }
    if bool(varies.any()):
        std, mean = std[varies], mean[varies]
        values |= {"largest_mean_over_std": float((mean / std).max()), "std_ratio": float(std.max() / std.min())}
    return Measurement(values | _copies(*observed.batch))


def _numbers(observed: Observation) -> list[Tensor]:
    """The loop's inputs that are real numbers, (B, features) each."""
    leaves = tensors(observed.batch[0])
    return [leaf.detach().flatten(1) for leaf in leaves if leaf.is_floating_point() and leaf.dim() > 1]


def _copies(x: Batch, y: Batch) -> dict[str, Any]:
    """Samples that are there several times."""
    marks, targets = marks_of(x), marks_of(y)
    if len(marks) != len(targets):
        return {}
    rows = list(zip(marks, targets, strict=True))
    times = sorted((count for count in Counter(rows).values() if count > 1), reverse=True)
    if not times:
        return {}
    first = {row: place for place, row in reversed(list(enumerate(rows)))}
    copied = [place for place, row in enumerate(rows) if first[row] < place]
    return {"copies": times, "copied": copied[:MOST_FAR], "num_samples": len(rows)}


def _far(parts: list[Tensor]) -> dict[str, Any]:
    """How far each sample lies from the middle of the batch, by distances that one of them cannot change."""
    every = max(1, sum(part.numel() for part in parts) // MOST_NUMBERS)
    squares = sum(
        ((block - block.median(0).values) ** 2).sum(1)
        for part in parts
        for block in (each.double() for each in part[:, ::every].split(512, 1))
    )
    if not isinstance(squares, Tensor) or len(squares) < FEW:
        return {}
    distances = squares.sqrt()
    typical = float(distances.median())
    if not typical > 0:
        return {}
    times = distances / typical
    values: dict[str, Any] = {"furthest_sample": float(times.max())}
    if values["furthest_sample"] > FAR:
        order = times.argsort(descending=True)[: min(MOST_FAR, int((times > FAR).sum()))]
        values |= {"far_samples": [[int(i), float(times[i])] for i in order], "num_far": int((times > FAR).sum())}
    return values


PROBE = Probe("inputs", far, extra=measure)
