"""The head of the page: what was trained, and the few numbers to look at first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pullback._text import duration
from pullback.charts.chart import PALETTE
from pullback.charts.numbers import finite
from pullback.charts.text import as_dict, as_float, counted, number, percent, shorten
from pullback.report.run.series import NamedRun, last_value, read_series
from pullback.runs import Run


def head_of(named: NamedRun, place: int) -> dict[str, Any]:
    """What the head of the page says of the run at this place among several."""
    settings = as_dict(named.run.meta.get("settings"))
    return {
        "name": named.name,
        "colour": PALETTE[place % len(PALETTE)],
        "facts": facts_of(named),
        "numbers": key_numbers(named),
        "settings": [(key, shorten(value, 400)) for key, value in settings.items()],
    }


def facts_of(named: NamedRun) -> list[str]:
    """What is known about a run before any measurement, as short phrases."""
    meta, facts = named.run.meta, []
    model, optimizer = as_dict(meta.get("model")), as_dict(meta.get("optimizer"))
    if model.get("class"):
        facts.append(shorten(model["class"], 60))
    if math.isfinite(as_float(model.get("num_params"))):
        facts.append(f"{model['num_params']:,} parameters")
    layers, frozen = model.get("layers"), model.get("frozen")
    if isinstance(layers, list) and layers:
        facts.append(
            counted(len(layers), "layer") + (f", {len(frozen)} frozen" if isinstance(frozen, list) and frozen else "")
        )
    if meta.get("loss"):
        facts.append(shorten(meta["loss"], 60))
    if optimizer.get("class"):
        rate = as_float(optimizer.get("learning_rate"))
        facts.append(shorten(optimizer["class"], 40) + (f", learning rate {rate:g}" if math.isfinite(rate) else ""))
    if meta.get("data"):
        facts.append(f"data: {shorten(meta['data'], 60)}")
    steps = sorted({record.step for record in named.run.of("cost")}) or named.run.steps  # without what the loop logged
    facts.append(
        f"measured at {counted(len(steps), 'step')}, {steps[0]:,} to {steps[-1]:,}" if steps else "no measurement"
    )
    created = str(meta.get("created", "at an unknown time")).replace("T", " ", 1).replace("+00:00", " UTC")
    facts.append(f"started {shorten(created, 40)}")
    facts.append(f"pullback {shorten(meta.get('pullback', 'of unknown version'), 20)}")
    return facts


def key_numbers(named: NamedRun) -> list[tuple[str, str, str]]:
    """Label, value and a note for each of the numbers to look at first."""
    run = named.run
    loss, loss_note = _final_loss(run)
    accuracy = last_value(run, "epoch", "test_accuracy")
    conflict = last_value(run, "alignment", "conflict_fraction")
    return [
        ("Final loss", *_shown(loss, number, loss_note)),
        ("Test accuracy", *_shown(accuracy, percent, "after the last epoch")),
        ("Sharpness", *_sharpness(named)),
        ("Pairs in conflict", *_shown(conflict, percent, "at the last measurement")),
        ("Time to watch", *_cost(named)),
    ]


def _final_loss(run: Run) -> tuple[float | None, str]:
    """The loop's own last loss, or what stands for it in a run that was shown none; and what it is."""
    steps, losses = run.course("loss")
    if len(losses):
        return float(losses[-1]), f"of the batch of step {steps[-1]:,}"
    measured, values = read_series(run, "loss", "loss")
    if values:
        return values[-1], f"on the samples measured at step {measured[-1]:,}"
    return last_value(run, "epoch", "train_loss"), "mean of the last epoch"


def _shown(value: float | None, show: Callable[[object], str], note: str) -> tuple[str, str]:
    return ("–", "not measured") if value is None else (show(value), note)


def _sharpness(named: NamedRun) -> tuple[str, str]:
    """The last sharpness, and how it compares with the limit of the learning rate."""
    sharpness, limit = (last_value(named.run, "sharpness", name) for name in ("hessian", "limit"))
    own = tuple(last_value(named.run, "sharpness", name) for name in ("preconditioned", "preconditioned_limit"))
    if None not in own:  # as the optimizer sees it, whose limit is of that
        sharpness, limit = own
    if sharpness is None:
        return "–", "not measured"
    if limit is None or not math.isfinite(limit) or limit <= 0:
        return number(sharpness, 3), "its limit is unknown"
    return number(sharpness, 3), f"{percent(sharpness / limit)} of the limit {number(limit, 3)}"


def _cost(named: NamedRun) -> tuple[str, str]:
    """Total time of the measurements, and its share of the time on record."""
    spent = finite(read_series(named.run, "cost", "seconds")[1])
    if not spent:
        return "–", "not measured"
    whole = named.run.seconds
    each = f"{duration(sum(spent) / len(spent))} a measurement"
    share = f"{percent(sum(spent) / whole)} of the run, " if 0 < sum(spent) <= whole else ""
    return duration(sum(spent)), share + each
