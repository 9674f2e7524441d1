"""What a rule is: how one function of torch turns its parameters into gradient factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.kernels.factors import Factor

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One use of parameters, with the sample axis first in every tensor a rule reads.

    Args:
        arguments: the function's arguments by name, as it received them (parameters detached).
        names: argument -> name of the trained parameter it holds.
        samples: takes a tensor to (N, *shape for a batch of one).
        gradient: derivative of each sample's loss in the output, (N, *output shape for a batch of one).
    """

    arguments: Arguments
    names: dict[str, str]
    samples: Callable[[Tensor], Tensor]
    gradient: Tensor


@dataclass(frozen=True)
class Rule:
    """How the gradients of one function's parameters are written down.

    Args:
        name: shown in plans.
        signature: the function's argument names, in order.
        parameters: those of them that may be trained.
        data: the one that carries the samples.
        build: a call to its factor.
        accepts: says no to calls the rule cannot treat; their parameters go to the fallback.
    """

    name: str
    signature: tuple[str, ...]
    parameters: tuple[str, ...]
    data: str
    build: Callable[[Call], Factor]
    accepts: Callable[[Arguments], bool] = lambda arguments: True

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Arguments by name."""
        return dict(zip(self.signature, args, strict=False)) | kwargs


RULES: dict[Callable[..., Any], Rule] = {}


def add_rule(function: Callable[..., Any], rule: Rule) -> None:
    """Register the rule of a function of torch."""
    RULES[function] = rule


def full_precision(tensor: Tensor) -> Tensor:
    """Half-precision captures are widened before anything is summed."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
