"""Rank collapse of drawn networks (S1-62, 63, 65, 66, 68, 70 to 72, 74), against matrices made by hand."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pullback as pb
from pullback.measure import AttentionSpec, RankCollapse, rank_collapse
from pullback.measure.rank_collapse.statistics import of_heads, of_spectrum, of_tokens, score_gradient
from pullback.theory import token_profile
from tests.thinned import thinned

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "attention.json").read_text())
PROFILES = KNOWN["relative_residual_per_layer(geo-mean of 10 seeds)"]
KINDS: dict[str, dict[str, Any]] = {
    "pure": {},
    "pure+ln": {"norm": "post"},
    "pure+mlp": {"mlp": True},
    "skip": {"skip": True},
    "skip+ln": {"skip": True, "norm": "post"},
    "skip+mlp": {"skip": True, "mlp": True},
    "skip+mlp+ln": {"skip": True, "mlp": True, "norm": "post"},
}


QUICK = ("pure", "pure+ln", "skip")  # the rest is slow


@cache
def measured(kind: str) -> RankCollapse:
    """Ten seeds, T = 16, d = 64, H = 4; layers as far as they are above the floor and one more, or 8."""
    depths = {"pure": 5, "pure+mlp": 4, "pure+ln": 6}
    return rank_collapse(AttentionSpec(depths.get(kind, 8), **KINDS[kind]), spectrum=False)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_residuals_are_those_of_the_seed(kind: str) -> None:
    """S1-63, S1-70: geometric means over 10 seeds, there and here, as far as either's error allows.

    Those of the seed were drawn by another program, of which the errors are taken to be the same. Below 1e-12 there is
    rounding alone.
    """
    found = measured(kind).log_relative_residual
    for layer in range(len(found)):
        value, stderr = float(found.value[layer]), float(found.stderr[layer])
        known = PROFILES[kind][layer + 1]
        if known > 1e-12:
            assert abs(value - math.log(known)) < 3 * math.sqrt(2) * stderr, layer
        else:
            assert value < math.log(1e-12)


def test_pure_attention_collapses_doubly_exponentially() -> None:
    """S1-63: the logarithm falls threefold a layer, up to the floor of the dtype; with skips it does not."""
    pure, skip = measured("pure"), measured("skip")
    logs = pure.log_relative_residual
    above = logs.value > math.log(pure.floor)
    assert above.tolist() == [True] * 3 + [False] * 2
    assert pure.collapsed == ("3", "4")
    assert pure.floor == 8 * torch.finfo(torch.float64).eps
    # cubic: log r_3 - 3 log r_2 is a constant of the weights; the exponent itself, with its error over seeds
    exponent = float(logs.value[2] / logs.value[1])
    error = exponent * math.hypot(float(logs.stderr[2] / logs.value[2]), float(logs.stderr[1] / logs.value[1]))
    assert exponent > 3 - 3 * error
    assert skip.collapsed == ()
    slopes = skip.log_relative_residual.value.diff()
    assert float(slopes.min()) > -0.5  # 0.27 at layer 8: no layer takes more than a factor
    assert 0.17 < float(skip.log_relative_residual.value[7].exp()) < 0.37  # S1-67


def test_order_of_cures() -> None:
    """S1-70: at layer 4 pure attention with layer norm lies between pure attention and skips."""
    pure, norm, skip = (float(measured(kind).log_relative_residual.value[3]) for kind in ("pure", "pure+ln", "skip"))
    assert pure < norm - 10
    assert norm < skip - 10


def test_cosine_goes_with_the_residual() -> None:
    """S1-71: 1 - cosine is of second order in the residual; the rank becomes 1 (S1-65)."""
    pure = measured("pure")
    assert float(pure.cosine.value[3]) == pytest.approx(1, abs=1e-12)
    apart, left = 1 - pure.cosine.value[:3], pure.relative_residual.value[:3]
    assert bool((apart < 2 * left).all())
    assert bool((apart.diff() < 0).all())
    assert pure.effective_rank.value[3:].tolist() == pytest.approx([1, 1], abs=1e-9)
    assert bool(torch.isnan(pure.stable_rank.value).all())  # not asked for


@pytest.mark.parametrize("seed", range(2))
def test_rank_one_from_layer_four(seed: int) -> None:
    """S1-65: singular values of X_L beyond the first are below 1e-6 of it."""
    spec = AttentionSpec(4)
    X = spec.build(seed)(spec.inputs(seed + 1))[0]
    s = torch.linalg.svdvals(X)
    assert int((s > 1e-6 * s[0]).sum()) == 1


def by_hand(spec: AttentionSpec, seed: int, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Tokens behind each layer, its attention matrices (H, T, S) and values, of one sample (T, D), by loops."""
    tokens, matrices, values = [], [], []
    for layer in spec.build(seed):
        width, step = spec.width, spec.width // spec.heads
        y = F.layer_norm(x, (width,)) if spec.norm == "pre" else x
        Q, K, V = (y @ W.T for W in (layer.query, layer.key, layer.value))
        P, A, outs = [], [], []
        for head in range(spec.heads):
            q, k, v = (M[:, head * step : (head + 1) * step] for M in (Q, K, V))
            if spec.projections:
                k, v = layer.projected[0][head] @ k, layer.projected[1][head] @ v
            rows = []
            for i in range(spec.tokens):
                scores = torch.stack([q[i] @ k[j] / math.sqrt(step) for j in range(len(k))])
                if spec.causal:
                    scores[i + 1 :] = -math.inf
                weights = (scores - scores.max()).exp()
                rows.append(weights / weights.sum())
            P.append(torch.stack(rows))
            A.append(v)
            outs.append(P[-1] @ v)
        y = torch.cat(outs, 1) @ layer.out.T
        x = x + spec.scale * y if spec.skip else y
        x = F.layer_norm(x, (width,)) if spec.norm == "post" else x
        if spec.mlp:
            y = F.layer_norm(x, (width,)) if spec.norm == "pre" else x
            y = (y @ layer.mlp[0].T).relu() @ layer.mlp[1].T
            x = x + spec.scale * y if spec.skip else y
            x = F.layer_norm(x, (width,)) if spec.norm == "post" else x
        tokens.append(x.detach())
        matrices.append(torch.stack(P).detach())
        values.append(torch.stack(A).detach())
    return tokens, matrices, values


SPECS = [
    {},
    {"skip": True, "mlp": True, "norm": "pre", "scale": 0.5},
    {"mlp": True, "norm": "post"},
    {"skip": True, "norm": "post", "causal": True},
    {"projections": 3, "skip": True},
]


@pytest.mark.parametrize("given", SPECS, ids=str)
def test_numbers_are_those_of_matrices_made_by_hand(given: dict[str, Any]) -> None:
    """S1-62: attention, its numbers and those of tokens, by loops over rows."""
    spec = AttentionSpec(2, width=6, heads=2, tokens=5, **given)
    x = spec.inputs(3, count=2)
    found = rank_collapse(spec, x, seeds=1, seed=7)
    tokens, matrices, values = zip(*(by_hand(spec, 7, one) for one in x), strict=True)
    for layer in range(2):
        X = torch.stack([one[layer] for one in tokens])
        R = X - X.mean(1, keepdim=True)
        composite = [math.sqrt(float(torch.linalg.norm(A, 1) * torch.linalg.norm(A, math.inf))) for A in (*R, *X)]
        near = {"rel": 1e-9, "abs": 1e-12}
        assert float(found.residual.value[layer]) == pytest.approx((composite[0] + composite[1]) / 2, **near)
        ratio = (composite[0] / composite[2] + composite[1] / composite[3]) / 2
        assert float(found.relative_residual.value[layer]) == pytest.approx(ratio, **near)
        sizes = R.flatten(1).norm(dim=1), X.flatten(1).norm(dim=1)
        assert float(found.frobenius_residual.value[layer]) == pytest.approx(float(sizes[0].mean()), **near)
        relative = float((sizes[0] / sizes[1]).mean())
        assert float(found.relative_frobenius_residual.value[layer]) == pytest.approx(relative, **near)
        pairs = [F.cosine_similarity(A[i], A[j], 0) for A in X for i in range(5) for j in range(i)]
        assert float(found.cosine.value[layer]) == pytest.approx(float(torch.stack(pairs).mean()), **near)
        s = torch.linalg.svdvals(X)
        stable = (s.square().sum(1) / s[:, 0].square()).mean()
        assert float(found.stable_rank.value[layer]) == pytest.approx(float(stable), **near)
        spread = (s.square().sum(1).square() / s.pow(4).sum(1)).mean()
        assert float(found.effective_rank.value[layer]) == pytest.approx(float(spread), **near)
        compare_heads(found.attention[layer], [m[layer] for m in matrices], [v[layer] for v in values], spec)


def compare_heads(found: Any, matrices: list[Tensor], values: list[Tensor], spec: AttentionSpec) -> None:
    for head in range(spec.heads):
        rows = []
        for P, V in ((m[head], v[head]) for m, v in zip(matrices, values, strict=True)):
            entropies = [-sum(float(p) * math.log(p) for p in row if p > 0) for row in P]
            most = [i + 1 if spec.causal else P.shape[1] for i in range(len(P))]
            shares = [e / math.log(m) for e, m in zip(entropies, most, strict=True) if m > 1]
            s = torch.linalg.svdvals(P)
            energy = s.square().cumsum(0) / s.square().sum()
            o = P @ V
            pull = sum(float(P[i, j] ** 2 * (V[j] - o[i]).square().sum()) for i in range(len(P)) for j in range(len(V)))
            size = float(P.square().sum() * V.square().sum(1).mean())
            rows.append(
                {
                    "entropy": sum(entropies) / len(P),
                    "relative_entropy": sum(shares) / len(shares),
                    "first_token": float(P[:, 0].mean()),
                    "stable_rank": float(s.square().sum() / s[0] ** 2),
                    "effective_rank": float(s.square().sum() ** 2 / s.pow(4).sum()),
                    "skew": float(energy[max(1, len(s) // 4) - 1]),
                    "score_gradient": math.sqrt(pull / size),
                    "relative_residual": float(of_tokens(o)[1]),
                    "cosine": float(of_tokens(o)[4]),
                }
            )
        for name in rows[0]:
            profile = getattr(found, name)
            mean = sum(row[name] for row in rows) / 2
            assert float(profile.value[head]) == pytest.approx(mean, rel=1e-9, abs=1e-12), name
        singular = torch.stack([torch.linalg.svdvals(m[head]) for m in matrices]).mean(0)
        torch.testing.assert_close(found.singular_values.value[head], singular, rtol=1e-9, atol=1e-12)


def test_rows_of_a_layer_sum_to_one_and_give_what_torch_gives() -> None:
    """S1-62."""
    spec = AttentionSpec(1, width=8, heads=2, tokens=6)
    x = spec.inputs(0)
    (X,), (P,), (V,) = by_hand(spec, 0, x[0])
    torch.testing.assert_close(P.sum(-1), torch.ones(2, 6).double())
    layer = spec.build(0)[0]
    Q, K = ((x[0] @ W.T).unflatten(-1, (2, 4)).transpose(0, 1) for W in (layer.query, layer.key))
    torch.testing.assert_close(F.scaled_dot_product_attention(Q, K, V), P @ V, rtol=0, atol=1e-6)
    torch.testing.assert_close(spec.build(0)(x)[0], X)


def test_spectrum_of_a_random_matrix() -> None:
    """S1-72: share of the 64 largest of 256 singular values, squared, of one head of width 32; and 1 at the end."""
    spec = AttentionSpec(1, width=32, heads=1, tokens=256)
    found = rank_collapse(spec, seeds=4).attention[0]
    shares, error = found.cumulative.value[0], float(found.cumulative.stderr[0, 63])
    known = KNOWN["linformer"]["P_singular_values_cumulative_at_64"]  # of one draw
    assert float(shares[63]) == pytest.approx(known, abs=3 * error * math.sqrt(1 + 4))
    assert float(shares[-1]) == 1
    assert float(found.skew.value[0]) == float(shares[63])
    assert bool((shares.diff() >= 0).all())


def test_uniform_attention_makes_tokens_one() -> None:
    """S1-63: residual 0 after one layer, to rounding."""
    spec = AttentionSpec(1, width=8, heads=2, tokens=5)
    model = spec.build(0)
    with torch.no_grad():
        model[0].query.zero_()
    found = rank_collapse(model, spec.inputs(1))
    assert float(found.relative_residual.value[0]) < found.floor
    assert found.collapsed == ("0",)
    assert float(found.attention[0].relative_entropy.value.min()) == pytest.approx(1)
    assert float(found.attention[0].effective_rank.value.max()) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_cosines_with_scaled_skips_are_those_of_theory(scale: float) -> None:
    """S1-68: uniform attention with 16 skips, unscaled and scaled by 1 / sqrt(16), of 8 orthonormal tokens.

    The predicted cosine is that of expectations; of width 128 single networks deviate by their own error and 1 / 128.
    """
    spec = AttentionSpec(16, width=128, heads=1, tokens=8, skip=True, scale=scale)
    x = torch.eye(8, 128).double().unsqueeze(0)
    found = []
    for seed in range(6):
        model = spec.build(seed)
        with torch.no_grad():
            for layer in model:
                layer.query.zero_()
        found.append(rank_collapse(model, x, spectrum=False).cosine.value)
    cosines = torch.stack(found)
    known = torch.from_numpy(token_profile(8, 16, attention=scale, mlp=0.0).cosine[1:])
    error = 3 * cosines.std(0) / math.sqrt(len(found)) + 2 / spec.width
    assert bool(((cosines.mean(0) - known).abs() < error).all())
    assert (float(cosines.mean(0)[-1]) > 0.9) is (scale == 1.0)


def gradients(model: torch.nn.Module, x: Tensor) -> Tensor:
    """Norms of dL/dW_Q over those of dL/dW_V, of each layer, for a random read-out."""
    y = model(x)
    u = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    pairs = [(layer.query, layer.value) for layer in model]
    found = torch.autograd.grad((u * y).sum(), [W for pair in pairs for W in pair])
    return torch.stack([a.norm() / b.norm() for a, b in zip(found[::2], found[1::2], strict=True)])


def test_gradients_of_queries_vanish_at_rank_one() -> None:
    """S1-66: exactly 0 for equal tokens, and less with every layer of a pure stack; ``score_gradient`` says so."""
    spec = AttentionSpec(3, width=16, heads=2, tokens=6)
    model, x = spec.build(0), spec.inputs(1)
    equal = x[:, :1].expand_as(x)
    assert float(gradients(model, equal).max()) < 1e-14
    assert float(rank_collapse(model, equal).attention[0].score_gradient.value.max()) < 1e-7
    ratios = gradients(model, x)
    assert bool((ratios.diff() < 0).all())
    told = [float(layer.score_gradient.value.mean()) for layer in rank_collapse(model, x).attention]
    assert told[2] < min(told[:2]) / 4


def test_score_gradient_is_the_expected_gradient() -> None:
    """Against autograd, summed over a basis of the gradients that may come from above."""
    generator = torch.Generator().manual_seed(0)
    S, V = (torch.randn(1, 4, n, generator=generator, dtype=torch.float64) for n in (4, 3))
    S, V = S.requires_grad_(), V.requires_grad_()
    out = torch.softmax(S, -1) @ V
    to_scores = to_values = 0.0
    for place in range(out.numel()):
        u = F.one_hot(torch.tensor(place), out.numel()).double().view_as(out)
        by_scores, by_values = torch.autograd.grad(out, (S, V), u, retain_graph=True)
        to_scores, to_values = to_scores + by_scores.square().sum(), to_values + by_values.square().sum()
    P = torch.softmax(S, -1)
    found = score_gradient(P.detach(), V.detach(), out.detach())
    expected = to_scores / (to_values / V.shape[-1] * V.square().sum(-1).mean())
    torch.testing.assert_close(found, expected.sqrt().reshape(1))


def test_linformer_collapses_at_another_rate() -> None:
    """S1-74: residual of each layer of both kinds, from the same seeds.

    Mixtures of equal tokens differ by the sums of their weights: what tokens have in common no longer cancels in the
    softmax, and the residual is of first order in that before, times the size of the scores; not of third order.
    """
    full, low = (rank_collapse(AttentionSpec(3, tokens=32, projections=k), seeds=6, spectrum=False) for k in (None, 8))
    difference = low.log_relative_residual.value - full.log_relative_residual.value
    error = (low.log_relative_residual.stderr.square() + full.log_relative_residual.stderr.square()).sqrt()
    assert len(difference) == 3
    assert bool((difference[1:] > 3 * error[1:]).all())


def test_errors_are_over_inputs_and_over_seeds() -> None:
    spec = AttentionSpec(1, width=8, heads=2, tokens=4)
    x = spec.inputs(0, count=5)
    each = [rank_collapse(spec, one.unsqueeze(0), seeds=1) for one in x]
    found = rank_collapse(spec, x, seeds=1)
    values = torch.stack([one.cosine.value for one in each])
    torch.testing.assert_close(found.cosine.value, values.mean(0))
    assert bool((found.cosine.stderr > values.std(0) / math.sqrt(5)).all())  # widened by Student's distribution
    assert bool(torch.isnan(each[0].cosine.stderr).all())
    drawn = rank_collapse(spec, seeds=3, seed=4)
    single = [rank_collapse(spec, seeds=1, seed=number).cosine.value for number in (4, 5, 6)]
    torch.testing.assert_close(drawn.cosine.value, torch.stack(single).mean(0))
    assert (found.num_inputs, found.num_seeds, drawn.num_seeds) == (5, 1, 3)


@pytest.mark.parametrize(("dtype", "given"), thinned([torch.float32, torch.bfloat16], [{}, {"skip": True}]))
def test_the_floor_is_that_of_the_dtype(dtype: torch.dtype, given: dict[str, Any]) -> None:
    found = rank_collapse(AttentionSpec(5, **given), seeds=2, dtype=dtype, spectrum=False)
    assert found.floor == 8 * torch.finfo(dtype).eps
    assert (found.collapsed != ()) is not bool(given)


def test_refusals_of_specifications() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"width": 6, "heads": 4}, "a number of heads that divides `width`, got 4 heads for 6. Choose a divisor"),
        ({"tokens": 1}, "`tokens` at least 2"),
        ({"depth": 0}, "`depth` at least 1"),
        ({"norm": "batch"}, "`norm` to be one of"),
        ({"scale": 0.0}, "`scale` above 0"),
        ({"scale": math.inf}, "a finite `scale`, got inf"),
        ({"projections": 17}, "no more projections than tokens, got 17 for 16"),
        ({"projections": 2, "causal": True}, "projections of attention that is not causal"),
    ]
    for given, said in refused:
        with pytest.raises(pb.InputError, match=said):
            AttentionSpec(**{"depth": 1} | given)
    spec = AttentionSpec(1)
    with pytest.raises(pb.InputError, match="`seeds` at least 1"):
        rank_collapse(spec, seeds=0)
    with pytest.raises(pb.InputError, match=r"`inputs` \(N, 16, 64\), got \(2, 3, 64\)"):
        rank_collapse(spec, torch.zeros(2, 3, 64))


def test_statistics_of_tokens_that_are_zero() -> None:
    found = of_tokens(torch.zeros(3, 2).double())
    assert float(found[0]) == 0
    assert bool(torch.isnan(found[[1, 3, 4]]).all())


def test_heads_whose_rows_have_one_key_have_no_relative_entropy() -> None:
    P, V = torch.eye(3).double().unsqueeze(0), torch.ones(1, 3, 2).double()
    found = of_heads(P, V, torch.ones(1, 3, dtype=torch.long))
    assert float(found[0, 0]) == 0
    assert math.isnan(float(found[1, 0]))
    numbers, values = of_spectrum(P)
    assert values.tolist() == [[1, 1, 1]]
    assert numbers[:, 0].tolist() == pytest.approx([3, 3, 1 / 3])
