"""What a run record says about the model and the settings before the first step."""

from __future__ import annotations

import math
from typing import Any

from pullback._version import __version__
from pullback.diagnostics.step_sizes import Optimizers, optimizers_of, step_groups
from pullback.functional import LossFunction, ModelView
from pullback.functional.losses import least_loss


def describe(
    view: ModelView, loss_fn: LossFunction, optimizer: Optimizers | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """The description of a run, of texts, numbers, lists and dicts.

    ``least_loss`` is the smallest value the loss can have, where that is known: how far it fell is then a share of
    something. ``learning_rate`` is that of the group whose steps are longest, ``learning_rates`` all that differ.
    """
    described: dict[str, Any] = {
        "pullback": __version__,
        "model": {
            "class": type(view.model).__name__,
            "num_params": view.num_params,
            "layers": list(view.layers),
            "frozen": list(view.frozen),
        },
        "loss": getattr(loss_fn, "__name__", type(loss_fn).__name__),
        "settings": settings,
    }
    if (least := least_loss(loss_fn)) is not None:
        described["least_loss"] = least
    if optimizer is not None:
        described["optimizer"] = _optimizer(optimizer)
    return described


def _optimizer(optimizer: Optimizers) -> dict[str, Any]:
    names = sorted({type(each).__name__ for each in optimizers_of(optimizer)})
    described: dict[str, Any] = {"class": " + ".join(names)}
    rates = sorted({group.rate for group in step_groups(optimizer) if not math.isnan(group.rate)}, reverse=True)
    if rates:
        described["learning_rate"] = rates[0]
    return described | ({"learning_rates": rates} if len(rates) > 1 else {})
