"""What a rule is: how one function of torch turns its parameters into gradient factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.gradients.rows.factor import Factor

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What the trained tensor in an argument is.

    Args:
        name: the parameter's name, or ``~k`` for the k-th tensor that is computed from parameters.
        shape: shape of that parameter or tensor.
        rows: (start, stop) if the argument is a view of these rows of it.
        transposed: the argument is its transpose.
    """

    name: str
    shape: torch.Size
    rows: tuple[int, int] | None = None
    transposed: bool = False


@dataclass(frozen=True)
class Call:
    """One use of parameters, with the sample axis first in every tensor a rule reads.

    Args:
        arguments: the function's arguments by name, as it received them (parameters detached).
        sources: argument -> which trained tensor it holds.
        samples: takes a tensor to (N, *shape for a batch of one).
        gradient: derivative of each of the C scalars of a sample in the output, (N, C, *output shape for a batch
            of one).
        function: what was called.
    """

    arguments: Arguments
    sources: dict[str, Source]
    samples: Callable[[Tensor], Tensor]
    gradient: Tensor
    function: Callable[..., Any]

    @property
    def names(self) -> dict[str, str]:
        """Argument -> name of the trained tensor."""
        return {argument: source.name for argument, source in self.sources.items()}


Probe = Callable[[str, Source, Arguments, Tensor, Tensor, Tensor], Tensor]


class Reading(NamedTuple):
    """A call as a rule sees it: its arguments by name, which are trained, and which one carries the samples."""

    arguments: Arguments
    trained: set[str]
    data: str


@dataclass(frozen=True)
class Rule:
    """How the gradients of one function's parameters are written down.

    Args:
        name: shown in plans.
        signature: the function's argument names, in order.
        parameters: those of them that may be trained.
        data: the one that carries the samples; None if it is whichever of ``parameters`` is not trained.
        build: a call to its factor, or to several that cover different parameters.
        accepts: says no to calls the rule cannot treat; their parameters go to the fallback.
        views: it can read transposes and stretches of rows of a parameter.
        positional: how many arguments the function takes by position only.
        matrices: trained tensors must have two axes.
        probe: for functions linear in their parameters, whatever the data: (argument, its source, arguments, output
            gradient, u, v) to ``<dL/dW, u v^T>``. The ordinary gradient of that weight, a third of a training step,
            is then not formed: one number of it is enough to check the rows.
    """

    name: str
    signature: tuple[str, ...]
    parameters: tuple[str, ...]
    data: str | None
    build: Callable[[Call], Factor | list[Factor]]
    accepts: Callable[[Arguments], bool] = lambda arguments: True
    views: bool = False
    positional: int = 0
    matrices: bool = False
    probe: Probe | None = None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Arguments by name."""
        return dict(zip(self.signature, args, strict=False)) | kwargs

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], shared: list[Tensor]) -> Reading | None:
        """The call, of whose arguments ``shared`` are computed from parameters; None if the rule cannot read it."""
        arguments = self.bind(args, kwargs)
        trained = {k for k in self.parameters if any(arguments.get(k) is t for t in shared)}
        if not trained or (self.matrices and any(arguments[k].dim() != 2 for k in trained)):
            return None
        rest = [k for k in self.parameters if k not in trained and isinstance(arguments.get(k), Tensor)]
        data = self.data or (rest[0] if len(rest) == 1 else None)
        return None if data is None or not self.accepts(arguments) else Reading(arguments, trained, data)


RULES: dict[Callable[..., Any], Rule] = {}

# Functions that look rows of a parameter up, and whether a call is a plain look-up: with indices that are the same
# for all samples the result is shared, and its gradient is scattered back without forming the table.
LOOKUPS: dict[Callable[..., Any], Callable[[Arguments], bool]] = {}

# Functions no rule can read are run as an equivalent made of recorded calls: packed attention, fused recurrent
# layers. The replacement gets the same arguments; NotImplemented as its result means that it does not take the call.
REISSUED: dict[Callable[..., Any], Callable[..., Any]] = {}


def add_rule(function: Callable[..., Any], rule: Rule) -> None:
    """Register the rule of a function of torch."""
    RULES[function] = rule
