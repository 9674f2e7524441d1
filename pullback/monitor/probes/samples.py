"""Samples that stand out: against their class, by the size of their gradient, or as copies of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.monitor.probes.base import Measurement, Observation, Probe

STANDS_OUT = 3.5  # modified z-score, (value - median) / (1.4826 MAD): Iglewicz and Hoaglin (1993)
COPY = 1e-6  # |g_i - g_j|^2 / |g_i|^2 below which two samples are taken for copies
MOST_SUSPECTS = 20


def measure(seen: Observation) -> Measurement:
    """Per sample ``kernel_norm`` = |g_i|, ``losses`` and ``mean_cosine_to_own_class``; ``suspects`` among them.

    A suspect is [index, score, reason], at most ``MOST_SUSPECTS``, the highest scores of each reason first. "label": its
    gradient opposes its own class, much more than others of that class do, and its loss is above the median; "outlier":
    log |g_i| far above the others'; both scored by the modified z-score. "duplicate": its gradient equals an earlier
    sample's, scored by their cosine.
    """
    total, losses = seen.kernel.total.double(), seen.kernel.losses.double()
    norms = total.diagonal().clamp(min=0).sqrt()
    values: dict[str, Any] = {
        "kernel_norm": norms.tolist(),
        "losses": losses.tolist(),
        "num_samples": len(total),
    }
    suspects = _duplicates(total) + _outliers(norms)
    if seen.labels is not None and (own := _own_class(seen.alignment.cosine.double(), seen.labels)) is not None:
        values["mean_cosine_to_own_class"] = [None if each.isnan() else float(each) for each in own]
        suspects = _mislabelled(own, losses) + suspects
    return Measurement(values | {"suspects": suspects[:MOST_SUSPECTS]})


def _own_class(cosine: Tensor, y: Tensor) -> Tensor | None:
    """Mean cosine to the other samples of the class, (N,), nan for a sample alone in it; None if all are."""
    same = (y.unsqueeze(1) == y).double().fill_diagonal_(0)
    counts = same.sum(1)
    return (cosine * same).sum(1) / counts if bool((counts > 0).any()) else None


def _mislabelled(own: Tensor, losses: Tensor) -> list[list[Any]]:
    known = ~own.isnan()
    scores = torch.where(known, -_z_scores(own, own[known]), 0)
    odd = known & (own < 0) & (losses > losses.median())
    return _listed(torch.where(odd, scores, 0), "label")


def _outliers(norms: Tensor) -> list[list[Any]]:
    logs = norms.clamp(min=torch.finfo(torch.float32).tiny).log()
    return _listed(_z_scores(logs, logs), "outlier")


def _duplicates(total: Tensor) -> list[list[Any]]:
    """Samples j whose gradient equals that of an earlier i; those without a gradient are no evidence."""
    squares = total.diagonal()
    scale = squares.unsqueeze(1) + squares
    distance = scale - 2 * total
    copies = (distance < COPY * scale / 2) & (squares > 0) & (squares > 0).unsqueeze(1)
    later = copies.triu(1).any(0).nonzero().flatten().tolist()
    first = [int(copies[:, j].nonzero()[0]) for j in later]
    return [
        [j, float(total[i, j] / (squares[i] * squares[j]).sqrt()), "duplicate"]
        for i, j in zip(first, later, strict=True)
    ]


def _z_scores(values: Tensor, among: Tensor) -> Tensor:
    """(value - median) / (1.4826 MAD), 0 where more than half of the values are equal."""
    centre = among.median()
    spread = 1.4826 * (among - centre).abs().median()
    return (values - centre) / spread if float(spread) > 0 else torch.zeros_like(values)


def _listed(scores: Tensor, reason: str) -> list[list[Any]]:
    found = (scores > STANDS_OUT).nonzero().flatten()
    order = found[scores[found].argsort(descending=True)]
    return [[int(i), float(scores[i]), reason] for i in order]


PROBE = Probe("samples", measure, sparse=True)
