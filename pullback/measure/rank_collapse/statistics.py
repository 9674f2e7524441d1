"""Numbers of one sample: of its tokens X (T, D), and of its attention matrices P (H, T, S)."""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS = (
    "residual",
    "relative_residual",
    "frobenius_residual",
    "relative_frobenius_residual",
    "cosine",
    "stable_rank",
    "effective_rank",
)
HEADS = (
    "entropy",
    "relative_entropy",
    "first_token",
    "cosine",
    "relative_residual",
    "score_gradient",
)
SPECTRUM = ("stable_rank", "effective_rank", "skew")
QUARTER = 4  # of the singular values: 128 of 512, as in Linformer's figure 1


def composite_norm(X: Tensor) -> Tensor:
    """sqrt(|X|_1 |X|_inf) of matrices (..., T, D): largest column sum times largest row sum of absolute values."""
    sizes = X.abs()
    return (sizes.sum(-2).amax(-1) * sizes.sum(-1).amax(-1)).sqrt()


def of_tokens(X: Tensor, *, spectrum: bool = True) -> Tensor:
    """The numbers named in ``TOKENS``, of tokens (T, D) in float64, T >= 2; (7,). Without spectrum no stable rank."""
    R = X - X.mean(-2, keepdim=True)
    composite, frobenius = composite_norm(X), X.square().sum((-2, -1))
    residual, left = composite_norm(R), R.square().sum((-2, -1))
    gram = X.mT @ X if X.shape[-2] > X.shape[-1] else X @ X.mT
    return torch.stack(
        [
            residual,
            residual / composite,
            left.sqrt(),
            (left / frobenius).sqrt(),
            mean_cosine(X),
            frobenius / torch.linalg.eigvalsh(gram)[-1] if spectrum else frobenius * torch.nan,
            frobenius.square() / gram.square().sum((-2, -1)),
        ],
        -1,
    )


def mean_cosine(X: Tensor) -> Tensor:
    """Over all pairs of different rows of (..., T, D); nan with a row of zeros."""
    T = X.shape[-2]
    directions = X / X.norm(dim=-1, keepdim=True)
    return (directions.sum(-2).square().sum(-1) - T) / (T * (T - 1))


def of_heads(P: Tensor, V: Tensor, allowed: Tensor) -> Tensor:
    """The numbers named in ``HEADS``.

    Args:
        P: attention matrices, (H, T, S), float64.
        V: values, (H, S, d_v).
        allowed: how many keys each row may attend to, (H, T).

    Returns:
        (6, H).
    """
    rows = torch.special.entr(P).sum(-1)
    free = allowed > 1
    bits = torch.where(free, rows / allowed.clamp(min=2).to(P).log(), 0).sum(-1) / free.sum(-1)  # nan without such rows
    out = P @ V
    left = composite_norm(out - out.mean(-2, keepdim=True)) / composite_norm(out)
    return torch.stack([rows.mean(-1), bits, P[..., 0].mean(-1), mean_cosine(out), left, score_gradient(P, V, out)])


def score_gradient(P: Tensor, V: Tensor, out: Tensor) -> Tensor:
    """How much of a gradient reaches the scores, and by them queries and keys, beside what reaches the values; (H,).

    Of a gradient U at a head's output o = P V, row i, the score (i, j) gets P_ij <u_i, v_j - o_i>. With independent
    entries of U of variance 1 the squared sum is, in expectation, sum_ij P_ij^2 |v_j - o_i|^2; values get
    d_v sum_ij P_ij^2. The number is the root of the first over sum_ij P_ij^2 times the mean of |v_j|^2: 0 where all
    tokens are one, about 1 where they have nothing in common.
    """
    squares = V.square().sum(-1)  # (H, S)
    distances = (out @ V.mT).mul_(-2).add_(squares.unsqueeze(-2)).add_(out.square().sum(-1, keepdim=True)).clamp_(min=0)
    reached = distances.mul_(P).mul_(P).sum((-2, -1))
    return (reached / (torch.linalg.matrix_norm(P).square() * squares.mean(-1))).sqrt()


def of_spectrum(P: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers named in ``SPECTRUM``, (3, H), and the singular values, (H, min(T, S))."""
    values = torch.linalg.svdvals(P)
    squares, energy = values.square(), cumulative(values)
    whole, quarter = squares.sum(-1), max(1, values.shape[-1] // QUARTER)
    ranks = whole / squares[..., 0], whole.square() / squares.square().sum(-1)
    return torch.stack([*ranks, energy[..., quarter - 1]]), values


def cumulative(values: Tensor) -> Tensor:
    """Share of sum s^2 that the k largest singular values have, for k = 1, 2, ..."""
    energy = values.square().cumsum(-1)
    return energy / energy[..., -1:]
