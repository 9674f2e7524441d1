"""The head of the page: what was trained, and the few numbers to look at first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pullback.charts.chart import PALETTE
from pullback.charts.numbers import finite
from pullback.charts.text import as_dict, as_float, clean, counted, duration, escape, number, percent, shorten
from pullback.report.run.series import NamedRun, last_value, read_series
from pullback.runs import Run


def header_html(runs: Sequence[NamedRun]) -> str:
    """Name, description and key numbers: as a row of figures for one run, as a table for several."""
    if len(runs) == 1:
        title, body = escape(runs[0].name), _one(runs[0])
    else:
        title, body = f"{len(runs)} training runs compared", _several(runs)
    kicker = '<p class="kicker">pullback · the geometry of a training run</p>'
    return f"<header>{kicker}<h1>{title}</h1>{body}</header>"


def _one(named: NamedRun) -> str:
    keys = "".join(
        f'<div><dt>{label}</dt><dd>{value}<span class="note">{note}</span></dd></div>'
        for label, value, note in key_numbers(named)
    )
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in facts_of(named))
    return f'<ul class="facts">{facts}</ul><dl class="keys">{keys}</dl>{_settings(named)}'


def _several(runs: Sequence[NamedRun]) -> str:
    labels = ("Run", *(label for label, _, _ in key_numbers(runs[0])))
    head = "".join(f'<th scope="col">{label}</th>' for label in labels)
    rows = "".join(_row(place, named) for place, named in enumerate(runs))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    settings = "".join(_settings(named, f" of {named.name}") for named in runs)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Runs">{table}</div>{settings}'


def _row(place: int, named: NamedRun) -> str:
    """One run of several: its colour in the charts, its name, what was trained, and its key numbers."""
    swatch = f'<span class="swatch" style="background:{PALETTE[place % len(PALETTE)]}"></span>'
    facts = f'<span class="note">{escape(" · ".join(facts_of(named)))}</span>'
    cells = "".join(f'<td>{value}<span class="note">{note}</span></td>' for _, value, note in key_numbers(named))
    return f'<tr><th scope="row">{swatch}{escape(named.name)}{facts}</th>{cells}</tr>'


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


def _settings(named: NamedRun, of_run: str = "") -> str:
    """The settings of the run, folded away."""
    settings = as_dict(named.run.meta.get("settings"))
    if not settings:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(shorten(value, 400))}</td></tr>'
        for key, value in settings.items()
    )
    table = f"<table><tbody>{rows}</tbody></table>"
    return (
        f"<details><summary>Settings{escape(of_run)}</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Settings">{table}</div></details>'
    )


def key_numbers(named: NamedRun) -> list[tuple[str, str, str]]:
    """Label, value and a note (all escaped) for each of the numbers to look at first."""
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


def _shown(value: float | None, show: object, note: str) -> tuple[str, str]:
    if value is None or not callable(show):
        return "–", "not measured"
    return clean(show(value)), note


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
    whole = max((record.time for record in named.run.records), default=0.0)
    each = f"{duration(sum(spent) / len(spent))} a measurement"
    share = f"{percent(sum(spent) / whole)} of the run, " if 0 < sum(spent) <= whole else ""
    return duration(sum(spent)), share + each
