"""Two lists of the page: what a run's findings say, and which probes failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pullback.charts.text import as_dict, cell, counted, escape, number, shorten
from pullback.report.run.series import NamedRun
from pullback.runs import Run

SEVERITIES = ("critical", "warning", "info")
MOST_FAILURES = 60


def findings_html(runs: Sequence[NamedRun]) -> str:
    """The findings of all runs, run by run, causes first and what follows from one beneath it."""
    found = [(named, values) for named in runs for values in named.run.findings]
    if not found:
        return '<p class="absent">No findings.</p>'
    items = "".join(_finding(values, named.name if len(runs) > 1 else "") for named, values in found)
    return f'<ul class="findings">{items}</ul>'


def severity_of(values: dict[str, Any]) -> str:
    """The severity of a finding; ``info`` for one this version does not know."""
    severity = values.get("severity")
    return severity if severity in SEVERITIES else "info"


def _finding(values: dict[str, Any], run_name: str) -> str:
    severity = severity_of(values)
    name = str(values.get("name") or "unnamed finding").replace("-", " ")
    where = [run_name] if run_name else []
    where += [f"layer {values['layer']}"] if values.get("layer") else []
    steps = values.get("steps")
    if isinstance(steps, list) and steps:
        ends = [str(each) if isinstance(each, str) else number(each) for each in (steps[0], steps[-1])]
        where.append(f"steps {ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"step {ends[0]}")
    evidence = "".join(
        f"<div><dt>{escape(shorten(key, 60))}</dt><dd>{cell(value)}</dd></div>"
        for key, value in as_dict(values.get("evidence")).items()
    )
    told = [("Threshold", values.get("threshold")), ("Source", values.get("source"))]
    footing = " · ".join(f"{label}: {escape(shorten(text, 300))}" for label, text in told if text)
    because = [str(each) for each in values["because"]] if isinstance(values.get("because"), list) else []
    where += [f"follows from {' and '.join(each.replace('-', ' ') for each in because)}"] if because else []
    action = None if because else values.get("action")  # of what follows it is the cause's, which stands above
    summary = f"<p>{escape(shorten(values['summary'], 1000))}</p>" if values.get("summary") else ""
    return (
        f'<li class="{severity}{" consequence" if because else ""}"><p class="finding">'
        f'<span class="badge">{severity}</span> '
        f"<strong>{escape(shorten(name[:1].upper() + name[1:], 120))}</strong> "
        f'<span class="where">{" · ".join(escape(shorten(each, 120)) for each in where)}</span></p>'
        + summary
        + (f'<p class="action">{escape(shorten(action, 1000))}</p>' if action else "")
        + (f'<dl class="evidence">{evidence}</dl>' if evidence else "")
        + (f'<p class="footing">{footing}</p>' if footing else "")
        + "</li>"
    )


def failures_html(runs: Sequence[NamedRun]) -> str:
    """A table of the probes that failed, equal failures in one row; empty if none did."""
    steps: dict[tuple[str, str, str], list[int]] = {}
    for named in runs:
        for record in named.run.records:
            if record.error is not None:
                steps.setdefault((named.name, record.probe, record.error), []).append(record.step)
    if not steps:
        return ""
    several = len(runs) > 1
    rows = "".join(
        "<tr>"
        + (f'<th scope="row">{escape(name)}</th>' if several else "")
        + f'<td>{escape(probe)}</td><td class="text">{escape(shorten(error, 600))}</td>'
        + f"<td>{len(at):,}</td><td>{min(at):,}</td><td>{max(at):,}</td></tr>"
        for (name, probe, error), at in list(steps.items())[:MOST_FAILURES]
    )
    heads = (("Run",) if several else ()) + ("Probe", "Error", "Times", "First step", "Last step")
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    more = (
        f"<p>{len(steps) - MOST_FAILURES} more kinds of failure are left out.</p>" if len(steps) > MOST_FAILURES else ""
    )
    return (
        '<section id="failed" aria-labelledby="failed-title"><h2 id="failed-title">Probes that failed</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="failed-title">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{more}</section>"
    )


def left_out(run: Run) -> str:
    """What the budget did not allow to measure, in words; empty if it allowed all."""
    values: dict[str, Any] = next((record.values for record in reversed(list(run.of("schedule")))), {})
    count, without = values.get("left_out"), as_dict(values.get("without"))
    told = [counted(count, "measurement") + " that were due"] if isinstance(count, int) and count > 0 else []
    told += [f"{name} at {number(times)} of the others" for name, times in without.items()]
    put_off = values.get("put_off")
    told += [f"{name}, put off until it can be paid" for name in (put_off if isinstance(put_off, list) else [])]
    return "; ".join(told)


def damage_html(runs: Sequence[NamedRun]) -> str:
    """Sentences about lines of the record that could not be read, resumed training, and what was left out."""
    damaged = [f"{escape(named.name)}: {named.run.skipped:,}" for named in runs if named.run.skipped]
    resumed = [
        f"{escape(named.name)} from step {', '.join(f'{step:,}' for step in named.run.resumed)} "
        f"({named.run.superseded:,} records of steps made once more are left out)"
        for named in runs
        if named.run.resumed
    ]
    left = [f"{escape(named.name)}: {escape(text)}" for named in runs if (text := left_out(named.run))]
    told = (
        ("Damaged lines of the record that were skipped", damaged),
        ("Training was resumed", resumed),
        ("Left out, since it would have cost more than the budget", left),
    )
    return "".join(f'<p class="absent">{label}: {", ".join(each)}.</p>' for label, each in told if each)
