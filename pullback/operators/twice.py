"""Operations torch runs in one call that it cannot differentiate twice, replaced by ones that it can."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from pullback._checks import unsupported


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """In the block attention, recurrent layers on a GPU and bags of embeddings have second derivatives."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        modules = list(model.modules())
        if any(isinstance(m, nn.RNNBase) for m in modules):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if any(isinstance(m, nn.EmbeddingBag) for m in modules):
            stack.enter_context(_PlainBags())
        yield


def no_second_derivative(where: str, error: RuntimeError) -> Exception:
    """The error for an operation that torch can differentiate only once."""
    return unsupported(
        where,
        "operations that torch can differentiate twice",
        str(error).splitlines()[0].rstrip("."),
        "Write that operation with elementary ones, or leave its layer out with `params`",
    )


@cache
def say_plain_attention(where: str) -> None:
    """Once a process and kind of operator."""
    logging.getLogger("pullback").warning(
        "%s: fused attention has no second derivative; products use torch's plain attention (SDPBackend.MATH), "
        "and the backend is restored after each of them.",
        where,
    )


class _PlainBags(TorchFunctionMode):
    """``F.embedding_bag`` as a gather and a sum, mean or maximum."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.embedding_bag:
            return _embedding_bag(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _embedding_bag(
    input: Tensor,  # torch's own names: the call may be by keyword
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """What ``F.embedding_bag`` returns, row by row; ``max_norm`` writes to the table and is not for here."""
    if max_norm is not None or scale_grad_by_freq:
        raise unsupported(
            "F.embedding_bag", "a plain table", "`max_norm` or `scale_grad_by_freq`", "Leave them at their defaults"
        )
    factors = per_sample_weights
    if offsets is not None:
        ends = offsets[1:] if include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(input)])])
        starts = offsets[:-1] if include_last_offset else offsets
        bounds = list(zip(starts.tolist(), ends.tolist(), strict=True))
        counts = torch.ones_like(input)
        valid = pad_sequence([counts[a:b] for a, b in bounds], batch_first=True) > 0
        factors = None if factors is None else pad_sequence([factors[a:b] for a, b in bounds], batch_first=True)
        input = pad_sequence([input[a:b] for a, b in bounds], batch_first=True)
    else:
        valid = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        valid = valid & (input != padding_idx % len(weight))
    rows, counted = F.embedding(input, weight), valid.unsqueeze(2)  # (bags, L, features)
    if mode == "max":
        empty = ~valid.any(1, keepdim=True)
        return rows.masked_fill(~counted, -torch.inf).max(1).values.masked_fill(empty, 0.0)
    rows = rows * (counted if factors is None else counted * factors.unsqueeze(2))
    total = rows.sum(1)
    return total if mode == "sum" else total / valid.sum(1, keepdim=True).clamp(min=1)
