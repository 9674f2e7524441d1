"""The head of the page: what a run came to, what was trained, and the few numbers to look at first."""

from __future__ import annotations

import math
from typing import Any

from pullback.advisor import Finding, verdict
from pullback.advisor.findings import SEVERITIES
from pullback.charts.chart import PALETTE
from pullback.charts.text import as_dict, as_float, counted, shorten
from pullback.report.run.series import NamedRun
from pullback.report.run.tiles import key_numbers


def head_of(named: NamedRun, place: int) -> dict[str, Any]:
    """What the head of the page says of the run at this place among several."""
    settings = as_dict(named.run.meta.get("settings"))
    findings = list(filter(None, map(Finding.known, named.findings)))
    return {
        "name": named.name,
        "verdict": verdict(named.run, findings),
        "remedy": next((finding.action.rstrip(".") for finding in findings if finding.severity != "info"), ""),
        "tone": max((finding.severity for finding in findings), key=SEVERITIES.index, default="info"),
        "label": named.look.label if named.look else named.name,
        "colour": named.look.colour if named.look else PALETTE[place % len(PALETTE)],
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
        facts.append("a loss of your own" if meta["loss"] == "<lambda>" else shorten(meta["loss"], 60))
    if optimizer.get("class"):
        rate = as_float(optimizer.get("learning_rate"))
        facts.append(shorten(optimizer["class"], 40) + (f", learning rate {rate:g}" if math.isfinite(rate) else ""))
    if meta.get("data"):
        facts.append(f"data: {shorten(meta['data'], 60)}")
    facts.append(named.run.extent)
    created = str(meta.get("created", "at an unknown time")).replace("T", " ", 1).replace("+00:00", " UTC")
    facts.append(f"started {shorten(created, 40)}")
    facts.append(f"pullback {shorten(meta.get('pullback', 'of unknown version'), 20)}")
    return facts
