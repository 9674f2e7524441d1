"""``diagnose``: every rule over a run, causes first and what follows from them beneath."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pullback._checks import input_error
from pullback.advisor.causes import ORDER, in_order
from pullback.advisor.findings import Finding, Findings
from pullback.advisor.rules import RULES
from pullback.runs import Run, load_run


def diagnose(run: Run | str | Path, *, ignore: str | Iterable[str] = ()) -> Findings:
    """Findings of a run, causes first, each with what follows from it beneath; empty if its record shows nothing.

    The first one is what to do next. A rule reads the loop's losses at every step and what probes recorded, and is
    silent where they did not run; a record that cannot be judged says so as "not-measured". Thresholds stand in
    ``advisor/thresholds.py``; those that are conventions make a warning only where training does not work (the loss is
    not well below that of one answer for all samples, and fewer than four fifths of them are right), and are "info"
    otherwise. What follows from what is a table, ``advisor/causes.py``. Findings that were stored with the run under
    other names come last.

    Names: not-measured, non-finite-data, non-finite-outputs, loss-of-probabilities, gradients-not-zeroed,
    parameters-not-trained, weight-decay-too-high, schedule-at-zero, data-not-shuffled, targets-not-normalised,
    inputs-not-normalised, class-imbalance, learning-rate-too-high, learning-rate-too-low, non-finite-gradients,
    divergence,
    vanishing-gradients, exploding-gradients, ordered-initialisation, chaotic-initialisation, unbalanced-layers,
    saturated-units, dead-units, rank-collapse, ill-conditioning, conflicting-gradients, outlying-samples,
    suspect-samples, duplicates, batch-too-small, batch-too-large, batch-norm-batch-too-small, not-learning,
    loss-spikes, loss-oscillates, saddle-plateau, minimum-plateau, effective-rate-decay, lazy-regime, memorisation.

    Args:
        run: a run, or its folder.
        ignore: names of findings to leave out; what follows from them alone stands for itself. ``Findings.ignored``
            says which of them there were.

    Raises:
        InputError: the folder is no run; a name to ignore that no finding has.

    Example:
        >>> import tempfile
        >>> from pullback.runs import RunWriter
        >>> with RunWriter(tempfile.mkdtemp() + "/run", {}) as writer:
        ...     writer.append(50, "loss", {"loss": float("nan")})
        >>> [finding.name for finding in diagnose(writer.path)]
        ['divergence']
    """
    run = run if isinstance(run, Run) else load_run(run)
    stored = list(_stored(run))
    left_out = _chosen(ignore, [finding.name for finding in stored])
    made = [finding for rule in RULES for finding in rule(run)]
    findings = in_order(made)
    names = {finding.name for finding in findings}
    others = [finding for finding in stored if finding.name not in names]
    ignored = [finding.name for finding in (*findings, *others) if finding.name in left_out]
    if ignored:
        findings = in_order([finding for finding in made if finding.name in names - left_out])
    return Findings([*findings, *(each for each in others if each.name not in left_out)], tuple(dict.fromkeys(ignored)))


def _chosen(ignore: str | Iterable[str], stored: Iterable[str]) -> set[str]:
    """Names to leave out, of rules and of what is stored with the run."""
    asked = {ignore} if isinstance(ignore, str) else set(ignore)
    known = dict.fromkeys([*ORDER, *stored])
    if missing := sorted(asked - set(known), key=str):
        where, remedy = f"`ignore` of names among {', '.join(known)}", "Use the names that diagnose prints"
        raise input_error("diagnose", where, ", ".join(map(repr, missing)), remedy)
    return asked


def _stored(run: Run) -> Iterator[Finding]:
    """Findings that the run's own loop has stored, as far as they are whole."""
    yield from filter(None, (Finding.known(record.values) for record in run.of("finding")))
