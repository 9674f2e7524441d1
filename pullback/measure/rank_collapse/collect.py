"""The second pass: numbers of tokens and of attention matrices, taken as they come by and kept in place of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import InputError, input_error
from pullback.functional.batch import Batch, tensors
from pullback.functional.model_view import ROOT_LAYER, evaluate
from pullback.measure.rank_collapse.attention_reader import Reader
from pullback.measure.rank_collapse.find import Plan
from pullback.measure.rank_collapse.frames import Frame, Layer, frames
from pullback.measure.rank_collapse.fused_attention import Call
from pullback.measure.rank_collapse.heads import MeasuredHeads, Real, of_call, real_tokens
from pullback.measure.rank_collapse.statistics import of_tokens


@dataclass
class MeasuredLayer:
    """A layer: its name, numbers of its tokens (N, 7) and of its attention."""

    name: str
    tokens: Tensor
    heads: list[MeasuredHeads]


@dataclass
class MeasuredNetwork:
    """What a network showed: its layers, the tokens before the first (N, 7), what was not read, the floor."""

    layers: list[MeasuredLayer] = field(default_factory=list)
    start: Tensor | None = None
    unread: dict[str, str] = field(default_factory=dict)
    floor: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What the caller asks for: a mask of the tokens, singular values; and its name, for errors."""

    mask: Tensor | None
    spectrum: bool
    where: str


def measured_pass(model: nn.Module, inputs: Batch, plan: Plan, asked: Asked) -> MeasuredNetwork:
    """Run the model once more and measure.

    Raises:
        InputError: a row with nothing to attend to, fewer than two tokens, tokens that are not finite, a mask that fits
            no layer; other layers than the plan has.
    """
    fits = {(layer.samples, layer.tokens) for layer in plan.calls if layer is not None}
    if asked.mask is not None and tuple(asked.mask.shape) not in fits:
        sizes = " or ".join(map(str, sorted(fits)))
        remedy = "Pass one entry a token, True where it is no padding"
        raise input_error(asked.where, f"a `mask` {sizes}", f"{tuple(asked.mask.shape)}", remedy)
    measured = _Pass(plan, asked)
    reader = Reader(measured.called, lambda _: None, tensors(inputs))

    def left(*call: Any) -> None:
        with reader.paused():
            measured.left(*call)

    with frames(model, left) as running, reader:
        measured.running = running
        evaluate(model, inputs)
    return measured.ended()


class _Pass:
    """State of the second pass."""

    def __init__(self, plan: Plan, asked: Asked) -> None:
        self.asked, self.layers = asked, plan.layers
        self.running: list[Frame] = []
        self.found = MeasuredNetwork(unread=plan.unread)
        self._planned = iter(plan.calls)
        self._alone: dict[str, int] = {}  # calls whose layer is no module, by name

    def called(self, call: Call) -> None:
        """An attention: its numbers are kept with its layer until that ends."""
        name = self.running[-1].name if self.running else ROOT_LAYER
        try:
            layer = next(self._planned)
        except StopIteration:
            raise self._others(name) from None
        if layer is None:  # a single query
            return
        frame = next((f for f in reversed(self.running) if f.key == layer.key), None)
        if frame is None:
            if layer.key is not None:
                raise self._others(name)
            self._of_heads(call, layer, name)
            return
        if "real" not in frame.held:
            frame.held["real"] = real_tokens(call, layer, self.asked.mask, self.asked.where)
            self._start(frame.given, layer, frame.held["real"])
        heads, _ = of_call(call, layer, frame.held["real"], name, self.asked.spectrum, self.asked.where)
        frame.held.setdefault("heads", []).append(heads)

    def left(self, frame: Frame, X: Tensor | None, given: list[Tensor]) -> None:
        """The end of a module's call."""
        layer = self.layers.get(frame.key)
        if layer is None:
            return
        if X is None or not layer.is_one(X) or "heads" not in frame.held:
            raise self._others(frame.name)
        real = frame.held["real"]
        self._start([x for x in given if not _shares(x, X)], layer, real)  # by keyword, and not written to since
        self._add(frame.name, self._tokens(layer.by_sample(X), real, frame.name), frame.held["heads"], X)

    def ended(self) -> MeasuredNetwork:
        """What was found, once all that was planned has come by."""
        if (layer := next(self._planned, None)) is not None:
            raise self._others(ROOT_LAYER if layer.key is None else layer.key[0])
        return self.found

    def _of_heads(self, call: Call, layer: Layer, name: str) -> None:
        """A layer that is no module: its tokens are what its heads return."""
        number = self._alone[name] = self._alone.get(name, 0) + 1
        real = real_tokens(call, layer, self.asked.mask, self.asked.where)
        heads, outputs = of_call(call, layer, real, name, self.asked.spectrum, self.asked.where)
        label = name if number == 1 else f"{name}#{number}"
        tokens = self._tokens(outputs, [None] * len(outputs), label)
        self._add(label, tokens, [heads], outputs[0].to(call.dtype))

    def _start(self, given: list[Tensor], layer: Layer, real: Real) -> None:
        """The tokens that the first layer is given, where they are at hand."""
        if self.found.start is None and not self.found.layers:
            for X in given:
                if layer.is_one(X):
                    self.found.start = self._tokens(layer.by_sample(X), real, "the inputs of the first layer")
                    return

    def _tokens(self, samples: list[Tensor], real: Real, name: str) -> Tensor:
        """Numbers of the tokens of each sample, (N, 7)."""
        rows = []
        for number, (X, kept) in enumerate(zip(samples, real, strict=True)):
            X = (X if kept is None else X[kept]).double()
            if not bool(torch.isfinite(X).all()):
                got = f"NaN or infinity in sample {number} behind `{name}`"
                raise input_error(self.asked.where, "finite tokens", got, "Check weights, inputs and precision")
            rows.append(of_tokens(X, spectrum=self.asked.spectrum))
        return torch.stack(rows).cpu()

    def _add(self, name: str, tokens: Tensor, heads: list[MeasuredHeads], X: Tensor) -> None:
        self.found.layers.append(MeasuredLayer(name, tokens, heads))
        self.found.floor = max(self.found.floor, X.size(-1) ** 0.5 * torch.finfo(X.dtype).eps)

    def _others(self, name: str) -> InputError:
        remedy = "Put the model in eval mode, or hold its choice of layers fixed"
        return input_error(self.asked.where, "the same layers in two passes", f"others at `{name}`", remedy)


def _shares(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
