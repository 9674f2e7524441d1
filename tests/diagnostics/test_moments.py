"""Moments, spectra, alignment, trade-off on the six small matrices. S0-10 to S0-16, S0-19, S0-20, S0-24."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from tests.cases import CASES, build
from tests.compare import assert_same

VALUES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "moments.json").read_text())["moments"]
MATRICES = ["identity4", "rank_one_3x5", "diag(1,2)", "orthogonal_2_of_4", "anti_aligned", "general"]


def matrix(name: str) -> torch.Tensor:
    return torch.tensor(VALUES[name]["G"], dtype=torch.float64)


@pytest.mark.parametrize("name", MATRICES)
def test_known_moments(name: str) -> None:
    """S0-11 to S0-13: M1, M2 in both normalisations, the ratio, its dual and its lower bound."""
    known, G = VALUES[name], matrix(name)
    n, m = G.shape
    K = G @ G.T
    assert_same(K, torch.tensor(known["K"], dtype=torch.float64))
    for normalisation in ("sum", "mean"):
        found = pb.moments(K, normalisation=normalisation, num_params=m)
        assert pytest.approx(known[f"M1_{normalisation}"], rel=1e-10) == found.M1
        assert pytest.approx(known[f"M2_{normalisation}"], rel=1e-10) == found.M2
        assert found.conditioning == pytest.approx(known["ratio"], rel=1e-10)
        assert found.conditioning == pytest.approx(found.M2 / found.M1**2, rel=1e-10)
        assert found.spread == pytest.approx(known["dual_ratio_n"], rel=1e-10)
        assert found.effective_rank == pytest.approx(n / known["dual_ratio_n"], rel=1e-10)
        assert found.normalisation == normalisation
    rank = pb.spectrum(K).rank
    assert m / rank == pytest.approx(known["lower_bound_m/rank"])


def test_ratios_by_hand() -> None:
    """S0-13, S0-20: identity 1, rank one m, two orthonormal of four m/n, duplicated gradients m."""
    ratio = {name: pb.moments(matrix(name) @ matrix(name).T, num_params=matrix(name).shape[1]) for name in MATRICES}
    assert [round(ratio[n].conditioning, 10) for n in MATRICES] == [1, 5, 1.36, 2, 2, 1.56]
    assert ratio["orthogonal_2_of_4"].conditioning_range == (2.0, 4.0)


def test_unbiased_second_moment() -> None:
    """S0-12: the mean over pairs i != j."""
    G = matrix("general")
    K = G @ G.T
    off = K - torch.diag(K.diagonal())
    found = pb.moments(K, normalisation="unbiased", num_params=3)
    assert pytest.approx(float(off.square().sum()) / 12 / 3) == found.M2
    samples = torch.randn(4000, 2, dtype=torch.float64) * torch.tensor([2.0, 1.0])
    many = pb.moments(samples @ samples.T, normalisation="unbiased", num_params=2)
    assert pytest.approx((16 + 1) / 2, rel=0.1) == many.M2  # tr(F^2) / P of the population


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 100))
def test_range_and_agreement_with_the_eigenvalues(n: int, m: int, seed: int) -> None:
    """S0-10, S0-14: m/rank <= ratio <= m, and all from K what the eigenvalues of G^T G say."""
    G = torch.randn(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = pb.moments(G @ G.T, num_params=m)
    eigenvalues = torch.linalg.eigvalsh(G.T @ G)
    assert pytest.approx(float(eigenvalues.sum()) / n / m, rel=1e-10) == found.M1
    assert pytest.approx(float(eigenvalues.square().sum()) / n**2 / m, rel=1e-10) == found.M2
    low, high = found.conditioning_range
    assert low * (1 - 1e-9) <= found.conditioning <= high * (1 + 1e-9)
    assert 1 - 1e-9 <= found.spread <= n * (1 + 1e-9)
    top = min(n, m)
    spectrum = pb.spectrum(G @ G.T)
    assert_same(spectrum.eigenvalues[:top], eigenvalues.flip(0)[:top], 1e-10)
    assert_same(spectrum.eigenvalues[:top], torch.linalg.svdvals(G)[:top] ** 2, 1e-10)


def test_spectrum() -> None:
    """S0-10, S0-15, S0-19, S0-26: eigenvalues, condition number, reconstruction, noise floor."""
    G = matrix("general")
    found = pb.spectrum(G @ G.T)
    assert_same(found.eigenvalues[:3], torch.tensor(VALUES["general"]["eig_H"], dtype=torch.float64).flip(0), 1e-10)
    assert found.rank == 3
    assert found.condition_number == float("inf")
    assert found.nonzero_condition_number == pytest.approx(9.740938811152402 / 0.5941867925854868, rel=1e-9)
    rebuilt = found.eigenvectors @ torch.diag(found.eigenvalues) @ found.eigenvectors.T
    assert_same(rebuilt, G @ G.T, 1e-10)
    assert pb.spectrum(torch.diag(torch.tensor([100.0, 1.0]))).condition_number == pytest.approx(100)
    assert pb.spectrum(matrix("diag(1,2)") @ matrix("diag(1,2)").T).eigenvalues.tolist() == [4.0, 1.0]
    assert pb.spectrum(torch.zeros(2, 2)).nonzero_condition_number != pb.spectrum(torch.zeros(2, 2)).rank  # NaN, 0


def test_layer_spectra_of_a_network() -> None:
    """S0-10, S0-26: per layer, reconstruction to 1e-10 and the eigenvalues of G^(l)^T G^(l)."""
    model, loss_fn, x, y = build(CASES[0], 6)
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    G = pb.GradientMatrix(model, loss_fn, x, y)
    for layer, found in pb.layer_spectra(kernel).items():
        rebuilt = found.eigenvectors @ torch.diag(found.eigenvalues) @ found.eigenvectors.T
        assert_same(rebuilt, kernel.layers[layer], 1e-10)
        other = torch.linalg.eigvalsh(G.layers[layer].to_dense().T @ G.layers[layer].to_dense()).flip(0)
        kept = min(len(other), len(found.eigenvalues))
        assert_same(found.eigenvalues[:kept], other[:kept], 1e-10)


def test_alignment() -> None:
    """S0-16."""
    G = matrix("anti_aligned")
    found = pb.alignment(G @ G.T)
    assert (found.mean_cosine, found.conflict_fraction, found.agreement_fraction) == (
        pytest.approx(-1.0),
        1.0,
        0.0,
    )
    G = matrix("general")
    found = pb.alignment(G @ G.T, num_pairs=3)
    assert found.mean_cosine == pytest.approx(0.3775701840833008, rel=1e-6)
    assert found.conflict_fraction == pytest.approx(1 / 6)
    assert found.agreement_fraction == pytest.approx(4 / 6)
    assert [pair[:2] for pair in found.worst_pairs] == [(1, 2)]
    assert {pair[:2] for pair in found.best_pairs[:2]} == {(0, 3), (2, 3)}  # both 3 / sqrt(15)
    assert len(found.best_pairs) == 3
    assert_same(found.cosine.diagonal(), torch.ones(4, dtype=torch.float64), 1e-12)


@given(st.integers(2, 8), st.integers(0, 50))
def test_alignment_against_a_loop(n: int, seed: int) -> None:
    G = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    G[0] *= 0.0 if seed % 3 == 0 else 1.0
    K = G @ G.T
    found = pb.alignment(K)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    cosines = {(i, j): float(torch.nn.functional.cosine_similarity(G[i], G[j], dim=0)) for i, j in pairs}
    assert found.conflict_fraction == pytest.approx(sum(float(K[i, j]) < 0 for i, j in pairs) / len(pairs))
    assert found.mean_cosine == pytest.approx(sum(cosines.values()) / len(pairs), abs=1e-9)
    negative = sorted(value for value in cosines.values() if value < 0)[:10]
    assert [pair[2] for pair in found.worst_pairs] == pytest.approx(negative, abs=1e-9)
    for i, j, value in found.worst_pairs:
        assert cosines[(i, j)] == pytest.approx(value, abs=1e-9)


LABELS = {
    "identity4": "well conditioned, no reinforcement",
    "diag(1,2)": "well conditioned, no reinforcement",
    "orthogonal_2_of_4": "well conditioned, no reinforcement",
    "rank_one_3x5": "aligned, ill-conditioned",
    "anti_aligned": "conflicting, ill-conditioned",
    "general": "aligned, moderately conditioned",
}


@pytest.mark.parametrize("name", MATRICES)
def test_trade_off(name: str) -> None:
    """S0-24."""
    G = matrix(name)
    found = pb.trade_off(G @ G.T)
    assert found.label == LABELS[name]
    assert f"mean cosine {found.mean_cosine:.3g}" in found.text
    assert found.spread == pytest.approx(VALUES[name]["dual_ratio_n"])


def test_errors() -> None:
    with pytest.raises(pb.InputError, match=r"a symmetric kernel \(N, N\), got shape \(2, 3\)"):
        pb.moments(torch.zeros(2, 3), num_params=1)
    with pytest.raises(pb.InputError, match=r"a kernel, or its tensor \(N, N\), got int. Pass pb.backward_kernel"):
        pb.alignment(3)
    with pytest.raises(pb.InputError, match="not symmetric"):
        pb.spectrum(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(pb.InputError, match="`num_params` for a plain tensor"):
        pb.moments(torch.eye(2))
    with pytest.raises(pb.InputError, match="`normalisation` to be one of 'mean', 'sum', 'unbiased', got 'both'"):
        pb.moments(torch.eye(2), normalisation="both", num_params=1)
    with pytest.raises(pb.InputError, match="two samples or more for 'unbiased'"):
        pb.moments(torch.eye(1), normalisation="unbiased", num_params=1)
    with pytest.raises(pb.InputError, match="two samples or more, got 1"):
        pb.alignment(torch.eye(1))
    with pytest.raises(pb.InputError, match="`num_pairs` above 0"):
        pb.alignment(torch.eye(2), num_pairs=0)


def test_zero_gradients_are_no_crash() -> None:
    found = pb.moments(torch.zeros(3, 3), num_params=5)
    assert found.M1 == 0
    assert found.effective_rank != found.effective_rank  # NaN
    assert pb.alignment(torch.zeros(3, 3)).conflict_fraction == 0
    assert pb.trade_off(torch.zeros(3, 3)).label.endswith("no reinforcement")


def test_unbiased_moments_of_the_fewest_samples() -> None:
    """Two samples: M1 = tr K / (2 P), M2 the mean of the squares beside the diagonal over P."""
    K = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    found = pb.moments(K, normalisation="unbiased", num_params=4)
    assert (found.M1, found.M2) == (5 / 2 / 4, 2 / 2 / 4)
    whole = pb.moments(K, normalisation="sum", num_params=4)
    assert (whole.M1, whole.M2) == (5 / 4, 15 / 4)
    mean = pb.moments(K, num_params=4)
    assert (mean.M1, mean.M2) == (5 / 4 / 2, 15 / 4 / 4)
    for each in (found, whole, mean):
        assert each.conditioning == pytest.approx(4 * 15 / 25)
        assert each.spread == pytest.approx(2 * 15 / 25)
        assert each.conditioning_range == (2.0, 4.0)
    assert pb.moments(torch.eye(5), num_params=4).conditioning_range == (1.0, 4.0)


@pytest.mark.parametrize(
    ("groups", "label"),
    [
        (16, "well conditioned, no reinforcement"),
        (8, "well conditioned, no reinforcement"),
        (4, "moderately conditioned, no reinforcement"),
        (2, "aligned, moderately conditioned"),
        (1, "aligned, ill-conditioned"),
    ],
)
def test_sixteen_samples_in_groups_of_equal_gradients(groups: int, label: str) -> None:
    """ln(spread) / ln(N) is 0, 1/4, 1/2, 3/4 and 1."""
    kernel = torch.block_diag(*[torch.ones(16 // groups, 16 // groups)] * groups)
    assert pb.trade_off(kernel).label == label
