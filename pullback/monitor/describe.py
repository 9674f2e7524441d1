"""What a run record says about the model and the settings before the first step."""

from __future__ import annotations

from typing import Any

import torch

from pullback._version import __version__
from pullback.functional import LossFunction, ModelView


def describe(
    view: ModelView, loss_fn: LossFunction, optimizer: torch.optim.Optimizer | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """The description of a run, JSON-serialisable."""
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
    if optimizer is not None:
        rate = float(optimizer.param_groups[0]["lr"])
        described["optimizer"] = {"class": type(optimizer).__name__, "learning_rate": rate}
    return described
