"""Batch size against gradient noise, and against what batch norm's statistics need."""

from __future__ import annotations

from collections.abc import Iterator

from pullback.advisor.findings import Finding
from pullback.advisor.reading import by_layer, has, lasts, number, records_with, severity, span
from pullback.advisor.thresholds import BATCH_NORM_COUNT, BATCH_TOO_LARGE, BATCH_TOO_SMALL, STDERRS
from pullback.runs import Record, Run

NOISE = "McCandlish et al. (2018), arXiv:1812.06162, equations 2.9 and 2.11"


def too_small(run: Run) -> Iterator[Finding]:
    """Batches whose gradient is mostly noise. The scale grows as training ends, so a run that learns is not blamed."""
    records = _measured(run)
    seen = [r for r in records if r.values["batch_size"] < BATCH_TOO_SMALL * _bound(r, -STDERRS)]
    if lasts(seen, records):
        last = seen[-1].values
        yield Finding(
            "batch-too-small",
            severity(run),
            None,
            span(seen),
            {"batch size": last["batch_size"], "noise scale": last["noise_scale"]},
            f"batch below {BATCH_TOO_SMALL:g} noise scales by {STDERRS:g} standard errors in half of the measurements",
            NOISE,
            f"Use batches of up to {last['noise_scale']:.0f} samples, or average over steps (momentum, a lower rate)",
        )


def too_large(run: Run) -> Iterator[Finding]:
    """Batches whose samples mostly repeat each other: it costs computation, never accuracy by itself."""
    records = _measured(run)
    seen = [r for r in records if r.values["batch_size"] > BATCH_TOO_LARGE * _bound(r, STDERRS)]
    if lasts(seen, records):
        last = seen[-1].values
        yield Finding(
            "batch-too-large",
            "info",
            None,
            span(seen),
            {"batch size": last["batch_size"], "noise scale": last["noise_scale"]},
            f"batch above {BATCH_TOO_LARGE:g} noise scales by {STDERRS:g} standard errors in half of the measurements",
            NOISE,
            f"Batches of {max(1.0, last['noise_scale']):.0f} samples reach the same loss with less computation",
        )


def batch_norm_too_small(run: Run) -> Iterator[Finding]:
    """Statistics of batch norm made of few values, so that each sample's output depends on its company."""
    records = [r for r in run.of("batch_norm") if by_layer(r, "smallest_count")]
    seen = [r for r in records if min(by_layer(r, "smallest_count").values()) < BATCH_NORM_COUNT]
    if lasts(seen, records):
        counts = by_layer(seen[-1], "smallest_count")
        layer = min(counts, key=lambda name: counts[name])
        evidence = {"values per statistic": counts[layer]}
        batch = number(seen[-1].values.get("batch_size"))
        yield Finding(
            "batch-norm-batch-too-small",
            "warning",
            layer,
            span(seen),
            evidence | ({"batch size": batch} if has(seen[-1], "batch_size") else {}),
            f"fewer than {BATCH_NORM_COUNT} values: their variance is off by sqrt(2 / (n - 1)), a third or more",
            "sampling error of a normal variance; Wu and He (2018), arXiv:1803.08494, figure 1",
            "Use larger batches, or group or layer norm in place of batch norm",
        )


def _measured(run: Run) -> list[Record]:
    return records_with(run, "noise", "noise_scale", "batch_size")


def _bound(record: Record, stderrs: float) -> float:
    """Noise scale so many standard errors up or down; an unknown error leaves the estimate."""
    error = number(record.values["noise_scale_stderr"]) if has(record, "noise_scale_stderr") else 0.0
    return record.values["noise_scale"] + stderrs * error
