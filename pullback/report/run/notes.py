"""Two lists of the page: what a run's findings say, and which probes failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pullback._text import first_listed
from pullback.advisor.findings import MOST_CAUSES, SEVERITIES
from pullback.advisor.reading import rows
from pullback.charts.text import as_dict, counted, number, shorten
from pullback.report.run.series import NamedRun
from pullback.runs import Run


def findings_of(runs: Sequence[NamedRun]) -> list[dict[str, Any]]:
    """The causes of all runs, run by run, each with what follows from it; numbered in the order of the page."""
    causes: list[dict[str, Any]] = []
    count = 0
    for place, named in enumerate(runs, start=1):
        first = len(causes)
        for values in named.findings:
            count += 1
            several = len(runs) > 1
            told = _finding(values) | {"number": count, "place": place * several, "run": named.name if several else ""}
            if told["follows"] and len(causes) > first:
                causes[-1]["consequences"].append(told)
            else:
                causes.append(told | {"consequences": []})
    return causes


def _finding(values: dict[str, Any]) -> dict[str, Any]:
    """What the page says of a finding."""
    severity, steps = values.get("severity"), values.get("steps")
    name = str(values.get("name") or "unnamed finding")
    where = [f"layer {values['layer']}"] if values.get("layer") else []
    if isinstance(steps, list) and steps:
        ends = [str(each) if isinstance(each, str) else number(each) for each in (steps[0], steps[-1])]
        where.append(f"steps {ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"step {ends[0]}")
    because = [str(each) for each in values["because"]] if isinstance(values.get("because"), list) else []
    where += (
        [f"follows from {first_listed([each.replace('-', ' ') for each in because], MOST_CAUSES)}"] if because else []
    )
    action = None if because else values.get("action")  # of what follows it is the cause's, which stands above
    told = [("Threshold", values.get("threshold")), ("Source", values.get("source"))]
    return {
        "key": name,
        "severity": severity if severity in SEVERITIES else "info",  # one that this version does not know
        "name": shorten(_title(name), 120),
        "where": " · ".join(shorten(each, 120) for each in where),
        "steps": _whole_steps(steps),
        "follows": bool(because),
        "summary": shorten(values.get("summary") or "", 1000),
        "action": shorten(action or "", 1000),
        "evidence": [(shorten(key, 60), value) for key, value in as_dict(values.get("evidence")).items()],
        "footing": " · ".join(f"{label}: {shorten(text, 600)}" for label, text in told if text),
    }


def _title(name: str) -> str:
    words = name.replace("-", " ")
    return words[:1].upper() + words[1:]


def _whole_steps(steps: object) -> tuple[int, int] | None:
    """First and last step, where they can be marked on an axis."""
    known = isinstance(steps, list | tuple) and len(steps) == 2 and all(type(each) is int for each in steps)
    return (steps[0], steps[1]) if known and isinstance(steps, list | tuple) else None


def failures_of(runs: Sequence[NamedRun]) -> list[tuple[str, str, str, list[str]]]:
    """Run, probe and error of the probes that failed, equal ones as one; and how often, first and last step."""
    steps: dict[tuple[str, str, str], list[int]] = {}
    for named in runs:
        for record in named.run.failed:
            steps.setdefault((named.name, record.probe, str(record.error)), []).append(record.step)
    return [
        (name, probe, shorten(error, 600), [f"{count:,}" for count in (len(at), min(at), max(at))])
        for (name, probe, error), at in steps.items()
    ]


def left_out(run: Run) -> str:
    """What the budget did not allow to measure, in words; empty if it allowed all."""
    values: Mapping[str, Any] = next((record.values for record in rows(run, "schedule")[-1:]), {})
    count, without = values.get("left_out"), as_dict(values.get("without"))
    told = [counted(count, "measurement") + " that were due"] if isinstance(count, int) and count > 0 else []
    told += [f"{name} at {number(times)} of the others" for name, times in without.items()]
    put_off = values.get("put_off")
    told += [f"{name}, put off until it can be paid" for name in (put_off if isinstance(put_off, list) else [])]
    return "; ".join(told)


def damage_of(runs: Sequence[NamedRun]) -> list[str]:
    """Sentences about lines of the record that could not be read, resumed training, and what was left out."""
    damaged = [f"{named.name}: {named.run.skipped:,}" for named in runs if named.run.skipped]
    resumed = [
        f"{named.name} from step {', '.join(f'{step:,}' for step in named.run.resumed)} "
        f"({named.run.superseded:,} records of steps made once more are left out)"
        for named in runs
        if named.run.resumed
    ]
    of = {named.name: f"{named.name}: " if len(runs) > 1 else "" for named in runs}  # of one run no name is needed
    lost = [of[named.name] + ", ".join(map(str, named.run.lost_blocks)) for named in runs if named.run.lost_blocks]
    left = [of[named.name] + text for named in runs if (text := left_out(named.run))]
    told = (
        ("Damaged lines of the record that were skipped", damaged),
        ("Damaged blocks of the record, what they held is left out", lost),
        ("Training was resumed", resumed),
        ("Left out, since it would have cost more than the budget", left),
    )
    return [f"{label}: {', '.join(each)}." for label, each in told if each]
