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

from pullback.charts.chart import ramp_colour
from pullback.charts.text import as_dict, as_float, clean
from pullback.runs import Run

# Records of the monitor and of what the page draws elsewhere; all others are the loop's own.
DRAWN = frozenset({
    "loss", "gradients", "updates", "targets", "kernel", "noise", "alignment", "classes", "flow", "activations",
    "inputs",
    "batch_norm", "sharpness", "samples", "attention", "tangent", "effective_lr", "shift", "jacobian", "initialisation",
    "start", "cost", "work", "monitor", "finding", "not_finite", "leap", "schedule", "end", "loss_form",
    "targets_broadcast", "all_targets", "resume",
})  # fmt: skip


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
        steps: ascending, each once.
        values: (steps, layers); NaN where nothing was measured.
    """

    names: list[str]
    steps: list[int]
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


def read_series(run: Run, probe: str, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, one value a step (the last one stored); empty if it holds no number."""
    steps, values = run.series(probe, metric)
    by_step = {step: as_float(value) for step, value in zip(steps, values, strict=True)}
    if not any(isinstance(value, int | float) for value in values):
        return [], []
    return list(by_step), list(by_step.values())


def skipped_by(run: Run, probe: str, metric: str) -> tuple[int, ...]:
    """Steps at which the monitor measured something, but not this: not its turn, too dear, or failed.

    None of what is no probe of the monitor's: a loop logs when it likes.
    """
    measured, own = set(run.measured.get("cost", np.empty(0)).tolist()), set(run.series(probe, metric)[0])
    return tuple(sorted(measured - own)) if probe in DRAWN else ()


def read_lists(run: Run, probe: str, metric: str) -> tuple[list[int], list[list[float]]]:
    """Steps and lists of a metric that is a list, such as the eigenvalues."""
    by_step = {
        step: [as_float(each) for each in value]
        for step, value in zip(*run.series(probe, metric), strict=True)
        if isinstance(value, list) and value
    }
    return list(by_step), list(by_step.values())


def read_layers(run: Run, probe: str, metric: str) -> Layers | None:
    """A metric that is a dict with one number a layer, or None if it was never measured."""
    by_step = {step: as_dict(value) for step, value in zip(*run.series(probe, metric), strict=True) if as_dict(value)}
    if not by_step:
        return None
    names = list(dict.fromkeys(name for values in by_step.values() for name in values))
    table = [[as_float(values.get(name)) for name in names] for values in by_step.values()]
    return Layers(names, list(by_step), np.array(table, dtype=float))


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
    return values[-1] if values else None
