"""Multi-head attention as linear layers around an attention that has no parameters.

``F.multi_head_attention_forward`` takes four to nine parameters in one call and lets no one see in between. Run from
here instead, its projections are linear layers like any other: one for queries, keys and values where the three are
one tensor, two or three otherwise, with the rows of the packed weight each of them needs. Fused back ends stay on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback._checks import unsupported
from pullback.gradients.rules.registry import REISSUED


def _thirds(weight: Tensor, bias: Tensor | None, first: int, last: int) -> tuple[Tensor, Tensor | None]:
    """Thirds ``first`` to ``last`` of packed parameters: consecutive rows, which the recorder sees through."""
    rows = len(weight) // 3
    part = slice(first * rows, last * rows)
    return weight[part], None if bias is None else bias[part]


def _projected(
    inputs: tuple[Tensor, Tensor, Tensor],
    weight: Tensor,
    bias: Tensor | None,
    separate: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, ...]:
    """Queries, keys and values, (..., E) each: with a packed weight equal inputs share one call."""
    query, key, value = inputs
    if separate is not None:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, separate, biases, strict=True))
    if query is key and key is value:
        return F.linear(query, weight, bias).chunk(3, -1)
    q = F.linear(query, *_thirds(weight, bias, 0, 1))
    if key is value:
        return q, *F.linear(key, *_thirds(weight, bias, 1, 3)).chunk(2, -1)
    return q, F.linear(key, *_thirds(weight, bias, 1, 2)), F.linear(value, *_thirds(weight, bias, 2, 3))


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(T, N, E) -> (N, H, T, E / H)."""
    return x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean masks forbid where they are true; all others are added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def _merged(attn_mask: Tensor | None, padding: Tensor | None, num_heads: int, dtype: torch.dtype) -> Tensor | None:
    """One additive mask that broadcasts to (N, H, L, S) from (L, S) or (N H, L, S), and (N, S)."""
    parts = []
    if attn_mask is not None:
        mask = _additive(attn_mask, dtype)
        parts.append(mask if mask.dim() == 2 else mask.unflatten(0, (-1, num_heads)))
    if padding is not None:
        parts.append(_additive(padding, dtype)[:, None, None])
    return sum(parts[1:], parts[0]) if parts else None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor = None,  # type: ignore[assignment]
    k_proj_weight: Tensor = None,  # type: ignore[assignment]
    v_proj_weight: Tensor = None,  # type: ignore[assignment]
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What ``F.multi_head_attention_forward`` returns, from calls whose parameters can be seen.

    Inputs are (L, N, E) and twice (S, N, .), or without N. H heads; samples stay in an axis of their own throughout.
    """
    if static_k is not None or static_v is not None:
        raise unsupported(
            "multi_head_attention_forward",
            "keys and values that are projected",
            "`static_k` or `static_v`",
            "Project inside the call, or leave these layers out with `params=`",
        )
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    q, k, v = _projected((query, key, value), in_proj_weight, in_proj_bias, separate)
    batched = query.dim() == 3
    if not batched:
        q, k, v = (x.unsqueeze(1) for x in (q, k, v))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    if is_causal and key_padding_mask is None and not need_weights:
        attn_mask = None  # the back ends know this one
    else:
        is_causal = False
    mask = _merged(attn_mask, key_padding_mask, num_heads, query.dtype)
    if bias_k is not None and bias_v is not None:  # one more key and value, learned, the same for all samples
        k, v = (torch.cat([x, bias.expand(1, x.shape[1], -1)]) for x, bias in ((k, bias_k), (v, bias_v)))
    q, k, v = (_heads(x, num_heads) for x in (q, k, v))
    if add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    if mask is not None and (added := k.shape[2] - key.shape[0]):
        mask = F.pad(mask, (0, added))
    outputs, weights = _attend(q, k, v, mask, dropout_p if training else 0.0, need_weights, is_causal)
    outputs = F.linear(outputs.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if not batched:
        outputs = outputs.squeeze(1)
        weights = None if weights is None else weights.squeeze(0)
    return outputs, weights


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, need_weights: bool, is_causal: bool
) -> tuple[Tensor, Tensor | None]:
    """Outputs (N, H, L, E / H) and, if asked for, the weights (N, H, L, S)."""
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal), None
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return weights @ v, weights


REISSUED[F.multi_head_attention_forward] = attention
