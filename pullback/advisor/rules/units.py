"""Units that carry no signal: saturated, dead, or all saying the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.model import BOUNDED, for_units
from pullback.advisor.reading import CONVENTION, by_layer, lasts, records_with
from pullback.advisor.severity import severity
from pullback.advisor.thresholds import COLLAPSED, DEAD, ENOUGH_UNITS, FEW_DIRECTIONS, MANY_DIRECTIONS, SATURATED
from pullback.runs import Record, Run


def saturated_units(run: Run) -> Iterator[Finding]:
    """Most activations at the flat ends, where no gradient passes."""
    yield from _share(
        run,
        "saturated-units",
        _saturated,
        SATURATED,
        f"more than {SATURATED:g} of all activations with a slope below 5 percent of its largest",
        "Glorot and Bengio (2010), section 3; ",
        "Most units sit at the flat ends of their activation, where no gradient passes.",
    )


def dead_units(run: Run) -> Iterator[Finding]:
    """Units that no measured sample switches on: they get no gradient and cannot come back."""
    yield from _share(
        run,
        "dead-units",
        lambda record: by_layer(record, "dead"),
        DEAD,
        f"more than {DEAD:g} of a layer's units without slope on every measured sample",
        "Lu et al. (2019), arXiv:1903.06733; ",
        "Most units are off for every sample: they get no gradient and do not come back.",
    )


def rank_collapse(run: Run) -> Iterator[Finding]:
    """A wide layer whose activations point the same way for every sample: what is behind it cannot tell them apart."""
    samples = {r.step: float(r.values["num_samples"]) for r in records_with(run, "kernel", "num_samples")}
    records = [
        r
        for r in run.of("activations")
        if by_layer(r, "effective_rank") and samples.get(r.step, math.inf) >= FEW_DIRECTIONS
    ]
    seen = [(r, ranks) for r in records if (ranks := _collapsed(r))]
    many = sum(samples.get(r.step, math.inf) for r, _ in seen) >= MANY_DIRECTIONS
    if many and lasts([r for r, _ in seen], records):
        record, ranks = seen[-1]
        layer = min(ranks, key=lambda name: ranks[name])
        yield Finding(
            "rank-collapse",
            severity(run),
            next(iter(ranks)),
            (seen[0][0].step, record.step),
            {"smallest effective rank": ranks[layer], "layers": len(ranks)},
            f"effective rank of a layer's activations below {COLLAPSED:g} in half of the measurements",
            "Daneshmand et al. (2020), arXiv:2003.01652; Dong et al. (2021), arXiv:2103.03404; " + CONVENTION,
            "Add skip connections or normalisation, or make the network less deep",
            summary="A layer gives the same direction to every sample; what is behind it cannot tell them apart.",
            change=Change("residual"),
        )


def _collapsed(record: Record) -> dict[str, float]:
    """Ranks of the collapsed layers, in the record's order."""
    width = by_layer(record, "width")
    return {
        layer: rank
        for layer, rank in by_layer(record, "effective_rank").items()
        if rank < COLLAPSED and width.get(layer, ENOUGH_UNITS) >= ENOUGH_UNITS
    }


def _saturated(record: Record) -> dict[str, float]:
    return {layer: share for layer, share in by_layer(record, "saturated").items() if _kind(record, layer) in BOUNDED}


def _kind(record: Record, layer: str) -> str:
    kinds = record.values.get("kind")
    return str(kinds.get(layer)).lower().replace("_", "") if isinstance(kinds, dict) else ""


def _share(
    run: Run,
    name: str,
    shares: Callable[[Record], dict[str, float]],
    limit: float,
    threshold: str,
    source: str,
    summary: str,
) -> Iterator[Finding]:
    """A finding at the worst layer, where one layer or another is beyond the limit in half of the measurements."""
    records = list(run.of("activations"))
    seen = [(r, found) for r in records if (found := shares(r)) and max(found.values()) > limit]
    if lasts([r for r, _ in seen], records):
        record, found = seen[-1]
        layer = max(found, key=lambda each: found[each])
        action, change = for_units(run, name.partition("-")[0], seen[0][0] is records[0])
        yield Finding(
            name,
            severity(run),
            layer,
            (seen[0][0].step, record.step),
            {"share": found[layer], "layers beyond": sum(value > limit for value in found.values())},
            threshold + ", in half of the measurements",
            source + CONVENTION,
            action,
            summary=summary,
            change=change,
        )
