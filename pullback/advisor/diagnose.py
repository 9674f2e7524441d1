"""``diagnose``: every rule over a run, the most severe findings first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pullback.advisor import rules
from pullback.advisor.findings import SEVERITIES, Finding
from pullback.runs import Run, load_run

RULES: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    rules.divergence,
    rules.learning_rate,
    rules.gradient_flow,
    rules.ill_conditioning,
    rules.conflicting_gradients,
)


def diagnose(run: Run | str | Path) -> list[Finding]:
    """Findings of a run, most severe first; an empty list if its record shows nothing.

    This is the advisor's first form: divergence, learning rate against sharpness (plain SGD), vanishing and
    exploding gradients, ill-conditioning and conflicting gradients.

    Args:
        run: a run, or its folder.

    Raises:
        InputError: the folder is no run.

    Example:
        >>> import tempfile
        >>> from pullback.runs import RunWriter
        >>> with RunWriter(tempfile.mkdtemp() + "/run", {}) as writer:
        ...     writer.append(50, "loss", {"loss": float("nan")})
        >>> [finding.name for finding in diagnose(writer.path)]
        ['divergence']
    """
    run = run if isinstance(run, Run) else load_run(run)
    found = [finding for rule in RULES for finding in rule(run)]
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))
