"""``sketch_kernel``: unbiased, with the variance of the formula and intervals that cover as often as they say."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import ModelView, take
from pullback.functional.readout import loss_readout, output_readout
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.gradients.capture.sum_checks import summed
from pullback.gradients.rows.factor import DenseFactor
from pullback.kernels.gram.blocks import assemble
from pullback.kernels.plan.make import make_plan
from pullback.kernels.sketch import project as sketch_project
from pullback.kernels.sketch.plan import exact_flops, exact_parameters, sketch_flops
from pullback.kernels.sketch.project import Sketch, as_matrix, project, projections, split
from pullback.kernels.sketch.sketched import SketchedKernel, estimate, sketch_kernel
from pullback.kernels.sketch.sketched_rows import SketchFactor, sketch_captured, sketch_factors
from tests.cases import CASES, build
from tests.compare import assert_different, assert_same
from tests.thinned import thinned

BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("name", BY_NAME)


def captured(name: str, n: int = 6, dtype: torch.dtype = torch.float64, index: slice = slice(None)) -> Captured:
    """A case's captured factors, of some of n samples."""
    model, loss_fn, x, y = build(BY_NAME[name], n, dtype)
    view = ModelView.of(model)
    return summed(capture_factors(view, loss_readout(loss_fn), take(x, index), take(y, index), "test"), "test")


def wide(n: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Positions and layers large enough that sketching them is cheaper."""
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 48), nn.LayerNorm(48)).double()
    return model, nn.MSELoss(), torch.randn(n, 20, 64).double(), torch.randn(n, 20, 48).double()


def rows_of(factor: DenseFactor) -> Tensor:
    """(N C, m)."""
    return torch.cat([g.flatten(2) for g in factor.gradients.values()], 2).flatten(0, 1)


@pytest.mark.parametrize("name", thinned(tuple(BY_NAME)))
def test_mean_over_many_seeds_is_the_exact_kernel(name: str) -> None:
    """Every entry within four standard errors of the mean over seeds, from the standard errors each seed reports."""
    model, loss_fn, x, y = build(BY_NAME[name], 6)
    exact = reference.total_kernel(model, loss_fn, x, y)
    left = captured(name)
    kernels = [estimate(left, None, Sketch(3, 6, seed, "smaller"), 0.95, "test") for seed in range(12)]
    found = torch.stack([kernel.total for kernel in kernels])
    error = torch.stack([kernel.stderr for kernel in kernels]).square().mean(0).sqrt() / math.sqrt(len(kernels))
    error += 1e-10 * exact.abs().max()
    assert ((found.mean(0) - exact).abs() <= 4 * error).all()
    sketched = any(factor.sketched for factor in kernels[0].plan.factors)
    assert sketched == any(max(layer_sides(left.view.parameters, name)) > 3 for name in left.view.parameters)
    if sketched:
        assert_different(found[0], exact, 1e-6)


def layer_sides(parameters: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix, a bias as one column more; vectors are never sketched."""
    weight, bias = parameters[name], name.removesuffix("weight") + "bias"
    return (0, 0) if weight.dim() < 2 else (len(weight), weight[0].numel() + (bias != name and bias in parameters))


@pytest.mark.parametrize("name", thinned(tuple(BY_NAME)))
def test_layers_are_estimated_without_bias(name: str) -> None:
    model, loss_fn, x, y = build(BY_NAME[name], 6)
    layers = reference.layer_kernels(model, loss_fn, x, y)
    kernel = sketch_kernel(model, loss_fn, x, y, size=3, repeats=60, exact="smaller")
    assert list(kernel.layers) == list(pb.backward_kernel(model, loss_fn, x, y).layers)
    for layer, block in layers.items():
        slack = 1e-10 * max(float(block.abs().max()), 1e-10)
        assert ((kernel.layers[layer] - block).abs() <= 4.5 * kernel.layer_stderr[layer] + slack).all(), layer
    assert_same(torch.stack(list(kernel.layers.values())).sum(0), kernel.total, scale=float(kernel.total.abs().max()))


def pair_variance(w: Tensor, v: Tensor, left: int | None, right: int | None) -> Tensor:
    """Variance of <L^T w R, L^T v R> for signs of ``left`` and ``right`` columns, None for a side left as it is."""
    p, q = (0.0 if k is None else 1.0 / k for k in (left, right))
    a, b = v @ w.T, w.T @ v
    both, rows, columns, entries = (
        w.square().sum() * v.square().sum(),
        (w.square().sum(1) * v.square().sum(1) + (w * v).sum(1).square()).sum(),
        (w.square().sum(0) * v.square().sum(0) + (w * v).sum(0).square()).sum(),
        (w * v).square().sum(),
    )
    of_rows = a.square().sum() + (a @ a).trace() - 2 * a.diagonal().square().sum()
    of_columns = b.square().sum() + (b @ b).trace() - 2 * b.diagonal().square().sum()
    mixed = both + a.square().sum() + b.square().sum() + (w * v).sum().square() - 2 * rows - 2 * columns + 4 * entries
    return p * of_rows + q * of_columns + p * q * mixed


@pytest.mark.parametrize("name", thinned(["mlp", "conv1d", "tied", "tokens"]))
def test_variance_is_that_of_the_formula(name: str) -> None:
    """Of every entry of every sketched factor: groups, tables, vectors and one-sided ones among them."""
    left, repeats, size = captured(name, 4), 1500, 3
    sketch = Sketch(size, repeats, 1, "smaller")
    kept = exact_parameters(left.factors, sketch, 4, None)
    for factor in (f for f in split(left.factors) if next(iter(f.shapes)) not in kept):
        w = [
            torch.block_diag(*as_matrix(factor, {n: r[i, 0] for n, r in factor.rows(slice(0, 4)).items()}))
            for i in range(4)
        ]
        sides = [size if length > size else None for length in w[0].shape]
        expected = torch.stack([torch.stack([pair_variance(a, b, *sides) for b in w]) for a in w])
        rows = [project(factor, *projections(factor, sketch, r))[:, 0] for r in range(repeats)]
        draws = torch.stack([s @ s.T for s in rows])
        centred = draws - draws.mean(0)
        measured = centred.square().mean(0)
        error = ((centred.square() - measured).square().mean(0) / repeats).sqrt()
        slack = 1e-10 * expected.max()
        assert ((measured - expected).abs() <= 4.5 * error + slack).all(), factor.shapes
        assert expected.max() > 0


@pytest.mark.slow  # two hundred draws
@pytest.mark.parametrize("name", ["mlp", "tied"])
def test_intervals_cover_as_often_as_they_say(name: str) -> None:
    """Nominal 95 percent, 200 draws: between 92 and 98 on the diagonal and off it."""
    model, loss_fn, x, y = build(BY_NAME[name], 6)
    exact = reference.total_kernel(model, loss_fn, x, y)
    left = captured(name)
    hits = []
    for seed in range(200):
        low, high = estimate(left, None, Sketch(4, 16, seed, "smaller"), 0.95, "test").interval()
        hits.append((low <= exact) & (exact <= high))
    covered = torch.stack(hits).double().mean(0)
    off = ~torch.eye(6, dtype=torch.bool)
    assert 0.92 <= float(covered.diagonal().mean()) <= 0.98
    assert 0.92 <= float(covered[off].mean()) <= 0.98


def test_intervals_of_layers_and_other_levels() -> None:
    """The reach is Student's quantile times the standard error."""
    model, loss_fn, x, y = build(BY_NAME["mlp"], 4)
    kernel = sketch_kernel(model, loss_fn, x, y, size=3, repeats=5, confidence=0.9, exact="smaller")
    low, high = kernel.interval("1")
    assert_same((low + high) / 2, kernel.layers["1"])
    assert_same((high - low) / 2, kernel.layer_stderr["1"] * 2.1318467863266499)  # t, 4 degrees of freedom, 95 percent
    with pytest.raises(pb.InputError, match=r"SketchedKernel.interval: expected layers among 1, 3, 5, got '9'"):
        kernel.interval("9")


def test_the_standard_error_is_the_spread_of_the_repeats() -> None:
    left = captured("tied")
    sketch = Sketch(4, 7, 5, "smaller")
    kernel = estimate(left, None, sketch, 0.95, "test")
    rows = sketch_factors(left.factors, sketch)
    sketched = [factor for factor in rows if isinstance(factor, SketchFactor)]
    exact = [rows_of(factor) for factor in rows if type(factor) is DenseFactor]
    fixed = sum((r @ r.T for r in exact), start=torch.zeros(6, 6, dtype=torch.float64))
    each = [[rows_of(factor.repeat(k)) for factor in sketched] for k in range(7)]
    blocks = torch.stack([sum((r @ r.T for r in parts), start=fixed) for parts in each])
    assert_same(kernel.stderr, blocks.std(0) / math.sqrt(7))
    assert_same(kernel.total, blocks.mean(0))


@every_case
def test_store_rows_give_the_same_kernel(name: str) -> None:
    """Rows of length R m, exact factors among them, through what assembles exact kernels, checks of sums included."""
    left = captured(name, 5, torch.float32)
    sketch = Sketch(4, 6, 2, "smaller")
    kernel = estimate(left, None, sketch, 0.95, "test")
    exact = exact_parameters(left.factors, sketch, 5, None)
    rows = sketch_captured(left, sketch, exact)
    assert all(f.like.shape[2:] == (6, f.like.shape[3]) for f in rows.factors if isinstance(f, SketchFactor))
    assert all(f.like.shape[3] <= 16 for f in rows.factors if isinstance(f, SketchFactor))
    assert {n for f in rows.factors for n in getattr(f, "covers", f.shapes)} == set(left.view.parameters)
    total = assemble(rows, None, make_plan(rows, 5, None, "test"), "test").total
    assert total is not None
    assert_same(total, kernel.total)


def test_blocks_of_samples_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured apart or at once, projected one sample at a time or all: the same rows to rounding."""
    for name in ("tokens", "conv2d", "tied", "positions"):
        whole = captured(name)
        sketch = Sketch(5, 3, 0, "smaller")
        exact = exact_parameters(whole.factors, sketch, 6, None)
        together = sketch_factors(whole.factors, sketch, exact)
        parts = [captured(name, index=index) for index in (slice(0, 2), slice(2, 6))]
        apart = [sketch_factors(part.factors, sketch, exact) for part in parts]
        monkeypatch.setattr(sketch_project, "BLOCK_NUMBERS", 1)
        singly = sketch_factors(whole.factors, sketch, exact)
        monkeypatch.undo()
        for first, second, *blocks in zip(together, singly, *apart, strict=True):
            if isinstance(first, SketchFactor):
                assert_same(rows_of(second), rows_of(first))
                assert_same(rows_of(blocks[0].joined(blocks[1:])), rows_of(first))


@pytest.mark.parametrize("name", ["tokens", "conv2d", "tied", "recurrent"])
def test_cross_kernels_are_blocks_of_the_whole(name: str) -> None:
    """Both sets see the same projections."""
    model, loss_fn, x, y = build(BY_NAME[name], 7)
    whole = sketch_kernel(model, loss_fn, x, y, size=4, repeats=3, exact="smaller")
    (x1, y1), (x2, y2) = ((take(x, index), take(y, index)) for index in (slice(0, 3), slice(3, 7)))
    cross = sketch_kernel(model, loss_fn, x1, y1, x2=x2, y2=y2, size=4, repeats=3, exact="smaller")
    assert cross.total.shape == cross.stderr.shape == (3, 4)
    assert_same(cross.total, whole.total[:3, 3:], scale=float(whole.total.abs().max()))
    assert_same(cross.stderr, whole.stderr[:3, 3:], scale=float(whole.total.abs().max()))
    for layer, block in cross.layers.items():
        assert_same(block, whole.layers[layer][:3, 3:], scale=float(whole.total.abs().max()))


def test_the_seed_decides_and_nothing_else() -> None:
    model, loss_fn, x, y = build(BY_NAME["mlp"], 5)

    def run(seed: int) -> SketchedKernel:
        return sketch_kernel(model, loss_fn, x, y, size=4, repeats=3, seed=seed, exact="smaller")

    before = torch.get_rng_state()
    first = run(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = run(1)
    assert torch.equal(first.total, again.total)
    assert torch.equal(first.stderr, again.stderr)
    assert_different(run(2).total, first.total, 1e-3)
    single = model.float()
    low = sketch_kernel(single, loss_fn, x.float(), y, size=4, repeats=3, seed=1, exact="smaller")
    assert low.total.dtype == torch.float32
    assert_same(low.total, first.total)  # the same signs in every dtype


def test_layers_and_repeats_are_drawn_independently() -> None:
    """Two layers of one shape, and two repeats of one layer, see different signs."""
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    left = capture_factors(
        ModelView.of(model), loss_readout(nn.MSELoss()), torch.randn(3, 9), torch.randn(3, 9), "test"
    )
    sketch = Sketch(4, 2)
    first, second = left.factors
    assert not torch.equal(projections(first, sketch, 0)[0], projections(second, sketch, 0)[0])
    assert not torch.equal(projections(first, sketch, 0)[0], projections(first, sketch, 1)[0])
    assert not torch.equal(projections(first, sketch, 0)[0], projections(first, Sketch(4, 2, 1), 0)[0])
    assert torch.equal(projections(first, sketch, 0)[0].abs(), torch.full((1, 9, 4), 0.5))


@every_case
def test_symmetric_to_the_bit(name: str) -> None:
    model, loss_fn, x, y = build(BY_NAME[name], 5, torch.float32)
    kernel = sketch_kernel(model, loss_fn, x, y, size=3, repeats=2, exact="smaller")
    for block in (kernel.total, kernel.stderr, *kernel.layers.values(), *kernel.layer_stderr.values()):
        assert torch.equal(block, block.T)


def test_small_layers_stay_exact() -> None:
    """With the default settings nothing of a small model is sketched, and the plan says what it would have cost."""
    model, loss_fn, x, y = build(BY_NAME["tokens"], 6)
    kernel = sketch_kernel(model, loss_fn, x, y)
    exact = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, exact.total)
    assert kernel.exact_layers == tuple(kernel.layers)
    assert not kernel.stderr.any()
    assert torch.equal(torch.stack(kernel.interval()), torch.stack([kernel.total, kernel.total]))
    assert not any(factor.sketched for factor in kernel.plan.factors)
    assert repr(kernel) == "SketchedKernel(6 x 6, 0 of 8 layers sketched)"


def test_the_cheaper_way_is_chosen_layer_by_layer() -> None:
    """Large layers with positions are sketched, the rest is not; operations decide."""
    model, loss_fn, x, y = wide(300)
    kernel = sketch_kernel(model, loss_fn, x, y, size=8, repeats=4)
    assert kernel.exact_layers == ("3",)
    exact = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.layers["3"], exact.layers["3"])
    assert not kernel.layer_stderr["3"].any()
    assert kernel.plan.flops < exact.plan.flops / 5
    assert all(
        f.sketched == (f.exact_flops > f.sketch_flops) for f in kernel.plan.factors if f.sketch_flops is not None
    )
    low, high = kernel.interval()
    assert 0.85 < float(((low <= exact.total) & (exact.total <= high)).double().mean()) < 1
    lines = str(kernel.plan).splitlines()
    assert lines[1].split()[:4] == ["0.weight,", "0.bias", "linear", "sketch"]
    assert lines[3].split()[:5] == [
        "3.weight,",
        "3.bias",
        "layer_norm",
        "exact",
        f"{kernel.plan.factors[2].exact_flops / 1e9:.3g}",
    ]
    assert lines[-1].startswith("kernel 300 x 300, 4 sketches of 8 x 8: ")


def test_operations_are_counted() -> None:
    """A linear layer by hand: d + 1 = 65 inputs with the bias, p = 96 outputs, T = 20."""
    model, loss_fn, x, y = wide(2)
    left = summed(capture_factors(ModelView.of(model), loss_readout(loss_fn), x, y, "test"), "test")
    factor = left.factors[0]
    k, R, N, T = 8, 4, 300, 20
    assert sketch_flops(factor, Sketch(k, R), N, None) == R * (2 * N * T * (65 * k + 96 * k + k * k) + N * N * k * k)
    assert sketch_flops(factor, Sketch(k, R), N, 5) == R * (
        2 * (N + 5) * T * (65 * k + 96 * k + k * k) + 2 * N * 5 * k * k
    )
    assert exact_flops(factor, N, None) == 64 * 96 * (2 * N * T + N * N)  # outer products, then half of all pairs
    assert exact_flops(factor, 2, None) == 2 * 2 * T * T * (65 + 96)  # of few samples the ghost form is cheaper


def test_several_outputs_a_sample() -> None:
    """Rows are (sample, output) pairs: the tangent kernel's gradients."""
    model, _, x, _ = build(BY_NAME["mlp"], 5)
    left = summed(capture_factors(ModelView.of(model), output_readout(), x, None, "test"), "test")
    exact = assemble(left, None, make_plan(left, 5, None, "test"), "test").total
    assert exact is not None
    kernel = estimate(left, None, Sketch(4, 100, 0, "smaller"), 0.95, "test")
    assert kernel.total.shape == (20, 20)
    assert ((kernel.total - exact).abs() <= 4.5 * kernel.stderr + 1e-10 * exact.max()).all()


def test_params_restrict_the_kernel() -> None:
    model, loss_fn, x, y = build(BY_NAME["mlp"], 5)
    part = sketch_kernel(model, loss_fn, x, y, size=4, repeats=3, params=["1"], exact="smaller")
    whole = sketch_kernel(model, loss_fn, x, y, size=4, repeats=3, exact="smaller")
    assert list(part.layers) == ["1"]
    assert_same(part.total, whole.layers["1"])


def test_a_wrong_sketch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows must sum to the sketch of the ordinary gradient."""
    right = sketch_project.projected
    monkeypatch.setattr(sketch_project, "projected", lambda *args: 1.01 * right(*args))
    model, loss_fn, x, y = build(BY_NAME["mlp"], 5)
    with pytest.raises(pb.SelfCheckError, match=r"sketch_kernel: expected the summed gradient of `1.weight` to agree"):
        sketch_kernel(model, loss_fn, x, y, size=4, repeats=2, exact="smaller")


def test_errors() -> None:
    model, loss_fn, x, y = build(BY_NAME["mlp"], 3)
    with pytest.raises(pb.InputError, match=r"Sketch: expected a `size` of at least 1, got 0\. Pass a larger `size`\."):
        sketch_kernel(model, loss_fn, x, y, size=0)
    with pytest.raises(pb.InputError, match=r"Sketch: expected at least 2 `repeats`, got 1\. Pass more: their spread"):
        sketch_kernel(model, loss_fn, x, y, repeats=1)
    with pytest.raises(pb.InputError, match=r"Sketch: expected `exact` to be one of 'cheaper', 'smaller', got 'none'"):
        sketch_kernel(model, loss_fn, x, y, exact="none")  # type: ignore[arg-type]
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(pb.InputError, match=r"sketch_kernel: expected a `confidence` between 0 and 1, got "):
            sketch_kernel(model, loss_fn, x, y, confidence=confidence)
    with pytest.raises(pb.InputError, match=r"sketch_kernel: expected `x2` and `y2` together, got only `x2`"):
        sketch_kernel(model, loss_fn, x, y, x2=x)


@pytest.mark.parametrize(("p", "d"), [(9, 2), (2, 9), (7, 6)])
@pytest.mark.parametrize("size", [1, 4])
def test_rows_held_as_matrices_are_projected_from_both_sides(p: int, d: int, size: int) -> None:
    """``L^T W R`` of every sample and output, whichever product is formed first."""
    factor = DenseFactor({"weight": torch.randn(3, 2, p, d, dtype=torch.float64)})
    left, right = projections(factor, Sketch(size), 1)
    expected = torch.einsum("pk,ncpd,dm->nckm", left[0], factor.gradients["weight"], right[0]).flatten(2)
    assert_same(project(factor, left, right), expected)
