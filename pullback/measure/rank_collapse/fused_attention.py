"""Attention as torch's fused operations show it: by queries, keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -5e8  # added to a score, or a score itself, from which on a key counts as hidden
Part = tuple[Tensor, Tensor, Tensor]  # P (h, T, S), V (h, S, d_v), both float64; keys allowed to each row, (h, T)


@dataclass(frozen=True)
class Shape:
    """Sizes of an attention.

    Attributes:
        batch: B; samples, or windows of samples, one sample after the other; of a packed call also heads.
        heads: H.
        packed: whether samples and heads share the first axis, H being 1.
        lengths: T of each of the B.
    """

    batch: int
    heads: int
    packed: bool
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One attention, of which matrices are made when they are asked for, a part at a time.

    Attributes:
        shape: its sizes.
        dtype: of its values.
        part: of an index among the B and heads, ``Part``.
        attended: of an index, which keys some row may attend to, (S,).
    """

    shape: Shape
    dtype: torch.dtype
    part: Callable[[int, slice], Part]
    attended: Callable[[int], Tensor]


def limit(dtype: torch.dtype) -> float:
    """Scores and biases at or below it hide a key."""
    return max(MASKED, torch.finfo(dtype).min / 2)


def fused(given: dict[str, Any]) -> Call:
    """A fused call of scaled dot products, of any of torch's kernels, by the names of its arguments."""
    q, k, v = (four_axes(given[name]) for name in ("query", "key", "value"))
    B, H, T, _ = q.shape
    S = k.shape[2]
    mask = given.get("attn_mask") if given.get("attn_bias") is None else given["attn_bias"]
    if mask is not None:
        mask = mask if mask.dim() <= 4 else mask.flatten(1, -3)
        mask = mask.expand(B, H, T, S)
    scale = given.get("scale") or 1 / math.sqrt(q.shape[-1])

    def operands(n: int, heads: slice) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.arange(H, device=q.device)[heads]
        K, V = (_of(A, n)[chosen // (H // A.shape[1])] for A in (k, v))
        return q[n, heads], K, V

    def bias(n: int, heads: slice) -> tuple[Tensor | None, Tensor | None]:
        shift = None if mask is None else mask[n, heads]
        allowed = None if shift is None else shift if shift.dtype == torch.bool else shift > limit(shift.dtype)
        if shift is not None and shift.dtype == torch.bool:
            shift = None
        if given.get("is_causal"):
            past = torch.ones(T, S, dtype=torch.bool, device=q.device).tril().unsqueeze(0)
            allowed = past if allowed is None else allowed & past
        return shift, allowed

    one = 1 if mask is None or mask.stride(1) == 0 else H  # heads whose masks differ
    sizes = Shape(B, H, given["query"].dim() == 3, (T,) * B)
    return _scored(sizes, v.dtype, S, operands, bias, scale, one)


def without_first_axis(given: dict[str, Any]) -> dict[str, Any]:
    """The same call of three axes each, of one whose first axis has one entry; the mask is spread as theirs are."""
    mask = given.get("attn_mask")
    if mask is not None:
        mask = mask[(None,) * (4 - mask.dim())].transpose(0, 1)
    return given | {name: given[name].squeeze(0) for name in ("query", "key", "value")} | {"attn_mask": mask}


def native(given: dict[str, Any]) -> Call:
    """Torch's fast path of a whole encoder layer, or of self-attention: packed projections and all in one call."""
    whole = "src" in given
    src = given["src"] if whole else given["query"]
    H, W, b = given["num_heads"] if whole else given["num_head"], given["qkv_weight"], given["qkv_bias"]
    rows, mask, kind = src.unbind(), given.get("mask"), given.get("mask_type")

    def operands(n: int, heads: slice) -> tuple[Tensor, Tensor, Tensor]:
        x = rows[n]
        if given.get("norm_first"):
            x = F.layer_norm(x, x.shape[-1:], given["norm_weight_1"], given["norm_bias_1"], given["eps"])
        Q, K, V = F.linear(x, W, b).unflatten(-1, (3, H, -1)).permute(1, 2, 0, 3)
        return Q[heads], K[heads], V[heads]

    def bias(n: int, heads: slice) -> tuple[Tensor | None, Tensor | None]:
        if mask is None:
            return None, None
        hidden = mask.bool()  # as the kernel takes it: what is not 0 is hidden
        shown = hidden if kind == 0 else hidden[n].unsqueeze(0) if kind == 1 else hidden[n, heads]
        return None, ~shown if shown.dim() == 3 else ~shown.unsqueeze(0)

    sizes = Shape(len(rows), H, False, tuple(len(x) for x in rows))
    made = _scored(
        sizes, src.dtype, max(sizes.lengths), operands, bias, (src.size(-1) // H) ** -0.5, H if kind == 2 else 1
    )
    return replace(made, attended=lambda n: made.attended(n)[: sizes.lengths[n]])


def _scored(sizes: Shape, dtype: torch.dtype, S: int, operands: Any, bias: Any, scale: float, one: int) -> Call:
    """A call whose matrices are made of scores."""

    def part(n: int, heads: slice) -> Part:
        Q, K, V = (A.double() for A in operands(n, heads))
        shift, allowed = bias(n, heads)
        scores = (Q @ K.mT).mul_(scale)
        if shift is not None:
            scores += shift
        if allowed is None:
            return torch.softmax(scores, -1), V, torch.full(scores.shape[:2], scores.shape[2], device=Q.device)
        P = torch.softmax(scores.masked_fill_(~allowed, -math.inf), -1)
        return P.nan_to_num_(0.0), V, allowed.expand_as(scores).sum(-1)

    def attended(n: int) -> Tensor:
        allowed = bias(n, slice(0, one))[1]
        if allowed is None:
            return torch.ones(S, dtype=torch.bool)
        return allowed.expand(-1, -1, S).flatten(0, 1).any(0)

    return Call(sizes, dtype, part, attended)


def four_axes(A: Tensor) -> Tensor:
    """(B, H, T, d); what has three axes shares the first among samples and heads."""
    if A.dim() < 3:
        return A.reshape(1, 1, *A.shape[-2:])
    return A.unsqueeze(1) if A.dim() == 3 else A.flatten(1, -3)


def _of(A: Tensor, n: int) -> Tensor:
    return A[n] if len(A) > 1 else A[0]
