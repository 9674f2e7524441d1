"""Predictions about attention (S1-64, S1-67 to S1-69, S1-91), against enumeration, dense layers and simulation."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

import pullback as pb
from pullback import theory

KNOWN = json.loads((Path(__file__).parents[2] / "data" / "attention.json").read_text())


def test_paths_of_the_seed() -> None:
    assert list(theory.attention_paths(6, 4)) == KNOWN["paths"]["skip_binom(L,l)H^l"]["H=4,L=6"]
    assert sum(theory.attention_paths(6, 4)) == KNOWN["paths"]["skip_binom(L,l)H^l"]["total=(1+H)^L"] == 15625
    assert theory.attention_paths(6, 4, skip=False)[6] == KNOWN["paths"]["pure_H^L"]["H=4,L=6"]
    assert list(theory.attention_paths(12, 12)) == KNOWN["paths"]["H=12,L=12"]["counts"]


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (3, 2), (2, 4)])
def test_paths_are_those_that_can_be_listed(layers: int, heads: int) -> None:
    chosen = itertools.product(range(heads + 1), repeat=layers)  # of each layer a head, or 0 for its skip
    lengths = [sum(head > 0 for head in path) for path in chosen]
    assert list(theory.attention_paths(layers, heads)) == [lengths.count(k) for k in range(layers + 1)]


def test_the_bound_is_its_closed_form() -> None:
    """E1.32: (4 gamma beta H lambda / sqrt(d_k))^((3^l - 1) / 2) r^(3^l)."""
    r, c = 0.3, 4 * 0.7 * 1.5 * 2 * 1.2 / math.sqrt(16)
    found = theory.rank_collapse_bound(r, 4, heads=2, head_dim=16, weight_norm=1.5, gamma=0.7, lipschitz=1.2)
    assert list(found.exponents) == [0, 1, 4, 13, 40]
    for layer in range(5):
        expected = c ** ((3**layer - 1) // 2) * r ** (3**layer)
        assert found.residual[layer] == pytest.approx(expected, rel=1e-12)
        assert found.log_residual[layer] == pytest.approx(math.log(expected), rel=1e-12)
    exponents = KNOWN["dong_bound"]["exponents_(3^L-1)/2"]
    assert theory.rank_collapse_bound(0.1, 6).exponents[1:] == tuple(exponents.values())


def test_an_mlp_inflates_the_bound() -> None:
    """S1-69: by 2^13 = 8192 after three layers at lambda 2."""
    with_mlp, without = (theory.rank_collapse_bound(0.2, 3, lipschitz=value) for value in (2.0, 1.0))
    assert with_mlp.residual[3] / without.residual[3] == pytest.approx(8192, rel=1e-10)


@pytest.mark.parametrize(("residual", "informative"), [(0.499, True), (0.5, False), (0.501, False)])
def test_the_bound_falls_below_one_over_the_root_of_its_constant(residual: float, informative: bool) -> None:
    found = theory.rank_collapse_bound(residual, 8)
    assert found.informative is informative
    assert bool(found.residual[-1] < found.residual[0] * (1 - 1e-9)) is informative
    skipped = theory.rank_collapse_bound(residual, 8, skip=True)
    assert not skipped.informative
    assert (np.diff(skipped.residual) > 0).all()


def test_what_no_number_can_hold() -> None:
    found = theory.rank_collapse_bound(0.01, 12)
    assert found.residual[-1] == 0
    assert found.log_residual[-1] == pytest.approx((3**12 - 1) / 2 * math.log(4) + 3**12 * math.log(0.01))
    assert theory.rank_collapse_bound(10.0, 12).residual[-1] == math.inf


def composite(x: np.ndarray[Any, Any]) -> float:
    away = x - x.mean(0)
    return math.sqrt(np.abs(away).sum(0).max() * np.abs(away).sum(1).max())


def test_attention_contracts_cubically() -> None:
    """S1-64: a layer of attention on tokens 1 x^T + s R leaves a residual of third order in s."""
    made = np.random.default_rng(0)
    n, d = 8, 16
    W_QK, W_V = made.standard_normal((2, d, d)) / math.sqrt(d)
    common, R = made.standard_normal(d) / 4, made.standard_normal((n, d)) / 4
    R = R - R.mean(0)
    sizes, left = np.array([0.08, 0.04, 0.02, 0.01]), []
    for s in sizes:
        x = common + s * R
        P = softmax(x @ W_QK @ x.T / math.sqrt(d), axis=1)
        left.append(composite(P @ x @ W_V))
    slope = np.polyfit(np.log(sizes), np.log(left), 1)[0]
    assert slope == pytest.approx(3, abs=0.1)
    bound = [theory.rank_collapse_bound(r, 1).residual[1] for r in (1e-3, 1e-4)]
    assert bound[0] / bound[1] == pytest.approx(1000, rel=1e-9)


@pytest.mark.parametrize("row", KNOWN["noci_closed_form"]["table_alpha_tilde=1"], ids=lambda row: f"L={row['L']}")
def test_tokens_of_the_seed(row: dict[str, float]) -> None:
    scaled, plain = (theory.token_profile(8, int(row["L"]), scaled=scaled) for scaled in (True, False))
    assert scaled.total[-1] == pytest.approx(row["scaled_C"], rel=1e-10)
    assert scaled.norms[-1] == pytest.approx(row["scaled_S"], rel=1e-10)
    assert scaled.cosine[-1] == pytest.approx(row["scaled_rho"], rel=1e-10)
    assert plain.cosine[-1] == pytest.approx(row["unscaled_rho"], rel=1e-10)
    known = KNOWN["noci_closed_form"]
    limits = (known["limit_C=e^{a1^2+a2^2}C0"], known["limit_S=e^{a2^2}(S0+C0/n(e^{a1^2}-1))"], known["limit_rho"])
    assert scaled.limits == pytest.approx(limits, rel=1e-10)
    assert plain.limits == (math.inf, math.inf, 1.0)


def test_the_limit_is_that_of_depth() -> None:
    deep = theory.token_profile(5, 20_000, attention=0.5, mlp=0.7, scaled=True, cosine=0.2, norm=3.0)
    found = deep.total[-1], deep.norms[-1], deep.cosine[-1]
    assert found == pytest.approx(deep.limits, rel=1e-4)  # of order 1 / L
    assert deep.cosine[0] == pytest.approx(0.2)
    assert deep.norms[0] == 15.0
    literal = KNOWN["noci_closed_form"]["seed_literal_e^{a1+a2}_differs_when_alpha!=1"]["alpha_tilde=(0.5,0.5)"]
    half = theory.token_profile(5, 4, attention=0.5, mlp=0.5, scaled=True)
    assert half.limits[0] / half.total[0] == pytest.approx(literal["right_e^{0.5}"], rel=1e-12)


def test_tokens_are_those_of_random_layers() -> None:
    """Within five standard errors over 400 draws of four layers of uniform attention and a linear MLP."""
    n, d, L, a1, a2 = 4, 16, 4, 0.9, 0.6
    made = torch.Generator().manual_seed(0)
    X = torch.eye(n, d, dtype=torch.float64)
    C, S = [], []
    for _ in range(400):
        x = X
        for _ in range(L):
            W, V = torch.randn(2, d, d, generator=made, dtype=torch.float64) / math.sqrt(d)
            x = x + a1 * x.mean(0, keepdim=True).expand(n, d) @ W
            x = x + a2 * x @ V
        C.append(float(x.sum(0).square().sum()))
        S.append(float(x.square().sum()))
    found = theory.token_profile(n, L, attention=a1, mlp=a2)
    for drawn, expected in ((C, found.total[-1]), (S, found.norms[-1])):
        assert abs(np.mean(drawn) - expected) < 5 * np.std(drawn) / math.sqrt(len(drawn))
        assert np.std(drawn) / math.sqrt(len(drawn)) < 0.1 * expected


def test_unscaled_skips_collapse_and_scaled_ones_do_not() -> None:
    plain, scaled = (theory.token_profile(16, 64, scaled=scaled) for scaled in (False, True))
    assert plain.residual[-1] < 1e-15 < 0.7 < scaled.residual[-1]
    assert plain.residual[0] == scaled.residual[0] == pytest.approx(15 / 16)
    assert (np.diff(plain.cosine[:20]) > 0).all()


def test_particles_of_a_simplex_follow_its_equation() -> None:
    times = np.linspace(0, 6, 7)
    for beta in (0.0, 1.0, 4.0):
        found = theory.cluster_tokens(np.eye(5), times, beta=beta)
        expected = theory.simplex_cosine(5, times, beta=beta)
        np.testing.assert_allclose(found.cosines, expected, atol=1e-7)
        assert found.error < 1e-5
        np.testing.assert_allclose(np.linalg.norm(found.tokens, axis=2), 1, atol=1e-12)


def test_particles_against_many_small_steps() -> None:
    x = np.random.default_rng(1).standard_normal((4, 3))
    found = theory.cluster_tokens(x, [0.0, 0.5], beta=2.0).tokens[1]
    y, step = x / np.linalg.norm(x, axis=1, keepdims=True), 0.5 / 20_000
    for _ in range(20_000):
        pull = softmax(2.0 * y @ y.T, axis=1) @ y
        y = y + step * (pull - (pull * y).sum(1, keepdims=True) * y)
        y /= np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(found, y, atol=1e-4)  # of order one step


def test_a_hemisphere_becomes_one_token() -> None:
    """S1-91; and two opposite tokens, which no hemisphere holds, stay where they are."""
    x = np.abs(np.random.default_rng(2).standard_normal((6, 3)))
    assert theory.in_hemisphere(x)
    found = theory.cluster_tokens(x, [0.0, 1.0, 40.0])
    assert found.cosines[-1] > 1 - 1e-6
    assert found.time_to(0.999) == 40.0
    assert found.time_to(-1.0) == 0.0
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert not theory.in_hemisphere(opposite)
    assert theory.cluster_tokens(opposite, [5.0]).cosines[0] == pytest.approx(-1.0)
    assert theory.cluster_tokens(opposite, [5.0]).time_to(0.0) == math.inf
    third = np.array([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    assert not theory.in_hemisphere(third)
    assert theory.in_hemisphere(third + np.array([0.51, 0.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.attention_paths(0, 2), r"attention_paths: expected `layers` of at least 1, got 0"),
        (lambda: theory.attention_paths(2, True), r"`heads` of at least 1, got True"),
        (lambda: theory.rank_collapse_bound(0.0, 2), r"`residual` above 0"),
        (lambda: theory.rank_collapse_bound(0.1, 2, head_dim=0), r"`head_dim` of at least 1, got 0"),
        (lambda: theory.rank_collapse_bound(0.1, 2, lipschitz=-1.0), r"`lipschitz` above 0, got -1\.0"),
        (lambda: theory.token_profile(1, 2), r"`tokens` of at least 2, got 1"),
        (lambda: theory.token_profile(2, 0), r"`layers` of at least 1, got 0"),
        (lambda: theory.token_profile(2, 2, mlp=-0.1), r"`mlp` of at least 0, got -0\.1"),
        (lambda: theory.token_profile(3, 2, cosine=-0.6), r"a cosine from -0\.5 to 1 and a positive norm for 3 tokens"),
        (lambda: theory.cluster_tokens([[1.0, 0.0]], [1.0]), r"two or more, d at least 2, got shape \(1, 2\)"),
        (lambda: theory.cluster_tokens([[1.0, 0.0], [0.0, 0.0]], [1.0]), r"with a direction, got one of length 0"),
        (lambda: theory.cluster_tokens(np.eye(2), [1.0, 0.5]), r"`times` that ascend, from 0 on"),
        (lambda: theory.cluster_tokens(np.eye(2), [1.0], beta=-1.0), r"`beta` of at least 0, got -1\.0"),
        (lambda: theory.cluster_tokens(np.eye(2), [1.0]).time_to(2.0), r"a cosine, got 2\.0"),
        (lambda: theory.simplex_cosine(1, [1.0]), r"`tokens` of at least 2, got 1"),
        (lambda: theory.simplex_cosine(3, [1.0], cosine=-0.6), r"a cosine from -0\.5 to 1 for 3 tokens, got -0\.6"),
        (lambda: theory.in_hemisphere([[0.0, 0.0]]), r"with a direction, got one of length 0"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
