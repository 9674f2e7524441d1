"""Samples that stand out: against their class, by the size of their gradient, or as copies of others."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.functional.batch import Batch, tensors
from pullback.monitor.probes.base import Measurement, Observation, Probe

STANDS_OUT = 3.5  # modified z-score, (value - median) / (1.4826 MAD): Iglewicz and Hoaglin (1993)
COPY = 1e-6  # |g_i - g_j|^2 / |g_i|^2 below which two gradients are taken for equal
ODDS = math.log(10)  # of another label to the given one; calibrated, see benchmarks/studies/pathologies/README.md
MOST_SUSPECTS = 20
MOST_INPUTS = 4096  # numbers of a sample that is stored with its record


def measure(observed: Observation) -> Measurement:
    """``suspects`` among the ``num_samples``, and ``num_suspects``, how many there are for each reason.

    A suspect is [index, score, reason], at most ``MOST_SUSPECTS``, the highest scores of each reason first. "label":
    its gradient opposes another class more than it agrees with its own, and the model holds another label for more than
    ten times as probable, scored by the logarithm of that; it needs outputs (N, C). "outlier": log |g_i| far above the
    others', scored by the modified z-score. "duplicate": inputs and gradient are those of an earlier sample, scored by
    the cosine. ``copies``, where there are any: of each sample that is there several times, how many times.

    Of outputs (N, C) also ``num_classes`` C, ``label_ranks``, rank -> samples, the place of the given label among all
    by the model's scores, from 1, and ``contradicted``, [index, ln of the odds], of samples whose label is not first.

    All these count samples within the batch; where the loop tells their places in the data set, ``index`` has pairs of
    both.
    """
    total = observed.kernel.total.double()
    duplicates, copies = _duplicates(total, observed.x)
    suspects = duplicates + _outliers(_norms(total))
    ranked: dict[str, Any] = {}
    outputs = observed.kernel.outputs
    if (
        observed.labels is not None
        and isinstance(outputs, Tensor)
        and outputs.dim() == 2
        and outputs.shape[1] > int(observed.labels.max())
    ):
        own, opposed = _by_class(observed.alignment.cosine.double(), observed.labels)
        odds = log_odds(outputs, observed.labels)
        suspects = _mislabelled(own, opposed, odds) + suspects
        ranked = _ranked(outputs, observed.labels, odds)
    counts = Counter(reason for _, _, reason in suspects)
    values = {"suspects": suspects[:MOST_SUSPECTS], "num_suspects": dict(counts), "num_samples": len(total)}
    values |= ranked | ({"copies": copies} if copies else {})
    named = sorted({each[0] for each in (*suspects[:MOST_SUSPECTS], *ranked.get("contradicted", ()))})
    return Measurement(
        values | ({"index": [[at, observed.index[at]] for at in named]} if observed.index and named else {})
    )


def measure_each(observed: Observation) -> Measurement:
    """Per sample ``kernel_norm`` = |g_i|, ``losses`` and ``mean_cosine_to_own_class``; of suspects what they look like.

    That is the array ``suspects`` of their inputs (S, ...), in their order, where these are one tensor of real numbers
    and not large, and ``suspect_targets``, their classes.
    """
    values: dict[str, Any] = {
        "kernel_norm": _norms(observed.kernel.total.double()).tolist(),
        "losses": observed.kernel.losses.double().tolist(),
    }
    if observed.labels is not None:
        own = _by_class(observed.alignment.cosine.double(), observed.labels)[0]
        values["mean_cosine_to_own_class"] = [None if each.isnan() else float(each) for each in own]
    places = [place for place, _, _ in measure(observed).values["suspects"]]
    if places and observed.labels is not None:
        values["suspect_targets"] = [int(observed.labels[place]) for place in places]
    return Measurement(values, _inputs_of(places, observed.x))


def _inputs_of(places: list[int], x: Batch) -> dict[str, np.ndarray]:
    """Inputs of these samples, where a page can show them."""
    if not places or not isinstance(x, Tensor) or x.is_complex() or x.dim() < 2 or x[0].numel() > MOST_INPUTS:
        return {}
    return {"suspects": x[torch.tensor(places, device=x.device)].detach().float().cpu().numpy()}


def _norms(total: Tensor) -> Tensor:
    return total.diagonal().clamp(min=0).sqrt()


def _by_class(cosine: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine to the other samples of the own class, nan if there are none, and the least one to another class.

    Both (N,); the second is 0 where there is only one class.
    """
    labels, home = y.unique(return_inverse=True)
    members = (y.unsqueeze(1) == labels).double()  # (N, C)
    sums = (cosine - torch.diag(cosine.diagonal())) @ members
    counts = members.sum(0) - members  # without the sample itself
    means = sums / counts
    own = means.gather(1, home.unsqueeze(1)).squeeze(1)
    others = means.masked_fill(members.bool(), torch.inf).amin(1)
    return own, others if len(labels) > 1 else torch.zeros_like(own)


def log_odds(outputs: Tensor, y: Tensor) -> Tensor:
    """Ln of the probability of the likeliest label over that of the given one, 0 where they are the same, (N,)."""
    logits = outputs.detach().double()
    return logits.amax(1) - logits.gather(1, y.unsqueeze(1)).squeeze(1)


def ranks_of(outputs: Tensor, y: Tensor) -> Tensor:
    """Place of the given label among all by the scores, from 1, (N,)."""
    scores = outputs.detach()
    return 1 + (scores > scores.gather(1, y.unsqueeze(1))).sum(1)


def _ranked(outputs: Tensor, y: Tensor, odds: Tensor) -> dict[str, Any]:
    """Where the model's scores have the given labels."""
    ranks = ranks_of(outputs, y)
    against = [pair[:2] for pair in _listed(torch.where(ranks > 1, odds, 0), "label", 0.0)[:MOST_SUSPECTS]]
    counts = Counter(ranks.tolist())
    return {
        "num_classes": outputs.shape[1],
        "label_ranks": {str(rank): counts[rank] for rank in sorted(counts)},
        "contradicted": against,
    }


def _mislabelled(own: Tensor, opposed: Tensor, odds: Tensor) -> list[list[Any]]:
    odd = (own.nan_to_num(0.0) + opposed < 0) & (odds > ODDS)  # of a class of its own there is nothing to agree with
    return _listed(torch.where(odd, odds, 0), "label", ODDS)


def _outliers(norms: Tensor) -> list[list[Any]]:
    logs = norms.clamp(min=torch.finfo(torch.float32).tiny).log()
    return _listed(_z_scores(logs), "outlier", STANDS_OUT)


def _duplicates(total: Tensor, x: Batch) -> tuple[list[list[Any]], list[int]]:
    """Samples j that repeat an earlier i, and how often each such i is there; of equal inputs and gradients.

    Equal gradients alone are no proof: units may be dead.
    """
    squares = total.diagonal()
    scale = squares.unsqueeze(1) + squares
    distance = scale - 2 * total
    copies = (distance < COPY * scale / 2) & (squares > 0) & (squares > 0).unsqueeze(1)
    later = copies.triu(1).any(0).nonzero().flatten().tolist()
    found: list[list[Any]] = []
    times: Counter[int] = Counter()
    for j in later:
        for i in copies[:j, j].nonzero().flatten().tolist():
            if all(torch.equal(leaf[i], leaf[j]) for leaf in tensors(x)):
                found.append([j, float(total[i, j] / (squares[i] * squares[j]).sqrt()), "duplicate"])
                times[i] += 1  # i is the first of its kind: copies of it are found in order
                break
    return found, sorted((1 + count for count in times.values()), reverse=True)


def _z_scores(values: Tensor) -> Tensor:
    """(value - median) / (1.4826 MAD), 0 where more than half of the values are equal."""
    centre = values.median()
    spread = 1.4826 * (values - centre).abs().median()
    return (values - centre) / spread if float(spread) > 0 else torch.zeros_like(values)


def _listed(scores: Tensor, reason: str, above: float) -> list[list[Any]]:
    places = (scores > above).nonzero().flatten()
    order = places[scores[places].argsort(descending=True)]
    return [[int(i), float(scores[i]), reason] for i in order]


PROBE = Probe("samples", measure, extra=measure_each, pairs=True)
