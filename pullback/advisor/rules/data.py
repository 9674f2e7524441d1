"""What the targets bring along: an offset or a scale, rare classes, an order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

import numpy as np

from pullback._text import percent
from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, class_counts, layers, records_with, rows, span, summed, with_layers
from pullback.advisor.severity import severity, severity_of_mistake
from pullback.advisor.thresholds import (
    IMBALANCED,
    IMBALANCED_ALWAYS,
    IMBALANCED_SILENT,
    IN_ORDER,
    LEARNT_NOTHING,
    LEAST_WITHIN,
    MANY_BATCHES,
    MANY_LABELS,
    MANY_OUTPUTS,
    ORDER_ERRORS,
    TARGET_SCALE,
    UNSAID,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run
from pullback.runs.rows import Rows


def targets_not_normalised(run: Run) -> Iterator[Finding]:
    """Numbers to be predicted that are far from zero mean and unit scale: the loss and its curvature are as large.

    Or classes that a binary cross-entropy is given as other numbers than 0 and 1.
    """
    beyond = list(_targets_beyond(run))
    yield from beyond or _off_scale(run)


def _off_scale(run: Run) -> Iterator[Finding]:
    records = records_with(run, "targets", "std", "largest_mean")
    if not records:
        return
    spread = float(np.median(records.numbers("std")))
    offset = float(np.median(np.abs(records.numbers("largest_mean"))))
    if spread > TARGET_SCALE or offset > TARGET_SCALE:
        yield Finding(
            "targets-not-normalised",
            severity_of_mistake(run),
            None,
            span(records),
            {"standard deviation": spread, "largest mean of an output": offset},
            f"targets whose standard deviation, or the mean of an output, is above {TARGET_SCALE:g}",
            "LeCun, Bottou, Orr and Müller (1998), Efficient BackProp, section 4; " + CONVENTION,
            "Subtract the targets' mean over the training set and divide by their standard deviation; undo it when "
            "predicting",
            summary="The targets are far from zero mean and unit scale: first the outputs have to travel there, with "
            "gradients as large as the distance.",
            change=Change("standardise_targets"),
        )


def _targets_beyond(run: Run) -> Iterator[Finding]:
    """A binary cross-entropy of targets that are no shares: it has no smallest value, and falls for ever."""
    records = records_with(run, "loss", "targets_beyond")
    if len(records) < MANY_OUTPUTS:
        return
    beyond = float(records.numbers("targets_beyond").max())
    yield Finding(
        "targets-not-normalised",
        "warning",
        None,
        (0, records[-1].step),
        {"furthest target beyond 0 to 1": beyond},
        "targets below 0 or above 1 of a binary cross-entropy",
        "definition of the loss",
        "Give the classes as 0 and 1 (of 1 and 2 subtract 1, of -1 and 1 add 1 and halve)",
        summary=f"The loss expects targets from 0 to 1, and some lie {beyond:.3g} beyond: it has no smallest value and "
        "drives the outputs to infinity.",
    )


def class_imbalance(run: Run) -> Iterator[Finding]:
    """One class many times as frequent as the others: answering it always is nearly right.

    Of a class that is less than that a model that has learnt something, and still answers it always, is a sign.
    """
    counts = class_counts(run)
    whole = sum(counts.values())
    if len(counts) < 2 or whole < MANY_LABELS:
        return
    largest = max(counts, key=lambda label: counts[label])
    ratio = counts[largest] / median(count for label, count in counts.items() if label != largest)
    silent = ratio > IMBALANCED_SILENT and _answers_it_always(run)
    if ratio > IMBALANCED or silent:
        yield Finding(
            "class-imbalance",
            "warning" if ratio > IMBALANCED_ALWAYS or silent else severity(run),
            None,
            span(rows(run, "targets")),
            {"times as frequent": ratio, "share of the class": counts[largest] / whole},
            f"a class more than {IMBALANCED:g} times as frequent as the median of the others; a warning from "
            f"{IMBALANCED_ALWAYS:g} and, of a model that learns and answers it for all measured samples, from "
            f"{IMBALANCED_SILENT:g}",
            "Menon et al. (2021), arXiv:2007.07314, logit adjustment; " + CONVENTION,
            "In the training loss, and nowhere else, add to each class's score the logarithm of its number of samples "
            "(cross_entropy(scores + counts.log(), y)), and judge by balanced accuracy",
            summary=f"Class {largest} makes up {percent(counts[largest] / whole)} of the samples: a model that always "
            f"says so looks good, and the others hardly count{', and so it is here' if silent else ''}.",
            change=Change("balance_classes"),
        )


def _answers_it_always(run: Run) -> bool:
    """Whether of the second half samples of the most frequent class were right and no others, though some is learnt."""
    share = training_losses(run).share
    if share is None or share > LEARNT_NOTHING:
        return False
    records = records_with(run, "loss", "accuracy", "constant_accuracy")
    late = records[len(records) // 2 :]
    right, most = late.numbers("accuracy"), late.numbers("constant_accuracy")
    kernels = records_with(run, "kernel", "num_samples")
    known = dict(zip(kernels.steps.tolist(), kernels.numbers("num_samples").tolist(), strict=True))
    others = sum(
        known.get(step, 0.0) * (1 - part) for step, part in zip(late.steps.tolist(), most.tolist(), strict=True)
    )
    return bool(np.allclose(right, most)) and others >= UNSAID - 0.5


def data_not_shuffled(run: Run) -> Iterator[Finding]:
    """Batches that differ from each other by more than chance: each step unlearns what the ones before have taught."""
    records = rows(run, "targets")
    found = _of_all(run)
    if found is None:
        found = _of_classes(with_layers(run, "targets", "counts")) or _of_numbers(records)
    if found is None or not records:
        return
    share, errors = found
    if share > IN_ORDER and errors > ORDER_ERRORS:
        yield Finding(
            "data-not-shuffled",
            "warning",
            None,
            span(records),
            {"share of the spread that lies between batches": share, "beyond chance by standard errors": errors},
            f"more than {IN_ORDER:g} of the targets' spread lies between batches, by {ORDER_ERRORS:g} standard errors "
            "more than batches drawn at random show",
            "chi-squared test of homogeneity, analysis of variance; " + CONVENTION,
            "Shuffle the training samples every epoch (DataLoader(shuffle=True))",
            summary="The samples come in an order: a batch looks like no other, and each step unlearns what the ones "
            "before have taught.",
            change=Change("shuffle"),
        )


def _of_all(run: Run) -> tuple[float, float] | None:
    """The same of every batch, where the record has their sums; None where it has not."""
    records = records_with(run, "all_targets", "batches", "num_samples")
    batches, samples = (float(records.numbers(name).sum()) for name in ("batches", "num_samples"))
    if batches < MANY_BATCHES or not samples > batches:
        return None
    counts, squares = summed(records, "counts"), summed(records, "squares")
    if len(counts) > 1:
        freedom = (batches - 1) * (len(counts) - 1)
        statistic = samples * (sum(squares.get(label, 0.0) / counts[label] for label in counts) - 1)
        share = (statistic - freedom) / (samples * min(batches - 1, len(counts) - 1))
        return share, (statistic - freedom) / math.sqrt(2 * freedom)
    return None if counts else _variances(records, batches, samples)


def _variances(records: Rows, batches: float, samples: float) -> tuple[float, float] | None:
    """Of the output whose batches lie furthest apart."""
    parts = [records.cells(name) for name in ("sums", "square_sums", "squared_sums")]
    if len({len(each) if isinstance(each, list) else 0 for part in parts for each in part}) != 1:
        return None
    sums, square_sums, squared_sums = np.array(parts, dtype=float).sum(1)
    centre = sums**2 / samples
    between, whole = squared_sums - centre, square_sums - centre
    within = whole - between
    if not bool((within > LEAST_WITHIN * square_sums).any()):
        return None
    noise = np.maximum(within, LEAST_WITHIN * square_sums) / (samples - batches)
    place = int(np.argmax(between / noise))
    freedom = batches - 1
    excess = between[place] - freedom * noise[place]
    return float(excess / whole[place]), float(excess / noise[place]) / math.sqrt(2 * freedom)


def _of_classes(records: Rows) -> tuple[float, float] | None:
    """Share of the spread between batches (Cramér's V squared, less what chance gives), and its standard errors."""
    labels, counts = layers(records, "counts")
    if len(records) < MANY_BATCHES or len(labels) < 2:
        return None
    table = np.nan_to_num(counts[:, np.argsort(labels)])
    table = table[table.sum(1) > 0]
    whole = table.sum()
    expected = table.sum(1, keepdims=True) * table.sum(0) / whole
    statistic = float(((table - expected) ** 2 / np.maximum(expected, 1e-12)).sum())
    freedom = (len(table) - 1) * (len(labels) - 1)
    share = (statistic - freedom) / (whole * min(len(table) - 1, len(labels) - 1))
    return share, (statistic - freedom) / math.sqrt(2 * freedom)


def _of_numbers(records: Rows) -> tuple[float, float] | None:
    """The same of an analysis of variance."""
    table = np.stack([records.numbers(name) for name in ("sample_mean", "sample_std", "num_samples")], 1)
    table = table[np.isfinite(table).all(1) & (table[:, 2] > 1)]
    if len(table) < MANY_BATCHES:
        return None
    means, within, counts = table[:, 0], table[:, 1] ** 2, table[:, 2]
    noise = float((within * (counts - 1)).sum() / (counts - 1).sum())
    centre = float((means * counts).sum() / counts.sum())
    between = float((counts * (means - centre) ** 2).sum())
    if not noise + between > 0:
        return None
    freedom = len(table) - 1
    total = between + noise * float((counts - 1).sum())
    excess = between - freedom * noise
    return excess / total, (excess / noise if noise > 0 else math.inf) / math.sqrt(2 * freedom)
