"""Exact spectra of Gauss-Newton and Fisher matrices from Gram matrices, against dense references and Lanczos."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.diagnostics.curvature_spectrum.routes import Route, Sizes, routes
from pullback.functional import ModelView, output_hessian, output_readout
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.gradients.curvature_rows import Matrix, row_source, square_root
from pullback.kernels import Rates
from pullback.operators import Fisher, GaussNewton
from pullback.operators.operator import Operator
from tests import cases
from tests.cases import CASES, Case
from tests.compare import assert_different, assert_same
from tests.thinned import thinned

module = sys.modules["pullback.diagnostics.curvature_spectrum.spectrum"]  # the package has a function of that name
CE = nn.CrossEntropyLoss()
DENSE: dict[Matrix, Callable[..., Tensor]] = {
    "gauss_newton": reference.dense_gauss_newton,
    "empirical_fisher": reference.dense_empirical_fisher,
    "true_fisher": reference.dense_fisher,
}
Method = Literal["auto", "gram", "lanczos"]
LIKELIHOODS = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)


def build(case: Case, n: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any, Any, Any]:
    return cases.build(case, n, dtype)


def _check(found: pb.CurvatureSpectrum, dense: Tensor, tolerance: float = 1e-9) -> None:
    """All non-zero eigenvalues of the dense matrix, eigenvectors that reproduce it, honest residuals."""
    exact = torch.linalg.eigvalsh(dense.double()).flip(0)
    top = float(exact[0])
    m = len(found.values)
    assert_same(found.values.double(), exact[:m], tolerance, scale=top)
    assert float(exact[m:].abs().max()) <= tolerance * top if m < len(exact) else True
    assert found.converged
    assert found.vectors is not None
    v = found.vectors.double()
    assert_same(v.T @ v, torch.eye(m).double(), tolerance)
    measured = (dense.double() @ v - v * found.values.double()).norm(dim=0)
    assert float(measured.max()) <= float(found.residuals.max()) + tolerance * top


@pytest.mark.parametrize(("case", "matrix", "method"), thinned(CASES, tuple(DENSE), ("gram", "lanczos")))
def test_whole_spectrum_equals_the_dense_reference(case: Case, matrix: Matrix, method: Method) -> None:
    """Over all cases, by both methods: smooth ones and those with kinks, convolutions, tied weights, attention."""
    model, loss_fn, x, y = build(case, 4)
    if matrix == "true_fisher" and (type(loss_fn) not in LIKELIHOODS or getattr(loss_fn, "label_smoothing", False)):
        with pytest.raises(pb.UnsupportedError, match="curvature_spectrum: expected a loss that is a negative log-lik"):
            pb.curvature_spectrum(model, loss_fn, (x, y), "true_fisher")
        return
    found = pb.curvature_spectrum(model, loss_fn, (x, y), matrix, method=method)
    assert found.method == method
    _check(found, DENSE[matrix](model, loss_fn, x, y))


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("form", ["dense", "products", "parameters", "operator"])
def test_every_way_gives_the_same_pairs(monkeypatch: pytest.MonkeyPatch, matrix: Matrix, form: str) -> None:
    """S2-18: top pairs by the Gram matrix, its products, the rows and Lanczos agree with the dense matrix."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x, y = torch.randn(30, 3).double(), torch.arange(30) % 3

    def only(*arguments: Any) -> list[Route]:
        return [way for way in routes(*arguments) if way.form == form]

    monkeypatch.setattr(module, "routes", only)
    found = pb.curvature_spectrum(model, CE, (x, y), matrix, k=4, tol=1e-10)
    assert [way.form for way in found.routes] == [form]
    dense = DENSE[matrix](model, CE, x, y)
    exact, columns = torch.linalg.eigh(dense)
    assert_same(found.values, exact.flip(0)[:4], 1e-9)
    assert found.vectors is not None
    assert_same((found.vectors * columns.flip(1)[:, :4]).sum(0).abs(), torch.ones(4).double(), 1e-6)
    assert float(found.residuals.max()) <= 1e-10 * float(found.values[0])
    assert found.num_below == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(2, 4), st.integers(0, 99))
def test_gram_matrix_and_rows_share_their_eigenvalues(n: int, d: int, h: int, c: int, seed: int) -> None:
    """The non-zero eigenvalues of K = B B^T / N are those of A = B^T B / N, for N r < P and N r > P."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(d, h), nn.Tanh(), nn.Linear(h, c)).double()
    x, y = torch.randn(n, d).double(), torch.randint(c, (n,))
    for matrix, dense in DENSE.items():
        rows = row_source(ModelView.of(model), CE, x, y, matrix, "test").rows("test")
        assert rows.num_outputs == (1 if matrix == "empirical_fisher" else c - 1)
        b = rows.to_dense()
        assert_same(b.T @ b / n, dense(model, CE, x, y), 1e-10)
        small, large = sorted((torch.linalg.eigvalsh(b @ b.T / n), torch.linalg.eigvalsh(b.T @ b / n)), key=len)
        assert_same(large[-len(small) :], small, 1e-10, scale=float(small[-1]))
        assert_same(large[: -len(small)], torch.zeros(len(large) - len(small)).double(), 1e-10, scale=float(small[-1]))


def test_a_changed_row_changes_the_spectrum() -> None:
    """The comparison can fail: without one layer, or with the classes' curvature left out, the values differ."""
    model, loss_fn, x, y = build(CASES[0], 5)
    whole = pb.curvature_spectrum(model, loss_fn, (x, y)).values
    part = pb.curvature_spectrum(model, loss_fn, (x, y), params=["3", "5"]).values
    assert_different(part, whole[: len(part)], 1e-2)
    fisher = pb.curvature_spectrum(model, loss_fn, (x, y), "empirical_fisher").values
    assert_different(fisher, whole[: len(fisher)], 1e-2)


@pytest.mark.parametrize("n", [3, 80])
@pytest.mark.parametrize("k", [2, None])
def test_the_choice_is_the_cheaper_one(n: int, k: int | None) -> None:
    """By its own numbers, which are sorted; the other method gives the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    data = torch.randn(n, 6).double(), torch.arange(n) % 4
    found = pb.curvature_spectrum(model, CE, data, k=k, tol=1e-10)
    seconds = [way.seconds for way in found.routes]
    assert seconds == sorted(seconds)
    assert found.method == found.routes[0].method
    assert {way.method for way in found.routes} == {"gram", "lanczos"}
    other = pb.curvature_spectrum(model, CE, data, k=k, tol=1e-10, method="lanczos")
    assert_same(other.values, found.values[: len(other.values)], 1e-9)


def test_costs_follow_sizes() -> None:
    """A wide network on few samples is one for the Gram matrix, many outputs are one for Lanczos."""
    model = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 10)).to("meta")
    captured = capture_factors(
        ModelView.of(model), output_readout(summed=True), torch.empty(2, 64, device="meta"), None, "t", check=False
    )
    rates = Rates(gemm=1e11, bmm=5e10, stream=1e9)

    def best(samples: int, values: int, k: int | None) -> Route:
        return routes(captured.factors, Sizes(samples, values, 38_410, k, True, False, 4), rates)[0]

    assert best(32, 1, None).form == "dense"
    assert best(256, 9, 20).form == "products"
    assert best(256, 2_000, 5).form == "operator"
    assert best(50_000, 1, None).form == "parameters"


@pytest.mark.parametrize("matrix", DENSE)
def test_rank_deficiency_is_flagged(matrix: Matrix) -> None:
    """Every sample twice: half of the Gram matrix's eigenvalues are rounding, and not returned."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(4, 5).double(), torch.tensor([0, 1, 2, 0])
    found = pb.curvature_spectrum(model, CE, (x.repeat(2, 1), y.repeat(2)), matrix, method="gram")
    once = pb.curvature_spectrum(model, CE, (x, y), matrix, method="gram")
    assert len(found.values) == len(once.values) == (4 if matrix == "empirical_fisher" else 8)
    assert found.num_below == len(once.values)
    assert_same(found.values, once.values, 1e-10)
    few = pb.curvature_spectrum(model, CE, (x, y), matrix, k=30, method="gram")
    assert few.num_below == 30 - len(once.values)


@pytest.mark.parametrize("method", ["auto", "gram", "lanczos"])
def test_a_matrix_that_is_zero(method: Method) -> None:
    """Zero gradients, and a loss without curvature: no eigenvalues, nothing to iterate."""
    model = nn.Linear(3, 2, bias=False).double()
    x, y = torch.zeros(4, 3).double(), torch.tensor([0, 1, 0, 1])
    for matrix in DENSE:
        found = pb.curvature_spectrum(model, CE, (x, y), matrix, method=method, k=2)
        assert (len(found.values), found.num_below, found.converged) == (0, 2, True)
        assert found.vectors is not None
        assert found.vectors.shape == (6, 0)
        assert "0 non-zero eigenvalues" in str(found)

    def straight(z: Tensor, t: Tensor) -> Tensor:
        return z.sum(1)

    flat = pb.curvature_spectrum(model, straight, (x + 1, y), method=method)
    assert len(flat.values) == 0


def test_one_sample_without_gradient() -> None:
    case = next(c for c in CASES if c.name == "zero_gradient")
    model, loss_fn, x, y = build(case, 5)
    found = pb.curvature_spectrum(model, loss_fn, (x, y), "empirical_fisher", method="gram")
    assert found.num_below >= 1
    _check(found, reference.dense_empirical_fisher(model, loss_fn, x, y))


@pytest.mark.parametrize("scale", [30.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saturated_classes(scale: float, dtype: torch.dtype) -> None:
    """Probabilities that are 0 and 1 to rounding: finite, and as the dense matrix in float64."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    x, y = torch.randn(6, 3).double(), torch.arange(6) % 4
    with torch.no_grad():
        model.weight.mul_(scale)
    dense = reference.dense_gauss_newton(model, CE, x, y)
    found = pb.curvature_spectrum(model.to(dtype), CE, (x.to(dtype), y), method="gram")
    assert torch.isfinite(found.values).all()
    exact = torch.linalg.eigvalsh(dense).flip(0)[: len(found.values)]
    assert_same(found.values.double(), exact, 1e-9 if dtype == torch.float64 else 1e-3)


def test_curvature_that_float32_loses() -> None:
    """All samples fitted to 1e-9: the rows keep a curvature of which 1 - p in float32 is nothing."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[20.0], [0.0]]))
    x, y = torch.ones(3, 1), torch.zeros(3, dtype=torch.long)
    found = pb.curvature_spectrum(model, CE, (x, y), method="gram")
    p = 1 / (1 + math.exp(20.0))
    assert float(found.values[0]) == pytest.approx(2 * p * (1 - p), rel=1e-5)  # p (1 - p) [[1, -1], [-1, 1]]


@pytest.mark.parametrize("matrix", DENSE)
def test_batches_are_joined(matrix: Matrix) -> None:
    model, loss_fn, x, y = build(CASES[0], 7)
    whole = pb.curvature_spectrum(model, loss_fn, (x, y), matrix)
    parts = [(x[:5], y[:5]), (x[5:], y[5:])]
    for method in ("gram", "lanczos"):
        assert_same(pb.curvature_spectrum(model, loss_fn, parts, matrix, method=method).values, whole.values, 1e-9)


def test_batches_that_cannot_be_joined_go_to_lanczos() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).double()

    def mean_square(z: Tensor, t: Tensor) -> Tensor:
        return z.square().flatten(1).mean(1)

    batches = [(torch.randn(2, T, 3).double(), torch.zeros(2)) for T in (4, 5)]
    found = pb.curvature_spectrum(model, mean_square, batches)
    assert found.method == "lanczos"
    assert "the batches cannot be joined, their samples differ in shape" in found.reason
    assert_same(
        found.values,
        torch.linalg.eigvalsh(GaussNewton(model, mean_square, batches).to_dense()).flip(0)[: len(found.values)],
        1e-9,
    )
    with pytest.raises(
        pb.UnsupportedError,
        match="curvature_spectrum: expected rows of the matrix for method='gram', got the batches cannot",
    ):
        pb.curvature_spectrum(model, mean_square, batches, method="gram")


def test_a_loss_that_is_not_convex_goes_to_lanczos() -> None:
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3).double()

    def waves(z: Tensor, t: Tensor) -> Tensor:
        return z.sin().sum(1)

    data = x, torch.zeros(4)
    found = pb.curvature_spectrum(model, waves, data, k=1)
    assert found.method == "lanczos"
    assert "expected a loss that is convex in the outputs, got curvature -" in found.reason
    with pytest.raises(pb.UnsupportedError, match="a loss that is convex in the outputs, got curvature -0"):
        pb.curvature_spectrum(model, waves, data, k=1, method="gram")


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), self.body(-x)


def test_outputs_that_are_no_tensor_go_to_lanczos() -> None:
    model, x = Pair().double(), torch.randn(4, 3).double()

    def both(z: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
        return (z[0] + z[1]).square().sum(1)

    found = pb.curvature_spectrum(model, both, (x, torch.zeros(4)), k=1)
    assert (found.method, len(found.values)) == ("lanczos", 1)
    with pytest.raises(pb.UnsupportedError, match=r"a model that returns one real tensor \(N, ...\), got tuple"):
        pb.curvature_spectrum(model, both, (x, torch.zeros(4)), method="gram")
    assert pb.curvature_spectrum(model, both, (x, torch.zeros(4)), "empirical_fisher", method="gram").method == "gram"


def test_values_alone() -> None:
    """Without eigenvectors: the same values, a bound for residuals, and moments that are compared."""
    model, loss_fn, x, y = build(CASES[0], 6)
    for matrix in DENSE:
        whole = pb.curvature_spectrum(model, loss_fn, (x, y), matrix, method="gram")
        alone = pb.curvature_spectrum(model, loss_fn, (x, y), matrix, method="gram", vectors=False)
        assert alone.vectors is None
        assert_same(alone.values, whole.values, 1e-10)
        assert_same(alone.residuals, torch.full_like(alone.values, alone.noise_floor), 1e-15)
        few = pb.curvature_spectrum(model, loss_fn, (x, y), matrix, k=3, vectors=False)
        assert few.vectors is None
        assert_same(few.values, whole.values[:3], 1e-6)


def test_moments_catch_a_wrong_eigendecomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss_fn, x, y = build(CASES[0], 6)
    exact = torch.linalg.eigvalsh
    for name, wrong in (
        ("sum", lambda m: 1.1 * exact(m)),
        ("sum of squares", lambda m: exact(m).mean() + 0 * exact(m)),
    ):
        monkeypatch.setattr(torch.linalg, "eigvalsh", wrong)
        with pytest.raises(
            pb.SelfCheckError, match=f"curvature_spectrum: expected the {name} of the eigenvalues to be"
        ):
            pb.curvature_spectrum(model, loss_fn, (x, y), "empirical_fisher", method="gram", vectors=False)


def test_the_smallest_that_are_not_zero() -> None:
    model, loss_fn, x, y = build(CASES[0], 5)
    for method in ("gram", "lanczos"):
        whole = pb.curvature_spectrum(model, loss_fn, (x, y), method=method)
        last = pb.curvature_spectrum(model, loss_fn, (x, y), k=3, which="smallest", method=method)
        assert_same(last.values, whole.values[-3:], 1e-9)
        assert last.vectors is not None
        assert last.vectors.shape[1] == 3


def test_float32_stays_within_its_noise() -> None:
    """Values and floor in float32 against float64; residuals measured and small."""
    model, loss_fn, x, y = build(CASES[0], 12)
    for matrix in DENSE:
        exact = pb.curvature_spectrum(model.double(), loss_fn, (x.double(), y), matrix, method="gram").values
        for k in (None, 5):
            found = pb.curvature_spectrum(model.float(), loss_fn, (x.float(), y), matrix, method="gram", k=k)
            assert found.values.dtype == torch.float32
            m = len(found.values)
            assert float((found.values.double() - exact[:m]).abs().max()) <= found.noise_floor
            assert float(found.residuals.max()) <= 2e-6 * float(found.values[0])
            assert found.vectors is not None
            assert_same(found.vectors.T @ found.vectors, torch.eye(m), 1e-5)


def test_not_converged_is_data() -> None:
    """A residual no float32 can reach is said, not raised."""
    model, loss_fn, x, y = build(CASES[0], 12, torch.float32)
    found = pb.curvature_spectrum(model, loss_fn, (x, y), k=3, tol=1e-12, method="gram")
    assert not found.converged
    assert "not converged" in str(found)
    assert float(found.residuals.max()) < 1e-5 * float(found.values[0])


def test_memory_limits() -> None:
    model, loss_fn, x, y = build(CASES[0], 12)
    free = pb.curvature_spectrum(model, loss_fn, (x, y), k=1)
    lean = min(free.routes, key=lambda way: way.num_bytes)
    held = pb.curvature_spectrum(model, loss_fn, (x, y), k=1, memory_limit=lean.num_bytes)
    assert held.reason.startswith(str(lean))
    with pytest.raises(pb.InputError, match=rf"a `memory_limit` of at least {lean.num_bytes} bytes, got 10"):
        pb.curvature_spectrum(model, loss_fn, (x, y), k=1, memory_limit=10)


def test_bad_arguments() -> None:
    model, loss_fn, x, y = build(CASES[0], 3)
    bad: tuple[tuple[dict[str, Any], str], ...] = (
        (
            {"matrix": "hessian"},
            "`matrix` to be one of 'gauss_newton', 'empirical_fisher', 'true_fisher', got 'hessian'",
        ),
        ({"which": "both"}, "`which` to be one of 'largest', 'smallest', got 'both'"),
        ({"method": "power"}, "`method` to be one of 'auto', 'gram', 'lanczos', got 'power'"),
        ({"tol": 0.0}, "`tol` above 0, got 0.0"),
        ({"k": 0}, "`k` from 1 to 150, got 0"),
    )
    for options, message in bad:
        with pytest.raises(pb.InputError, match=f"curvature_spectrum: expected {message}"):
            pb.curvature_spectrum(model, loss_fn, (x, y), **options)
    dropped = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 4)).double().train()
    with pytest.raises(pb.UnsupportedError, match="curvature_spectrum: expected"):
        pb.curvature_spectrum(dropped, CE, (x, y), method="gram")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    """Weights, gradients, modes, buffers and the global random state are as before, also after an error."""
    case = next(c for c in CASES if c.name == "conv2d")
    model, loss_fn, x, y = build(case, 3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(pb.InputError):
            pb.curvature_spectrum(model, loss_fn, (x, y + 100))
    else:
        pb.curvature_spectrum(model, loss_fn, (x, y), k=2)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m.training or m._forward_hooks or m._backward_hooks for m in model.modules())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 5), st.integers(0, 99))
def test_square_roots(n: int, c: int, rank: int, seed: int) -> None:
    """S S^T = M for positive semi-definite M of any rank, also of very different sizes; S has as many columns."""
    torch.manual_seed(seed)
    factor = torch.randn(n, c, min(rank, c)).double() * 10.0 ** -torch.arange(n).view(n, 1, 1)
    middle = factor @ factor.mT
    root = square_root(middle, torch.float64, "test")
    assert root.shape[2] <= min(rank, c)
    assert float((root @ root.mT - middle).abs().max()) <= 1e-12 * max(float(middle.abs().max()), 1e-300)


def test_roots_follow_pivots() -> None:
    """The first diagonal entry is negligible, what stands beside it is not."""
    small = 1e-9
    middle = torch.tensor([[[small**2, small], [small, 1.0]]]).double()
    root = square_root(middle, torch.float64, "test")
    assert_same(root @ root.mT, middle, 1e-15)


def test_output_hessians_of_any_loss() -> None:
    """All samples at once, as one by one; class weights and positions, no closed form."""
    z, y = torch.randn(4, 3, 2).double(), torch.randint(3, (4, 2))
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double(), label_smoothing=0.1)
    found = output_hessian(loss_fn, z, y)
    for i in range(4):
        one = torch.func.jacrev(torch.func.jacrev(lambda o, i=i: loss_fn(o.view(1, 3, 2), y[i : i + 1])))(
            z[i].flatten()
        )
        assert_same(found[i], one, 1e-12)


def test_operators_agree_with_the_rows() -> None:
    """The operator's products with the eigenvectors found through the rows."""
    model, loss_fn, x, y = build(CASES[0], 6)
    operators: dict[Matrix, Operator] = {
        "gauss_newton": GaussNewton(model, loss_fn, (x, y)),
        "true_fisher": Fisher(model, loss_fn, (x, y), kind="true"),
        "empirical_fisher": Fisher(model, loss_fn, (x, y), kind="empirical"),
    }
    for matrix, operator in operators.items():
        found = pb.curvature_spectrum(model, loss_fn, (x, y), matrix, method="gram")
        assert found.vectors is not None
        assert_same(operator @ found.vectors, found.vectors * found.values, 1e-9)
