"""The first pass: which layers attend, and what attends in a way that cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from pullback._checks import InputError, sentence
from pullback.functional.batch import Batch, tensors
from pullback.functional.model_view import ROOT_LAYER, evaluate
from pullback.functional.modes import calls_by_name
from pullback.functional.unwrap import unwrap
from pullback.measure.rank_collapse.calls import Call, Shape
from pullback.measure.rank_collapse.frames import Frame, Key, Layer, frames, layer_of
from pullback.measure.rank_collapse.reader import Reader

NAMED = re.compile("attention|attn", re.IGNORECASE)
SOFTMAX = ("scaled_dot_product_attention", "softmax", "flex_attention")
ONE_QUERY = "a single query, whose output is one token"
NOTHING_SEEN = "no softmax of scores times values in it"
NOT_CALLED = "not called with these inputs"


class NothingToMeasure(InputError):
    """A model without attention that can be read, or inputs of one token."""


@dataclass(frozen=True)
class Plan:
    """Of a model and its inputs.

    Attributes:
        calls: of each attention, in order, its layer; None where it has one query alone.
        unread: names -> why.
    """

    calls: tuple[Layer | None, ...]
    unread: dict[str, str]

    @property
    def layers(self) -> dict[Key, Layer]:
        """By the call of the module whose output is looked at."""
        return {layer.key: layer for layer in self.calls if layer is not None and layer.key is not None}


def plan_of(model: nn.Module, inputs: Batch, where: str) -> Plan:
    """Run the model once and find its layers.

    Raises:
        NothingToMeasure: no attention that can be read, or none with two tokens.
    """
    found: list[tuple[Shape, list[Frame]]] = []
    ended: list[tuple[Frame, list[Frame]]] = []
    unread: dict[str, str] = {}

    def note(call: Call) -> None:
        found.append((call.shape, list(running)))
        for frame in running:
            frame.attends += 1
        if running:
            running[-1].own += 1

    def strange(operation: str) -> None:
        unread[running[-1].name if running else ROOT_LAYER] = f"computed by {operation}"

    def left(frame: Frame, _: Tensor | None, __: list[Tensor]) -> None:
        ended.append((frame, list(running)))

    with frames(model, left) as running, reader(model, note, strange):
        evaluate(model, inputs)
    given = tensors(inputs)
    count = len(given[0]) if given and given[0].dim() else 1
    unread |= {name: why for name, why in _silent(model, ended).items() if name not in unread}
    layers = [None if max(s.lengths) < 2 else layer_of(around, s, count) for s, around in found]
    unread |= {around[-1].name: ONE_QUERY for (_, around), layer in zip(found, layers, strict=True) if layer is None}
    if not found:
        names = ", ".join(f"`{name}`: {why}" for name, why in unread.items())
        got = f"none that can be read ({names})" if names else "none"
        remedy = "Pass one whose tokens are mixed by a softmax of scores times values"
        raise NothingToMeasure(sentence(where, "a model with attention", got, remedy))
    if not any(layers):
        raise NothingToMeasure(sentence(where, "inputs of two or more tokens", "1", "Pass longer sequences"))
    return Plan(tuple(layers), unread)


def reader(model: nn.Module, found: object, strange: object) -> Reader:
    """A ``Reader`` for a model."""
    learned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return Reader(found, strange, learned)  # type: ignore[arg-type]


def _silent(model: nn.Module, ended: list[tuple[Frame, list[Frame]]]) -> dict[str, str]:
    """Modules that say of themselves that they attend, and in which nothing was seen."""
    silent = [(frame, around) for frame, around in ended if _attends(frame.module) and not frame.attends]
    inner = [
        frame
        for frame, around in silent
        if not any(_attends(outer.module) and outer.attends for outer in around)  # a part of what was read
        and not any(frame in others for _, others in silent)  # around one that is named itself
    ]
    found = {frame.name: NOTHING_SEEN for frame in inner}
    called = {id(frame.module) for frame, _ in ended}
    inside = {id(part) for frame, _ in ended if frame.own or (_attends(frame.module) and id(frame.module) in called)
              for part in frame.module.modules()}  # fmt: skip
    for name, module in model.named_modules():
        if _attends(module) and id(module) not in called | inside:
            found[name] = NOT_CALLED
            inside |= {id(part) for part in module.modules()}
    return found


def may_attend(model: nn.Module) -> bool:
    """Whether a model has modules that say they attend, or whose code calls a softmax: told without running it."""
    parts = unwrap(model).modules()
    return any(_attends(each) or isinstance(each, nn.Softmax) or calls_by_name(each, SOFTMAX) for each in parts)


def _attends(module: nn.Module) -> bool:
    return NAMED.search(type(module).__name__) is not None
