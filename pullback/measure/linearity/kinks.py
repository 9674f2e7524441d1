"""Functions with kinks in a model: their second derivative is zero almost everywhere and says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pullback._checks import unsupported
from pullback.functional.differentiable import nodes

# nodes of autograd's graph, without "Backward" and what follows
KINKED = {
    "Abs": "abs", "AdaptiveMaxPool2D": "max pooling", "AdaptiveMaxPool3D": "max pooling", "Amax": "amax",
    "Amin": "amin", "Clamp": "clamp", "ClampMax": "clamp_max", "ClampMin": "clamp_min", "Hardshrink": "hardshrink",
    "Hardsigmoid": "hardsigmoid", "Hardswish": "hardswish", "Hardtanh": "hard tanh", "LeakyRelu": "leaky ReLU",
    "Max": "max", "MaxPool2DWithIndices": "max pooling", "MaxPool3DWithIndices": "max pooling", "Maximum": "maximum",
    "Min": "min", "Minimum": "minimum", "PreluKernel": "PReLU", "Relu": "ReLU", "RreluWithNoise": "RReLU",
    "Softshrink": "softshrink", "Threshold": "threshold",
}  # fmt: skip


def refuse_kinks(outputs: Tensor, where: str) -> None:
    """Refuse outputs whose graph has a function with a kink, by name."""
    kinked = sorted(set(_kinked(outputs)))
    if kinked:
        raise unsupported(
            where,
            "a model that can be differentiated twice",
            f"{', '.join(kinked)}, whose second derivative is zero almost everywhere and leaves out what its kink adds",
            "Use a smooth activation such as tanh, GELU or softplus",
        )


def _kinked(outputs: Tensor) -> Iterator[str]:
    for node in nodes([outputs]):
        kind = node.name().partition("Backward")[0]
        if kind in KINKED:
            yield KINKED[kind]
        elif kind == "Elu" and _steps(node):
            yield "SELU, or an ELU with other slopes on its two sides,"


def _steps(node: Any) -> bool:
    """Whether the slopes at 0 of an exponential unit differ: alpha * input_scale on the left, 1 on the right."""
    return float(node._saved_alpha) * float(node._saved_input_scale) != 1.0
