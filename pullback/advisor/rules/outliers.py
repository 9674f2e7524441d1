"""Samples far from all others, and samples that are there several times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, has, number, once_a_run, records_with, rows
from pullback.advisor.rules.samples import (
    NUM_LISTED,
    count_of,
    counts_of,
    listed_samples,
    name_of,
    suspects_of,
    with_samples,
)
from pullback.advisor.severity import severity
from pullback.advisor.thresholds import CLUMPED, FAR_OUT, FAR_SHARE, MANY_COPIES, MOSTLY_COPIES, RARE_BATCHES
from pullback.runs import Record, Run
from pullback.runs.rows import Rows


def outlying_samples(run: Run) -> Iterator[Finding]:
    """A few inputs far from all others: in another unit, or spoilt. They outweigh the rest of their batch."""
    records = far_samples(run)
    if not records:
        return
    seen = max(records, key=lambda r: len(_far(r)))
    far = _far(seen)
    named = ", ".join(str(place) for place, _ in far[:NUM_LISTED])
    rest = f" and {len(far) - NUM_LISTED} more" if len(far) > NUM_LISTED else ""
    rare = len(records) < RARE_BATCHES * len(rows(run, "inputs"))
    yield Finding(
        "outlying-samples",
        severity(run) if rare else "warning",
        None,
        (seen.step, seen.step),
        {"samples": float(len(far)), "furthest, in median distances": far[0][1], "batches with some": len(records)},
        f"inputs more than {FAR_OUT:g} times as far from the median of each feature as the median sample of the batch, "
        f"of at most {FAR_SHARE:.0%} of the samples; a warning in any run if {RARE_BATCHES:.0%} of the "
        "batches have some",
        "Hampel (1974), median and median deviation; " + CONVENTION,
        f"Look at samples {named}{rest} of the batch of step {seen.step}: put their units right, or leave them out",
        summary=f"A few samples lie up to {far[0][1]:.0f} times as far out as the others, and outweigh them.",
        change=Change("check_samples", tuple(sorted(place for place, _ in far))),
    )


@once_a_run
def far_samples(run: Run) -> list[Record]:
    """Measurements that show inputs far from all others, which are not the data's own shape."""
    records = rows(run, "inputs")
    few = records.numbers("num_far") <= FAR_SHARE * _batches(run, records.steps)
    return [r for r in records.where(few & (records.mapped("far_samples", bool) > 0)) if _far(r)]


def _far(record: Record) -> list[tuple[int, float]]:
    values = record.values.get("far_samples")
    pairs = values if isinstance(values, list) else []
    whole = [each for each in pairs if isinstance(each, list) and len(each) == 2 and type(each[0]) is int]
    return [(place, number(times)) for place, times in whole if number(times) > FAR_OUT]


def _batches(run: Run, steps: np.ndarray) -> np.ndarray:
    """Samples of the loop's batch at each step (S,); without a word of it as many as would be needed."""
    known: dict[int, float] = {}
    for probe, name in (("targets", "num_samples"), ("noise", "batch_size")):
        records = records_with(run, probe, name)[::-1]  # of several at a step the first
        known |= zip(records.steps.tolist(), records.numbers(name).tolist(), strict=True)
    return np.array([known.get(step, math.inf) for step in steps.tolist()])


def duplicates(run: Run) -> Iterator[Finding]:
    """Samples that repeat others of the same batch: they weigh more than they should.

    Batches that are drawn with replacement hold some samples twice, few of them three times, without a copy in the
    data; more of a few samples than such draws give says that the data has them several times. Whole batches tell more
    than the few samples that are measured, where inputs are numbers.
    """
    every = rows(run, "inputs")
    every = every.where(~_of_distances(every))
    whole = [r for r in every.where(every.mapped("copied", bool) > 0) if _copied(r)]
    if whole and not _by_replacement(whole):
        yield from _of_batches(whole, len(every))
        return
    records = with_samples(run)
    seen = records[int(counts_of(records, "duplicate").argmax())] if records else None
    if seen is None or not (found := suspects_of(seen, "duplicate")) or _by_replacement(records):
        return
    count, samples = float(count_of(seen, "duplicate")), seen.values["num_samples"]
    yield Finding(
        "duplicates",
        "info",
        None,
        (seen.step, seen.step),
        {"duplicates": count, "samples": samples},
        f"inputs and gradients equal to those of an earlier sample of the batch, of more than {MANY_COPIES:.0%} of all "
        f"samples, or with more threefold ones than draws with replacement give, by {CLUMPED:g} standard errors",
        "definition; Poisson statistics",
        listed_samples({"duplicate": found}, {"duplicate": seen}),
        summary=f"{count:.0f} of {samples:.0f} samples of a batch are copies of others: they count several times over, "
        "and may be among the held-out ones as well.",
        change=Change("check_samples", tuple(sorted({name_of(seen, s) for s in found}))),
    )


def _of_distances(records: Rows) -> np.ndarray:
    """(R,), whether a record has distances of samples alone, as of measurements that do not look for copies."""
    told = np.isfinite(records.numbers("furthest_sample")) & ~np.isfinite(records.numbers("largest_abs"))
    return told & ~(records.mapped("copied", bool) > 0)


def _of_batches(whole: Sequence[Record], batches: int) -> Iterator[Finding]:
    """Of batches of which some hold copies."""
    seen = max(whole, key=lambda r: sum(_times(r)) - len(_times(r)))
    count, samples = sum(_times(seen)) - len(_times(seen)), float(seen.values["num_samples"])
    share = sum((sum(_times(r)) - len(_times(r))) / r.values["num_samples"] for r in whole) / batches
    copies = [[place, 1.0, "duplicate"] for place in _copied(seen)]
    yield Finding(
        "duplicates",
        "warning" if share > MOSTLY_COPIES else "info",
        None,
        (seen.step, seen.step),
        {"duplicates": float(count), "samples": samples, "most often": float(_times(seen)[0]), "share": share},
        f"inputs and targets equal to those of an earlier sample of the batch, of more than {MANY_COPIES:.0%} of all "
        f"samples, or with more threefold ones than draws with replacement give, by {CLUMPED:g} standard errors; a "
        f"warning above {MOSTLY_COPIES:.0%}",
        "definition; Poisson statistics; " + CONVENTION,
        listed_samples({"duplicate": copies}, {"duplicate": seen}),
        summary=f"{count} of {samples:.0f} samples of a batch are copies of others: they count several times over, so "
        "that little is learnt of the rest, and may be among the held-out ones as well.",
        change=Change("check_samples", tuple(_copied(seen))),
    )


def _times(record: Record) -> list[int]:
    return [n for n in record.values.get("copies", ()) if type(n) is int and n > 1]


def _copied(record: Record) -> list[int]:
    """Places of samples that repeat an earlier one; empty where a record is damaged."""
    places = record.values.get("copied")
    if not isinstance(places, list) or not has(record, "num_samples") or not record.values["num_samples"] > 0:
        return []
    return [place for place in places if type(place) is int] if _times(record) else []


def _by_replacement(records: Sequence[Record]) -> bool:
    """Whether draws with replacement explain the copies of all measurements.

    Of N samples in the data, B draws hold each pair equal with 1 / N and each three with 1 / N^2: N is told by the
    pairs, and then so many threes are expected. A record of an earlier version does not say how often each is there.
    """
    sizes = [_times(r) for r in records]
    whole = sum(r.values["num_samples"] for r in records)
    pairs = sum(math.comb(n, 2) for each in sizes for n in each)
    if not pairs or sum(n - 1 for each in sizes for n in each) > MANY_COPIES * whole:
        return False
    drawn = [int(r.values["num_samples"]) for r in records]
    samples = sum(math.comb(count, 2) for count in drawn) / pairs
    expected = sum(math.comb(count, 3) for count in drawn) / samples**2
    threes = sum(math.comb(n, 3) for each in sizes for n in each)
    return threes <= expected + CLUMPED * math.sqrt(expected) + 1
