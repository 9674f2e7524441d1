"""Labels that are wrong whatever the sample is like: the model's scores have them anywhere among the other classes.

A hard sample's label stands second among the scores, or nearly so: it is like another class. A label that was drawn
stands at any place. So of samples whose label is not the model's first answer the mean place tells one from the other,
also where so many labels are wrong that the model is never sure, and no single sample stands out. A model that still
learns has labels anywhere too: it is asked only once the loss has settled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pullback.advisor.reading import class_counts, layers, number
from pullback.advisor.thresholds import FEW_CLASSES, HARD_PLACE, MANY_RANKED, PLACE_ERRORS, PLACES_TELL, UNLEARNT
from pullback.advisor.training_losses import training_losses
from pullback.runs import Record, Run
from pullback.runs.rows import Rows


@dataclass(frozen=True)
class Places:
    """Of samples whose label is not the model's first answer.

    Attributes:
        against: their number.
        samples: all that were looked at.
        mean: of the place, 0 for the second among the scores and 1 for the last.
        error: standard error of that.
    """

    against: int
    samples: int
    mean: float
    error: float


def places_of(records: Rows) -> Places | None:
    """Over several measurements; None where there are fewer than four classes, or no such sample."""
    names, table = layers(records, "label_ranks")
    ranks = np.array([int(name) if name.isdecimal() else 0 for name in names])
    known, every = np.trunc(np.where(table > 0, table, 0.0)), records.numbers("num_classes")
    counts: dict[float, int] = {}
    samples = 0
    for classes in np.unique(every[every >= FEW_CLASSES]).tolist():
        places = known[every == classes].sum(0)
        inside = (ranks > 0) & (ranks <= classes)
        samples += int(places[inside].sum())
        for rank, count in zip(ranks[inside].tolist(), places[inside].tolist(), strict=True):
            if rank > 1 and count:
                place = (rank - 2) / (classes - 2)
                counts[place] = counts.get(place, 0) + int(count)
    against = sum(counts.values())
    if not against:
        return None
    mean = sum(place * count for place, count in counts.items()) / against
    variance = sum(count * (place - mean) ** 2 for place, count in counts.items()) / against
    return Places(against, samples, mean, math.sqrt(variance / against))


def are_drawn(run: Run, records: Rows) -> Places | None:
    """The places, if they are those of labels that say nothing of their samples, of a model that has learnt.

    ``PLACE_ERRORS`` standard errors above what hard samples have; None otherwise.
    """
    places, counts = places_of(records), list(class_counts(run).values())
    if places is None or places.against < MANY_RANKED or not counts or not training_losses(run).settled:
        return None
    right = 1 - places.against / places.samples
    learnt = max(counts) / sum(counts) + UNLEARNT
    above = places.mean - HARD_PLACE > PLACE_ERRORS * places.error
    return places if above and learnt <= right <= PLACES_TELL else None


def contradicted(record: Record) -> list[tuple[int, float, str]]:
    """Samples of a record whose label is not the model's first answer, the surest first, as suspects."""
    listed = record.values.get("contradicted")
    pairs = [pair for pair in listed if isinstance(pair, list) and len(pair) == 2] if isinstance(listed, list) else []
    return [(i, number(odds), "label") for i, odds in pairs if type(i) is int and number(odds) > 0]
