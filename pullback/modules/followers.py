"""Layers with the activation that follows them and the number of weights that meet in one of their outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pullback._checks import input_error
from pullback.functional.batch import Batch
from pullback.modules.fan_in import fan_in, is_linear_map
from pullback.modules.order import Order
from pullback.modules.order_of_calls import order_of
from pullback.theory.expectations.calls import Activation, name_of


@dataclass(frozen=True)
class Followed:
    """A layer as it is called.

    Attributes:
        name: of the module.
        layer: the module.
        follows: its activation; None where none does.
        fan_in: weights that meet in one output.
    """

    name: str
    layer: nn.Module
    follows: Activation | None
    fan_in: float


def followed(
    model: nn.Module, activation: Activation | None, x: Batch | None, where: str
) -> tuple[list[Followed], Order]:
    """Linear and convolutional layers in the order of their first calls, and all that the order of calls says.

    Args:
        model: without wrappers.
        activation: of all layers whose results are not the model's own; None looks for it.
        x: an example of the model's inputs, or None.
        where: the caller, for errors.

    Raises:
        InputError: no such layers; an order of calls that cannot be known without ``x``; no activation found, or none
            that is the only one.
    """
    layers = {name: module for name, module in model.named_modules() if is_linear_map(module)}
    if not layers:
        raise input_error(where, "a model with linear or convolutional layers", "none", "Pass another model")
    order = order_of(model, x, where)
    calls: dict[str, list[int]] = {}
    for call, name in enumerate(order.calls):
        calls.setdefault(name, []).append(call)
    ends = {name for name, of in calls.items() if order.outputs.issuperset(of)}
    if activation is None:
        found = {name: _follower(name, of, order, where) for name, of in calls.items()}
        if "" in order.unclear and any(found[name] is None for name in calls if name not in ends):
            got, remedy = order.unclear[""], "Pass activation= with the name of the activation"
            raise input_error(where, "activations that are calls of torch", got, remedy)
        if not any(found.values()):
            raise input_error(where, "calls of activations", "none", "Pass activation= with their name")
    else:
        found = {name: None if name in ends else activation for name in calls}
    table = [
        Followed(name, layers[name], found[name], fan_in(layers[name], order.sizes.get(name, ()))) for name in calls
    ]
    return table, order


def _follower(name: str, calls: list[int], order: Order, where: str) -> Activation | None:
    """The one activation behind all calls of a layer."""
    met = {name_of(phi): phi for call in calls if call in order.followers for phi in (order.followers[call][0],)}
    why = order.unclear.get(name) or (f"both {' and '.join(met)}" if len(met) > 1 else None)
    if why is not None:
        remedy = "Pass activation= with the name of the activation, or the function"
        raise input_error(where, f"one activation behind layer `{name}`", why, remedy)
    return next(iter(met.values()), None)
