"""Runs: the report's page in a frame, or what it says at first where the page is large."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from pullback.advisor import Finding, diagnose, verdict
from pullback.charts.chart import PALETTE, Chart, wants_log
from pullback.charts.numbers import evenly
from pullback.charts.plots import Curve, curves
from pullback.charts.text import as_float, counted, plotly_text
from pullback.report.run.page import page_html
from pullback.report.run.series import name_runs
from pullback.runs import Run
from pullback.views.findings import card_of
from pullback.views.view import View, drawing

MOST_BYTES = 1_900_000  # of a page that stands in a notebook: escaping adds a twentieth
MOST_POINTS = 1000
MARKS = {"warning": PALETTE[4], "critical": PALETTE[1]}


@drawing.register
def run_view(run: Run) -> View:
    """The page, or the findings and how to write the page."""
    (named,) = name_runs([run])
    findings = diagnose(run)
    title = f"{named.name}: {verdict(run, findings)}."
    charts = (loss_chart(run, findings),)
    page = page_html([named])
    if len(page.encode()) <= MOST_BYTES:
        return View(title, charts=charts, page=page)
    facts = (
        f"{run.extent}; {counted(len(findings), 'finding')}.",
        f"The page is too large to stand here: pb.write_report(run, {str(run.path / 'report.html')!r}) writes it.",
    )
    return View(title, facts, cards=tuple(card_of(each) for each in findings), charts=charts)


def loss_chart(run: Run, findings: Sequence[Finding]) -> Chart:
    """The loss of every step, with the findings where each was first seen."""
    steps, losses = (each.tolist() for each in run.course("loss"))
    if not steps:  # a loop that hands over no loss
        steps, losses = run.series("loss", "loss")
    known = [(step, as_float(loss)) for step, loss in zip(steps, losses, strict=True)]
    known = [(step, loss) for step, loss in known if math.isfinite(loss)]
    kept = [known[at] for at in evenly(len(known), MOST_POINTS)]
    log = wants_log([loss for _, loss in kept])
    lines = [Curve("loss", [step for step, _ in kept], [loss for _, loss in kept], "plain", PALETTE[0])]
    marks = [mark for mark in (_mark(finding, known) for finding in findings) if mark is not None]
    lines += marks
    reading = "Of every step; points are where a finding was first seen." if marks else "Of every step."
    said = (f"{counted(len(known), 'step')}.",)
    return curves("loss", "Loss", reading, lines, x="training step", y="loss", log_y=log, summary=said)


def _mark(finding: Finding, known: Sequence[tuple[int, float]]) -> Curve | None:
    """A point on the loss at a finding's first step, or at the nearest one before it that has a loss."""
    if finding.severity == "info" or not known:
        return None
    before = bisect_right(known, (finding.steps[0], math.inf))
    step, loss = known[max(before - 1, 0)]
    return Curve(plotly_text(finding.name, 60), [step], [loss], "points", MARKS[finding.severity])
