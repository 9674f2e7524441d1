"""``diagnose``: every rule over a run, the most severe findings first."""

from __future__ import annotations

from pathlib import Path

from pullback.advisor.findings import SEVERITIES, Finding
from pullback.advisor.rules import RULES
from pullback.runs import Run, load_run


def diagnose(run: Run | str | Path) -> list[Finding]:
    """Findings of a run, most severe first; an empty list if its record shows nothing.

    A rule reads what probes recorded and is silent where they did not run. Thresholds stand in
    ``advisor/thresholds.py``; those that are conventions make a warning only where the loss shows that training does
    not work (it stayed above four fifths of the first one measured, and fewer than four fifths of the samples are
    right), and are "info" otherwise.

    Names: divergence, learning-rate-too-high, learning-rate-too-low, vanishing-gradients, exploding-gradients,
    ordered-initialisation, chaotic-initialisation, unbalanced-layers, saturated-units, dead-units, rank-collapse,
    ill-conditioning, inputs-not-normalised, conflicting-gradients, suspect-samples, batch-too-small, batch-too-large,
    batch-norm-batch-too-small, saddle-plateau, minimum-plateau, effective-rate-decay, lazy-regime, memorisation.

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
