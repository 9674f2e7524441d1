"""Linear layers: ``y = x W^T + b`` over any number of positions, and ``addmm`` (Hugging Face ``Conv1D``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.kernels.factors import OuterFactor
from pullback.kernels.rules.registry import Arguments, Call, Rule, add_rule, full_precision


def _positions(tensor: Tensor) -> Tensor:
    """(N, ..., d) -> (N, T, 1, d): all axes between the samples and the features are positions, one group."""
    tensor = full_precision(tensor)
    return tensor.reshape(len(tensor), -1, 1, tensor.shape[-1])


def _linear(call: Call) -> OuterFactor:
    return OuterFactor(
        inputs=_positions(call.samples(call.arguments["input"])),
        gradients=_positions(call.gradient),
        weight=call.names.get("weight"),
        bias=call.names.get("bias"),
        weight_shape=call.arguments["weight"].shape,
    )


def _addmm(call: Call) -> OuterFactor:
    return OuterFactor(
        inputs=_positions(call.samples(call.arguments["mat1"])),
        gradients=_positions(call.gradient),
        weight=call.names.get("mat2"),
        bias=call.names.get("input"),
        weight_shape=call.arguments["mat2"].shape,
        transposed=True,
    )


def _plain_addmm(arguments: Arguments) -> bool:
    """``bias + x @ W`` with the bias one row and no scalings."""
    return arguments["input"].dim() == 1 and arguments.get("beta", 1) == 1 and arguments.get("alpha", 1) == 1


add_rule(F.linear, Rule("linear", ("input", "weight", "bias"), ("weight", "bias"), "input", _linear))
add_rule(
    torch.addmm,
    Rule("linear", ("input", "mat1", "mat2"), ("input", "mat2"), "mat1", _addmm, _plain_addmm),
)
