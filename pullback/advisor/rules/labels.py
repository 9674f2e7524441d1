"""Labels that are wrong whatever the sample is like: the model's scores have them anywhere among the other classes.

A hard sample's label stands second among the scores, or nearly so: it is like another class. A label that was drawn
stands at any place. So of samples whose label is not the model's first answer the mean place tells one from the other,
also where so many labels are wrong that the model is never sure, and no single sample stands out. A model that still
learns has labels anywhere too: it is asked once the loss has settled, or of samples of which it is sure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pullback.advisor.reading import class_counts, layers, number, rows
from pullback.advisor.thresholds import (
    FEW_CLASSES,
    HARD_PLACE,
    MANY_RANKED,
    MANY_SURE,
    PLACE_ERRORS,
    PLACES_TELL,
    SURE_PLACE,
    UNLEARNT,
)
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


def places_of(records: Rows, metric: str = "label_ranks") -> Places | None:
    """Over several measurements; None where there are fewer than four classes, or no such sample."""
    names, table = layers(records, metric)
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

    ``PLACE_ERRORS`` standard errors above what hard samples have; None otherwise. By the samples of whole batches,
    where those were looked at, else by the few that have gradients: of these few are wrong only where many are.
    """
    counts = list(class_counts(run).values())
    whole = rows(run, "labels")[-1:]  # which was made once the most was learnt
    whole = whole.where(whole.steps >= records[0].step) if records else whole
    few, many = places_of(records), places_of(whole)
    if not counts:
        return None
    learnt = max(counts) / sum(counts) + UNLEARNT
    if many is not None and learnt <= _right(many) and (sure := _against_the_sure(whole)) is not None:
        return sure
    if not training_losses(run).settled:
        return None
    for places, most in ((many, 1.0), (few, PLACES_TELL)):
        if places is None or places.against < MANY_RANKED:
            continue
        if places.mean - HARD_PLACE > PLACE_ERRORS * places.error and learnt <= _right(places) <= most:
            return places
    return None


def _right(places: Places) -> float:
    return 1 - places.against / places.samples


def _against_the_sure(records: Rows) -> Places | None:
    """The places of labels against which the model is sure, if they are drawn ones.

    Of what it is sure of it has learnt enough, also where the rest is still to come. Of few samples the error is that
    of places that are drawn evenly: a class may have one other that is always the last.
    """
    places = places_of(records, "confident_ranks")
    if places is None or places.against < MANY_SURE:
        return None
    error = max(places.error, math.sqrt(1 / (12 * places.against)))
    return places if places.mean - SURE_PLACE > PLACE_ERRORS * error else None


def contradicted(record: Record) -> list[tuple[int, float, str]]:
    """Samples of a record whose label is not the model's first answer, the surest first, as suspects."""
    listed = record.values.get("contradicted")
    pairs = [pair for pair in listed if isinstance(pair, list) and len(pair) == 2] if isinstance(listed, list) else []
    return [(i, number(odds), "label") for i, odds in pairs if type(i) is int and number(odds) > 0]
