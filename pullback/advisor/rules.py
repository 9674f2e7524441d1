"""The rules, one function each: a run to the findings its record supports."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pullback.advisor.findings import Finding
from pullback.runs import Record, Run

SHARE_OF_MEASUREMENTS = 0.5  # a state counts if at least half of the measurements show it
ILL_CONDITIONED = 0.75  # log(N / effective rank) / log(N); 1 is a single direction
CONFLICT = -0.05  # mean cosine; independent directions give 0

VANISHING_ACTION = (
    "Use an activation that keeps gradients (ReLU family), add normalisation (layer or batch norm), "
    "skip connections, or He initialisation"
)
EXPLODING_ACTION = (
    "Lower the weight scale of the initialisation, add normalisation (layer or batch norm) or skip connections, "
    "or clip gradients by norm"
)
CONDITIONING_ACTION = (
    "Use an adaptive optimiser (Adam, RMSprop), a smaller learning rate, or a second-order method that evens the "
    "directions out"
)


def divergence(run: Run) -> Iterator[Finding]:
    """The loss left the finite numbers, or measurements failed because it had."""
    bad = [r.step for r in run.of("loss") if not math.isfinite(_number(r.values.get("loss")))]
    bad += [r.step for r in run.records if r.error and "a finite loss" in r.error]
    if bad:
        yield Finding(
            "divergence",
            "critical",
            None,
            (min(bad), max(bad)),
            {"measurements": len(bad)},
            "the loss is NaN or infinite",
            "definition",
            "Lower the learning rate, or clip gradients by norm",
        )


def learning_rate(run: Run) -> Iterator[Finding]:
    """Sharpness above 2 / lr under plain SGD; other optimisers have other limits."""
    records = [r for r in run.of("sharpness") if r.values.get("optimizer") == "SGD" and _has(r, "limit", "hessian")]
    above = [r for r in records if r.values["hessian"] > r.values["limit"]]
    if above and len(above) >= SHARE_OF_MEASUREMENTS * len(records):
        worst = max(above, key=lambda r: r.values["hessian"] / r.values["limit"])
        yield Finding(
            "learning-rate-too-high",
            "warning",
            None,
            (above[0].step, above[-1].step),
            {"sharpness": worst.values["hessian"], "limit": worst.values["limit"]},
            "largest Hessian eigenvalue above 2 / learning rate in half of the measurements",
            "stability of gradient descent on a quadratic; Cohen et al. (2021), arXiv:2103.00065",
            f"Lower the learning rate to below {2 / worst.values['hessian']:.3g}",
        )


def gradient_flow(run: Run) -> Iterator[Finding]:
    """Gradients that shrink or grow a hundredfold (squared) from the last layer to the first."""
    records = list(run.of("flow"))
    for verdict, action in (("vanishing", VANISHING_ACTION), ("exploding", EXPLODING_ACTION)):
        seen = [r for r in records if r.values.get("verdict") == verdict and _has(r, "slope")]
        if not seen or len(seen) < SHARE_OF_MEASUREMENTS * len(records):
            continue
        last = seen[-1]
        norms = last.values.get("gradient_norm")
        norms = norms if isinstance(norms, dict) else {}
        weakest = min(norms, key=lambda layer: _number(norms[layer])) if verdict == "vanishing" and norms else None
        strongest = max(norms, key=lambda layer: _number(norms[layer])) if verdict == "exploding" and norms else None
        evidence = {"slope of ln|g|^2 per layer": float(last.values["slope"])}
        if norms:
            values = [_number(value) for value in norms.values()]
            evidence |= {"first layer's gradient norm": values[0], "last layer's": values[-1]}
        yield Finding(
            f"{verdict}-gradients",
            "warning",
            weakest or strongest,
            (seen[0].step, last.step),
            evidence,
            "a hundredfold change of the squared gradient norm over the depth, in half of the measurements",
            "convention of this package, see the design notes; Schoenholz et al. (2017), arXiv:1611.01232",
            action,
        )


def ill_conditioning(run: Run) -> Iterator[Finding]:
    """Almost all of the gradients' energy in a few directions."""
    records = [r for r in run.of("kernel") if _has(r, "effective_rank", "num_samples") and r.values["num_samples"] > 1]
    ill = [r for r in records if _concentration(r) > ILL_CONDITIONED]
    if ill and len(ill) >= SHARE_OF_MEASUREMENTS * len(records):
        last = ill[-1].values
        yield Finding(
            "ill-conditioning",
            "info",
            None,
            (ill[0].step, ill[-1].step),
            {"effective rank": last["effective_rank"], "samples": last["num_samples"]},
            f"log(N / effective rank) above {ILL_CONDITIONED} log(N) in half of the measurements",
            "convention of this package, see the design notes",
            CONDITIONING_ACTION,
        )


def conflicting_gradients(run: Run) -> Iterator[Finding]:
    """Samples that on the whole pull against each other."""
    records = [r for r in run.of("alignment") if _has(r, "mean_cosine", "conflict_fraction")]
    bad = [r for r in records if r.values["mean_cosine"] < CONFLICT]
    if bad and len(bad) >= SHARE_OF_MEASUREMENTS * len(records):
        last = bad[-1].values
        yield Finding(
            "conflicting-gradients",
            "info",
            None,
            (bad[0].step, bad[-1].step),
            {"mean cosine": last["mean_cosine"], "share of conflicting pairs": last["conflict_fraction"]},
            f"mean cosine below {CONFLICT} in half of the measurements",
            "convention of this package, see the design notes",
            "Look at the most conflicting pairs for wrong labels, and consider a larger batch",
        )


def _concentration(record: Record) -> float:
    rank, n = record.values["effective_rank"], record.values["num_samples"]
    return math.log(n / rank) / math.log(n) if rank > 0 else 0.0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _has(record: Record, *names: str) -> bool:
    """Whether the values are there and finite: a record may be damaged or altered."""
    return all(math.isfinite(_number(record.values.get(name))) for name in names)
