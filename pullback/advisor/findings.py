"""What a finding is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from pullback._results import Drawn, to_frame
from pullback._text import first_listed
from pullback.advisor.change import Change

SEVERITIES = ("info", "warning", "critical")
MOST_NAMED = 6  # findings that a line names
MOST_CAUSES = 2  # that a finding names of those that it follows from: the list as a whole shows them all


@dataclass(frozen=True)
class Finding(Drawn):
    """Something the record of a run shows.

    Attributes:
        name: one of the names listed for ``pb.diagnose``.
        severity: "info" (worth knowing), "warning" (costs speed or accuracy) or "critical" (training fails).
        layer: where, or None for the whole model.
        steps: first and last step it was seen at.
        evidence: the numbers, by name.
        threshold: the rule they crossed, in words.
        source: where that rule comes from.
        action: one remedy in the user's terms; of what follows from others, that of the cause, which is said there.
        summary: one sentence: what is wrong, and why it matters.
        because: names of the findings of this run that it follows from; empty of a cause.
        change: the remedy as a program can carry it out, or None: of what has none, and of what follows from others.
    """

    name: str
    severity: str
    layer: str | None
    steps: tuple[int, int]
    evidence: dict[str, float]
    threshold: str
    source: str
    action: str
    summary: str = ""
    because: tuple[str, ...] = ()
    change: Change | None = None

    def as_record(self) -> dict[str, Any]:
        """As the values of a run record of the probe "finding"."""
        more = {"steps": list(self.steps), "because": list(self.because)}
        return asdict(self) | more | {"change": None if self.change is None else self.change.as_record()}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Finding:
        """The finding of a record, also of one written before there were summaries, causes and changes.

        Raises:
            KeyError: a record of something else.
        """
        first, last = values["steps"]
        return cls(
            **{name: values[name] for name in ("name", "severity", "layer", "threshold", "source", "action")},
            steps=(first, last),
            evidence=dict(values["evidence"]),
            summary=values.get("summary", ""),
            because=tuple(values.get("because", ())),
            change=Change.from_record(values.get("change")),
        )

    @classmethod
    def known(cls, values: Mapping[str, Any]) -> Finding | None:
        """The finding of a record that may be another program's, or damaged; None of one that is not whole."""
        with suppress(KeyError, TypeError, ValueError):
            found = cls.from_record(values)
            if found.severity in SEVERITIES and all(isinstance(step, int) for step in found.steps):
                return found
        return None

    def __str__(self) -> str:
        place = f" in {self.layer}" if self.layer else ""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.evidence.items())
        told = f" {self.summary}" if self.summary else ""
        then = f"It follows from {first_listed(self.because, MOST_CAUSES)}" if self.because else self.action
        return (
            f"{self.severity}: {self.name}{place}, steps {self.steps[0]} to {self.steps[1]} ({numbers}).{told} {then}."
        )


class Findings(Drawn, list[Finding]):
    """What ``pb.diagnose`` returns: a list of findings, which notebooks show as cards.

    Attributes:
        ignored: names of those that were there and were left out, as asked.
    """

    def __init__(self, found: Iterable[Finding] = (), ignored: tuple[str, ...] = ()) -> None:
        super().__init__(found)
        self.ignored = ignored

    def __repr__(self) -> str:
        told = [f"{finding.severity}: {finding.name}" for finding in self[:MOST_NAMED]]
        left = [f"and {len(self) - MOST_NAMED} more"] if len(self) > MOST_NAMED else []
        return f"[{', '.join(told + left)}]"

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each finding.

        Raises:
            InputError: pandas is not installed.
        """
        records = [finding.as_record() for finding in self]
        names = [each.name for each in fields(Finding)]
        return to_frame("Findings.to_pandas", {name: [record[name] for record in records] for name in names})
