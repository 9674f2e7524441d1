"""Where the model's scores have the given labels, over the samples of the last batches."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from pullback.functional import ModelView, num_samples
from pullback.functional.batch import Batch
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.samples import ODDS, log_odds, ranks_of
from pullback.monitor.probes.work import FORWARD, FREE, Work
from pullback.monitor.seen_batches import MOST

FIRST = 1  # the step at which nothing is learnt yet


def measure(observed: Observation) -> Measurement:
    """Of outputs (N, C), over more samples than have gradients: ``label_ranks``, rank -> samples.

    The rank is the place of the given label among all by the model's scores, from 1; ``num_samples`` N and
    ``num_classes`` C. ``confident_ranks``, the same of those of which another label is ten times as probable. Nothing
    of batches that are not one tensor with classes, and at the first step.

    Cost: a forward pass of each sample, batch by batch, so that it takes no more memory than the loop does.
    """
    ranks: Counter[int] = Counter()
    confident: Counter[int] = Counter()
    classes = 0
    most = _each(observed) * num_samples(observed.x)
    for x, y in observed.earlier() if observed.step > FIRST else ():
        if most <= 0:
            break
        outputs = _outputs(observed, x)
        if outputs is None or classes not in (0, outputs.shape[1]) or not _are_classes(y, outputs.shape[1]):
            return Measurement({})
        most, classes = most - len(y), outputs.shape[1]
        found = ranks_of(outputs, y)
        ranks.update(found.tolist())
        confident.update(found[log_odds(outputs, y) > ODDS].tolist())
    if not ranks:
        return Measurement({})
    return Measurement(
        {
            "num_classes": classes,
            "num_samples": sum(ranks.values()),
            "label_ranks": {str(rank): ranks[rank] for rank in sorted(ranks)},
            "confident_ranks": {str(rank): confident[rank] for rank in sorted(confident)},
        }
    )


def _are_classes(y: Batch, classes: int) -> bool:
    return isinstance(y, Tensor) and y.dim() == 1 and int(y.min()) >= 0 and int(y.max()) < classes


def work(observed: Observation) -> Work:
    """Each sample of the batch at hand stands for so many of those before it."""
    if observed.step <= FIRST or observed.labels is None:
        return FREE
    return Work(FORWARD * _each(observed))


def _each(observed: Observation) -> int:
    return -(-MOST // num_samples(observed.x if observed.whole is None else observed.whole[0]))


def _outputs(observed: Observation, x: Batch) -> Tensor | None:
    with torch.no_grad():
        outputs = ModelView.of(observed.model, where="Monitor")(x)
    return outputs if isinstance(outputs, Tensor) and outputs.dim() == 2 else None


PROBE = Probe("labels", measure, sparse=True, work=work, looks=False, at_end=True)
