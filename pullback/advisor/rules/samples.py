"""Samples that stand out: labels that the model contradicts, and gradients that outweigh all others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.model import kinds
from pullback.advisor.reading import CONVENTION, by_layer, layers, number, once_a_run, records_with
from pullback.advisor.rules.labels import are_drawn, contradicted
from pullback.advisor.thresholds import (
    CONFIDENT,
    HARD_PLACE,
    HELD_OUT_BETTER,
    LABEL_CHANCE,
    MANY_SAMPLES,
    MANY_STEPS,
    OUTLIER,
    PLACE_ERRORS,
    SUSPECT_SHARE,
    UNLEARNT,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Record, Run
from pullback.runs.rows import Rows

NUM_LISTED = 5
REMEDIES = {
    "label": "check the labels of samples",
    "duplicate": "remove the copies among samples",
    "outlier": "look at samples",
}

REASONS = {
    "label": "the model contradicts their labels",
    "outlier": "their gradients outweigh all others",
}


def suspect_samples(run: Run) -> Iterator[Finding]:
    """Samples the probe suspects of a wrong label, or of a gradient that outweighs the others.

    Wrong labels show when the others are learnt, so the measurements of the second half of the run tell their share
    together, and the last that has any names them. Outliers are named by the one that saw most: the gradient of a
    sample a hundred times too large vanishes as soon as it is learnt.
    """
    records = with_samples(run)
    if not records:
        return
    late = records.where(2 * records.steps >= records[-1].step)
    labelled = late.where(_named(late, "label") > 0)
    seen = {
        "label": labelled[-1] if labelled else records[-1],
        "outlier": records[int(_named(records, "outlier").argmax())],
    }
    suspects = {reason: each for reason, record in seen.items() if (each := suspects_of(record, reason))}
    if _label_share(late) < SUSPECT_SHARE / 3:  # a sample or two of a run that is still learning
        suspects.pop("label", None)
    drawn = are_drawn(run, late) if (late.mapped("contradicted", bool) > 0).any() else None
    if drawn is not None:
        seen["label"] = next((r for r in reversed(late) if contradicted(r)), late[-1])
        suspects = {"label": contradicted(seen["label"])} | {k: v for k, v in suspects.items() if k != "label"}
    if not suspects:
        return
    share = _label_share(late)
    early = records.where(np.isin(records.steps, _unlearnt(run)))
    confident = bool(early) and _label_share(early) > CONFIDENT * share  # before anything was learnt: by the weights
    beyond = _by_chance(*_labels(late)) < LABEL_CHANCE
    cleaner = _is_cleaner_held_out(run)
    evidence = {f"{reason}s": float(count_of(seen[reason], reason)) for reason in suspects}
    if drawn is not None:
        evidence |= {"labels": float(len(suspects["label"])), "samples contradicted": float(drawn.against)}
        evidence |= {"mean place of their labels": drawn.mean, "standard error of it": drawn.error}
    yield Finding(
        "suspect-samples",
        "warning" if drawn or (beyond and not confident) or (cleaner and "label" in suspects) else "info",
        None,
        (min(seen[reason].step for reason in suspects), max(seen[reason].step for reason in suspects)),
        evidence | {"samples": seen[next(iter(suspects))].values["num_samples"], "share of suspect labels": share},
        "another label ten times as probable, with a gradient that opposes its class (labels); modified z-score above "
        f"{OUTLIER:g} (outliers); a warning if more than {SUSPECT_SHARE:.0%} of the samples of the second half of the "
        f"run have suspect labels, by more than {LABEL_CHANCE:.0%} of binomial draws show, or if some have and "
        f"held-out samples have less than {HELD_OUT_BETTER:g} of the training's loss, without dropout, or if labels "
        f"that are not the first answer stand, from second (0) to last (1), above {HARD_PLACE:g} in the mean by "
        f"{PLACE_ERRORS:g} standard errors",
        "Northcutt et al. (2021), arXiv:1911.00068; Iglewicz and Hoaglin (1993); " + CONVENTION,
        listed_samples(suspects, seen),
        summary=f"Some samples stand out: {', '.join(REASONS[reason] for reason in suspects)}.",
        change=Change(
            "check_samples",
            tuple(sorted({name_of(seen[reason], s) for reason, each in suspects.items() for s in each})),
        ),
    )


def _label_share(records: Rows) -> float:
    count, samples = _labels(records)
    return count / samples


def _labels(records: Rows) -> tuple[int, int]:
    """Suspect labels, and samples that were looked at."""
    return int(counts_of(records, "label").sum()), int(records.numbers("num_samples").sum())


def _by_chance(count: int, samples: int) -> float:
    """How often so many of so many samples are suspect where a share of ``SUSPECT_SHARE`` is: hard ones, right ones."""
    odds = math.log(SUSPECT_SHARE / (1 - SUSPECT_SHARE))
    whole = math.lgamma(samples + 1) + samples * math.log(1 - SUSPECT_SHARE)
    fewer = (whole - math.lgamma(k + 1) - math.lgamma(samples - k + 1) + k * odds for k in range(count))
    return 1.0 - sum(map(math.exp, fewer))


def _is_cleaner_held_out(run: Run) -> bool:
    """Whether held-out samples are far easier than those trained on, and no noise of the model's own makes them so."""
    losses = training_losses(run)
    held_out = records_with(run, "test", "loss").numbers("loss")[-1:].tolist()
    noisy = any("dropout" in kind for kind in kinds(run))
    if not held_out or losses.least is None or len(losses) < MANY_STEPS or noisy:
        return False
    return bool(held_out[-1] - losses.least < HELD_OUT_BETTER * (losses.last - losses.least))


@once_a_run
def _unlearnt(run: Run) -> np.ndarray:
    """Steps at which hardly more samples are right than with one answer for all."""
    records = records_with(run, "loss", "accuracy", "constant_accuracy")
    return records.steps[records.numbers("accuracy") < records.numbers("constant_accuracy") + UNLEARNT]


@once_a_run
def with_samples(run: Run) -> Rows:
    """Records of the probe that saw any."""
    records = records_with(run, "samples", "num_samples")
    return records.where(records.numbers("num_samples") > 0)


def _named(records: Rows, reason: str) -> np.ndarray:
    """(R,), how many samples each record names for a reason, as ``suspects_of`` does."""
    enough = (records.numbers("num_samples") >= MANY_SAMPLES) | (reason != "outlier")
    return np.where(enough, records.mapped("suspects", _NAMED[reason]), 0.0).astype(np.int64)


def counts_of(records: Rows, reason: str) -> np.ndarray:
    """(R,), how many there are; of records that name all of them, as many as are named."""
    names, table = layers(records, "num_suspects")
    told = np.isfinite(table).any(1)
    if reason == "outlier" or not told.all():
        named = _named(records, reason)
        if reason == "outlier" or not told.any():
            return named
    counts = np.nan_to_num(table[:, names.index(reason)]) if reason in names else np.zeros(len(records))
    return counts.astype(np.int64) if told.all() else np.where(told, counts.astype(np.int64), named)


def count_of(record: Record, reason: str) -> int:
    """How many there are; of records that name all of them, as many as are named."""
    counts = by_layer(record, "num_suspects")
    return int(counts.get(reason, 0)) if counts and reason != "outlier" else len(suspects_of(record, reason))


def listed_samples(suspects: dict[str, list[Any]], records: Mapping[str, Record]) -> str:
    """What to do with which samples of which step, in words; by their index in the data set where the loop tells it."""
    parts = []
    for reason, each in suspects.items():
        rest = f" and {len(each) - NUM_LISTED} more" if len(each) > NUM_LISTED else ""
        names = ", ".join(str(name_of(records[reason], s)) for s in each[:NUM_LISTED])
        parts.append(f"{REMEDIES[reason]} {names}{rest} of step {records[reason].step}")
    text = "; ".join(parts)
    told = all(_places(records[reason]) for reason in suspects)
    counted = "by their index in the data set" if told else "counted within the measured batch"
    return f"{text[0].upper()}{text[1:]}, {counted}"


def _places(record: Record) -> dict[int, int]:
    """Of each sample that is named its index in the data set; empty where the loop does not tell."""
    pairs = record.values.get("index")
    known = pairs if isinstance(pairs, list) else []
    return {p[0]: p[1] for p in known if isinstance(p, list) and len(p) == 2 and all(type(each) is int for each in p)}


def name_of(record: Record, suspect: list[Any]) -> int:
    """Its index in the data set, or its place in the measured batch."""
    return _places(record).get(suspect[0], suspect[0])


def suspects_of(record: Record, reason: str) -> list[Any]:
    """Samples of a record that are suspect for a reason, each with its number and the reason."""
    enough = reason != "outlier" or number(record.values.get("num_samples")) >= MANY_SAMPLES
    return _for(record.values.get("suspects"), reason) if enough else []


def _for(suspects: Any, reason: str) -> list[Any]:
    """Those among suspects that are so for a reason, if there are any."""
    found = [s for s in suspects if _is_suspect(s) and s[2] == reason] if isinstance(suspects, list) else []
    return found if reason != "outlier" else [s for s in found if number(s[1]) > OUTLIER]


def _count(suspects: Any, reason: str) -> int:
    return len(_for(suspects, reason)) if suspects else 0


_NAMED = {reason: partial(_count, reason=reason) for reason in REMEDIES}


def _is_suspect(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and type(value[0]) is int and value[2] in tuple(REMEDIES)
