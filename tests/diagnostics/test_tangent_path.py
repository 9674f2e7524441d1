"""The tangent kernel along training against dense references, for four optimizers, and the ball."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pullback as pb
from pullback import theory
from pullback.diagnostics import TangentPath, follow
from pullback.modules import WideNetwork

F64 = {"dtype": torch.float64}


def data(n=5, d=3, c=1, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=make, **F64), torch.randn(n, c, generator=make, **F64)


def half(z, y):
    """Half the squared error of each sample."""
    return (z - y).square().sum(1) / 2


def stepper(model, loss_fn, x, y, optimizer):
    def step():
        optimizer.zero_grad()
        found = loss_fn(model(x), y)
        found.mean().backward()
        optimizer.step()

    return step


OPTIMIZERS = {
    "gradient descent": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_against_dense_references(name):
    """S4-26, S4-30: drift, distance, eigenvalues and PL* constants at every point; nothing of the model changes."""
    x, y = data(c=2)
    model = WideNetwork(3, [8], "tanh", "swish", outputs=2, **F64)
    start, first = [p.detach().clone() for p in model.parameters()], pb.reference.tangent_kernel(model, x)
    path = TangentPath(model, half, x, y, curvature=True)
    step = stepper(model, half, x, y, OPTIMIZERS[name](model.parameters()))
    for number in (1, 2):
        step()
        grads = [p.grad.clone() for p in model.parameters()]
        found = path.observe(number)
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
        now = pb.reference.tangent_kernel(model, x)
        assert found.drift == pytest.approx(float((now - first).norm() / first.norm()))
        moved = sum(float((p.detach() - s).square().sum()) for p, s in zip(model.parameters(), start, strict=True))
        assert found.distance == pytest.approx(math.sqrt(moved))
        values = torch.linalg.eigvalsh(now.permute(0, 2, 1, 3).reshape(10, 10))
        assert found.smallest == pytest.approx(float(values[0]))
        assert found.condition == pytest.approx(float(values[-1] / values[0]))
        loss = half(model(x), y).mean()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        assert found.loss == pytest.approx(float(loss.detach()))
        assert found.ratio == pytest.approx(float(gradient @ gradient / (2 * loss.detach())))
        assert found.mu == pytest.approx(float(values[0]) / 5)
        assert found.mu <= found.ratio
        dense = torch.linalg.eigvalsh(pb.reference.dense_hessian(model, half, x, y))[-1]
        assert found.beta == pytest.approx(float(dense), rel=2e-3)
    assert path.delta_k == max(p.drift for p in path.points)
    assert path.mu == min(p.mu for p in path.points)
    assert path.radius == pytest.approx(theory.path_radius(path.beta, path.mu, path.points[0].loss))
    assert path.points[0].drift == path.points[0].distance == 0


def test_the_loss_decides_the_constant():
    """mu is the eigenvalue times |dL/dz|^2 / (2 L): of torch's mean over all numbers, of cross-entropy."""
    x, y = data(c=2)
    model = WideNetwork(3, [8], outputs=2, **F64)
    smallest = TangentPath(model, half, x, y).points[0].smallest
    assert TangentPath(model, nn.MSELoss(), x, y).mu == pytest.approx(2 * smallest / 10)
    labels = torch.tensor([0, 1, 1, 0, 1])
    found = TangentPath(model, nn.CrossEntropyLoss(), x, labels).points[0]
    z = model(x).detach()
    slope = (z.softmax(1) - F.one_hot(labels)) / 5
    expected = smallest * float(slope.square().sum()) / (2 * float(F.cross_entropy(z, labels)))
    assert found.mu == pytest.approx(expected)


def test_one_weight():
    """S4-10: (w - 3)^2 / 2 from 0 has R = 6, and its path is 3."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x, y = torch.ones(1, 1, **F64), torch.full((1, 1), 3.0, **F64)
    path = TangentPath(model, half, x, y, curvature=True)
    step = stepper(model, half, x, y, torch.optim.SGD(model.parameters(), lr=0.5))
    assert follow(path, step, 40, every=7) is path
    assert [point.step for point in path.points] == [0, 7, 14, 21, 28, 35, 40]
    assert path.radius == pytest.approx(6.0)
    assert path.distance == pytest.approx(3.0)
    assert path.inside
    assert path.delta_k == 0
    assert "R = 6: inside" in str(path)
    follow(path, step, 2)
    assert path.points[-1].step == 42
    with torch.no_grad():
        model.weight.fill_(-7.0)
    path.observe(43)
    assert not path.inside
    assert "outside" in str(path)


def test_without_curvature_there_is_no_ball():
    x, y = data()
    path = TangentPath(WideNetwork(3, [8], **F64), half, x, y)
    assert math.isnan(path.radius)
    assert not path.inside
    assert "R =" not in str(path)


def test_a_singular_kernel_has_no_finite_ball():
    """Two equal inputs: mu is 0 up to rounding, and the condition number is not told from infinity."""
    x = torch.ones(2, 3, **F64)
    path = TangentPath(nn.Linear(3, 1).double(), half, x, torch.zeros(2, 1, **F64), curvature=True)
    assert path.points[0].condition > 1e15
    assert path.radius > 1e6


def test_modes_buffers_and_random_state_stay():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).double().train()
    x, y = data()
    state, before = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    TangentPath(model, half, x, y).observe(1)
    assert model.training
    assert model[2].training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_bad_input():
    x, y = data()
    model = WideNetwork(3, [4, 4], **F64)
    with pytest.raises(
        pb.InputError, match=r"TangentPath: expected targets of the outputs' shape \(5, 1\), got \(5,\)"
    ):
        TangentPath(model, nn.MSELoss(), x, y.flatten())
    with pytest.raises(pb.InputError, match="TangentPath: expected `x` and `y` of the same length"):
        TangentPath(model, half, x, y[:3])
    path = TangentPath(model, half, x, y)
    model.layers[0].weight.requires_grad_(False)
    with pytest.raises(
        pb.InputError, match="TangentPath: expected the same trained parameters, got others than at the"
    ):
        path.observe(1)


@pytest.mark.slow
def test_the_kernel_changes_as_the_width_says():
    """S4-26, S4-29: a linear output's kernel moves like 1 / m, a swish output's as much at every width."""
    x, y = data(n=8, d=4, seed=3)
    widths, moved = [32, 128, 512], {}
    for output in ("linear", "swish"):
        drifts = []
        for m in widths:
            each = []
            for seed in range(4):
                model = WideNetwork(4, [m], output=output, seed=seed, **F64)
                path = TangentPath(model, half, x, y)
                step = stepper(model, half, x, y, torch.optim.SGD(model.parameters(), lr=0.5))
                each.append(follow(path, step, 60, every=20).delta_k)
            drifts.append(sum(each) / len(each))
        logs = torch.tensor(drifts).log(), torch.tensor(widths).log()
        moved[output] = float((logs[0][-1] - logs[0][0]) / (logs[1][-1] - logs[1][0]))
    assert moved["linear"] <= -0.5
    assert abs(moved["swish"]) < 0.2
