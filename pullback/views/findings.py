"""Findings: a card each, causes first and what follows from one beneath it."""

from __future__ import annotations

import math
import re

from pullback._text import first_listed
from pullback.advisor import Finding, Findings
from pullback.advisor.findings import MOST_CAUSES
from pullback.charts.chart import PALETTE, Chart
from pullback.charts.plots import Curve, curves
from pullback.charts.text import counted, number, plotly_text
from pullback.views.view import Card, View, drawing

# By unit, how the names of evidence in it read.
UNITS = {
    "loss": r"^loss\b[^,]*$|\bloss$",
    "share": r"^share\b",
    "accuracy": r"\baccuracy$",
    "cosine": r"\bcosine\b",
    "learning rate": r"\brate( then)?$",
    "sharpness": r"^sharpness$|^limit$|\bcurvature$",
    "|dw| / |w|": r"\|dw\| / \|w\|",
    "norm of the gradient": r"^(first|last) norm$",
    "samples": r"^(batch size|noise scale)",
}


@drawing.register
def finding_view(finding: Finding) -> View:
    """One card, and its evidence as bars: those of one unit beside each other; one alone is in the figure only."""
    panels = list(by_unit(_finite(finding)).items())
    charts = [[_bars(finding, *each) for each in panels if (len(each[1]) > 1) is many] for many in (True, False)]
    return View("Finding", cards=(card_of(finding),), charts=tuple(charts[0]), alone=tuple(charts[1]))


@drawing.register
def findings_view(findings: Findings) -> View:
    """A card for each, and the steps each was seen at."""
    if not findings:
        return View("No findings")
    charts = (steps_chart(findings),)
    return View(counted(len(findings), "finding"), cards=tuple(card_of(each) for each in findings), charts=charts)


def card_of(finding: Finding) -> Card:
    """What the card says."""
    first, last = finding.steps
    where = [f"layer {finding.layer}"] if finding.layer else []
    where.append(f"steps {first:,} to {last:,}" if first != last else f"step {first:,}")
    then = f"It follows from {first_listed(finding.because, MOST_CAUSES)}." if finding.because else f"{finding.action}."
    return Card(
        finding.severity,
        finding.name.replace("-", " "),
        " · ".join(where),
        tuple(text for text in (finding.summary, then) if text),
        ", ".join(f"{name} {number(value)}" for name, value in finding.evidence.items()),
        f"Threshold: {finding.threshold} · Source: {finding.source}",
        bool(finding.because),
    )


def _finite(finding: Finding) -> dict[str, float]:
    return {name: value for name, value in finding.evidence.items() if math.isfinite(value)}


def by_unit(numbers: dict[str, float]) -> dict[str, dict[str, float]]:
    """The numbers, those that can be compared together; whatever has no known unit has its own, which is its name."""
    units: dict[str, dict[str, float]] = {}
    for name, value in numbers.items():
        unit = next((unit for unit, said in UNITS.items() if re.search(said, name)), name)
        units.setdefault(unit, {})[name] = value
    return units


def _bars(finding: Finding, unit: str, evidence: dict[str, float]) -> Chart:
    """Numbers of one unit."""
    names, at = [plotly_text(name, 26) for name in evidence], list(range(len(evidence)))
    bars = Curve("evidence", at, list(evidence.values()), "bars", PALETTE[0])
    reading = f"Threshold: {finding.threshold}."
    title = unit[:1].upper() + unit[1:]
    chart = curves("evidence", title, reading, [bars], x="", y=plotly_text(unit, 40), summary=(reading,), height=260)
    chart.figure["layout"]["xaxis"] |= {"tickvals": at, "ticktext": names, "range": [-0.6, len(evidence) - 0.4]}
    return chart


def steps_chart(findings: Findings) -> Chart:
    """A line for each finding from the first step it was seen at to the last."""
    places = list(range(len(findings), 0, -1))
    lines = [
        Curve(
            plotly_text(f"{each.name}{f' in {each.layer}' if each.layer else ''}", 60),
            list(each.steps),
            [float(place)] * 2,
        )
        for each, place in zip(findings, places, strict=True)
    ]
    reading = "From the first step to the last at which each was seen."
    chart = curves("steps", "When", reading, lines, x="training step", y="", summary=(reading,))
    names = [plotly_text(each.name, 26) for each in findings]
    chart.figure["layout"]["yaxis"] |= {"tickvals": places, "ticktext": names, "range": [0.5, len(findings) + 0.5]}
    chart.figure["layout"]["showlegend"] = False
    return chart
