"""Units that carry no signal: saturated, dead, or all saying the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.model import BOUNDED, for_units
from pullback.advisor.reading import CONVENTION, by_layer, largest, lasts, layers, records_with, rows, span, with_layers
from pullback.advisor.rules.reach import outputs_cut_off
from pullback.advisor.severity import falls_short, severity
from pullback.advisor.thresholds import (
    COLLAPSED,
    DEAD,
    ENOUGH_UNITS,
    FEW_DIRECTIONS,
    FIRST_MEASUREMENT,
    MANY_DIRECTIONS,
    OFF_BEYOND_CHANCE,
    SATURATED,
)
from pullback.runs import Record, Run
from pullback.runs.column import Layers
from pullback.runs.rows import Rows


def saturated_units(run: Run) -> Iterator[Finding]:
    """Most activations at the flat ends, where no gradient passes."""
    yield from _share(
        run,
        "saturated-units",
        "saturated",
        SATURATED,
        f"more than {SATURATED:g} of all activations with a slope below 5 percent of its largest",
        "Glorot and Bengio (2010), section 3; ",
        "Most units sit at the flat ends of their activation, where no gradient passes.",
    )


def dead_units(run: Run) -> Iterator[Finding]:
    """Units that no measured sample switches on: they get no gradient and cannot come back; outputs first of all."""
    outputs = list(outputs_cut_off(run))
    yield from outputs or _share(
        run,
        "dead-units",
        "dead",
        DEAD,
        f"more than {DEAD:g} of a layer's units without slope on every measured sample",
        "Lu et al. (2019), arXiv:1903.06733; ",
        "Most units are off for every sample: they get no gradient and do not come back.",
    )


def rank_collapse(run: Run) -> Iterator[Finding]:
    """A wide layer whose activations point the same way for every sample: what is behind it cannot tell them apart."""
    kernels = records_with(run, "kernel", "num_samples")
    known = dict(zip(kernels.steps.tolist(), kernels.numbers("num_samples").tolist(), strict=True))
    records = with_layers(run, "activations", "effective_rank")
    samples = np.array([known.get(step, math.inf) for step in records.steps.tolist()])
    records, samples = records.where(samples >= FEW_DIRECTIONS), samples[samples >= FEW_DIRECTIONS]
    is_seen = _is_collapsed(records)
    seen = records.where(is_seen)
    if lasts(seen, records) and samples[is_seen].sum() >= MANY_DIRECTIONS:
        ranks = _collapsed(seen[-1])
        layer = min(ranks, key=lambda name: ranks[name])
        yield Finding(
            "rank-collapse",
            severity(run),
            next(iter(ranks)),
            span(seen),
            {"smallest effective rank": ranks[layer], "layers": len(ranks)},
            f"effective rank of a layer's activations below {COLLAPSED:g} in half of the measurements",
            "Daneshmand et al. (2020), arXiv:2003.01652; Dong et al. (2021), arXiv:2103.03404; " + CONVENTION,
            "Add skip connections or normalisation, or make the network less deep",
            summary="A layer gives the same direction to every sample; what is behind it cannot tell them apart.",
            change=Change("residual"),
        )


def died(run: Run) -> tuple[int, int, int] | None:
    """First and last step at which most units of every layer are dead, and the number of layers; else None.

    In half of the measurements, but not in the first: what was dead from the start no step has killed. Of one layer
    alone nothing is said: without it nothing could be learnt, and what is left of it may suffice.
    """
    records = rows(run, "activations")
    shares = layers(records, "dead")[1]
    if len(records) == 0 or shares.shape[1] < 2:
        return None
    seen = records.where(np.all(shares > DEAD, 1))
    if not lasts(seen, records) or seen.chosen[0] == records.chosen[0]:
        return None
    return (*span(seen), shares.shape[1])


def most_off_at_first(run: Run) -> list[str]:
    """Layers that have far more units off after the first step than chance has.

    Where samples look alike to a layer a unit is off for all of them or for none, by the toss of a coin.
    """
    record = _of_first_step(run, "activations")
    shares = {} if record is None else by_layer(record, "dead")
    return [layer for layer, share in shares.items() if share > OFF_BEYOND_CHANCE]


def _were_off_at_start(run: Run) -> bool:
    """Whether the first step moved nothing of a layer that is off after it: no step has switched it off."""
    record = _of_first_step(run, "updates")
    moved = {} if record is None else by_layer(record, "ratio")
    return any(moved.get(layer) == 0.0 for layer in most_off_at_first(run))


def _of_first_step(run: Run, probe: str) -> Record | None:
    return next((record for record in rows(run, probe)[:1] if record.step <= FIRST_MEASUREMENT), None)


def _collapsed(record: Record) -> dict[str, float]:
    """Ranks of the collapsed layers, in the record's order."""
    width = by_layer(record, "width")
    return {
        layer: rank
        for layer, rank in by_layer(record, "effective_rank").items()
        if rank < COLLAPSED and width.get(layer, ENOUGH_UNITS) >= ENOUGH_UNITS
    }


def _is_collapsed(records: Rows) -> np.ndarray:
    """(R,), whether a record has any such layer."""
    names, ranks = layers(records, "effective_rank")
    known, widths = layers(records, "width")
    wide = np.full(ranks.shape, True)
    for place, name in enumerate(names):
        if name in known:
            wide[:, place] = ~(widths[:, known.index(name)] < ENOUGH_UNITS)
    return ((ranks < COLLAPSED) & wide).any(1)


def _of_bounded(records: Rows) -> Layers:
    """Shares of saturated activations that have two flat ends, and NaN of others."""
    names, shares = layers(records, "saturated")
    bounded: list[list[bool]] = []
    before: Any = None
    for kind in records.cells("kind"):  # nearly always the same
        bounded.append(
            [_kind(kind, name) in BOUNDED for name in names] if kind != before or not bounded else bounded[-1]
        )
        before = kind
    return names, np.where(np.array(bounded, bool).reshape(shares.shape), shares, np.nan)


def _kind(kinds: Any, layer: str) -> str:
    return str(kinds.get(layer)).lower().replace("_", "") if isinstance(kinds, dict) else ""


def _share(
    run: Run,
    name: str,
    metric: str,
    limit: float,
    threshold: str,
    source: str,
    summary: str,
) -> Iterator[Finding]:
    """A finding at the worst layer, where one layer or another is beyond the limit in half of the measurements."""
    records = rows(run, "activations")
    seen = records.where(largest(layers(records, metric)[1]) > limit)
    if metric == "saturated":
        seen = seen.where(largest(_of_bounded(seen)[1]) > limit)
    if lasts(seen, records):
        names, last = _of_bounded(seen[-1:]) if metric == "saturated" else layers(seen[-1:], metric)
        layer = names[int(np.nanargmax(last[0]))]
        at_start = seen.chosen[0] == records.chosen[0]
        action, change = for_units(run, name.partition("-")[0], at_start)
        yield Finding(
            name,
            "warning" if metric == "saturated" and at_start and falls_short(run) else severity(run),
            layer,
            (0 if metric == "dead" and _were_off_at_start(run) else seen[0].step, seen[-1].step),
            {"share": float(np.nanmax(last)), "layers beyond": int((last > limit).sum())},
            threshold + ", in half of the measurements",
            source + CONVENTION,
            action,
            summary=summary,
            change=change,
        )
