"""What is not trained: in no optimizer, frozen, or without a gradient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import largest, layers, records_with, rows, span
from pullback.advisor.rules.words import as_dict, listed, names_in
from pullback.advisor.severity import severity
from pullback.advisor.thresholds import FALLS_SHORT, FEW_STEPS, LEARNS_SHARE, MOVES
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run

SOURCE = "definition: a relative update of 0, while others move"


def parameters_not_trained(run: Run) -> Iterator[Finding]:
    """Parameters that stay what they were: in no optimizer, frozen behind others that learn, or without a gradient."""
    model, optimizer = (as_dict(run.meta.get(name)) for name in ("model", "optimizer"))
    left_out, frozen = names_in(optimizer.get("left_out")), names_in(model.get("frozen"))
    if left_out:
        yield _held_by_none(run, left_out)
    elif stopped := _all_still(run):
        yield _stopped(run, stopped)
    elif still := _still(run):
        yield _detached(run, still)
    elif frozen:
        yield _frozen(run, frozen, names_in(model.get("frozen_behind")))


def _held_by_none(run: Run, left_out: list[str]) -> Finding:
    return Finding(
        "parameters-not-trained",
        "warning",
        left_out[0].rpartition(".")[0] or None,
        (0, max(run.steps[-1:], default=0)),
        {"parameters in no optimizer": float(len(left_out))},
        "a parameter that requires a gradient and that no optimizer holds",
        SOURCE,
        f"Hand {listed(left_out)} to the optimizer, or freeze them with requires_grad_(False) if that is meant",
        summary=f"{listed(left_out)} never change, because no optimizer holds them.",
        change=Change("train_parameters", tuple(left_out)),
    )


def _stopped(run: Run, stopped: list[str]) -> Finding:
    return Finding(
        "parameters-not-trained",
        "warning",
        None,
        span(rows(run, "updates")),
        {"layers that never move": float(len(stopped)), "their gradient": _size_of_gradient(run)},
        "a relative update of exactly 0 of all layers in all measurements, of a loss whose gradient is not 0",
        "definition: a step that leaves the weights as they are",
        "Call optimizer.step() after loss.backward(), with no zero_grad() between them, and see that gradients "
        "are not rounded to 0 (in half precision, use a gradient scaler)",
        summary="No weight ever moves, although the loss has a gradient: no step reaches the model.",
        change=Change("train_parameters", tuple(stopped)),
    )


def _detached(run: Run, still: list[str]) -> Finding:
    return Finding(
        "parameters-not-trained",
        "warning" if _holds_back(run) else severity(run),
        still[0],
        span(rows(run, "updates")),
        {"layers that never move": float(len(still))},
        f"a relative update of exactly 0 in all measurements, while others are above {MOVES:g}",
        SOURCE,
        f"Look for a detach(), a no_grad() or an item() between {listed(still)} and the loss",
        summary=f"{listed(still)} never move although others do: no gradient reaches them.",
        change=Change("train_parameters", tuple(still)),
    )


def _frozen(run: Run, frozen: list[str], behind: list[str]) -> Finding:
    """Meant, as a rule; not where layers that learn lie before them, or where they hold the model back."""
    blank = not behind and _holds_back(run)
    meant = behind or frozen
    return Finding(
        "parameters-not-trained",
        severity(run) if behind else "warning" if blank else "info",
        meant[0].rpartition(".")[0] or None,
        (0, max(run.steps[-1:], default=0)),
        {"frozen parameters": float(len(frozen)), "of them behind layers that learn": float(len(behind))},
        "parameters that require no gradient; a warning if training fails and some lie behind layers that learn, "
        f"or if a model that began with what one answer reaches has more than {FALLS_SHORT:g} of its loss left",
        SOURCE,
        f"If that is not meant, call requires_grad_(True) on {listed(meant)}",
        summary=f"{listed(meant)} are frozen and stay as they are"
        + (", and what they make of the inputs does not suffice." if blank else "."),
        change=Change("train_parameters", tuple(meant)) if behind or blank else None,
    )


def _holds_back(run: Run) -> bool:
    """Whether layers that stay as they are knew nothing of the task at the start, and much is left to learn at the end.

    Those of a model that was trained before bring their knowledge along, or what they make of the inputs suffices.
    """
    losses = training_losses(run)
    if losses.share is None or losses.constant is None or losses.least is None:
        return False
    first = (float(losses.finite[:FEW_STEPS].max()) - losses.least) / (losses.constant - losses.least)
    return first > LEARNS_SHARE and losses.share > FALLS_SHORT


def _all_still(run: Run) -> list[str]:
    """All layers, where none of them has an update in any of at least two measurements, nor a rate of 0 says why."""
    names, ratios = layers(rows(run, "updates"), "ratio")
    measured = ratios[np.isfinite(ratios).any(1)]
    rates = run.courses.of("learning_rate")[1]
    if len(measured) < 2 or (len(rates) and not (rates > 0).all()) or not _size_of_gradient(run) > 0:
        return []
    return names if bool((np.nan_to_num(measured) == 0.0).all()) else []


def _size_of_gradient(run: Run) -> float:
    """The median over the measurements of samples' gradients; 0 where none was measured."""
    sizes = records_with(run, "gradients", "rms_gradient_norm").numbers("rms_gradient_norm")
    return float(np.median(sizes)) if len(sizes) else 0.0


def _still(run: Run) -> list[str]:
    """Layers without an update in all of at least two measurements in which others have one."""
    names, ratios = layers(rows(run, "updates"), "ratio")
    moving = ratios[largest(ratios) > MOVES]
    if len(moving) < 2:
        return []
    return [name for name, still in zip(names, (moving == 0.0).all(0).tolist(), strict=True) if still]
