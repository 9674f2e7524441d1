"""Parameters that all samples share, spread over the samples by the call that mixes them.

A trained attention mask (relative positions) or one side of a ``where`` has no row for each sample, and no rule
knows how the call uses it. Expanded to the shape it is broadcast to anyway, it does: the gradient of the expanded
tensor holds the samples' rows, and the expansion is a computation from parameters like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.gradients.rules.registry import REISSUED


def _to_spread(tensor: Tensor, shape: torch.Size) -> bool:
    """Parameters always, so that a batch of one shows the same calls as one of many."""
    return tensor.requires_grad and (tensor.is_leaf or tensor.shape != shape)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Any:
    """Attention with its mask spread; NotImplemented where it is already, or is not trained."""
    shape = torch.Size((*query.shape[:-1], key.shape[-2]))
    if attn_mask is None or not _to_spread(attn_mask, shape):
        return NotImplemented
    return F.scaled_dot_product_attention(query, key, value, attn_mask.expand(shape), dropout_p, is_causal, **kwargs)


def _broadcasting(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function whose first ``count`` arguments are broadcast to one shape, with those that are trained in it."""

    def spread(*args: Any, **kwargs: Any) -> Any:
        held = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        shape = torch.broadcast_shapes(*(t.shape for t in held))
        trained = {id(t) for t in args[:count] if isinstance(t, Tensor) and _to_spread(t, shape)}
        if not trained:
            return NotImplemented
        return function(*(value.expand(shape) if id(value) in trained else value for value in args), **kwargs)

    return spread


REISSUED[F.scaled_dot_product_attention] = _attention
for _function, _count in (
    *((torch.where, 3), (Tensor.where, 3), (torch.masked_fill, 1), (Tensor.masked_fill, 1)),
    *((torch.lerp, 3), (Tensor.lerp, 3), (torch.addcmul, 3), (Tensor.addcmul, 3)),
    *((torch.addcdiv, 3), (Tensor.addcdiv, 3), (torch.logaddexp, 2), (torch.hypot, 2), (torch.atan2, 2)),
):
    REISSUED[_function] = _broadcasting(_function, _count)


_WRITES = ("add", "sub", "mul", "div", "multiply", "divide", "true_divide", "pow", "lerp", "addcmul", "addcdiv", "copy")
_BROADCASTS_INTO = {f"{name}_" for name in _WRITES} | {f"__i{name}__" for name in (*_WRITES, "truediv")}


def written_shape(function: Callable[..., Any], args: tuple[Any, ...]) -> torch.Size | None:
    """The shape a call that writes to its first argument broadcasts its others to; None for other calls."""
    name = getattr(function, "__name__", "")
    if name in _BROADCASTS_INTO:
        return args[0].shape
    if name == "__setitem__" and isinstance(args[0], Tensor) and _is_plain(args[1]):
        return args[0].detach()[args[1]].shape
    return None


def _is_plain(index: Any) -> bool:
    """Whether an index takes the same places of every sample."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is ... or type(part) in (int, slice) for part in parts)
