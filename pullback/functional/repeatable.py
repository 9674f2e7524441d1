"""A model must answer the same every time: what makes it answer differently is named before any product is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pullback._checks import unsupported
from pullback.functional.agreement import Tensors, disagreement, loosest, norms
from pullback.functional.batches import version_of
from pullback.functional.plain_calls import own_calls
from pullback.functional.walk import parts_of, tensors_of


def coupling_norm(where: str, name: str, *, tracked: bool) -> Exception:
    """The error for batch norm that takes the batch's own statistics: for now, or always."""
    if tracked:
        remedy = "Call model.eval(), or use pb.frozen_batch_norm(model, x) to hold a batch's statistics fixed"
        return in_train_mode(where, "batch norm", name, remedy)
    return unsupported(
        where,
        "a model that gives every sample an answer of its own, the same each time",
        f"batch norm without running statistics (track_running_stats=False), which mixes samples in eval mode too, "
        f"in layer `{name}`",
        "Use pb.frozen_batch_norm(model, x) to hold a batch's statistics fixed, or track_running_stats=True",
    )


def check_same_answer(
    first: Tensors, second: Tensors, evaluate: Callable[..., Tensors], parameters: Tensors, where: str, batch: int
) -> None:
    """Refuse values (N, ...) by name that differ between two evaluations of one batch by more than rounding does.

    Args:
        first: one evaluation.
        second: another, at the same weights.
        evaluate: ``second`` once more, at the parameters given.
        parameters: all those of the model.
        where: the caller.
        batch: its number, for the error.
    """
    errors = {name: norms([first[name] - second[name]])[0] for name in second}
    kind = next(iter(second.values())).device.type
    dtypes = [torch.get_autocast_dtype(kind)] if torch.is_autocast_enabled(kind) else []
    dtype = loosest([*dtypes, *(t.dtype for t in (*first.values(), *second.values(), *parameters.values()))])
    if (found := disagreement(errors, second, evaluate, parameters, dtype)) is not None:
        raise changed_answer(where, batch, "losses" if found[0] == "loss" else "outputs")


def changed_answer(where: str, batch: int, what: str = "losses") -> Exception:
    """The error for losses (or outputs) that differ between two evaluations of one batch with the same weights."""
    return unsupported(
        where,
        "a model that answers the same each time it is evaluated",
        f"other {what} on batch {batch} the second time",
        "Call model.eval(), and remove what is random in its forward pass (functional dropout, sampled noise)",
    )


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """What the outputs depend on besides the input; sums notice writes through ``.data``, which no version counts."""
    with own_calls():  # torch's modes are asked about every look at a tensor
        return tuple((id(t), t.data_ptr(), version_of(t)) for t in tensors_of(model)), *values_of(model)


def values_of(model: nn.Module) -> tuple[Any, ...]:
    """The same by sums and modes alone: versions rise where a model writes to a buffer and the buffer is put back."""
    with torch.no_grad(), own_calls():  # in words: two NaNs are alike
        sums = tuple(repr(t.sum().item()) for t in tensors_of(model))
    return sums, tuple(m.training for m in parts_of(model))


class Watch(TorchDispatchMode):
    """Counts the bytes a forward pass makes, and notices attention that torch runs fused."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self.fused_attention = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.fused_attention |= "scaled_dot_product" in str(func)
        if not getattr(func, "is_view", False):
            self.num_bytes += sum(t.nbytes for t in tree_flatten(result)[0] if isinstance(t, Tensor))
        return result


def in_train_mode(where: str, what: str, name: str, remedy: str) -> Exception:
    """The error that names what a layer in train mode does."""
    kind = f"{what} in train mode in layer `{name}`" if name else f"{what} in train mode"
    return unsupported(where, "a model that gives every sample an answer of its own, the same each time", kind, remedy)
