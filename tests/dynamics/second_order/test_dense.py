"""Each step equals that of its matrix, made by ``pb.reference`` and inverted here; float64, drawn shapes, 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback import reference
from pullback.dynamics import DampedNewton, HessianFree, LevenbergMarquardt, NaturalGradient, Newton, SaddleFreeNewton
from pullback.dynamics.second_order.natural import SEEDS, STRIDE
from pullback.functional import sample_targets
from tests.cases import CASES, build
from tests.compare import assert_same
from tests.thinned import thinned

TIGHT = 1e-9
Losses = tuple[Callable[..., Any], Callable[[int, int], Tensor]]
LOSSES: dict[str, Losses] = {
    "cross-entropy": (nn.CrossEntropyLoss(), lambda n, c: torch.randint(c, (n,))),
    "squared": (nn.MSELoss(), lambda n, c: torch.randn(n, c, dtype=torch.float64)),
    "bits": (nn.BCEWithLogitsLoss(reduction="sum"), lambda n, c: torch.randint(2, (n, c)).double()),
    "counts": (nn.PoissonNLLLoss(), lambda n, c: torch.poisson(torch.ones(n, c, dtype=torch.float64))),
}


def drawn(seed: int, loss: str) -> tuple[nn.Module, Any, Tensor, Tensor]:
    """A network, a loss and a batch whose shapes follow from the seed."""
    torch.manual_seed(seed)
    inputs, hidden, outputs, n = (int(torch.randint(*span, ())) for span in ((1, 5), (1, 5), (2, 4), (2, 9)))
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double()
    loss_fn, targets = LOSSES[loss]
    return model, loss_fn, torch.randn(n, inputs, dtype=torch.float64), targets(n, outputs)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Tensor:
    return reference.gradient_matrix(model, loss_fn, x, y).mean(0)


def groups(model: nn.Sequential, lr: tuple[float, float], damping: tuple[float, float]) -> tuple[Any, Tensor, Tensor]:
    """A group a layer, its rates and dampings, and the same as vectors."""
    layers = (model[0], model[2])
    made = [{"params": list(layer.parameters()), "lr": lr[i], "damping": damping[i]} for i, layer in enumerate(layers)]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]

    def spread(pair):
        return torch.cat([torch.full((s,), v, dtype=torch.float64) for s, v in zip(sizes, pair, strict=True)])

    return made, spread(lr), spread(damping)


def moved(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
    before = weights(model)
    optimizer.step(x, y)
    return weights(model) - before


SEEDS_DRAWN = list(range(6))


@pytest.mark.parametrize(("seed", "loss"), thinned(SEEDS_DRAWN, list(LOSSES)))
def test_newton_and_saddle_free(seed: int, loss: str) -> None:
    model, loss_fn, x, y = drawn(seed, loss)
    params, lr, d = groups(model, (0.3, 0.7), (0.4, 0.9))
    H = reference.dense_hessian(model, loss_fn, x, y)
    g = gradient(model, loss_fn, x, y)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    values, vectors = torch.linalg.eigh(H)
    expected = -lr * torch.linalg.solve((vectors * values.abs()) @ vectors.T + torch.diag(d), g)
    optimizer = SaddleFreeNewton(model, loss_fn, params=params)
    assert_same(moved(model, optimizer, x, y), expected, TIGHT)
    p = expected
    assert optimizer.last.predicted_decrease == pytest.approx(float(-(g @ p) - p @ H @ p / 2), rel=1e-8)
    assert optimizer.last.smallest_eigenvalue == pytest.approx(float(values[0]), abs=1e-10)
    model.load_state_dict(start)
    optimizer = Newton(model, loss_fn, indefinite="keep", params=params)
    expected = -lr * torch.linalg.solve(H + torch.diag(d), g)
    assert_same(moved(model, optimizer, x, y), expected, TIGHT)
    assert optimizer.last.action.startswith("step" if torch.linalg.eigvalsh(H + torch.diag(d))[0] > 0 else "kept")


@pytest.mark.parametrize("dense_limit", [1000, 0])
@pytest.mark.parametrize("seed", SEEDS_DRAWN[:4])
def test_newton_damps_as_much_as_it_says(seed: int, dense_limit: int) -> None:
    """Without a damping of its own the matrix of a tanh network is indefinite; what is added is in the record."""
    model, loss_fn, x, y = drawn(seed, "cross-entropy")
    H, g = reference.dense_hessian(model, loss_fn, x, y), gradient(model, loss_fn, x, y)
    optimizer = Newton(model, loss_fn, indefinite="damp", dense_limit=dense_limit, tol=1e-12)
    found = moved(model, optimizer, x, y)
    last, lowest = optimizer.last, torch.linalg.eigvalsh(H)[0]
    assert lowest < 0
    assert last.action.startswith("damped: by")
    assert last.damping > -lowest
    assert_same(found, -torch.linalg.solve(H + last.damping * torch.eye(len(H), dtype=H.dtype), g), TIGHT)
    assert last.smallest_eigenvalue == pytest.approx(float(lowest), rel=1e-2)


def test_newton_drops_what_goes_up() -> None:
    model, loss_fn, x, y = drawn(1, "squared")
    H, g = reference.dense_hessian(model, loss_fn, x, y), gradient(model, loss_fn, x, y)
    values, vectors = torch.linalg.eigh(H)
    kept = values > 1e-10
    assert not kept.all()
    optimizer = Newton(model, loss_fn, indefinite="drop")
    found = moved(model, optimizer, x, y)
    assert_same(found, -(vectors[:, kept] @ ((vectors[:, kept].T @ g) / values[kept])), 1e-7)
    assert optimizer.last.action.startswith(f"dropped: {int((~kept).sum())} directions")


@pytest.mark.parametrize(("seed", "loss"), thinned(SEEDS_DRAWN, list(LOSSES)))
def test_damped_newton(seed: int, loss: str) -> None:
    """With the damping of its record, whatever it had to raise it to, and the parts it is made of."""
    model, loss_fn, x, y = drawn(seed, loss)
    params, lr, d = groups(model, (0.5, 1.0), (0.1, 0.2))
    H, g = reference.dense_hessian(model, loss_fn, x, y), gradient(model, loss_fn, x, y)
    optimizer = DampedNewton(model, loss_fn, params=params)
    p = moved(model, optimizer, x, y)
    last = optimizer.last
    scale = last.damping / 0.2
    assert_same(p, -lr * torch.linalg.solve(H + scale * torch.diag(d), g), TIGHT)
    assert last.predicted_decrease == pytest.approx(float(-(g @ p) - p @ H @ p / 2), rel=1e-7)
    new = sum(float(loss_fn(model(x[[i]]), y[[i]]).detach()) for i in range(len(x))) / len(x)
    assert last.new_loss == pytest.approx(new, rel=1e-12)
    assert last.loss > last.new_loss
    ratio = (last.loss - last.new_loss) / last.predicted_decrease
    factor = 4.0 if ratio < 0.25 else 1 / 3 if ratio > 0.75 else 1.0
    assert [group["damping"] for group in optimizer.param_groups] == pytest.approx(
        [0.1 * scale * factor, 0.2 * scale * factor]
    )


@pytest.mark.parametrize(("seed", "loss"), thinned(SEEDS_DRAWN, list(LOSSES)))
@pytest.mark.parametrize("form", ["parameters", "kernel"])
def test_levenberg_marquardt(form: str, seed: int, loss: str) -> None:
    model, loss_fn, x, y = drawn(seed, loss)
    params, lr, d = groups(model, (0.5, 1.0), (0.3, 0.6))
    A, g = reference.dense_gauss_newton(model, loss_fn, x, y), gradient(model, loss_fn, x, y)
    optimizer = LevenbergMarquardt(model, loss_fn, form=form, params=params)
    p = moved(model, optimizer, x, y)
    scale = optimizer.last.damping / 0.6
    assert_same(p, -lr * torch.linalg.solve(A + scale * torch.diag(d), g), TIGHT)
    assert optimizer.last.predicted_decrease == pytest.approx(float(-(g @ p) - p @ A @ p / 2), rel=1e-7)
    assert optimizer.last.converged


@pytest.mark.parametrize("seed", SEEDS_DRAWN[:3])
@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_hessian_free_solved_to_the_end(curvature: str, seed: int) -> None:
    model, loss_fn, x, y = drawn(seed, "squared")
    params, lr, d = groups(model, (0.5, 1.0), (3.0, 6.0))
    dense = reference.dense_gauss_newton if curvature == "gauss_newton" else reference.dense_hessian
    C, g = dense(model, loss_fn, x, y), gradient(model, loss_fn, x, y)
    optimizer = HessianFree(model, loss_fn, curvature=curvature, tol=1e-13, params=params)
    p = moved(model, optimizer, x, y)
    assert_same(p, -lr * torch.linalg.solve(C + optimizer.last.damping / 6.0 * torch.diag(d), g), TIGHT)
    assert optimizer.last.iterations > 0
    second = weights(model)
    warm = optimizer.state[model[0].weight].get("direction")
    assert (warm is None) == (curvature == "hessian")
    C, g = dense(model, loss_fn, x, y), gradient(model, loss_fn, x, y)
    optimizer.step(x, y)  # starts from the last direction; the solution is that of its own matrix
    scale = optimizer.last.damping / 6.0
    assert_same(weights(model) - second, -lr * torch.linalg.solve(C + scale * torch.diag(d), g), TIGHT)


@pytest.mark.parametrize(
    ("seed", "loss", "fisher"), thinned(SEEDS_DRAWN, list(LOSSES), ["true", "sampled", "empirical"])
)
@pytest.mark.parametrize("form", ["parameters", "kernel"])
def test_natural_gradient(form: str, seed: int, loss: str, fisher: str) -> None:
    """Two steps: draws are new at the second."""
    model, loss_fn, x, y = drawn(seed, loss)
    params, lr, d = groups(model, (0.05, 0.1), (0.3, 0.6))
    optimizer = NaturalGradient(model, loss_fn, fisher=fisher, form=form, seed=3, params=params)
    for step in range(2):
        targets, kind = y, fisher
        if fisher == "sampled":
            generator = torch.Generator().manual_seed((3 * STRIDE + step) % SEEDS)
            targets, kind = sample_targets(loss_fn, model(x).detach(), y, generator), "empirical"
        if kind == "empirical":
            F = reference.dense_empirical_fisher(model, loss_fn, x, targets)
        else:
            F = reference.dense_fisher(model, loss_fn, x, targets)
        expected = -lr * torch.linalg.solve(F + torch.diag(d), gradient(model, loss_fn, x, y))
        assert_same(moved(model, optimizer, x, y), expected, TIGHT)
        assert optimizer.last.action == f"step: {form}"
        assert optimizer.last.converged


@pytest.mark.parametrize("damping", [1e-1, 1e-5, 1e-8])
@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_kernel_form_is_the_parameter_form(fisher: str, damping: float) -> None:
    """More samples than parameters or fewer; small dampings, whose steps are refined."""
    for n in (3, 40):
        found = []
        for form in ("parameters", "kernel"):
            torch.manual_seed(n)
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
            x, y = torch.randn(n, 3, dtype=torch.float64), torch.randint(2, (n,))
            optimizer = NaturalGradient(model, nn.CrossEntropyLoss(), 0.1, damping, fisher=fisher, form=form)
            found.append(moved(model, optimizer, x, y))
            assert optimizer.last.residual < 1e-9
        condition = 1 / damping  # what rounding of the gradient and the matrix is amplified by
        assert_same(found[1], found[0], max(TIGHT, 1e-15 * condition))


def test_the_form_follows_the_sizes() -> None:
    model, loss_fn, x, y = drawn(0, "squared")
    P, outputs = sum(p.numel() for p in model.parameters()), model(x).shape[1]
    for n in (1, P // outputs, P // outputs + 1, 2 * P):
        x = torch.randn(n, x.shape[1], dtype=torch.float64)
        y = torch.randn(n, outputs, dtype=torch.float64)
        for fisher, rows in (("true", n * outputs), ("empirical", n)):
            optimizer = NaturalGradient(model, loss_fn, 1e-3, 0.1, fisher=fisher)
            optimizer.step(x, y)
            assert optimizer.last.action == ("step: kernel" if rows < P else "step: parameters")
    undamped = NaturalGradient(nn.Linear(1, 1).double(), loss_fn, 1e-3, 0.0)
    undamped.step(torch.randn(4, 1, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64))
    assert undamped.last.action == "step: parameters"


FEW = [
    case for case in CASES if case.name in ("conv1d", "one_activation", "tokens", "positions", "wide_data_few_params")
]


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_other_kinds_of_layers(case: Any) -> None:
    """Convolutions, tied layers, embeddings, norms, several positions: both forms of Gauss-Newton on real models."""
    found = []
    for form in ("parameters", "kernel"):
        model, loss_fn, x, y = build(case, 4)
        before = weights(model)
        optimizer = LevenbergMarquardt(model.eval(), loss_fn, damping=1.0, form=form, dense_limit=10**6)
        optimizer.step(x, y)
        found.append(weights(model) - before)
    assert_same(found[1], found[0], TIGHT)


@pytest.mark.parametrize("optimizer", [NaturalGradient, LevenbergMarquardt])
def test_a_model_too_sure_to_have_curvature_descends(optimizer: Callable[..., Any]) -> None:
    """Predictions of exactly 0 and 1 leave no rows: what is left of the matrix is its damping."""
    model, x, y = nn.Linear(2, 2), torch.eye(2), torch.tensor([0, 1])
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-200.0, 300.0], [200.0, -300.0]]))  # sure, and wrong
        model.bias.zero_()
    g = gradient(model, nn.CrossEntropyLoss(), x, y)
    assert float(g.norm()) > 0.1
    step = moved(model, optimizer(model, nn.CrossEntropyLoss(), lr=0.5, damping=4.0, form="kernel"), x, y)
    torch.testing.assert_close(step, (-0.5 / 4.0 * g).to(step), rtol=1e-4, atol=1e-4)
