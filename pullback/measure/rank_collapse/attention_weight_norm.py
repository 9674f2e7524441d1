"""How large the weights of attention are, in the norms that bounds on its collapse are written in."""

from __future__ import annotations

from torch import Tensor

from pullback._checks import input_error


def attention_weight_norm(query: Tensor, key: Tensor, value: Tensor, out: Tensor, heads: int) -> float:
    """Size of a layer's weights, beta of ``theory.rank_collapse_bound``: largest |W_QK|_1 |W_V|_{1, inf} of its heads.

    W_QK = W_Q^T W_K makes scores of two tokens, W_V what a head adds for a token: values, then its part of the outputs.
    |A|_1 is the largest sum of a column, |A|_{1, inf} the root of that times the largest of a row.

    Args:
        query: weights (D', D) of all heads' queries, as in ``nn.Linear``.
        key: the same.
        value: the same.
        out: weights (D, D') of the outputs.
        heads: H, equal shares of D'.

    Raises:
        InputError: weights that do not fit, or that the heads do not divide.

    Example:
        >>> import torch
        >>> eye = torch.eye(4)
        >>> attention_weight_norm(eye, eye, eye, eye, 2)
        1.0
    """
    where = "attention_weight_norm"
    shapes = [tuple(W.shape) for W in (query, key, value)]
    fitting = len(set(shapes)) == 1 and len(shapes[0]) == 2 and tuple(out.shape) == shapes[0][::-1]
    if not fitting or heads < 1 or shapes[0][0] % heads:
        got = f"{shapes} and {tuple(out.shape)} for {heads} heads"
        remedy = "Pass weights as nn.Linear has them"
        raise input_error(where, "three weights (D', D) and one (D, D'), heads that divide D'", got, remedy)
    norms = []
    for Q, K, V, W in zip(
        *(each.detach().chunk(heads) for each in (query, key, value)), out.detach().chunk(heads, 1), strict=True
    ):
        scores, mixed = (Q.mT @ K).abs(), (W @ V).abs()
        norms.append(float(scores.sum(0).max() * (mixed.sum(0).max() * mixed.sum(1).max()).sqrt()))
    return max(norms)
