"""Captures of two sets of samples, brought to the same layers in the same order."""

from __future__ import annotations

from dataclasses import replace

from pullback.functional.model_view import layer_of
from pullback.gradients.capture.captured import UNSEEN, Captured
from pullback.gradients.rows.factor import DenseFactor, Factor


def aligned(*sides: Captured) -> list[Captured]:
    """Captures of one model with their factors in the same order and of the same kinds.

    Parameters whose gradients were written down differently (another path through the model, a batch of one) become
    plain rows on all sides.
    """
    first = sides[0]
    keys = [[(rule, *f.shapes) for f, rule in zip(side.factors, side.rules, strict=True)] for side in sides]
    common = [key for key in keys[0] if all(key in other for other in keys[1:])]
    named = {name for key in common for name in key[1:]}
    rest = [name for name in first.view.parameters if name not in named]
    made = []
    for place, side in enumerate(sides):
        by_key = dict(zip(keys[place], side.factors, strict=True))
        rows = [_rows_of(side, name) for name in rest]
        factors = (*(by_key[key] for key in common), *rows)
        made.append(replace(side, factors=factors, rules=(*(str(key[0]) for key in common), *["rows"] * len(rows))))
    return made


def _rows_of(side: Captured, name: str) -> Factor:
    factor = next(f for f in side.factors if name in f.shapes)
    return DenseFactor({name: factor.rows(slice(0, factor.num_samples))[name]})


def forward_order(captured: Captured) -> list[str]:
    """Layers in the order of first use; those whose use was not seen follow their predecessor in the model."""
    named = [
        (layer_of(n), r in UNSEEN) for f, r in zip(captured.factors, captured.rules, strict=True) for n in f.shapes
    ]
    order = list(dict.fromkeys(layer for layer, unseen in named if not unseen))
    defined = list(captured.view.layers)
    for place, layer in enumerate(defined):
        if layer not in order:
            order.insert(order.index(defined[place - 1]) + 1 if place else 0, layer)
    return order
