"""The first pass: which layers attend, and what attends in a way that cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from pullback._checks import InputError, sentence
from pullback.functional.batch import Batch, tensors
from pullback.functional.model_view import ROOT_LAYER, evaluate
from pullback.functional.modes import calls_by_name
from pullback.functional.unwrap import unwrap
from pullback.measure.rank_collapse.attention_reader import Reader
from pullback.measure.rank_collapse.call_checks import explained
from pullback.measure.rank_collapse.frames import Frame, Key, Layer, frames, layer_of
from pullback.measure.rank_collapse.fused_attention import Call, Shape

NAMED = re.compile("attention|attn", re.IGNORECASE)
SOFTMAX = ("scaled_dot_product_attention", "softmax", "flex_attention")
ONE_QUERY = "a single query, whose output is one token"
NOTHING_SEEN = "no rows of weights that sum to one times values in it"
OTHERS = "attention of other queries than the tokens, beside what is read"
IN_PARTS = "computed a sample, a head or some queries at a time"
SQUARE = "computed by a matrix of tokens by tokens whose rows do not sum to one"
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


@dataclass(frozen=True)
class _Attention:
    """An attention: its sizes, the number of keys, the calls around it, outermost first."""

    shape: Shape
    keys: int
    around: list[Frame]


def plan_of(model: nn.Module, inputs: Batch, where: str) -> Plan:
    """Run the model once and find its layers.

    Raises:
        NothingToMeasure: no attention that can be read, or none with two tokens.
    """
    attentions: list[_Attention] = []
    ended: list[tuple[Frame, list[Frame]]] = []
    unread: dict[str, str] = {}
    squares: list[Frame] = []  # unless they attend: queries times keys, of as many tokens as features, look so too

    def note(call: Call) -> None:
        attentions.append(_Attention(call.shape, len(call.attended(0)), list(running)))
        for frame in running:
            frame.attends += 1
        if running:
            running[-1].own += 1

    def strange(how: str | int) -> None:
        frame = running[-1] if running else None
        if isinstance(how, str):
            unread[frame.name if frame else ROOT_LAYER] = f"computed by {how}"
        elif frame and any(_has_tokens(x, how) for around in running for x in around.given):
            squares.append(frame)

    def left(frame: Frame, _: Tensor | None, __: list[Tensor]) -> None:
        ended.append((frame, list(running)))

    given = tensors(inputs)
    with frames(model, left) as running, Reader(note, strange, given), explained(model, inputs, where):
        evaluate(model, inputs)
    count = len(given[0]) if given and given[0].dim() else 1
    unread = {frame.name: SQUARE for frame in squares if not frame.attends} | unread
    unread |= {name: why for name, why in _silent(model, ended).items() if name not in unread}
    layers = [None if max(each.shape.lengths) < 2 else layer_of(each.around, each.shape, count) for each in attentions]
    unread |= {_name(each): ONE_QUERY for each, layer in zip(attentions, layers, strict=True) if layer is None}
    parts = _parts(attentions, layers, count)
    unread |= {_name(attentions[number]): why for number, why in parts.items()}
    layers = [None if number in parts else layer for number, layer in enumerate(layers)]
    if not attentions or (parts and not any(layers)):
        names = ", ".join(f"`{name}`: {why}" for name, why in unread.items())
        got = f"none that can be read ({names})" if names else "none"
        remedy = "Pass one whose tokens are mixed by a softmax of scores times values"
        raise NothingToMeasure(sentence(where, "a model with attention", got, remedy))
    if not any(layers) and not parts:
        raise NothingToMeasure(sentence(where, "inputs of two or more tokens", "1", "Pass longer sequences"))
    return Plan(tuple(layers), unread)


def _name(attention: _Attention) -> str:
    return attention.around[-1].name if attention.around else ROOT_LAYER


def _parts(attentions: list[_Attention], layers: list[Layer | None], samples: int) -> dict[int, str]:
    """Which of them, by number, have no tokens of their own, and why."""
    parts: dict[int, str] = {}
    read = {layer.key for layer in layers if layer is not None and layer.key is not None}
    alone = [number for number, layer in enumerate(layers) if layer is not None and layer.key is None]
    for _, group in groupby(
        alone, lambda number: id(attentions[number].around[-1]) if attentions[number].around else 0
    ):
        run = list(group)
        rows = [max(attentions[number].shape.lengths) for number in run]
        keys = attentions[run[-1]].keys
        few = max(rows) < keys == sum(rows)
        single = samples > 1 and len(run) % samples == 0 and all(attentions[number].shape.batch == 1 for number in run)
        if len(run) > 1 and (few or single):
            parts |= dict.fromkeys(run, IN_PARTS)
        elif any(frame.key in read for frame in attentions[run[0]].around):
            parts |= dict.fromkeys(run, OTHERS)
    return parts


def _has_tokens(X: Tensor, tokens: int) -> bool:
    """Whether (N, T, D) or (T, N, D) is of that T; D, which weights of one's own may be of as well, is another."""
    return X.dim() == 3 and tokens in X.shape[:2] and X.shape[2] != tokens


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
