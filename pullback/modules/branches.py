"""Factors of residual branches that attention is in, 1 / sqrt(L), and what ``initialise`` says it has drawn."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from torch import nn

from pullback._checks import input_error
from pullback._results import Shown
from pullback.modules.order import Order
from pullback.modules.residuals import Branch, depth_of


@dataclass(frozen=True)
class DrawnLayer(Shown):
    """What a layer's weights have been drawn with.

    Attributes:
        name: of the module.
        activation: the one behind it; None where none follows.
        sigma_w: standard deviation of the weights times sqrt(fan_in), before the branch is scaled.
        sigma_b: of the biases, before the branch is scaled.
        fan_in: weights that meet in one output.
        depth: L, layers of the stream of residual sums whose branch this layer ends; None of other layers.
    """

    name: str
    activation: str | None
    sigma_w: float
    sigma_b: float
    fan_in: float
    depth: int | None = None

    @property
    def factor(self) -> float:
        """What weights and biases are multiplied by: 1 / sqrt(L), or 1."""
        return 1.0 if self.depth is None else 1 / math.sqrt(self.depth)


@dataclass(frozen=True)
class Initialisation(Shown):
    """What ``initialise`` changed.

    Attributes:
        model: the model.
        layers: those drawn anew, in the order of their calls.
        untouched: modules with parameters of their own that were left as they were: tables, normalisation, attention's
            packed projections, outputs that share their weights with a table.
    """

    model: nn.Module
    layers: tuple[DrawnLayer, ...]
    untouched: tuple[str, ...]

    @property
    def branches(self) -> dict[str, float]:
        """Layers that end a residual branch, with their factors."""
        return {each.name: each.factor for each in self.layers if each.depth is not None}

    def __str__(self) -> str:
        """One line a layer."""
        lines = [f"{'layer':40} {'activation':>16} {'sigma_w':>8} {'sigma_b':>8} {'factor':>8}"]
        for each in self.layers:
            factor = "" if each.depth is None else f"{each.factor:8.4f}, 1/sqrt({each.depth})"
            lines.append(
                f"{each.name:40} {each.activation or '-':>16} {each.sigma_w:8.4f} {each.sigma_b:8.4f} {factor}".rstrip()
            )
        return "\n".join([*lines, f"left alone: {', '.join(self.untouched) or 'nothing'}"])


def branch_depths(order: Order, where: str) -> dict[str, int]:
    """Layers that end a residual branch -> L of their stream, in streams that attention adds to.

    Raises:
        InputError: a branch that no layer scales as a whole; a layer that does so for two depths, or is called
            elsewhere too.
    """
    streams: dict[int, list[Branch]] = {}
    for each in order.residuals.branches:
        streams.setdefault(each.stream, []).append(each)
    depths: dict[str, int] = {}
    ending: Counter[str] = Counter()
    for branches in streams.values():
        if not any(each.attends for each in branches):
            continue
        depth = depth_of(branches)
        for place, branch in enumerate(branches):
            if not branch.ends:
                got = f"one whose {place + 1}. ends in an activation, a normalisation or weights of no layer"
                remedy = 'Use phase="ordered", which leaves branches as they are drawn, and scale that one yourself'
                raise input_error(where, "residual branches that end in a layer", got, remedy)
            for name in {order.calls[call] for call in branch.ends}:
                if depths.setdefault(name, depth) != depth:
                    got = f"`{name}` in streams of {depths[name]} and {depth} layers"
                    raise input_error(where, "one depth for each layer", got, "Untie the layers first")
                ending[name] += sum(order.calls[call] == name for call in branch.ends)
    for name, times in ending.items():
        if (calls := order.calls.count(name)) != times:
            got = f"`{name}`, which ends {times} and is called {calls} times"
            raise input_error(where, "layers that end residual branches and nothing else", got, "Untie the layer first")
    return depths
