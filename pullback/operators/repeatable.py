"""A model must answer the same every time: what makes it answer differently is named before any product is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pullback._checks import unsupported
from pullback.functional.batch import Batch, take
from pullback.operators.data import version_of


def refuse_random_and_coupled(model: nn.Module, where: str) -> None:
    """Refuse layers that draw random numbers or mix the samples of a batch as they stand."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            remedy = "Call model.eval(), or use pb.frozen_batch_norm(model, x) to hold a batch's statistics fixed"
            raise _in_train_mode(where, "batch norm", name, remedy)
        rate = getattr(module, "p", 0) if isinstance(module, _DropoutNd) else 0
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            rate = module.dropout
        if module.training and rate > 0:
            raise _in_train_mode(where, "dropout", name, "Call model.eval()")


def _in_train_mode(where: str, what: str, name: str, remedy: str) -> Exception:
    kind = f"{what} in train mode in layer `{name}`" if name else f"{what} in train mode"
    return unsupported(where, "a model that gives every sample an answer of its own, the same each time", kind, remedy)


def changed_answer(where: str, batch: int, what: str = "losses") -> Exception:
    """The error for losses (or outputs) that differ between two evaluations of one batch with the same weights."""
    return unsupported(
        where,
        "a model that answers the same each time it is evaluated",
        f"other {what} on batch {batch} the second time",
        "Call model.eval(), and remove what is random in its forward pass (functional dropout, sampled noise)",
    )


def mixed_samples(where: str, what: str = "loss") -> Exception:
    """The error for a sample whose loss (or output) depends on which others are in the batch."""
    return unsupported(
        where,
        "a model and loss that treat every sample on its own",
        f"another {what} for sample 0 alone than for sample 0 in its batch",
        "Call model.eval(), or rewrite what mixes samples (statistics over the batch)",
    )


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether two evaluations agree up to the rounding of their dtype."""
    tolerance = torch.finfo(first.dtype).eps ** 0.5
    return torch.allclose(first.detach(), second.detach(), rtol=tolerance, atol=tolerance)


def first_sample(x: Batch, y: Batch) -> tuple[Batch, Batch]:
    """The batch that holds only the first sample."""
    return take(x, [0]), take(y, [0])


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """What the outputs depend on besides the input; sums notice writes through ``.data``, which no version counts."""
    tensors = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        sums = [t.sum().item() for t in tensors]
    modes = tuple(m.training for m in model.modules())
    return tuple((id(t), t.data_ptr(), version_of(t)) for t in tensors), tuple(sums), modes


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
