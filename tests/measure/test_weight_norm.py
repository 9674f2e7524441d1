"""Sizes of attention's weights: against sums over single columns and rows, and what does not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.measure import AttentionSpec, attention_weight_norm, rank_collapse


def test_by_loops() -> None:
    """Head by head, with heads narrower together than the tokens."""
    make = torch.Generator().manual_seed(0)
    d, inner, heads = 5, 6, 3
    Q, K, V = torch.randn(3, inner, d, generator=make, dtype=torch.float64)
    out = torch.randn(d, inner, generator=make, dtype=torch.float64)
    found = []
    for h in range(heads):
        rows = range(2 * h, 2 * h + 2)
        scores = [[sum(float(Q[r, i] * K[r, j]) for r in rows) for j in range(d)] for i in range(d)]
        mixed = [[sum(float(V[r, i] * out[j, r]) for r in rows) for j in range(d)] for i in range(d)]
        columns, across = (max(sum(abs(M[i][j]) for i in range(d)) for j in range(d)) for M in (scores, mixed))
        down = max(sum(abs(value) for value in row) for row in mixed)
        found.append(columns * math.sqrt(across * down))
    assert attention_weight_norm(Q, K, V, out, heads) == pytest.approx(max(found), rel=1e-12)


def test_the_bound_holds_for_drawn_networks() -> None:
    """S1-64: theorem 2.2 with this size, for tokens that are small enough for it to promise something."""
    for seed in range(3):
        spec = AttentionSpec(2, width=16, heads=2, tokens=6)
        model, x = spec.build(seed), 0.01 * spec.inputs(seed + 50)
        found = rank_collapse(model, x, spectrum=False)
        assert found.start is not None
        weights = [[getattr(layer, name) for name in ("query", "key", "value", "out")] for layer in model]
        beta = max(attention_weight_norm(*each, 2) for each in weights)
        start = float(found.start.residual.value[0])
        bound = pb.theory.rank_collapse_bound(start, 2, heads=2, head_dim=8, weight_norm=beta)
        assert bound.informative
        assert (found.residual.value.numpy() <= bound.residual[1:]).all()


W = torch.zeros(6, 4)


@pytest.mark.parametrize(
    "given",
    [(W, W, W, W, 2), (W, torch.zeros(6, 5), W, W.T, 2), (W, W, W, W.T, 4), (W, W, W, W.T, 0), (W[0],) * 4 + (1,)],
)
def test_weights_that_do_not_fit(given: Any) -> None:
    with pytest.raises(
        pb.InputError, match=r"three weights \(D', D\) and one \(D, D'\), heads that divide D', got .* heads"
    ):
        attention_weight_norm(*given)
