"""Batch size against gradient noise, and against what batch norm's statistics need."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, by_layer, has, lasts, layers, number, records_with, span, with_layers
from pullback.advisor.severity import severity, severity_of_mistake
from pullback.advisor.thresholds import (
    AT_NO_COST,
    BATCH_NORM_COUNT,
    BATCH_NORM_SAMPLES,
    BATCH_TOO_LARGE,
    BATCH_TOO_SMALL,
    ENOUGH_FOR_NORM,
    LARGEST_FACTOR,
    LEAST_SIGNAL,
    MANY_STEPS,
    ONE_OR_TWO,
    STDERRS,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run
from pullback.runs.rows import Rows

NOISE = "McCandlish et al. (2018), arXiv:1812.06162, equations 2.9 and 2.11"


def too_small(run: Run) -> Iterator[Finding]:
    """Batches whose gradient is mostly noise. The scale grows as training ends, so a run that learns is not blamed."""
    findings = list(_beyond(run, "batch-too-small", small=True))
    yield from findings or _one_or_two(run)


def too_large(run: Run) -> Iterator[Finding]:
    """Batches whose samples mostly repeat each other: it costs computation, never accuracy by itself."""
    yield from _beyond(run, "batch-too-large", small=False)


def batch_norm_too_small(run: Run) -> Iterator[Finding]:
    """Statistics of batch norm made of few values, so that each sample's output depends on its company."""
    records = with_layers(run, "batch_norm", "smallest_count")
    few = (layers(records, "smallest_count")[1] < BATCH_NORM_COUNT).any(1)
    seen = records.where(few | (records.numbers("batch_size") <= BATCH_NORM_SAMPLES))
    if lasts(seen, records):
        counts = by_layer(seen[-1], "smallest_count")
        layer = min(counts, key=lambda name: counts[name])
        evidence = {"values per statistic": counts[layer]}
        batch = number(seen[-1].values.get("batch_size"))
        told = f"{batch:.0f} samples" if batch <= BATCH_NORM_SAMPLES else f"{counts[layer]:.0f} values"
        yield Finding(
            "batch-norm-batch-too-small",
            "warning",
            layer,
            span(seen),
            evidence | ({"batch size": batch} if has(seen[-1], "batch_size") else {}),
            f"fewer than {BATCH_NORM_COUNT} values: their variance is off by sqrt(2 / (n - 1)), a third or more; or "
            f"{BATCH_NORM_SAMPLES} samples at most, whose positions are much alike",
            "sampling error of a normal variance; Wu and He (2018), arXiv:1803.08494, figure 1",
            f"Use batches of {ENOUGH_FOR_NORM} samples or more, or group or layer norm in place of batch norm",
            summary=f"Batch norm takes its statistics of {told}, so that a sample's output hangs on its company.",
            change=_factor(ENOUGH_FOR_NORM / batch) if batch < ENOUGH_FOR_NORM else Change("normalisation", "layer"),
        )


def _beyond(run: Run, name: str, *, small: bool) -> Iterator[Finding]:
    records = records_with(run, "noise", "signal_to_noise", "batch_size")
    if not records:
        return
    share, error = _signal_share(records)
    batch = float(np.median(records.numbers("batch_size")))
    least, scale, most = (_noise_scale(each) for each in (share + STDERRS * error, share, share - STDERRS * error))
    if math.isinf(least):  # less than no signal, by more than the error: the error is wrong
        return
    evidence = {"batch size": batch} | (
        {"noise scale": scale} if scale < math.inf else {"noise scale, at least": least}
    )
    tiny = small and batch <= ONE_OR_TWO and batch < least and severity_of_mistake(run) == "warning"
    if tiny or (small and batch < BATCH_TOO_SMALL * least):
        wanted = scale if scale < math.inf else least
        wanted = max(wanted, AT_NO_COST * batch) if tiny else wanted
        side, limit, level = "below", BATCH_TOO_SMALL, "warning" if tiny else severity(run)
        action = f"Use batches of up to {wanted:.0f} samples, or average over steps (momentum, a lower rate)"
        summary, change = (
            "The gradient of a batch is mostly noise, so that most of a step is lost.",
            _factor(wanted / batch),
        )
    elif not small and batch > BATCH_TOO_LARGE * most:
        side, limit, level = "above", BATCH_TOO_LARGE, "info"
        action = f"Batches of {max(1.0, scale):.0f} samples reach the same loss with less computation"
        summary, change = "The samples of a batch mostly repeat each other: fewer cost less and say the same.", None
    else:
        return
    threshold = f"batch {side} {limit:g} noise scales by {STDERRS:g} standard errors, over all measurements"
    if tiny:
        threshold += f", or of {ONE_OR_TWO} samples at most and below the noise scale, where much is left to learn"
    first, last = span(records)
    seen = (0 if tiny else first, last)  # that stands in the settings
    yield Finding(name, level, None, seen, evidence, threshold, NOISE, action, summary=summary, change=change)


def _one_or_two(run: Run) -> Iterator[Finding]:
    """So few samples a batch that what is measured may not tell noise from signal, where much is left to learn."""
    sizes = records_with(run, "loss_form", "batch_size").numbers("batch_size").tolist()
    losses = training_losses(run)
    if not sizes or max(sizes) > ONE_OR_TWO or len(losses) < MANY_STEPS or severity_of_mistake(run) == "info":
        return
    yield Finding(
        "batch-too-small",
        "warning",
        None,
        (0, int(losses.steps[-1])),  # that stands in the settings
        {"batch size": max(sizes)},
        f"batches of {ONE_OR_TWO} samples at most, where much is left to learn",
        CONVENTION,
        "Use batches of eight samples or more: they take hardly longer",
        summary="Each step follows one sample or two, whose noise nothing averages out.",
        change=_factor(AT_NO_COST),
    )


def _factor(wanted: float) -> Change:
    """Larger batches, within what one change may do: further ones can follow."""
    return Change("batch_size", min(LARGEST_FACTOR, max(1.0, wanted)))


def _signal_share(records: Rows) -> tuple[float, float]:
    """Mean of |G|^2 / (|G|^2 + tr(Sigma)) over the measurements, and its standard error.

    Of one measurement the ratio scatters, its noise scale more so, and it is not defined where no signal shows. The
    error is the larger of what the scatter and what the measurements' own errors say: two may agree by chance.
    """
    ratios = np.maximum(records.numbers("signal_to_noise"), LEAST_SIGNAL)
    shares, errors = ratios / (1 + ratios), records.numbers("signal_to_noise_stderr") / (1 + ratios) ** 2
    errors = errors[np.isfinite(errors)]
    scatter = float(shares.std(ddof=1)) if len(shares) > 1 else 0.0
    return float(shares.mean()), max(scatter, float(errors.mean()) if len(errors) else 0.0) / math.sqrt(len(shares))


def _noise_scale(share: float) -> float:
    """Samples at which noise and signal are equal; infinite where there is no signal."""
    return 1 / share - 1 if share > 0 else math.inf
