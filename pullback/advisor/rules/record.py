"""What the record itself says: whether it can be judged at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pullback.advisor.findings import Finding
from pullback.advisor.reading import not_finite, number
from pullback.advisor.thresholds import UNSEEN_STEPS
from pullback.advisor.training_losses import training_losses
from pullback.runs import Record, Run

OWN = ("monitor", "finding")  # records that are no probe of the model
ALWAYS_ASKED = ("loss", "gradients", "kernel", "noise", "alignment", "flow", "activations", "sharpness", "monitor")
MOST_NAMED = 8


def not_measured(run: Run) -> Iterator[Finding]:
    """Probes that failed, a run without a loss or a measurement, one that an error ended: that is no all-clear."""
    reason = _failed(run) or _blind(run) or _ended(run)
    if reason is not None:
        yield reason


def _failed(run: Run) -> Finding | None:
    """Probes that failed at every attempt before the loss left the finite numbers."""
    bad = min(not_finite(run), default=None)
    whole = run.measured
    failed = [r for r in run.failed if "a finite loss" not in str(r.error) and not _after(r, bad)]
    never = [r for r in failed if r.probe not in whole]
    if not never:
        return None
    probes = list(dict.fromkeys(r.probe for r in never))
    words, count = Counter(str(r.error) for r in never).most_common(1)[0]
    blew_up = bad is not None and "loss" in whole  # the loss, which was seen, says why curvature could not be had
    important = any(probe in ALWAYS_ASKED for probe in probes) and not blew_up
    named = ", ".join(probes[:MOST_NAMED]) + (
        f" and {len(probes) - MOST_NAMED} more" if len(probes) > MOST_NAMED else ""
    )
    return Finding(
        "not-measured",
        "warning" if important else "info",
        None,
        (never[0].step, never[-1].step),
        {"probes that failed": float(len(probes)), "failures": float(len(never)), "for this reason": float(count)},
        "probes that failed at every measurement",
        "the record",
        _remedy(words),
        summary=f"{named} could not be measured ({words.rstrip('.')}): what they would show is not known.",
    )


def _after(record: Record, bad: int | None) -> bool:
    return bad is not None and record.step >= bad


def _remedy(words: str) -> str:
    """The last sentence of an error of this package is one; of others what is asked is the error's own place."""
    parts = words.rstrip(".").split(". ")
    if ": expected " in words and len(parts) > 1:
        return parts[-1]
    return "Correct what the error says; a measurement calls the model in eval mode on a part of the batch"


def _blind(run: Run) -> Finding | None:
    """No loss, or no measurement in most of the run."""
    losses = training_losses(run)
    others = (*OWN, "start", "end", "schedule")
    steps = [at for probe, at in run.measured.items() if probe not in others]
    measured = np.unique(np.concatenate([*steps, np.empty(0, np.int64)]))
    end = max([*run.steps[-1:], *losses.steps[-1:].tolist()], default=0)
    if not_finite(run):
        return None
    if not len(losses.values):
        words, remedy = "The record holds no loss", "Call monitor.step(x, y, loss=loss) after every optimizer.step()"
    elif not len(measured):
        words, remedy = (
            "Nothing was measured",
            "Hand every batch to monitor.step(x, y, loss=loss), and end the run with monitor.close()",
        )
    elif end - measured[-1] > UNSEEN_STEPS * end:
        words = f"The last measurement is of step {measured[-1]}, of {end}"
        remedy = "Raise budget=, or measure every few steps with fewer probes (probes='light')"
    else:
        return None
    return Finding(
        "not-measured",
        "warning",
        None,
        (0, end),
        {"measurements": float(len(measured)), "losses": float(len(losses.values))},
        f"no loss, no measurement, or none in the last {UNSEEN_STEPS:.0%} of the steps",
        "the record",
        remedy,
        summary=f"{words}: what goes wrong in this run cannot be seen.",
    )


def _ended(run: Run) -> Finding | None:
    """An error that came out of the loop."""
    for record in run.of("end"):
        error = record.values.get("error")
        if isinstance(error, str) and error and "KeyboardInterrupt" not in error:
            return Finding(
                "not-measured",
                "warning",
                None,
                (record.step, record.step),
                {"steps": number(record.values.get("steps", record.step))},
                "an error that ended the training",
                "the record",
                "Correct what the error says, and train on from the last checkpoint",
                summary=f"An error ended the training ({error.rstrip('.')}): what would have come is not known.",
            )
    return None
