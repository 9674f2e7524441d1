"""How the model is called with a loop's batch, and what it returns for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import PullbackError, input_error
from pullback.functional import num_samples, take
from pullback.functional.agreement import agree
from pullback.functional.batch import Batch, mapped, tensors
from pullback.functional.model_view import evaluate
from pullback.functional.unwrap import unwrap
from pullback.monitor.probes.work import FORWARD

where = "Monitor"

RETURNED = "Return the outputs too, `return outputs, loss`, or one loss per sample, and pick it in `loss_fn`"


@dataclass
class Calls:
    """The model, called without a graph, while its passes are counted.

    Attributes:
        passes: made so far, forward and backward as one.
    """

    model: nn.Module
    passes: float = 0.0

    @staticmethod
    def of(*samples: int) -> float:
        """Passes of calls with so many samples."""
        return FORWARD * sum(samples)

    @torch.no_grad()
    def __call__(self, x: Batch) -> Any:
        """Outputs."""
        self.passes += self.of(num_samples(x))
        return evaluate(self.model, x)


def takes_whole(call: Calls, x: Batch) -> bool:
    """Whether the model takes x as its one argument, where it does not take its parts.

    Raises:
        InputError: it takes neither.
    """
    first: Exception | None = None
    for whole in (False, True):
        if whole and not isinstance(x, Mapping | list | tuple):
            break
        try:
            call(take((x,) if whole else x, slice(0, 2)))
        except Exception as error:
            first = first or error
            continue
        return whole
    assert first is not None
    if isinstance(first, PullbackError):
        raise first
    got = f"{type(first).__name__}: {str(first).strip().partition(chr(10))[0]}"
    remedy = "Hand `step` what the loop calls the model with: a tensor, a tuple of several, or a dict by name"
    raise input_error(where, "inputs that the model takes", got, remedy) from first


def is_unfolded(call: Calls, inputs: Batch, outputs: Any, count: int) -> bool:
    """Whether the model returns k rows a sample, sample after sample, which the first sample alone shows.

    Raises:
        InputError: there are no outputs of single samples.
    """
    leaves = [leaf for leaf in tensors(outputs) if leaf.dim()]
    if any(len(leaf) == count for leaf in leaves):
        return False
    if not leaves:
        raise input_error(where, "outputs of single samples beside the loss", "a loss alone", RETURNED)
    if all(len(leaf) % count == 0 for leaf in leaves):
        alone = [leaf for leaf in tensors(call(take(inputs, slice(0, 1)))) if leaf.dim()]
        rows = [leaf[: len(leaf) // count] for leaf in leaves]
        if all(a.shape == b.shape and agree(a, b) for a, b in zip(alone, rows, strict=True)):
            return True
    raise input_error(
        where,
        f"a model that returns a row for each of {count} samples, or several, sample after sample",
        f"first axes {sorted({len(leaf) for leaf in leaves})}",
        "Put the samples along the first axis of inputs and outputs (batch_first=True)",
    )


def by_rows(tensor: Tensor, count: int) -> Tensor:
    """(N k, ...) as (N, k, ...)."""
    return tensor.unflatten(0, (count, -1)) if tensor.dim() else tensor


def folded(outputs: Any, count: int) -> Any:
    """Every output (N k, ...) as (N, k, ...)."""
    return mapped(lambda t: by_rows(t, count), outputs)


@contextmanager
def by_sample(model: nn.Module, unfolded: bool) -> Iterator[None]:
    """Within the block a model that returns a row for every position returns (N, T, ...)."""

    def fold(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        return folded(outputs, num_samples((args, kwargs)))

    hook = unwrap(model).register_forward_hook(fold, with_kwargs=True) if unfolded else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
