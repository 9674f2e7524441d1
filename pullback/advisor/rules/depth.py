"""What happens to gradients over depth, and what mean-field theory says of the initial weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.model import RELU_FAMILY, SATURATING, for_depth, is_normalised, kinds
from pullback.advisor.reading import CONVENTION, by_layer, class_counts, lasts, records_with, rows, span
from pullback.advisor.rules.travelled import crawls
from pullback.advisor.rules.units import most_off_at_first
from pullback.advisor.rules.zeros import zero_weights
from pullback.advisor.severity import severity, severity_of_mistake
from pullback.advisor.thresholds import (
    CHI_PRODUCT,
    FEW_UPDATES,
    FIRST_MEASUREMENT,
    LEAVES,
    LOST,
    MANY_STEPS,
    RAISED_FAR,
    SURVIVES,
    UNBALANCED,
    WILD_ANYWAY,
    WILD_NATS,
    WILD_START,
    WILD_TIMES,
)
from pullback.advisor.training_losses import entropy_of_labels, training_losses
from pullback.runs import Record, Run
from pullback.runs.rows import Rows

ENTROPIES = {"cross-entropy", "nll", "binary", "binary-nll"}
VERDICTS = ("vanishing", "exploding")
SINCE = "Lower the learning rate tenfold, and warm it up: the first steps have spoilt what the start had"
PHASES = {
    "ordered": "The starting weights are so small that samples look alike to the last layers, and gradients vanish.",
    "chaotic": "The starting weights are so large that like samples become unlike, and gradients explode.",
}


def vanishing_gradients(run: Run) -> Iterator[Finding]:
    """Gradients that shrink a hundredfold (squared) from the last layer to the first."""
    yield from _flow(run, "vanishing", "The gradient dies on its way back, so that early layers hardly learn.")


def exploding_gradients(run: Run) -> Iterator[Finding]:
    """Gradients that grow a hundredfold (squared) from the last layer to the first."""
    words = "The gradient grows on its way back: one rate is too high for early layers and too low for late ones."
    yield from _flow(run, "exploding", words)


def ordered_initialisation(run: Run) -> Iterator[Finding]:
    """Initial weights so small that signals of all samples become alike, and gradients vanish, over this depth."""
    findings = list(zero_weights(run))  # of which theory knows no sigma
    yield from findings or _phase(run, "ordered", -1)


def chaotic_initialisation(run: Run) -> Iterator[Finding]:
    """Initial weights so large that signals of like samples part, and gradients explode, over this depth.

    Where layers normalise, or the code does not show which activation follows which layer, theory does not say; the
    first loss does: answers far worse than the same one for all samples come of outputs that are far too large.
    """
    findings = list(_phase(run, "chaotic", 1))
    yield from findings or _wild_start(run)


def unbalanced_layers(run: Run) -> Iterator[Finding]:
    """Layers whose kernels, per parameter, are of other orders: one rate cannot suit the largest and the smallest."""
    records = records_with(run, "flow", "balance")
    seen = records.where(records.numbers("balance") > UNBALANCED)
    if lasts(seen, records):
        norms = by_layer(seen[-1], "frobenius")
        yield Finding(
            "unbalanced-layers",
            severity(run),
            min(norms, key=lambda layer: norms[layer]) if norms else None,
            span(seen),
            {"balance": seen[-1].values["balance"]},
            f"largest over smallest norm of a layer's kernel per parameter above {UNBALANCED:g}, in half of the "
            "measurements; trained networks of this repository's suite stay below 1,000",
            CONVENTION,
            "Use an optimiser that scales each layer's step (Adam, LARS, LAMB), normalisation, or the critical "
            "initialisation",
            summary="Layers learn at rates of other orders: what suits one leaves another where it is.",
            change=Change("normalisation", "layer"),
        )


def _flow(run: Run, verdict: str, summary: str) -> Iterator[Finding]:
    records = rows(run, "flow")
    said = records.mapped("verdict", _verdict) == VERDICTS.index(verdict)
    seen = records.where(said & np.isfinite(records.numbers("slope")))
    if not len(seen):
        return
    at_first = seen.chosen[0] == records.chosen[0]
    by_start = verdict == "vanishing" and at_first and _is_lost_at_start(run, seen[0])
    if not lasts(seen, records) and not (by_start and severity_of_mistake(run) != "info"):
        return
    norms, (first_seen, last_seen) = by_layer(seen[-1], "gradient_norm"), span(seen)
    if verdict == "vanishing" and _survives(norms) and crawls(run):
        return  # the last layer, which has the whole gradient, stands still as well
    flat = verdict == "vanishing" and bool(kinds(run) & set(SATURATING))  # by the activation's slope: no passing state
    evidence = {"slope of ln|g|^2 per layer": float(seen[-1].values["slope"])}
    if norms:
        first, *_, last = [*norms.values(), *norms.values()]
        evidence |= {"first layer's gradient norm": first, "last layer's": last}
    action, change = for_depth(run, verdict)
    if verdict == "vanishing" and _came_through(records):
        action, change = SINCE, Change("learning_rate", 0.1)
        summary = f"The gradient came through at the start, and since step {first_seen} it dies on its way back."
    yield Finding(
        f"{verdict}-gradients",
        severity_of_mistake(run) if flat or by_start else severity(run),
        _where_it_starts(norms, verdict),
        (0 if at_first and (flat or (by_start and not most_off_at_first(run))) else first_seen, last_seen),
        evidence,
        "a hundredfold change of the squared gradient norm over the depth, in half of the measurements"
        + (
            f", or a norm {LOST:.2g} times the last layer's at the start of a run that falls short"
            if verdict == "vanishing"
            else ""
        ),
        "convention of this package, see the design notes; Schoenholz et al. (2017), arXiv:1611.01232",
        action,
        summary=summary,
        change=change,
    )


def _survives(norms: dict[str, float]) -> bool:
    """Whether a share of the last layer's gradient arrives at the first that a higher rate makes up for."""
    sizes = [*norms.values()]
    return len(sizes) > 1 and sizes[0] > SURVIVES * sizes[-1]


def _came_through(records: Rows) -> bool:
    """Whether the first measurement, and none after the second, had gradients at the first layers: steps ended that."""
    said = records.mapped("verdict", _verdict) == VERDICTS.index("vanishing")
    return len(said) > FEW_UPDATES and records.steps[0] <= FIRST_MEASUREMENT and not said[0] and bool(said[2:].all())


def _is_lost_at_start(run: Run, first: Record) -> bool:
    """Whether next to nothing of the gradient arrived at the first layer: that costs the steps until the run is out.

    Of one that had few steps nobody knows yet, and of one that crawls the rate does it, unless no rate that could be
    advised would bring the gradient back. Behind layers that normalise the size of a gradient says little, and of batch
    norm the first measurement even less.
    """
    sizes = [*by_layer(first, "gradient_norm").values()]
    lost = len(sizes) > 1 and sizes[0] * (RAISED_FAR if crawls(run) else 1.0) < LOST * sizes[-1]
    long = len(training_losses(run)) >= MANY_STEPS
    return lost and first.step <= FIRST_MEASUREMENT and long and not is_normalised(run)


def _verdict(cell: object) -> float:
    return VERDICTS.index(cell) if cell in VERDICTS else math.nan


def _where_it_starts(norms: dict[str, float], verdict: str) -> str | None:
    """The first layer on the way back whose norm is ten times the last layer's or a tenth of it."""
    way_back = list(reversed(norms.items()))
    if not way_back:
        return None
    start = way_back[0][1]
    shrinks = verdict == "vanishing"
    for layer, norm in way_back:
        if norm <= start / LEAVES if shrinks else norm >= start * LEAVES:
            return layer
    return (min if shrinks else max)(norms, key=lambda layer: norms[layer])


def _phase(run: Run, phase: str, sign: int) -> Iterator[Finding]:
    for record in rows(run, "initialisation")[:1]:
        chi = {layer: value for layer, value in by_layer(record, "chi").items() if value > 0}
        change = sum(math.log(value) for value in chi.values())  # ln of the factor on squared gradients over the depth
        if sign * change <= math.log(CHI_PRODUCT):
            continue
        yield Finding(
            f"{phase}-initialisation",
            severity(run),
            max(chi, key=lambda layer: sign * chi[layer]),
            (record.step, record.step),
            {"chi per layer (geometric mean)": math.exp(change / len(chi)), "ln of the product": change},
            f"the product of chi over the layers is beyond {CHI_PRODUCT:g} or its inverse",
            "mean-field theory, chi = 1 is critical; Schoenholz et al. (2017), arXiv:1611.01232; " + CONVENTION,
            _critical(record),
            summary=PHASES[phase],
            change=Change("initialisation", "critical"),
        )


def _wild_start(run: Run) -> Iterator[Finding]:
    losses, modest = training_losses(run), _modest_loss(run)
    if not len(losses.values) or modest is None or int(losses.steps[0]) > 1:
        return
    first = float(losses.values[0])
    entropy = set(rows(run, "loss").cells("form")) & ENTROPIES
    if losses.constant is None and not math.inf > first > WILD_ANYWAY * modest:
        return
    sure = entropy and first - modest > WILD_NATS and first > WILD_TIMES * modest
    if not sure and not first > WILD_START * modest:
        return
    change = Change("initialisation", "he" if kinds(run) & set(RELU_FAMILY) and not is_normalised(run) else "xavier")
    yield Finding(
        "chaotic-initialisation",
        severity_of_mistake(run),
        None,
        (1, 1),
        {"first loss": first, "loss of one answer for all": modest},
        f"a first loss above {WILD_START:g} times that of the best answer that is the same for every sample (of "
        f"numbers: of the answer 0); of an entropy also {WILD_TIMES:g} times and {WILD_NATS:g} nats above it",
        CONVENTION,
        f"Start from smaller weights, those of the last layer above all: {str(change.value).capitalize()} "
        "initialisation",
        summary=f"The starting weights are so large that the first answers are wild (a loss of {first:.3g}, where one "
        f"answer for all has {modest:.3g}): training first has to undo them.",
        change=change,
    )


def _modest_loss(run: Run) -> float | None:
    """The loss that outputs of about 0 have, or one answer for all; None where that is not known, or is nearly 0."""
    losses = training_losses(run)
    if losses.constant is None and not records_with(run, "loss", "loss"):
        return entropy_of_labels(run)  # of a loss that no measurement has seen
    if losses.constant is None or losses.least != 0 or not losses.constant > 0:
        return None
    if rows(run, "loss").mapped("form", _is_squared).any():
        targets = records_with(run, "targets", "std", "largest_mean")
        sizes = targets.numbers("std") ** 2 + targets.numbers("largest_mean") ** 2
        return float(np.median(sizes)) if targets else None
    counts = [count for count in class_counts(run).values() if count > 0]
    return max(losses.constant, math.log(max(2, len(counts))))


def _is_squared(form: object) -> bool:
    return form == "squared"


def _critical(record: Record) -> str:
    used, critical = by_layer(record, "sigma_w"), by_layer(record, "critical_sigma_w")
    pairs = [(used[layer], critical[layer]) for layer in critical if used.get(layer, 0.0) > 0]
    if not pairs:
        return 'Initialise at the critical point: pb.initialise(model, phase="critical")'
    now, wanted = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    return (
        f"Use sigma_w = {wanted:.3g} in place of {now:.3g} (weights of standard deviation sigma_w / sqrt(fan-in)): "
        'pb.initialise(model, phase="critical")'
    )
