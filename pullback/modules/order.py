"""Which activation follows each layer: what the calls of one forward pass say, in the order in which they are made.

Every tensor on the way carries the calls of layers it comes from. An activation answers for those that reach it with no
other layer in between, whatever else lies there: normalisation, pooling, dropout, sums of branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import permutations
from typing import Any

from pullback.modules.composed_activations import composed
from pullback.modules.residuals import Residuals, Trail
from pullback.theory.expectations.calls import CALLS, Activation, name_of, of_call

# calls that mix units by a matrix; the matrix is the layer
PRODUCTS = frozenset({
    "addbmm", "addmm", "addmv", "baddbmm", "bilinear", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "einsum", "gru", "gru_cell", "linear", "lstm", "lstm_cell", "matmul", "mm",
    "multi_head_attention_forward", "mv", "rmatmul", "rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell",
    "tensordot", "_native_multi_head_attention",
})  # fmt: skip
TABLES = frozenset({"embedding", "embedding_bag"})
NORMS = frozenset({
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "normalize", "rms_norm", "rsqrt",
    "std", "std_mean", "var", "var_mean",
})  # fmt: skip
# what comes out is a weight or a statistic, no signal: attention's shares, the size of a vector
SHARES = frozenset({
    "amax", "amin", "argmax", "argmin", "exp", "log_softmax", "logsumexp", "norm", "softmax", "softmin", "std",
    "var", "vector_norm",
})  # fmt: skip
MASKS = frozenset({"eq", "ge", "gt", "le", "lt", "ne", "sign", "heaviside", "isfinite"})
# functions of a signal that may be its activation, or half of a normalisation written out
CURVES = frozenset(
    {"abs", "absolute", "float_power", "glu", "log", "log1p", "maximum", "minimum", "pow", "sqrt", "square"}
)
SIZES = frozenset({"amax", "amin", "norm", "rsqrt", "sqrt", "std", "std_mean", "var", "var_mean", "vector_norm"})
BENDS = (NORMS | SHARES | MASKS | CURVES | CALLS) - SIZES


@dataclass(frozen=True)
class Flow:
    """Where a tensor comes from.

    Attributes:
        pending: calls of layers that no activation has followed yet.
        done: (call, number of the activation) of calls whose activation is behind them.
        curved: calls that are here only by a function that is not known to be their activation.
        weights: layers whose weights it is made of, None for weights of no such layer; for tensors that no sample
            reaches.
        unseen: whether code that calls no function of torch has made it.
        activation: the calls whose activation this is the direct output of.
        trail: what of it residual sums are told by.
    """

    pending: frozenset[int] = frozenset()
    done: frozenset[tuple[int, int]] = frozenset()
    curved: frozenset[int] = frozenset()
    weights: frozenset[str | None] = frozenset()
    unseen: bool = False
    activation: frozenset[int] = frozenset()
    trail: Trail = field(default_factory=Trail)

    def joined(self, other: Flow) -> Flow:
        """Of what is computed from both."""
        data = [flow for flow in (self, other) if not flow.weights]
        if len(data) == 1:
            return Flow(data[0].pending, data[0].done, data[0].curved, unseen=data[0].unseen)
        return Flow(
            self.pending | other.pending, self.done | other.done, self.curved | other.curved,
            self.weights | other.weights, self.unseen or other.unseen,
        )  # fmt: skip


@dataclass
class Order:
    """What has been seen of a forward pass.

    Attributes:
        calls: layer of every call of one, in order.
        followers: call -> its activation, and the number of calls of layers before it.
        unclear: layer -> why its activation cannot be told.
        outputs: calls whose result is the model's, with no other layer behind them.
        normalises: whether some call normalises.
        sizes: layer -> (inputs, outputs) along the axes of its filter, of every call, where they are known.
        activations: all that were called, by name.
        residuals: the sums x + f(x).
    """

    calls: list[str] = field(default_factory=list)
    followers: dict[int, tuple[Activation, int]] = field(default_factory=dict)
    unclear: dict[str, str] = field(default_factory=dict)
    outputs: set[int] = field(default_factory=set)
    normalises: bool = False
    sizes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = field(default_factory=dict)
    activations: dict[str, Activation] = field(default_factory=dict)
    residuals: Residuals = field(default_factory=Residuals)
    num_activations: int = 0

    def start(self) -> Flow:
        """One of the model's inputs."""
        return Flow(trail=self.residuals.start())

    def layer(self, names: Sequence[str], flows: Sequence[Flow]) -> Flow:
        """A call of layers: what reached it has no activation left to meet."""
        self.end(flows)
        places = range(len(self.calls), len(self.calls) + len(names))
        self.calls += names
        return self._trailed(Flow(frozenset(places)), "", flows, "layer", places)

    def attention(self, names: Sequence[str], flows: Sequence[Flow]) -> Flow:
        """A call of attention as a whole, with layers in it."""
        made = self.layer(names, flows)
        return self._trailed(
            made, "multi_head_attention_forward", flows, "layer", range(len(self.calls) - len(names), len(self.calls))
        )

    def end(self, flows: Sequence[Flow]) -> None:
        """A layer, or the model's output, takes these in."""
        for flow in flows:
            for call in flow.curved - flow.pending - {call for call, _ in flow.done}:
                self._doubt(call, "a function of its outputs that may be the activation or not")
            if flow.unseen:
                self.unclear.setdefault("", "tensors made by code that shows in no call")

    def activation(self, activation: Activation, given: Flow) -> Flow:
        """An activation is called on a tensor."""
        self.activations[name_of(activation)] = activation
        self.num_activations += 1
        for call in given.activation:
            first, at = self.followers[call]
            if at == len(self.calls):
                self.followers[call] = (composed(first, activation), at)
        for call in given.pending:
            known, at = self.followers.get(call, (activation, len(self.calls)))
            if at == len(self.calls) and name_of(known) != name_of(activation):
                self._doubt(call, f"both {name_of(known)} and {name_of(activation)}")
            self.followers.setdefault(call, (activation, len(self.calls)))
        made = Flow(
            done=self._done(given), curved=given.curved, unseen=given.unseen,
            activation=given.pending | given.activation,
        )  # fmt: skip
        return self._trailed(made, "", [given], "bend")

    def call(
        self, function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any], flows: Sequence[Flow]
    ) -> Flow:
        """Any other call of torch, with the flows of the tensors among its arguments; returns that of its results."""
        name = getattr(function, "__name__", "").strip("_")
        name = name[1:] if name[:1] in "ir" and name[1:] in ("matmul", "pow") else name
        before = len(self.calls)
        made = self._met(name, function, args, options, flows)
        if made.weights:
            return made
        calls = range(before, len(self.calls))
        kind = "plain"
        if name in PRODUCTS and any(flow.weights for flow in flows):
            kind = "layer"
        elif name in SIZES or (name == "pow" and isinstance(args[-1], int | float) and args[-1] < 0):
            kind = "size"
        elif name in BENDS:
            kind = "bend"
        return self._trailed(made, name, flows, kind, calls)

    def _trailed(self, made: Flow, name: str, flows: Sequence[Flow], kind: str, calls: range = range(0)) -> Flow:
        """With what residual sums are told by."""
        given = [flow.trail for flow in flows if not flow.weights]
        return replace(made, trail=self.residuals.step(name, given, kind, calls))

    def _met(
        self,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        options: Mapping[str, Any],
        flows: Sequence[Flow],
    ) -> Flow:
        """What a call makes of the layers that reach it."""
        data = [flow for flow in flows if not flow.weights]
        weights = frozenset[str | None]().union(*(flow.weights for flow in flows))
        if name in PRODUCTS and data and weights:
            return self.layer([each for each in weights if each is not None], data)
        if name in TABLES:
            return Flow()
        whole = reduce(Flow.joined, flows, Flow(weights=frozenset({None}))) if flows else Flow(
            weights=frozenset({None})
        )  # fmt: skip
        if not data:
            return whole
        self.normalises |= name in NORMS
        if name in CALLS:
            try:
                return self.activation(of_call(name, function, args[1:], options), flows[0])
            except ValueError as error:
                for call in whole.pending:
                    self._doubt(call, str(error))
                return Flow(done=self._done(whole))
        if name in SHARES:
            return Flow(unseen=whole.unseen)
        if name in MASKS:
            return Flow(done=self._done(whole), unseen=whole.unseen)
        if name in CURVES:
            return self._curve(name, function, args, options, whole, data)
        if name not in ("cat", "concat", "concatenate", "stack"):
            self._combined(data)
        if len(data) == 1 and name in ("contiguous", "clone", "to", "float", "double", "detach"):
            return data[0]
        return whole

    def _curve(
        self,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        options: Mapping[str, Any],
        flow: Flow,
        data: Sequence[Flow],
    ) -> Flow:
        """A power behind an activation belongs to it; anywhere else what it is stays open."""
        if len(data) == 1 and data[0].activation and not data[0].pending and name in ("pow", "square"):
            return self.activation(of_call(name, function, args[1:], options), data[0])
        return Flow(done=flow.done, curved=flow.curved | flow.pending, unseen=flow.unseen)

    def _done(self, flow: Flow) -> frozenset[tuple[int, int]]:
        """What is done once the activation called last is."""
        return flow.done | {(call, self.num_activations) for call in flow.pending}

    def _combined(self, data: Sequence[Flow]) -> None:
        """A layer's output that meets its own activation, or two of them: together they are another function of it."""
        for one, other in permutations(data, 2):
            for call, number in other.done:
                if call in one.pending or any(call == each and number != k for each, k in one.done):
                    self._doubt(call, "its own activation combined with it or with another, as in x * sigmoid(x)")

    def _doubt(self, call: int, why: str) -> None:
        self.unclear.setdefault(self.calls[call], why)
