"""What a run record says about the model and the settings before the first step."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from torch import nn

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
            "layer_sizes": [sum(view.parameters[n].numel() for n in names) for names in view.layers.values()],
            "frozen": list(view.frozen),
            "frozen_behind": _frozen_behind(view.model),
            "modules": _modules(view.model),
        },
        "loss": getattr(loss_fn, "__name__", type(loss_fn).__name__),
        "settings": settings,
    }
    if (least := least_loss(loss_fn)) is not None:
        described["least_loss"] = least
    if optimizer is not None:
        described["optimizer"] = _optimizer(optimizer, view)
    return described


def _frozen_behind(model: nn.Module) -> list[str]:
    """Frozen parameters that come after one that is trained: no backbone under a new head."""
    parameters = list(model.named_parameters())
    first = next(place for place, (_, p) in enumerate(parameters) if p.requires_grad)
    return [name for name, p in parameters[first:] if not p.requires_grad]


def _modules(model: nn.Module) -> dict[str, int]:
    """How many there are of each class of modules that hold no others, or are torch's own."""
    counted = Counter(type(m).__name__ for m in model.modules() if _is_known(m))
    return dict(counted)


def _is_known(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) or type(module).__module__.startswith("torch.nn.")


def _optimizer(optimizer: Optimizers, view: ModelView) -> dict[str, Any]:
    """Classes, rates, largest weight decay and momentum, and names of trainable parameters that no optimizer holds."""
    names = sorted({type(each).__name__ for each in optimizers_of(optimizer)})
    described: dict[str, Any] = {"class": " + ".join(names)}
    rates = sorted({group.rate for group in step_groups(optimizer) if not math.isnan(group.rate)}, reverse=True)
    if rates:
        described["learning_rate"] = rates[0]
    described |= {"learning_rates": rates} if len(rates) > 1 else {}
    decays = [decay for group in step_groups(optimizer) if (decay := group.number("weight_decay")) > 0]
    described |= {"weight_decay": max(decays)} if decays else {}
    momenta = [momentum for group in step_groups(optimizer) if (momentum := group.momentum) > 0]
    described |= {"momentum": max(momenta)} if momenta else {}
    held = {id(p) for each in optimizers_of(optimizer) for group in each.param_groups for p in group["params"]}
    left_out = [name for name, p in view.parameters.items() if id(p) not in held]
    return described | ({"left_out": left_out} if left_out else {})
