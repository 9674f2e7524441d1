"""``verdict``: what a run came to, and why, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pullback._text import first_listed, share_of
from pullback.advisor.diagnose import diagnose
from pullback.advisor.findings import Finding
from pullback.advisor.reading import number
from pullback.advisor.rules import RULES
from pullback.advisor.rules.curvature import curvatures_of
from pullback.advisor.sources import unseen
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run, load_run

LONGEST = 300  # characters
MOST_NAMED = 4  # of what was not measured: before the first dear measurement there is much

# What a run does, the gravest first; a run that does none of it is told by the loss it reached.
OUTCOMES = {
    "divergence": "Diverges from step {step:,}",
    "non-finite-outputs": "Has outputs that are no numbers, from step {step:,}",
    "non-finite-gradients": "Has gradients that are no numbers, from step {step:,}",
    "not-learning": "Learns nothing",
    "loss-spikes": "Leaps from step {step:,}",
    "loss-oscillates": "Swings from step {step:,}",
    "saddle-plateau": "Stands still from step {step:,}",
    "minimum-plateau": "Stands still from step {step:,}",
    "memorisation": "Learns by heart",
}
_OVER = "curvature over its limit"


def verdict(run: Run | str | Path, findings: Sequence[Finding] | None = None) -> str:
    """What a run came to and its first cause, or what it reached and that no rule found anything, in one sentence.

    It is text without markup or control characters, at most 300 characters, without a full stop.

    Args:
        run: a run, or its folder.
        findings: of ``pullback.diagnose``, where they are known already.

    Raises:
        InputError: the folder is no run.

    Example:
        >>> import tempfile
        >>> from pullback.runs import RunWriter
        >>> with RunWriter(tempfile.mkdtemp() + "/run", {}) as writer:
        ...     for step, loss in enumerate([2.0, 3.0, float("nan")]):
        ...         writer.append(step, "loss", {"loss": loss})
        >>> verdict(writer.path)
        'Diverges from step 2: the loss left the finite numbers at step 2'
    """
    run = run if isinstance(run, Run) else load_run(run)
    findings = diagnose(run) if findings is None else findings
    wrong = [finding for finding in findings if finding.severity != "info"]
    text = _of_trouble(run, wrong) if wrong else _of_health(run, findings)
    text = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _of_trouble(run: Run, wrong: Sequence[Finding]) -> str:
    by_name = {finding.name: finding for finding in reversed(wrong)}
    outcome = next((name for name in OUTCOMES if name in by_name), None)
    told = _reached(run) if outcome is None else OUTCOMES[outcome].format(step=by_name[outcome].steps[0])
    causes = [finding for finding in wrong if not finding.because]
    others = len(causes) - 1
    more = f", and {others} more cause{'s' if others > 1 else ''}" if others > 0 else ""
    return f"{told}: {_why(run, wrong[0])}{more}"


def _of_health(run: Run, findings: Sequence[Finding]) -> str:
    """What was reached, that nothing is wrong, what is worth knowing, and what would have let further rules look."""
    missing = unseen(run)
    able = f"{len(RULES) - len(missing)} of {len(RULES)}" if missing else f"any of {len(RULES)}"
    worth = [name.replace("-", " ") for name in dict.fromkeys(finding.name for finding in findings)]
    known = f"; worth knowing: {first_listed(worth, MOST_NAMED)}" if worth else ""
    without = sorted({source for sources in missing.values() for source in sources})
    lacking = f"; not measured: {first_listed(without, MOST_NAMED)}" if without else ""
    return f"{_reached(run)}: no fault found by {able} rules{known}{lacking}"


def _reached(run: Run) -> str:
    """The loss at the end, in units of what one answer for all samples reaches where that is known."""
    losses = training_losses(run)
    if not len(losses):
        return "Nothing is known of its loss"
    over = f" (median of {losses.window} steps)" if losses.window > 1 else ""
    first, at = float(losses.finite[0]), f"{losses.last:.3g} at step {int(losses.steps[-1]):,}{over}"
    text = (
        f"Ends at a loss of {at}, above its first one, {first:.3g}"
        if losses.last > first
        else f"Reached a loss of {at}"
    )
    if losses.share is None or losses.constant is None:
        return text
    return f"{text}, {share_of(losses.share)} the best constant answer's {losses.constant:.3g}"


def _why(run: Run, finding: Finding) -> str:
    """The finding as a clause: its rate beside what the curvature bears, else the beginning of its summary."""
    rates = _rates(run, finding)
    if rates is not None:
        return f"the learning rate, {rates[0]:.3g}, is beyond what the curvature bears, {rates[1]:.3g}"
    told = str(finding.summary or finding.name.replace("-", " "))
    clause = told.split(": ")[0].split(". ")[0].rstrip(".")
    first = clause.split(" ")[0]
    named = first in _layers(run)
    is_plain = first.isalpha() and first[1:] == first[1:].lower()  # "A", "The", and no "ReLU" or "NaN"
    return clause[0].lower() + clause[1:] if is_plain and not named else clause


def _rates(run: Run, finding: Finding) -> tuple[float, float] | None:
    """The learning rate that a finding calls too high by the curvature, and the highest that is not."""
    evidence = finding.evidence
    if {"sharpness", "limit"} <= evidence.keys():
        ratio = evidence["sharpness"] / evidence["limit"] if evidence["limit"] else math.nan
    else:
        ratio = number(evidence.get(_OVER))
    if finding.name not in ("learning-rate-too-high", "divergence") or not ratio > 1:
        return None
    for each in curvatures_of(run):
        rate = each.rate
        if each.limit and math.isclose(each.sharpness / each.limit, ratio, rel_tol=1e-9) and rate > 0:
            return rate, each.stable_rate
    return None


def _layers(run: Run) -> list[object]:
    model = run.meta.get("model")
    layers = model.get("layers") if isinstance(model, dict) else None
    return layers if isinstance(layers, list) else []
