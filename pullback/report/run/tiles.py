"""The few numbers to look at first, each judged: against one constant answer, or the limit of the optimizer used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pullback._text import duration, share_of
from pullback.advisor.reading import rows
from pullback.advisor.rules.curvature import curvatures_of
from pullback.advisor.severity import constant_accuracy, learns
from pullback.advisor.thresholds import CONFLICT, FALLS_SHORT, LEARNS_SHARE
from pullback.advisor.training_losses import training_losses
from pullback.charts.numbers import finite
from pullback.charts.text import number, percent
from pullback.report.run.series import NamedRun, last_value, read_series
from pullback.runs import Run


class Tile(NamedTuple):
    """A number of the head: ``judgement`` is "good", "look", "bad", or empty where there is nothing to judge by."""

    label: str
    value: str
    note: str
    judgement: str = ""


def key_numbers(named: NamedRun) -> list[Tile]:
    """The tiles of a run, always the same ones in the same order."""
    run = named.run
    loss, loss_note = _final_loss(run)
    conflict, cosine = (last_value(run, "alignment", name) for name in ("conflict_fraction", "mean_cosine"))
    over = "" if cosine is None else f", the mean cosine of all is {number(cosine, 2)}"
    share, size = _share_of_one_answer(run)
    return [
        Tile("Final loss", *_shown(loss, number, loss_note + size), "bad" if _is_lost(loss) else _by_share(share)),
        _held_out(run),
        Tile("Sharpness", *_sharpness(named), _of_sharpness(run)),
        Tile("Pairs in conflict", *_shown(conflict, percent, f"at the last measurement{over}"), _of_conflict(named)),
        Tile("Time to watch", *_cost(named)),
    ]


def _by_share(left: float | None) -> str:
    """By what is left of the loss of one answer for all, or of the answers that it gets wrong."""
    if left is None or not math.isfinite(left):
        return ""
    return "good" if left <= FALLS_SHORT else "look" if left <= LEARNS_SHARE else "bad"


def _share_of_one_answer(run: Run) -> tuple[float | None, str]:
    losses = training_losses(run)
    share = losses.share
    if share is None or losses.constant is None:
        return None, ""
    over = f"the median of the last {losses.window}" if losses.window > 1 else "it"
    return share, f"; {over} is {share_of(share)} the best constant answer's {number(losses.constant, 3)}"


def _is_lost(loss: float | None) -> bool:
    return loss is not None and not math.isfinite(loss)


def _of_accuracy(run: Run, accuracy: float | None) -> str:
    """Against that of the most frequent class; where it is not known, nothing is said."""
    constant = constant_accuracy(run, rows(run, "loss"))
    if accuracy is None or not constant < 1:
        return ""
    return _by_share((1 - accuracy) / (1 - constant))


def _of_sharpness(run: Run) -> str:
    """Against the limit of the optimizer that made the steps; above it training may hover, and still work."""
    known = [each for each in curvatures_of(run) if not each.at_start]
    if not known or not known[-1].limit > 0:
        return ""
    return "good" if known[-1].sharpness <= known[-1].limit else "look" if learns(run) else "bad"


def _of_conflict(named: NamedRun) -> str:
    """By the mean cosine, and by what the findings say, which look at classes too."""
    run = named.run
    cosine = last_value(run, "alignment", "mean_cosine")
    if cosine is None or not math.isfinite(cosine):
        return ""
    if cosine < CONFLICT:
        return "look" if learns(run) else "bad"
    most = (last_value(run, "alignment", "conflict_fraction") or 0.0) > 0.5  # a few agree so well that the mean does
    told = any(values.get("name") == "conflicting-gradients" for values in named.findings)
    return "look" if most or told else "good"


def _held_out(run: Run) -> Tile:
    """The accuracy on held-out samples, or their loss where there is none, as of numbers."""
    accuracy, when = _first_known(run, "accuracy")
    loss, at = _first_known(run, "loss")
    if accuracy is None and loss is not None:
        constant = training_losses(run).constant
        known = constant is not None and constant > 0 and math.isfinite(loss)
        share = loss / constant if known and constant is not None else None
        beside = (
            ""
            if share is None or constant is None
            else f"; {share_of(share)} the best constant answer's {number(constant, 3)}"
        )
        return Tile("Test loss", number(loss), at + beside, "bad" if _is_lost(loss) else _by_share(share))
    constant = constant_accuracy(run, rows(run, "loss"))
    beside = f"; the most frequent class alone makes {percent(constant)}" if math.isfinite(constant) else ""
    return Tile("Test accuracy", *_shown(accuracy, percent, when + beside), _of_accuracy(run, accuracy))


def _first_known(run: Run, name: str) -> tuple[float | None, str]:
    of_epoch = last_value(run, "epoch", f"test_{name}")
    if of_epoch is not None:
        return of_epoch, "after the last epoch"
    return last_value(run, "test", name), "of the held-out samples"


def _final_loss(run: Run) -> tuple[float | None, str]:
    """The loop's own last loss, or what stands for it in a run that was shown none; and what it is."""
    steps, losses = run.courses.of("loss")
    if len(losses):
        return float(losses[-1]), f"of the batch of step {steps[-1]:,}"
    measured, values = read_series(run, "loss", "loss")
    if len(values):
        return float(values[-1]), f"on the samples measured at step {measured[-1]:,}"
    return last_value(run, "epoch", "train_loss"), "mean of the last epoch"


def _shown(value: float | None, show: Callable[[object], str], note: str) -> tuple[str, str]:
    return ("–", "not measured") if value is None else (show(value), note)


def _sharpness(named: NamedRun) -> tuple[str, str]:
    """The last sharpness, how it compares with the limit of the learning rate, and when that was."""
    steps, _ = read_series(named.run, "sharpness", "hessian")
    when = f"at step {int(steps[-1]):,}" if len(steps) else ""
    sharpness, limit = (last_value(named.run, "sharpness", name) for name in ("hessian", "limit"))
    own = tuple(last_value(named.run, "sharpness", name) for name in ("preconditioned", "preconditioned_limit"))
    if None not in own:  # as the optimizer sees it, whose limit is of that
        sharpness, limit = own
    if sharpness is None:
        return "–", "not measured"
    if limit is None or not math.isfinite(limit) or limit <= 0:
        return number(sharpness, 3), f"{when}, its limit is unknown"
    share = sharpness / limit
    return number(sharpness, 3), f"{share_of(share)} the limit {number(limit, 3)}, {when}"


def _cost(named: NamedRun) -> tuple[str, str]:
    """Total time of the measurements, and its share of the time on record."""
    spent = finite(read_series(named.run, "cost", "seconds")[1])
    if not len(spent):
        return "–", "not measured"
    total, whole = float(spent.sum()), named.run.seconds
    each = f"{duration(total / len(spent))} a measurement"
    share = f"{percent(total / whole)} of the run, " if 0 < total <= whole else ""
    return duration(total), share + each
