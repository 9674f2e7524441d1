"""Recurrent layers as they are reissued: same outputs and gradients as torch, and kernels that match the loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pullback.gradients.rules import recurrent
from tests.gradients.test_rules import assert_rows_agree
from tests.gradients.test_rules_attention import Replacing, assert_no_fallback, assert_replaced
from tests.thinned import thinned

few = st.integers(1, 3)

FUNCTIONS = {
    "lstm": (nn.LSTM, {}, torch.lstm),
    "gru": (nn.GRU, {}, torch.gru),
    "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}, torch.rnn_tanh),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}, torch.rnn_relu),
}


def make(kind: str, *sizes: int, **options: Any) -> nn.RNNBase:
    """The module of a kind, with parameters of size one so that the gates are used over their range."""
    module, fixed, _ = FUNCTIONS[kind]
    made = module(*sizes, **fixed, **options, dtype=torch.float64)
    for p in made.parameters():
        nn.init.normal_(p)
    return made


def replacing(kind: str) -> Replacing:
    return Replacing(FUNCTIONS[kind][2], getattr(recurrent, kind))


@st.composite
def layers(draw: st.DrawFn, kind: str) -> tuple[nn.RNNBase, list[Any]]:
    """A module and the arguments of its call, with or without an initial state."""
    d, hidden, n, steps = (draw(st.integers(1, 4)) for _ in range(4))
    options = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    if kind == "lstm" and hidden > 1:
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    module = make(kind, d, hidden, num_layers=draw(st.integers(1, 2)), **options)
    batched = draw(st.booleans())
    sizes = ([n, steps] if module.batch_first else [steps, n]) if batched else [steps]

    def data(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    inputs: list[Any] = [data(*sizes, d)]
    if draw(st.booleans()):
        count = module.num_layers * (1 + module.bidirectional)
        own = [n] if batched else []
        h = data(count, *own, module.proj_size or hidden)
        inputs.append((h, data(count, *own, hidden)) if kind == "lstm" else h)
    return module, inputs


@pytest.mark.parametrize("kind", FUNCTIONS)
@settings(max_examples=50)
@given(data=st.data())
def test_recurrent_layers_are_those_of_torch(kind: str, data: st.DataObject) -> None:
    module, inputs = data.draw(layers(kind))
    states = inputs[1:] if kind != "lstm" else [s for pair in inputs[1:] for s in pair]
    assert_replaced(replacing(kind), lambda: module(*inputs), [inputs[0], *states, *module.parameters()])


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_inputs_of_all_steps_share_a_call(kind: str) -> None:
    """Per layer and direction one linear layer for the inputs, and one a step for the state."""
    mode = replacing(kind)
    with mode:
        make(kind, 3, 4, num_layers=2, bidirectional=True)(torch.randn(5, 2, 3, dtype=torch.float64))
    assert (mode.replaced, mode.linear) == (1, 2 * 2 * (1 + 5))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_packed_sequences_are_not_taken(kind: str) -> None:
    module = make(kind, 2, 3)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 3, 2, dtype=torch.float64), [4, 3, 1])
    h = torch.zeros(1, 3, 3, dtype=torch.float64)
    hx = (h, h) if kind == "lstm" else h
    arguments = (packed.data, packed.batch_sizes, hx, module._flat_weights, True, 1, 0.0, False, False)
    assert FUNCTIONS[kind][2](*arguments)[0].shape == (8, 3)  # this is how torch is called
    assert getattr(recurrent, kind)(*arguments) is NotImplemented


CELLS = {
    "lstm": (nn.LSTMCell, torch.lstm_cell),
    "gru": (nn.GRUCell, torch.gru_cell),
    "rnn_tanh": (nn.RNNCell, torch.rnn_tanh_cell),
    "rnn_relu": (partial(nn.RNNCell, nonlinearity="relu"), torch.rnn_relu_cell),
}


@pytest.mark.parametrize("kind", CELLS)
@given(n=few, d=few, hidden=few, bias=st.booleans(), given_state=st.booleans())
def test_cells_are_those_of_torch(kind: str, n: int, d: int, hidden: int, bias: bool, given_state: bool) -> None:
    made, function = CELLS[kind]
    module = made(d, hidden, bias=bias, dtype=torch.float64)
    inputs: list[Any] = [torch.randn(n, d, dtype=torch.float64, requires_grad=True)]
    if given_state:
        h, c = (torch.randn(n, hidden, dtype=torch.float64) for _ in range(2))
        inputs.append((h, c) if kind == "lstm" else h)
    mode = Replacing(function, getattr(recurrent, f"{kind}_cell"))
    assert_replaced(mode, lambda: module(*inputs), [inputs[0], *module.parameters()])


class Stepping(nn.Module):
    """A cell in a loop of the model's own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = CELLS[kind][0](2, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for each in x.unbind(1):
            state = self.cell(each, state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", CELLS)
def test_cell(kind: str) -> None:
    model, x = Stepping(kind).double(), torch.randn(3, 4, 2, dtype=torch.float64)
    assert_rows_agree(model, x, expect="linear")
    assert_no_fallback(model, x)


class Packing(nn.Module):
    """A recurrent layer over a packed batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, [x.shape[1]] * len(x), batch_first=True)
        return self.body(packed)[1][0]


def test_packed_sequences_reach_the_fallback() -> None:
    assert_rows_agree(Packing(), torch.randn(3, 4, 2), expect="vmap fallback")


class Reading(nn.Module):
    """The last output of a recurrent layer, and its last states."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.body = make(kind, 2, 3, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        outputs, states = self.body(x)
        states = states if isinstance(states, tuple) else (states,)
        return torch.cat([outputs.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], 1)


@pytest.mark.parametrize(
    ("kind", "options", "n"),
    thinned(list(FUNCTIONS), [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}], [1, 3]),
)
def test_recurrent(kind: str, options: dict[str, Any], n: int) -> None:
    model, x = Reading(kind, **options), torch.randn(n, 4, 2, dtype=torch.float64)
    assert_rows_agree(model, x, expect="linear")
    assert_no_fallback(model, x)


def test_lstm_with_projection() -> None:
    model, x = Reading("lstm", proj_size=2), torch.randn(3, 4, 2, dtype=torch.float64)
    assert_rows_agree(model, x, expect="linear")
    assert_no_fallback(model, x)


class LearnedStart(nn.Module):
    """An LSTM whose initial state is learned, the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make("lstm", 2, 3, batch_first=True)
        self.start = nn.ParameterList([torch.randn(1, 1, 3, dtype=torch.float64) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        h, c = (state.expand(-1, len(x), -1).contiguous() for state in self.start)
        return self.body(x, (h, c))[0]


@pytest.mark.parametrize("n", [1, 3])
def test_learned_initial_state(n: int) -> None:
    assert_rows_agree(LearnedStart(), torch.randn(n, 4, 2, dtype=torch.float64), expect="linear")
