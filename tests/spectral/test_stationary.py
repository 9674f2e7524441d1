"""Definiteness, Morse index, kinds of stationary point, convexity and curvature along directions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from tests.compare import assert_same
from tests.spectral.matrices import Counted, planted

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "taylor_spectral.json").read_text())["morse"]


def derivatives(function: Callable[[Tensor], Tensor], *point: float) -> tuple[Tensor, Tensor]:
    """Hessian and gradient by autograd."""
    w = torch.tensor(point, dtype=torch.float64)
    return torch.autograd.functional.hessian(function, w), torch.func.grad(function)(w)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 9))
def test_counts_of_planted_spectra(negative: int, zero: int, positive: int, seed: int) -> None:
    """By all eigenvalues and by Lanczos."""
    values = torch.cat([-torch.rand(negative) - 0.1, torch.zeros(zero), torch.rand(positive) + 0.1])
    matrix = planted(values, seed)
    counts = pb.morse_index(matrix)
    assert (counts.index, counts.nullity, counts.positive) == (negative, zero, positive)
    assert isinstance(counts, pb.MorseIndex)
    assert counts.decided
    assert 0 < counts.tolerance < 1e-10
    large = pb.morse_index(matrix, dense_limit=0)
    assert large.index == negative
    assert large.nullity in (None, zero)
    assert large.positive in (None, positive)
    assert large.decided == (large.nullity is not None)
    if zero == 0:
        assert large.decided


def test_index_of_a_large_operator_that_is_not_formed() -> None:
    values = torch.cat([-torch.rand(12) - 0.5, torch.rand(588) + 0.5]).double()
    counted = Counted(torch.diag(values))
    counts = pb.morse_index(counted, dense_limit=100)
    assert (counts.index, counts.nullity, counts.positive, counts.decided) == (12, 0, 588, True)
    assert counts.num_matvecs == counted.columns < 600
    many = pb.morse_index(Counted(torch.diag(-values)), dense_limit=100)
    assert many.index >= 64
    assert many.nullity is None
    assert many.positive is None
    assert not many.decided


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tolerance(dtype: torch.dtype) -> None:
    """What rounding leaves is zero by itself; a larger tolerance is the caller's, and a value near it undecided."""
    matrix = planted(torch.tensor([-1.0, 1e-3, 1.0], dtype=torch.float64)).to(dtype)
    matrix = (matrix + matrix.T) / 2
    assert pb.morse_index(matrix).nullity == 0
    wide = pb.morse_index(matrix, tol=1e-2)
    assert (wide.index, wide.nullity, wide.positive, wide.decided) == (1, 1, 1, True)
    assert not pb.morse_index(matrix, tol=1e-3).decided
    assert not pb.morse_index(torch.diag(torch.tensor([1.0, 1e-3], dtype=dtype)), tol=1e-3).decided


def test_known_indices() -> None:
    """S1-89: quadratics, the product of double wells, cosines, the sphere, the torus, saddles of products."""
    hessian, _ = derivatives(lambda w: -(w[0] ** 2) - 2 * w[1] ** 2 + 3 * w[2] ** 2, 0.0, 0.0, 0.0)
    assert pb.morse_index(hessian).index == KNOWN["quadratic -x^2-2y^2+3z^2"]["index"]
    assert sorted(pb.eigenvalues(hessian, 3).values.tolist()) == KNOWN["quadratic -x^2-2y^2+3z^2"]["hessian_eigs"]

    wells = KNOWN["product_double_well f=sum(x^4/4-x^2/2), n=3"]
    counts = dict.fromkeys(range(4), 0)
    for point in itertools.product((-1.0, 0.0, 1.0), repeat=3):
        hessian, gradient = derivatives(lambda w: (w**4 / 4 - w**2 / 2).sum(), *point)
        assert not gradient.any()
        counts[pb.morse_index(hessian).index] += 1
    assert {str(k): c for k, c in counts.items()} == wells["index_k_count C(n,k)2^{n-k}"]
    assert sum((-1) ** k * c for k, c in counts.items()) == wells["alternating_sum"]

    hessian, _ = derivatives(lambda w: w.cos().sum(), 0.0, math.pi, math.pi, 0.0)
    assert pb.morse_index(hessian).index == KNOWN["sum_cos n=4"]["index_at_(0,pi,pi,0)"]

    def sphere(w: Tensor, sign: float) -> Tensor:  # height in the chart of one hemisphere
        return sign * (1 - w.square().sum()).sqrt()

    indices = sorted(pb.morse_index(derivatives(lambda w, s=s: sphere(w, s), 0.0, 0.0)[0]).index for s in (1.0, -1.0))
    assert indices == KNOWN["height_on_sphere_S2"]["indices"]

    def torus(w: Tensor) -> Tensor:  # a torus on its side
        return (2 + w[0].cos()) * w[1].cos()

    found = []
    for point in itertools.product((0.0, math.pi), repeat=2):
        hessian, gradient = derivatives(torus, *point)
        found.append(pb.classify_stationary_point(hessian, gradient).negative)
    assert sorted(found) == KNOWN["height_on_torus"]["indices"]

    for point, name in (((0.0, 0.0), "at_(0,0)"), ((1.0, 1.0), "at_(1,1)")):
        hessian, _ = derivatives(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2, *point)
        known = KNOWN["two_layer_scalar L=1/2(w1 w2-1)^2"][name]
        assert pb.morse_index(hessian).index == known["index"]
        assert_same(pb.eigenvalues(hessian, 2).values.flip(0), torch.tensor(known["eigs"]).double(), 1e-12, scale=1.0)


def test_kinds_of_stationary_point() -> None:
    """S2-14 and S3-02: the four kinds, zeros beside two signs, and the degenerate case said to be undecided."""
    for eigenvalues, kind in (
        ([1.0, 2.0], "minimum"),
        ([-1.0, -2.0], "maximum"),
        ([1.0, -2.0], "saddle"),
        ([1.0, 0.0, -2.0], "saddle"),
        ([1.0, 0.0], "degenerate"),
        ([-1.0, 0.0], "degenerate"),
        ([0.0, 0.0], "degenerate"),
    ):
        matrix = planted(torch.tensor(eigenvalues))
        signs = tuple(sum(v == s for v in torch.tensor(eigenvalues).sign()) for s in (-1, 0, 1))
        for limit in (1000, 0):  # by all eigenvalues, and by the ends alone
            point = pb.classify_stationary_point(
                matrix, torch.zeros(len(eigenvalues)), dense_limit=limit, tol=None if limit else 1e-10
            )
            assert isinstance(point, pb.StationaryPoint)
            assert point.kind == kind
            assert point.decided == (kind != "degenerate")
            if limit or kind in ("minimum", "maximum"):
                assert (point.negative, point.zero, point.positive) == signs
            else:
                assert "uncounted" in str(point)
    assert str(pb.classify_stationary_point(torch.zeros(2, 2), torch.zeros(2))).startswith(
        "degenerate: undecided by the second derivative (0 negative, 2 zero, 0 positive eigenvalues at a tolerance of"
    )


def test_flat_points_are_not_called_minima() -> None:
    """S2-14: -w^4 at 0: its Hessian is zero, positive semi-definite, and the point is a maximum; w^4 looks the same."""
    for function in (lambda w: -(w**4).sum(), lambda w: (w**4).sum(), lambda w: (w**3).sum()):
        hessian, gradient = derivatives(function, 0.0)
        assert pb.is_positive_definite(hessian, semi=True)
        assert pb.classify_stationary_point(hessian, gradient).kind == "degenerate"
    monkey, gradient = derivatives(lambda w: w[0] ** 3 - 3 * w[0] * w[1] ** 2, 0.0, 0.0)
    assert pb.classify_stationary_point(monkey, gradient).kind == "degenerate"
    deep, gradient = derivatives(lambda w: 0.5 * (w.prod() - 1) ** 2, 0.0, 0.0, 0.0)
    assert pb.classify_stationary_point(deep, gradient).zero == 3


def test_large_operators_by_the_ends() -> None:
    values = torch.cat([torch.full((1,), -0.3), torch.rand(400) + 0.5]).double()
    gradient = torch.zeros(401)
    point = pb.classify_stationary_point(Counted(torch.diag(values)), gradient, dense_limit=100)
    assert point.kind == "saddle"
    assert point.num_matvecs < 401
    values[0] = 0.3
    assert pb.classify_stationary_point(Counted(torch.diag(values)), gradient, dense_limit=100).kind == "minimum"
    assert pb.classify_stationary_point(Counted(torch.diag(-values)), gradient, dense_limit=100).kind == "maximum"
    values[0] = 0.0
    assert pb.classify_stationary_point(Counted(torch.diag(values)), gradient, dense_limit=100).kind == "degenerate"
    crowded = Counted(torch.diag(torch.linspace(0, 1, 400, dtype=torch.float64) ** 6))
    with pytest.raises(pb.InputError, match="expected converged ends of the spectrum, got .* with residuals up to"):
        pb.classify_stationary_point(crowded, torch.zeros(400), dense_limit=100)


def test_positive_definite() -> None:
    """S2-02: [[2, 1], [1, 2]] - I has eigenvalues 0 and 2."""
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert pb.is_positive_definite(matrix)
    assert not pb.is_positive_definite(matrix - torch.eye(2))
    assert pb.is_positive_definite(matrix - torch.eye(2), semi=True)
    assert not pb.is_positive_definite(matrix - 2 * torch.eye(2), semi=True)
    assert not pb.is_positive_definite(matrix, tol=0.4)
    large = torch.rand(400, dtype=torch.float64) + 0.1
    assert pb.is_positive_definite(torch.diag(large), dense_limit=100)
    large[3] = -0.05
    assert not pb.is_positive_definite(torch.diag(large), semi=True, dense_limit=100)
    large[3] = 0.0
    assert pb.is_positive_definite(torch.diag(large), semi=True, dense_limit=100)
    assert not pb.is_positive_definite(torch.diag(large), dense_limit=100)
    crowded = torch.diag(torch.linspace(0, 1, 400, dtype=torch.float64) ** 6)
    with pytest.raises(pb.InputError, match="a smallest eigenvalue that can be told from zero, got .* with residual"):
        pb.is_positive_definite(crowded, tol=1e-12, dense_limit=100)


@given(st.integers(2, 8), st.integers(0, 20))
def test_partial_order(n: int, seed: int) -> None:
    """S2-02: A > B where A - B is positive definite; a partial order: antisymmetric, transitive, not total."""
    a = planted(torch.linspace(1, 2, n), seed)
    more = planted(torch.linspace(0.5, 1, n), seed + 1)
    flat = planted(torch.cat([torch.zeros(1), torch.ones(n - 1)]), seed + 2)
    assert pb.loewner_order(a + more, a) == ">"
    assert pb.loewner_order(a, a + more) == "<"
    assert pb.loewner_order(a + flat, a) == ">="
    assert pb.loewner_order(a, a + flat) == "<="
    assert pb.loewner_order(a, a) == "="
    assert pb.loewner_order(a + more + flat, a) == ">"
    assert pb.loewner_order(a + more - 3 * flat, a) == "none"
    assert pb.loewner_order(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.eye(2)) == ">="


def test_convexity() -> None:
    """S2-13: x^2 lies below its chords, -x^4 does not, and the Hessian agrees where it can."""
    a, b = torch.tensor([-1.5]), torch.tensor([2.0])
    assert pb.is_convex_between(lambda w: (w**2).sum(), a, b)
    assert pb.is_convex_between(lambda w: (w**4).sum(), a, b)
    found = pb.is_convex_between(lambda w: -(w**4).sum(), a, b)
    assert isinstance(found, pb.ConvexityCheck)
    assert not found
    assert found.violation > 1
    assert found.num_evaluations == 19
    assert 0 < found.position < 1
    starts, ends = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    matrix = planted(torch.tensor([0.5, 1.0, 2.0]))
    assert pb.is_convex_between(lambda w: w @ matrix @ w, starts, ends)
    assert pb.is_convex_between(lambda w: float(w.sum()), starts, ends)  # a line is its own chord
    bent = pb.is_convex_between(lambda w: w @ matrix @ w - 3 * w[0] ** 2, starts, ends)
    assert not bent
    direction = ends[bent.segment] - starts[bent.segment]
    hessian, _ = derivatives(lambda w: w @ matrix @ w - 3 * w[0] ** 2, 0.0, 0.0, 0.0)
    assert pb.rayleigh_quotient(hessian, direction) < 0
    with pytest.raises(pb.InputError, match="is_convex_between: expected finite values, got nan or inf"):
        pb.is_convex_between(lambda w: (w**0.5).sum(), a, b)  # nan at one end alone
    with pytest.raises(pb.InputError, match="expected finite values"):
        pb.is_convex_between(lambda w: 1 / w.abs().sum(), -b, b, num_points=1)  # infinite in the middle alone
    w = torch.randn(1, requires_grad=True)
    assert pb.is_convex_between(lambda v: (v + w).square().sum(), a, b)


def test_positive_definite_everywhere_is_convex() -> None:
    """S3-05: logistic regression with a penalty: its Hessian is positive definite at every point, the function below
    its chords, and its stationary point a minimum."""
    x, y = torch.randn(40, 3, dtype=torch.float64), (torch.rand(40, dtype=torch.float64) > 0.5).double()

    def loss(w: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(x @ w, y) + 0.05 * w.square().sum()

    points = torch.randn(15, 3, dtype=torch.float64)
    assert all(pb.is_positive_definite(torch.autograd.functional.hessian(loss, w)) for w in points)
    assert pb.is_convex_between(loss, points[:-1], points[1:])
    w = torch.zeros(3, dtype=torch.float64)
    for _ in range(8):  # Newton
        hessian, gradient = derivatives(loss, *w.tolist())
        w = w - pb.solve(hessian, gradient, tol=1e-12).x
    hessian, gradient = derivatives(loss, *w.tolist())
    assert pb.classify_stationary_point(hessian, gradient, gradient_tol=1e-9).kind == "minimum"
    around = [float(loss(w + 0.1 * torch.randn(3, dtype=torch.float64))) for _ in range(50)]
    assert min(around) > float(loss(w))


@given(st.integers(1, 12), st.integers(0, 20))
def test_rayleigh_quotient(n: int, seed: int) -> None:
    """S2-12: an eigenvector's is its eigenvalue; any other lies between the smallest and the largest."""
    values = torch.linspace(-2, 3, n, dtype=torch.float64)
    matrix = planted(values, seed)
    exact, vectors = torch.linalg.eigh(matrix)
    assert_same(pb.rayleigh_quotient(matrix, 7 * vectors), exact, 1e-12, scale=3.0)
    v = torch.randn(n, dtype=torch.float64)
    quotient = pb.rayleigh_quotient(matrix, v)
    assert isinstance(quotient, float)
    assert quotient == pytest.approx(float(v @ matrix @ v / (v @ v)), rel=1e-10, abs=1e-12)
    assert values[0] - 1e-9 <= quotient <= values[-1] + 1e-9
    assert pb.rayleigh_quotient(matrix, -3 * v) == pytest.approx(quotient, rel=1e-10, abs=1e-12)


def test_random_state_is_left_alone() -> None:
    state, matrix = torch.get_rng_state(), torch.eye(4)
    pb.morse_index(matrix, dense_limit=0)
    pb.classify_stationary_point(matrix, torch.zeros(4), dense_limit=0)
    assert torch.equal(state, torch.get_rng_state())


def test_errors() -> None:
    eye, zeros = torch.eye(3), torch.zeros(3)
    skew = torch.triu(torch.ones(3, 3))
    large = torch.eye(1001)
    for call, words in (
        (lambda: pb.morse_index(skew), "morse_index: expected a symmetric operator, got <u, A v> and <A u, v>"),
        (lambda: pb.morse_index(eye, tol=0.0), "morse_index: expected `tol` above 0, got 0.0"),
        (lambda: pb.is_positive_definite(skew), "is_positive_definite: expected a symmetric operator"),
        (lambda: pb.is_positive_definite(eye, tol=-1.0), "is_positive_definite: expected `tol` above 0, got -1.0"),
        (lambda: pb.loewner_order(eye, torch.eye(2)), r"expected shape \(3, 3\), got \(2, 2\)"),
        (lambda: pb.loewner_order(2 * large, 3 * large), "loewner_order: expected at most 1000 rows, got a difference"),
        (
            lambda: pb.classify_stationary_point(eye, torch.tensor([1e-3, 0, 0])),
            r"expected a gradient of at most 1e-06, got \|gradient\| = 0.001. Go on to a stationary point",
        ),
        (lambda: pb.classify_stationary_point(eye, torch.full((3,), torch.nan)), r"got \|gradient\| = nan"),
        (lambda: pb.classify_stationary_point(eye, torch.zeros(2)), r"expected `gradient` \(3,\), got shape \(2,\)"),
        (lambda: pb.classify_stationary_point(eye, [0.0] * 3), r"expected `gradient` \(3,\), got list"),
        (lambda: pb.classify_stationary_point(eye, zeros, tol=0.0), "expected `tol` above 0, got 0.0"),
        (lambda: pb.classify_stationary_point(eye, zeros, gradient_tol=0.0), "expected `gradient_tol` above 0"),
        (lambda: pb.rayleigh_quotient(eye, zeros), "expected directions that are not zero, got a zero vector"),
        (lambda: pb.rayleigh_quotient(eye, torch.ones(2)), r"expected `v` \(3,\) or \(3, K\), got shape \(2,\)"),
        (lambda: pb.rayleigh_quotient(eye, [1.0]), r"expected `v` \(3,\) or \(3, K\), got list"),
        (lambda: pb.rayleigh_quotient(torch.nan * eye, torch.ones(3)), "rayleigh_quotient: expected finite products"),
        (lambda: pb.is_convex_between(torch.sum, zeros, torch.zeros(2)), r"got shapes \(3,\) and \(2,\)"),
        (lambda: pb.is_convex_between(torch.sum, zeros, zeros, num_points=0), "expected `num_points` at least 1"),
        (
            lambda: pb.is_convex_between(torch.sin, zeros, zeros),
            r"expected a function with one number, got shape \(3,\)",
        ),
        (
            lambda: pb.is_convex_between(lambda w: w.sum().log(), zeros, zeros),
            "is_convex_between: expected finite values, got nan or inf",
        ),
    ):
        with pytest.raises(pb.InputError, match=words):
            call()
