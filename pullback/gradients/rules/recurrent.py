"""Recurrent layers, unrolled: linear layers that share a weight over the steps.

``torch.lstm``, ``torch.gru`` and ``torch.rnn_*`` take the parameters of all layers in one list and lets no one see
the steps. Run from here instead, each layer and direction is one linear layer over all steps, for the inputs, and
one linear layer a step, for the state before it: positions of one factor, since they share their weight. The cells
are the same, one step at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.gradients.rules.registry import REISSUED

State = tuple[Tensor, ...]  # (h,), or (h, c) for the LSTM; each (N, .)


@dataclass(frozen=True)
class _Weights:
    """Parameters of one layer and direction, in the order torch lists them."""

    inputs: Tensor
    state: Tensor
    input_bias: Tensor | None
    state_bias: Tensor | None
    projection: Tensor | None  # an LSTM's `proj_size`


# A cell takes the inputs' part of the gates, the state's part, the old state and the weights to the new state.
Cell = Callable[[Tensor, Tensor, State, _Weights], State]


def _lstm(x: Tensor, h: Tensor, state: State, weights: _Weights) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    output = torch.sigmoid(o) * torch.tanh(c)
    return (output if weights.projection is None else F.linear(output, weights.projection)), c


def _gru(x: Tensor, h: Tensor, state: State, weights: _Weights) -> State:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * n + z * state[0],)


def _rnn_tanh(x: Tensor, h: Tensor, state: State, weights: _Weights) -> State:
    return (torch.tanh(x + h),)


def _rnn_relu(x: Tensor, h: Tensor, state: State, weights: _Weights) -> State:
    return (torch.relu(x + h),)


def _layer(cell: Cell, x: Tensor, state: State, weights: _Weights, reverse: bool) -> tuple[Tensor, State]:
    """Outputs (T, N, .) of one layer in one direction over x, (T, N, d), and the last state."""
    inputs = F.linear(x, weights.inputs, weights.input_bias).unbind()
    outputs = []
    for each in reversed(inputs) if reverse else inputs:
        state = cell(each, F.linear(state[0], weights.state, weights.state_bias), state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _split(params: Sequence[Tensor], count: int, biased: bool) -> list[_Weights]:
    """The flat list, by layer and direction; a weight more than there are matrices and biases is a projection."""
    size = len(params) // count
    plain = 4 if biased else 2
    split = []
    for start in range(0, len(params), size):
        own = params[start : start + size]
        biases = own[2:4] if biased else (None, None)
        split.append(_Weights(own[0], own[1], biases[0], biases[1], own[plain] if size > plain else None))
    return split


_SIGNATURE = (
    "input",
    "hx",
    "params",
    "has_biases",
    "num_layers",
    "dropout",
    "train",
    "bidirectional",
    "batch_first",
)


def _unrolled(cell: Cell) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        """Outputs and the last states as torch returns them; NotImplemented for packed sequences."""
        arguments = dict(zip(_SIGNATURE, args, strict=False)) | kwargs
        # Packed sequences come as (data, batch_sizes, hx, params, ...). The samples of a batch have no axis of their
        # own in such data, so there is nothing a rule could read.
        if "batch_sizes" in kwargs or not isinstance(arguments["has_biases"], bool):
            return NotImplemented
        hx = arguments["hx"]
        initial: State = (hx,) if isinstance(hx, Tensor) else tuple(hx)  # each (layers and directions, N, .)
        directions = 2 if arguments["bidirectional"] else 1
        layers = arguments["num_layers"]
        weights = _split(arguments["params"], layers * directions, arguments["has_biases"])
        x = arguments["input"].transpose(0, 1) if arguments["batch_first"] else arguments["input"]
        last: list[State] = []
        for layer in range(layers):
            if layer > 0 and arguments["train"] and arguments["dropout"] > 0:
                x = F.dropout(x, arguments["dropout"])
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                output, state = _layer(cell, x, tuple(s[k] for s in initial), weights[k], direction == 1)
                outputs.append(output)
                last.append(state)
            x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        x = x.transpose(0, 1) if arguments["batch_first"] else x
        return (x, *(torch.stack(parts) for parts in zip(*last, strict=True)))

    return run


def _single(cell: Cell) -> Callable[..., Any]:
    def step(
        input: Tensor,
        hx: Tensor | tuple[Tensor, Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        """The new state, as torch's function of one step returns it."""
        state: State = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        weights = _Weights(w_ih, w_hh, b_ih, b_hh, None)
        new = cell(F.linear(input, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state, weights)
        return new if len(new) > 1 else new[0]

    return step


_CELLS = (_lstm, _gru, _rnn_tanh, _rnn_relu)
lstm, gru, rnn_tanh, rnn_relu = (_unrolled(cell) for cell in _CELLS)
lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell = (_single(cell) for cell in _CELLS)
REISSUED |= {torch.lstm: lstm, torch.gru: gru, torch.rnn_tanh: rnn_tanh, torch.rnn_relu: rnn_relu}
REISSUED |= {torch.lstm_cell: lstm_cell, torch.gru_cell: gru_cell}
REISSUED |= {torch.rnn_tanh_cell: rnn_tanh_cell, torch.rnn_relu_cell: rnn_relu_cell}
