"""Reads the numbers of a run for drawing, and takes nothing about them for granted.

A run may come from another version or another hand: a metric may be missing at some steps, or hold a text
where a number belongs. Such values become NaN here, so that the charts need not care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pullback.advisor.reading import rows
from pullback.charts.chart import ramp_colour
from pullback.charts.text import as_dict, clean
from pullback.runs import Record, Run

# Records of the monitor and of what the page draws elsewhere; all others are the loop's own.
DRAWN = frozenset({
    "loss", "gradients", "updates", "targets", "kernel", "noise", "alignment", "classes", "flow", "activations",
    "inputs", "labels",
    "batch_norm", "sharpness", "samples", "attention", "tangent", "effective_lr", "shift", "jacobian", "initialisation",
    "start", "cost", "work", "monitor", "finding", "not_finite", "leap", "schedule", "end", "loss_form",
    "targets_broadcast", "all_targets", "resume",
})  # fmt: skip


Series = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Look:
    """How a run looks among several: those of one setting share it."""

    label: str
    colour: str
    group: int


@dataclass(frozen=True)
class NamedRun:
    """A run and the name it goes by in the report; among several, how its setting looks."""

    name: str
    run: Run
    look: Look | None = None

    @cached_property
    def findings(self) -> list[dict[str, Any]]:
        """``Run.findings``, which is worked out anew whenever it is asked for."""
        return self.run.findings


@dataclass(frozen=True)
class Layers:
    """One number a layer and step.

    Attributes:
        names: in depth order, from input to output.
        steps: (S,), ascending, each once.
        values: (S, layers); NaN where nothing was measured.
    """

    names: list[str]
    steps: np.ndarray
    values: np.ndarray


def name_runs(runs: Sequence[Run]) -> list[NamedRun]:
    """Name runs by their folders, with the parent in front where two folders are called the same."""
    paths = [Path(run.path).absolute() for run in runs]
    names = [clean(path.name) or "run" for path in paths]
    if len(set(names)) < len(names):
        names = [clean(f"{path.parent.name}/{path.name}") for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, start=1)]
    return [NamedRun(name, run) for name, run in zip(names, runs, strict=True)]


def read_series(run: Run, probe: str, metric: str) -> Series:
    """Steps (S,) and values (S,) of a metric, one value a step (the last one stored); empty if it holds no number."""
    records = rows(run, probe)
    values = records.numbers(metric)
    known = ~np.isnan(values)
    if not known.all():
        known = records.has(metric)
        records, values = records.where(known), values[known]
        if not len(values) or (np.isnan(values).all() and not any(map(_is_number, records.cells(metric)))):
            return np.empty(0, np.int64), np.empty(0)
    last = _last_of_each(records.steps)
    return records.steps[last], values[last]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _last_of_each(steps: np.ndarray) -> np.ndarray:
    """(S,), of ascending steps where the next one is another."""
    return np.append(steps[1:] != steps[:-1], np.ones(min(1, len(steps)), bool))


def skipped_by(run: Run, probe: str, metric: str) -> tuple[int, ...]:
    """Steps at which the monitor measured something, but not this: not its turn, too dear, or failed.

    None of what is no probe of the monitor's: a loop logs when it likes.
    """
    if probe not in DRAWN:
        return ()
    measured, records = rows(run, "cost").steps, rows(run, probe)
    own = records.steps[records.has(metric)]
    if not len(own):
        return tuple(measured.tolist())
    return tuple(measured[own[np.minimum(np.searchsorted(own, measured), len(own) - 1)] != measured].tolist())


def read_lists(run: Run, probe: str, metric: str, most: int) -> Series:
    """Steps (S,) and the first numbers (S, L) of a metric that is a list, NaN behind its end."""
    records = rows(run, probe)
    lengths, values = records.lists(metric, most)
    records, values = records.where(lengths > 0), values[lengths > 0]
    last = _last_of_each(records.steps)
    return records.steps[last], values[last]


def read_layers(run: Run, probe: str, metric: str) -> Layers | None:
    """A metric that is a dict with one number a layer, or None if it was never measured."""
    records = rows(run, probe)
    names, values = records.layers(metric)
    known = np.any(~np.isnan(values), 1)
    if not known.all():  # of what has no number, only what is a dict all the same
        known[~known] = [bool(as_dict(cell)) for cell in records.where(~known).cells(metric)]
    records, values = records.where(known), values[known]
    last = _last_of_each(records.steps)
    return Layers(names, records.steps[last], values[last]) if len(records) else None


def layer_colours(run: Run, names: Sequence[str]) -> dict[str, str]:
    """A colour for each layer, the same in every chart of the run: by its place in the model, from input to output.

    Charts that name other parts (the maps between layers, the blocks of a transformer) count these by themselves.
    """
    model = as_dict(run.meta.get("model"))
    layers = model.get("layers")
    order = [each for each in layers if isinstance(each, str)] if isinstance(layers, list) else []
    known = order if set(names) <= set(order) else list(names)
    return {name: ramp_colour(known.index(name), len(known)) for name in names}


def last_value(run: Run, probe: str, metric: str) -> float | None:
    """The last value of a metric, or None if it was never measured."""
    values = read_series(run, probe, metric)[1]
    return float(values[-1]) if len(values) else None


def last_record(run: Run, probe: str, metric: str, kind: type) -> Record | None:
    """The last record in which a metric is of a kind, and not empty; None if there is none."""
    records = rows(run, probe)
    known = reversed(records.where(records.has(metric)))
    return next((each for each in known if isinstance(each.values[metric], kind) and each.values[metric]), None)
