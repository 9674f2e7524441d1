"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pullback._checks import check_option


class Elementwise(nn.Module):
    """A function of single numbers as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every entry."""
        return self.function(x)

    def extra_repr(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", "callable")


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "erf": lambda: Elementwise(torch.erf),
    "hard_tanh": nn.Hardtanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "sin": lambda: Elementwise(torch.sin),
    "linear": nn.Identity,
}


def activation_module(activation: str | Callable[[Tensor], Tensor]) -> nn.Module:
    """The module of a named activation, or of any elementwise function.

    Args:
        activation: one of the names in ``ACTIVATIONS``, or a function from a tensor to one of the same shape.

    Raises:
        InputError: no activation of that name; the message lists them.

    Example:
        >>> activation_module("tanh"), activation_module(torch.sin)(torch.zeros(2))
        (Tanh(), tensor([0., 0.]))
    """
    if not isinstance(activation, str):
        return Elementwise(activation)
    check_option("activation_module", "activation", activation, tuple(ACTIVATIONS))
    return ACTIVATIONS[activation]()
