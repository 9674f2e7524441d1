"""Several runs on one page: which are one setting with other seeds, and what tells the settings apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pullback.charts.chart import PALETTE, ramp_colour
from pullback.charts.text import as_float, number, shorten
from pullback.report.run.series import Look, NamedRun, name_runs
from pullback.runs import Run
from pullback.runs.compare import differing_settings

# What follows from other settings, or is of the program: not told where anything else differs, or never.
DERIVED = ("model.num_params", "model.class", "model.layers", "model.layer_sizes", "model.modules.", "model.frozen")
NEVER = ("pullback", "schema", "created", "least_loss", "optimizer.learning_rates", "optimizer.left_out")
MOST_TOLD = 3  # settings in a label


def grouped(runs: Sequence[Run]) -> list[NamedRun]:
    """The runs with names, and with a label and colour for each setting: those that differ by seed alone share them."""
    named = name_runs(runs)
    if len(named) == 1:
        return named
    told = told_apart(runs)
    keys = [tuple(_text(values[place]) for values in told.values()) for place in range(len(runs))]
    order = list(dict.fromkeys(keys))
    if len(order) == 1:  # nothing was set differently, or the seed alone
        looks = [Look(each.name, _colour(place, len(named)), place) for place, each in enumerate(named)]
    else:
        labels = [_label(list(told), key) for key in order]
        looks = [Look(labels[k := order.index(key)], _colour(k, len(order)), k) for key in keys]
    return [NamedRun(each.name, each.run, look) for each, look in zip(named, looks, strict=True)]


def told_apart(runs: Sequence[Run]) -> dict[str, tuple[Any, ...]]:
    """Settings that differ, one value a run, without seeds and without what follows from others."""
    differing = {
        key: values
        for key, values in differing_settings(runs).items()
        if not key.startswith(NEVER) and not _is_seed(key)
    }
    chosen = {key: values for key, values in differing.items() if not key.startswith(DERIVED)}
    if chosen:
        return chosen
    first = next((key for start in DERIVED for key in differing if key.startswith(start)), None)
    return {} if first is None else {first: differing[first]}


def _is_seed(key: str) -> bool:
    return key.lower().rsplit(".", 1)[-1].endswith("seed")


def _label(keys: Sequence[str], values: Sequence[str]) -> str:
    told = [f"{_word(key)} {value}".strip() for key, value in zip(keys, values, strict=True)]
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return shorten(", ".join(told[:MOST_TOLD]) + more, 60)


def _word(key: str) -> str:
    """A setting as a word; of what a value says by itself, none."""
    name = key.rsplit(".", 1)[-1]
    return "" if name in ("class", "loss", "data") else shorten(name.replace("_", " "), 24)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "–"}[value]
    if isinstance(value, int | float):
        return number(as_float(value))
    return shorten(value if isinstance(value, str) else json.dumps(value, default=str), 30)


def _colour(place: int, count: int) -> str:
    return PALETTE[place] if count <= len(PALETTE) else ramp_colour(place, count)
