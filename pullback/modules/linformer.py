"""``LinformerAttention``: attention whose keys and values are k mixtures of the n tokens (Wang et al. 2020)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback._checks import check_option, input_error, unsupported

Sharing = Literal["none", "heads", "key_value", "layers"]
NAME = "LinformerAttention"


class LinformerAttention(nn.Module):
    """Multi-head attention through projections of the sequence, called as ``nn.MultiheadAttention``.

    With queries Q, keys K, values V of a head, (n, d_k), and projections E, F of the sequence, (k, n):

        softmax(Q (E K)^T / sqrt(d_k)) (F V),

    so that the matrix of scores is n x k. It is what full attention is for k = n and E = F = 1. E and F start at
    N(0, 1 / n), which keeps the variance of keys and values.

    Args:
        embed_dim: D, of a token.
        num_heads: H; divides D.
        length: n, the longest sequence; a shorter one takes the first columns of E and F.
        k: of the projections; at most n.
        share: "none": E and F of each head; "heads": one E and one F for all heads; "key_value": E = F for all
            heads; "layers": E = F for all heads, and the same for all modules that are given it as ``projection``.
        projection: with "layers", the ``projection_keys`` of another module, (1, k, n), which is shared, not copied;
            None makes the first one.
        bias: of the four linear maps.
        dropout: of the scores' rows, in train mode.
        batch_first: (N, n, D) if True, as everything in this package; (n, N, D) if not.

    Attributes:
        in_proj_weight: of queries, keys and values, (3 D, D), as in ``nn.MultiheadAttention``.
        in_proj_bias: (3 D,), or None.
        out_proj: linear, D -> D.
        projection_keys: E, (H or 1, k, n).
        projection_values: F, of the same shape; the same parameter as E where they are shared.

    Raises:
        InputError: heads that do not divide the width, k above the length or below 1, a projection of another shape.

    Cost: n k D a sequence in time, H n k in memory for scores, where full attention takes n^2.

    References: Wang et al. (2020), arXiv:2006.04768, section 4.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> attention = LinformerAttention(16, 4, length=64, k=8)
        >>> x = torch.randn(2, 64, 16)
        >>> y, weights = attention(x, x, x)
        >>> y.shape, weights.shape
        (torch.Size([2, 64, 16]), torch.Size([2, 64, 8]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        length: int,
        k: int,
        share: Sharing = "none",
        *,
        projection: nn.Parameter | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        check_option(NAME, "share", share, get_args(Sharing))
        if num_heads < 1 or embed_dim % num_heads:
            got = f"{num_heads} heads for {embed_dim}"
            raise input_error(NAME, "a number of heads that divides `embed_dim`", got, "Choose a divisor")
        if not 1 <= k <= length:
            raise input_error(NAME, f"`k` from 1 to the length {length}", str(k), "Pass fewer projections than tokens")
        if projection is not None and share != "layers":
            raise input_error(NAME, 'a `projection` with share="layers" only', f'share="{share}"', "Leave it out")
        if projection is not None and projection.shape != (1, k, length):
            got = f"{tuple(projection.shape)}"
            raise input_error(
                NAME, f"a projection {(1, k, length)}", got, "Pass `projection_keys` of a module like this"
            )
        self.embed_dim, self.num_heads, self.length, self.k = embed_dim, num_heads, length, k
        self.share, self.dropout, self.batch_first = share, dropout, batch_first
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        heads = num_heads if share == "none" else 1
        made = nn.Parameter(torch.empty(heads, k, length)) if projection is None else projection
        self.projection_keys = made
        two = share in ("none", "heads")
        self.projection_values = nn.Parameter(torch.empty(heads, k, length)) if two else made
        self._start(fresh=projection is None)

    def _start(self, *, fresh: bool) -> None:
        """Starting weights, those of ``nn.MultiheadAttention`` where it has them; a shared projection stays."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
        if fresh:
            nn.init.normal_(self.projection_keys, std=1 / math.sqrt(self.length))
        if self.projection_values is not self.projection_keys:
            nn.init.normal_(self.projection_values, std=1 / math.sqrt(self.length))

    @classmethod
    def from_attention(
        cls, attention: nn.MultiheadAttention, length: int, k: int, share: Sharing = "none"
    ) -> LinformerAttention:
        """The same with the weights of a full attention, copied; projections are drawn.

        Raises:
            UnsupportedError: keys or values of another width, ``bias_k``, ``add_zero_attn``.
        """
        where = f"{NAME}.from_attention"
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            got = "keys or values of a width of their own, `add_bias_kv` or `add_zero_attn`"
            raise unsupported(where, "self-attention without additions", got, "Build it by hand")
        bias = attention.in_proj_bias is not None
        made = cls(
            attention.embed_dim, attention.num_heads, length, k, share,
            bias=bias, dropout=attention.dropout, batch_first=attention.batch_first,
        )  # fmt: skip
        weight = attention.in_proj_weight
        made.to(weight.device, weight.dtype).train(attention.training)
        made.load_state_dict(attention.state_dict(), strict=False)
        return made

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs, and the scores' rows P over the k mixtures, (N, n, k), or (N, H, n, k) if not averaged.

        Args:
            query: (N, n, D), or (n, D) of one sequence.
            key: (N, m, D), m at most the length.
            value: the same.
            key_padding_mask: (N, m), True (or -inf) where a key is padding: it enters no mixture. A mixture of nothing
                but padding has a score of 0, not of -inf as in full attention.
            need_weights: whether P is returned; None if not.
            attn_mask: refused: a mixture of tokens cannot hide one of them from a query.
            average_attn_weights: over heads.
            is_causal: refused.

        Raises:
            UnsupportedError: a mask by queries.
            InputError: sequences longer than ``length``, keys and values of different lengths.
        """
        if attn_mask is not None or is_causal:
            remedy = "Mask padding by `key_padding_mask`, or use nn.MultiheadAttention"
            raise unsupported(NAME, "no mask of single queries, as keys are mixtures of tokens", "one", remedy)
        single = query.dim() == 2
        if single:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if key.shape[:2] != value.shape[:2]:
            got = f"{tuple(key.shape[:2])} and {tuple(value.shape[:2])}"
            raise input_error(NAME, "as many values as keys", got, "Pass both of the same sequences")
        if key.shape[1] > self.length:
            remedy = "Build it with the longest length, or cut the sequence"
            raise input_error(NAME, f"sequences of at most {self.length} tokens", str(key.shape[1]), remedy)
        Q, K, V = self._heads(query, key, value)
        if key_padding_mask is not None:
            kept = ~key_padding_mask if key_padding_mask.dtype == torch.bool else key_padding_mask == 0
            K, V = (mixed * kept[:, None, :, None] for mixed in (K, V))
        columns = slice(key.shape[1])
        K, V = self.projection_keys[..., columns] @ K, self.projection_values[..., columns] @ V  # (N, H, k, d_k)
        P = torch.softmax(Q @ K.transpose(-1, -2) / math.sqrt(Q.shape[-1]), -1)
        P = F.dropout(P, self.dropout, self.training)
        out = self.out_proj((P @ V).transpose(1, 2).flatten(2))
        weights = None if not need_weights else P.mean(1) if average_attn_weights else P
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values, each (N, H, n, d_k)."""
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        made = [F.linear(x, W, b) for x, W, b in zip(inputs, weights, biases, strict=True)]
        return [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in made]

    def extra_repr(self) -> str:
        """Sizes, in the module's line."""
        return f"{self.embed_dim}, heads={self.num_heads}, length={self.length}, k={self.k}, share={self.share!r}"
