"""Tokens that become one behind the layers of a transformer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, by_layer, lasts, layers, number, span, with_layers
from pullback.advisor.rules import units
from pullback.advisor.severity import severity
from pullback.advisor.thresholds import COLLAPSES_AT_ONCE, ONE_KEY, ONE_TOKEN
from pullback.runs import Record, Run
from pullback.runs.rows import Rows

EVIDENCE = {  # as it is called in a finding -> the probe's name for it
    "relative residual": "relative_residual",
    "mean cosine": "cosine",
    "relative entropy": "entropy",
    "gradient of the scores": "score_gradient",
}
LOWER = "Lower the learning rate tenfold, and warm it up", Change("learning_rate", 0.1)
SOURCE = "Dong et al. (2021), arXiv:2103.03404; Noci et al. (2022), arXiv:2206.03126; "


def rank_collapse(run: Run) -> Iterator[Finding]:
    """Tokens of one sample that are one, heads that look at one token, or samples that point the same way."""
    found = _tokens(run) or _heads(run)
    if found is None:
        yield from units.rank_collapse(run)
    else:
        yield found


def _tokens(run: Run) -> Finding | None:
    """A layer behind which tokens have nothing of their own, though they had before the first; and what made them."""
    records = with_layers(run, "attention", "relative_residual")
    residuals = layers(records, "relative_residual")[1]
    seen = records.where(np.any(residuals < ONE_TOKEN, 1) & ~(records.numbers("start") < ONE_TOKEN))
    if not lasts(seen, records):
        return None
    collapsed = _collapsed(seen[-1])
    layer = next(iter(collapsed))
    return _finding(
        run,
        (seen, collapsed),
        f"what tokens have of their own below {ONE_TOKEN:g} of their size behind a layer, in half of the measurements",
        "Attention makes the tokens of a sequence one; what is behind that layer cannot tell them apart.",
        _remedy(seen[-1], layer, from_start=seen.chosen[0] == records.chosen[0]),
    )


def _heads(run: Run) -> Finding | None:
    """A layer whose heads look at one token alone: the softmax passes no gradient on to queries and keys."""
    records = with_layers(run, "attention", "entropy")
    seen = records.where(np.any(layers(records, "entropy")[1] < ONE_KEY, 1))
    if not lasts(seen, records):
        return None
    return _finding(
        run,
        (seen, _sharp(seen[-1])),
        f"entropy of a layer's rows below {ONE_KEY:g} of its most, over all heads, in half of the measurements",
        "Each head looks at one token alone: queries and keys are too large, and get no gradient through the softmax.",
        _sharp_remedy(from_start=seen.chosen[0] == records.chosen[0]),
    )


def _finding(
    run: Run, seen: tuple[Rows, dict[str, float]], threshold: str, summary: str, remedy: tuple[str, Change]
) -> Finding:
    """Of the records that show it, and the layers of the last of them."""
    (records, found), record = seen, seen[0][-1]
    layer = next(iter(found))
    known = {name: by_layer(record, metric) for name, metric in EVIDENCE.items()}
    return Finding(
        "rank-collapse",
        severity(run),
        layer,
        span(records),
        {name: values[layer] for name, values in known.items() if layer in values} | {"layers": len(found)},
        threshold,
        SOURCE + CONVENTION,
        remedy[0],
        summary=summary,
        change=remedy[1],
    )


def _collapsed(record: Record) -> dict[str, float]:
    """Residuals of the collapsed layers, in order; none where tokens are one before the first."""
    if number(record.values.get("start")) < ONE_TOKEN:
        return {}
    return {name: value for name, value in by_layer(record, "relative_residual").items() if value < ONE_TOKEN}


def _sharp(record: Record) -> dict[str, float]:
    return {name: value for name, value in by_layer(record, "entropy").items() if value < ONE_KEY}


def _remedy(record: Record, layer: str, *, from_start: bool) -> tuple[str, Change]:
    """By what made tokens one: training, heads that look at one of them, or layers that mix them and keep nothing."""
    if not from_start:
        return LOWER
    residuals = by_layer(record, "relative_residual")
    names = list(residuals)
    upto = names[: names.index(layer) + 1]
    if set(upto) & set(_sharp(record)):
        return _sharp_remedy(from_start=True)
    before = residuals[upto[-2]] if len(upto) > 1 else number(record.values.get("start"))
    if residuals[layer] < COLLAPSES_AT_ONCE * before:
        words = "Add skip connections around attention and MLP: without them tokens become one doubly exponentially"
        return words, Change("residual")
    return (
        "Scale the branches beside skips by one over the root of the depth (pb.initialise with phase='critical'), put "
        "layer norm before the branches, or make the network less deep",
        Change("initialisation", "critical"),
    )


def _sharp_remedy(*, from_start: bool) -> tuple[str, Change]:
    if not from_start:
        return LOWER
    words = "Start queries and keys from smaller weights (Xavier initialisation), or normalise them"
    return words, Change("initialisation", "xavier")
