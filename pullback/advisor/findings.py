"""What a finding is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("info", "warning", "critical")


@dataclass(frozen=True)
class Finding:
    """Something the record of a run shows.

    Attributes:
        name: one of the names listed for ``pb.diagnose``.
        severity: "info" (worth knowing), "warning" (costs speed or accuracy) or "critical" (training fails).
        layer: where, or None for the whole model.
        steps: first and last step it was seen at.
        evidence: the numbers, by name.
        threshold: the rule they crossed, in words.
        source: where that rule comes from.
        action: one remedy in the user's terms.
    """

    name: str
    severity: str
    layer: str | None
    steps: tuple[int, int]
    evidence: dict[str, float]
    threshold: str
    source: str
    action: str

    def as_record(self) -> dict[str, Any]:
        """As the values of a run record of the probe "finding"."""
        return asdict(self) | {"steps": list(self.steps)}

    def __str__(self) -> str:
        place = f" in {self.layer}" if self.layer else ""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.evidence.items())
        return (
            f"{self.severity}: {self.name}{place}, steps {self.steps[0]} to {self.steps[1]} ({numbers}). {self.action}."
        )
