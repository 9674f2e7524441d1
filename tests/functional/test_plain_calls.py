"""Group norm in other memory formats than the plain one: the same numbers from every call, and no call that ends the
process (torch's own backward pass does, where it is asked for scale and shift alone). Sparse tables, likewise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import undisturbed
from pullback.functional.differentiable import differentiable
from pullback.functional.plain_calls import PlainCalls, own_calls, plain_calls
from tests.compare import assert_same
from tests.every_call import check_curvature, check_kernels, check_store, check_tangent

CE = nn.CrossEntropyLoss()


class ByFunction(nn.Module):
    """Group norms that are no modules, called in each of torch's ways."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.group_norm(input=x, num_groups=2, weight=self.weight, bias=self.bias)
        x = torch.group_norm(x, 2, self.weight, self.bias)
        n, c, *space = x.shape
        pixels = torch.Size(space).numel()
        return torch.native_group_norm(x, self.weight, self.bias, n, c, pixels, 2, 1e-5)[0]


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    head = (nn.Flatten(), nn.Linear(16, 3))
    x = torch.randn(5, 2, 2, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    body: tuple[nn.Module, ...] = (nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Tanh())
    if name == "functional":
        body = (nn.Conv2d(2, 4, 1), ByFunction())
    if name == "first":
        x = torch.randn(5, 2, 2, 4, dtype=torch.float64).permute(0, 3, 1, 2)
        body = (nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 4, 1, bias=False))
    model = nn.Sequential(*body, *head).double()
    if name == "three":
        x = torch.randn(5, 2, 1, 2, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
        model = nn.Sequential(nn.Conv3d(2, 4, 1), nn.GroupNorm(4, 4), nn.Tanh(), *head).double()
        return model.to(memory_format=torch.channels_last_3d).eval(), x, torch.arange(5) % 3
    return model.to(memory_format=torch.channels_last).eval(), x, torch.arange(5) % 3


def norms(model: nn.Module) -> list[str]:
    kinds = (nn.GroupNorm, ByFunction)
    return [f"{n}.{k}" for n, m in model.named_modules() if isinstance(m, kinds) for k in ("weight", "bias")]


@pytest.mark.parametrize("name", ["module", "functional", "first", "three"])
def test_every_call(name: str, tmp_path: Path) -> None:
    """Of the norms alone: only then no gradient of their input is asked for."""
    model, x, y = made(name)
    params = norms(model)
    check_kernels(model, CE, x, y, params)
    check_tangent(model, x, params)
    check_curvature(model, CE, x, y, params)
    check_store(model, CE, (x, y), tmp_path / "store", params)


def test_kernels_of_all_layers() -> None:
    model, x, y = made("module")
    check_kernels(model, CE, x, y)
    check_tangent(model, x)


def test_a_watched_training(tmp_path: Path) -> None:
    model, x, y = made("module")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"optimizer": optimizer, "every": 1, "probes": "full", "budget": None}
    with pb.Monitor(model, CE, tmp_path / "run", **settings) as monitor:  # type: ignore[arg-type]
        for _ in range(2):
            optimizer.zero_grad()
            loss = CE(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(x, y, loss=loss)
    assert monitor.num_measurements == 2


def test_products_of_functions() -> None:
    """Functions of a vector, and a cost, that put it into a group norm of data in another format."""
    x = torch.randn(2, 4, 2, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    w, v = torch.rand(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    def f(w: Tensor, x: Tensor = x) -> Tensor:
        return F.group_norm(x, 2, w).flatten()

    plain = torch.autograd.functional.jacobian(lambda w: f(w, x.contiguous()), w)
    assert_same(pb.jvp(f, w, v), plain @ v)
    u = torch.randn(len(plain), dtype=torch.float64)
    assert_same(pb.vjp(f, w, u), plain.T @ u)
    assert_same(pb.hvp(lambda w: f(w).square().sum(), w, v), 2 * plain.T @ plain @ v)
    assert_same(pb.gauss_newton_vp(f, lambda z: z.square().sum(), w, v), 2 * plain.T @ plain @ v)

    def cost(w: Tensor, theta: Tensor) -> Tensor:
        return (f(w) - theta).square().sum() / 2

    theta = plain @ w
    change = pb.cost_response(cost, w, theta, u, damping=0.1).change
    step = torch.linalg.solve(plain.T @ plain + 0.1 * torch.eye(4, dtype=torch.float64), plain.T @ u)
    assert_same(change, step, 1e-6)


def test_inputs_are_laid_out_plainly() -> None:
    x = torch.randn(2, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    assert not F.group_norm(x, 2).is_contiguous()
    with PlainCalls():
        assert F.group_norm(x, 2).is_contiguous()
        assert torch.group_norm(x, 2).is_contiguous()
        assert torch.ops.aten.group_norm(x, 2).is_contiguous()


class Sparse(nn.Module):
    """Sparse tables in each of torch's ways, one of them also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(5, 3, padding_idx=0, sparse=True), nn.Embedding(3, 3, sparse=True)
        self.bag, self.weight = nn.EmbeddingBag(4, 3, sparse=True), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x) + self.places(torch.arange(x.shape[1])) + torch.embedding(self.weight, x, -1, False, True)
        bags = self.bag(x.reshape(-1) % 4, torch.arange(len(x)) * x.shape[1])
        return F.linear(torch.tanh(h.sum(1) + bags), self.table.weight)


def test_sparse_tables(tmp_path: Path) -> None:
    model, x, y = Sparse().double(), torch.randint(5, (4, 3)), torch.arange(4)
    check_kernels(model, CE, x, y)
    check_tangent(model, x)
    check_store(model, CE, (x, y), tmp_path / "store")
    jacobian, expected = pb.Jacobian(model, x), reference.output_gradients(model, x).flatten(0, 1)
    assert_same(jacobian.to_dense(), expected)
    v = torch.randn(expected.shape[1], dtype=torch.float64)
    assert_same(jacobian @ v, expected @ v)
    assert_same(jacobian.T @ (expected @ v), expected.T @ expected @ v)
    assert_same(pb.GaussNewton(model, CE, (x, y)).to_dense(), reference.dense_gauss_newton(model, CE, x, y))
    assert_same(pb.Fisher(model, CE, (x, y)).to_dense(), reference.dense_fisher(model, CE, x, y))
    own = [
        pb.self_influence(model, CE, (x, y), damping=5.0, method=m, tol=1e-12).values
        for m in ("cg", "dual")  # type: ignore[arg-type]
    ]
    assert_same(own[0], own[1], 1e-8)
    CE(model(x), y).backward()
    assert model.table.weight.grad is not None
    assert model.bag.weight.grad is not None
    assert model.bag.weight.grad.is_sparse  # in the user's own training they stay what they were


def test_calls_are_made_plain_once() -> None:
    """However often the block is entered: every further mode would be asked about every call. Own calls ask none."""
    active = torch.overrides._get_current_function_mode_stack
    table, rows = torch.randn(3, 2, requires_grad=True), torch.tensor([0, 2])
    with undisturbed(nn.Linear(2, 2)), plain_calls(), differentiable(), plain_calls():
        (first, second) = active()
        assert type(first) is PlainCalls
        assert isinstance(second, PlainCalls)
        with own_calls():
            assert active() == [first]
            with own_calls():
                assert not active()
                assert not F.group_norm(
                    torch.randn(2, 4, 2, 2).to(memory_format=torch.channels_last), 2
                ).is_contiguous()
            assert active() == [first]
        assert active() == [first, second]
    with differentiable():
        assert len(active()) == 1
        (gradient,) = torch.autograd.grad(F.embedding(rows, table, sparse=True).sum(), table)
        assert not gradient.is_sparse
    assert not active()
    with own_calls(), torch.overrides.BaseTorchFunctionMode() as mode, own_calls():
        assert active() == [mode]  # a mode of the caller's stays
