"""Linearised models on a batch that comes again: kept graphs against calls that begin anew."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pullback as pb
from tests.cases import CASES, build
from tests.compare import assert_same
from tests.thinned import thinned

F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(*, act: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), act or nn.Tanh(), nn.Linear(5, 2)).double().eval()


def step(linear: nn.Module, outputs: Tensor) -> None:
    """Of gradient descent on a loss that is not linear, so that every step differs."""
    for p in linear.parameters():
        p.grad = None
    outputs.square().sum().backward()
    with torch.no_grad():
        for p in linear.parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad


def afresh(linear: nn.Module, call: Callable[[nn.Module], Tensor]) -> Tensor:
    """The same weights in a copy, which has seen no batch."""
    return call(copy.deepcopy(linear))


def keeps(linear: nn.Module) -> bool:
    """Whether a graph is kept."""
    return linear._repeated._map is not None  # type: ignore[union-attr]


# embeddings whose padding row has no gradient, though outputs depend on it; weights that a hook computes
NOT_KEPT = {"tokens", "weight_normed"}


@pytest.mark.parametrize("name", thinned([case.name for case in CASES]))
def test_kept_graphs_train_as_new_ones(name: str) -> None:
    """Outputs and gradients at four points of a training, and no pass through the network from the third on."""
    model, _, x, _ = build(next(case for case in CASES if case.name == name), 3)
    try:
        linear = pb.linearize(model)
    except pb.UnsupportedError:
        pytest.skip("it has no linearisation")

    wants_names = isinstance(x, dict) and name != "one_dict"

    def call(module: nn.Module) -> Tensor:
        found: Any = module(*x) if isinstance(x, tuple) else module(**x) if wants_names else module(x)
        return found if isinstance(found, Tensor) else found.logits

    for number in range(4):
        other = copy.deepcopy(linear)
        expected, found = call(other), call(linear)
        assert_same(found.detach(), expected.detach(), 1e-9)
        expected.square().sum().backward()
        step(linear, found)
        for p, q in zip(linear.parameters(), other.parameters(), strict=True):
            if q.grad is not None:
                assert p.grad is not None
                assert float((p.grad - q.grad).norm()) <= 1e-9 * (1 + float(q.grad.norm()))
        assert keeps(linear) is (number > 0 and name not in NOT_KEPT)


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 1), padding=1), (2, 6, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, (1, 3), dilation=2, groups=2, bias=False), (4, 5, 6)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 4, 4)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "one axis": (lambda: nn.Conv1d(2, 3, 2, stride=2), (2, 7)),
    "three axes": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 3, 3)),
    "frozen": (lambda: nn.Conv2d(2, 3, 2).requires_grad_(False), (2, 4, 4)),
    "only the bias": (lambda: _only_the_bias(nn.Conv2d(2, 3, 2)), (2, 4, 4)),
}


def _only_the_bias(layer: nn.Module) -> nn.Module:
    layer.weight.requires_grad_(False)
    return layer


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("first", [True, False])
def test_convolutions(name: str, first: bool) -> None:
    """With and without a layer before them, so that inputs do and do not depend on weights."""
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    before = nn.Identity() if first else nn.Sequential(nn.Conv2d(1, 1, 1), nn.Tanh())
    parts = [before] if first or len(shape) == 3 else [nn.Identity()]
    if not first and len(shape) == 3:
        parts = [nn.Unflatten(1, (1, shape[0])), nn.Flatten(2, 3), before, nn.Unflatten(2, shape[:2]), nn.Flatten(1, 2)]
    model = nn.Sequential(*parts, make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double().eval()
    x = drawn(3, *shape)
    model(x)
    linear = pb.linearize(model)
    for _ in range(3):
        expected, found = afresh(linear, lambda m: m(x)).detach(), linear(x)
        assert_same(found.detach(), expected, 1e-9)
        step(linear, found)
    assert keeps(linear)


def test_second_derivatives_go_through_kept_graphs() -> None:
    """The Hessian of a squared loss is 2 J^T J; nested backward passes and products with it are the dense ones'."""
    model, x = network(), drawn(4, 3)
    linear = pb.linearize(model)
    for _ in range(3):
        outputs = linear(x)
    parameters = list(linear.parameters())
    gradients = torch.autograd.grad(outputs.square().sum(), parameters, create_graph=True)
    v = [drawn(*p.shape, seed=1) for p in parameters]
    product = torch.autograd.grad(gradients, parameters, v)
    flat = torch.cat([each.flatten() for each in v])
    J = pb.reference.output_gradients(model, x).flatten(0, 1)
    assert_same(torch.cat([each.flatten() for each in product]), 2 * J.T @ (J @ flat), 1e-10)
    assert keeps(linear)
    H = pb.Hessian(linear, lambda f, _: f.square().sum(1), (x, torch.zeros(4))).to_dense()
    assert_same(H, 2 * J.T @ J / 4, 1e-9)
    (along,) = torch.autograd.functional.jvp(lambda w: torch.func.functional_call(
        linear, {"model.0.weight": w, **{n: p for n, p in linear.named_parameters() if n != "model.0.weight"}}, (x,)
    ), parameters[0].detach(), v[0])[1:]  # fmt: skip
    assert_same(along.reshape(-1).detach(), J[:, : v[0].numel()] @ v[0].flatten(), 1e-9)


def test_transformations_of_torch_func_do_not_meet_kept_graphs() -> None:
    model, x = network(), drawn(4, 3)
    linear = pb.linearize(model)
    for _ in range(3):
        linear(x)
    weights = {n: p.detach() for n, p in linear.named_parameters()}

    def outputs(w: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(linear, w, (x,))

    rows = torch.func.jacrev(outputs)(weights)
    J = pb.reference.output_gradients(model, x).flatten(0, 1)
    assert_same(torch.cat([each.reshape(8, -1) for each in rows.values()], 1), J, 1e-10)
    columns = torch.func.jacfwd(outputs)(weights)
    assert_same(torch.cat([each.reshape(8, -1) for each in columns.values()], 1), J, 1e-10)


def _write_through_numpy(linear: nn.Module, x: Tensor) -> Tensor:
    x.numpy()[0] += 1.0
    return x


def _write(linear: nn.Module, x: Tensor) -> Tensor:
    x[1] -= 0.5
    return x


def _swap_samples(linear: nn.Module, x: Tensor) -> Tensor:
    """Sums and places in memory stay."""
    x.numpy()[[0, 1]] = x.numpy()[[1, 0]]
    return x


def _another_start(linear: nn.Module, x: Tensor) -> Tensor:
    linear.load_state_dict({k: v + 0.1 for k, v in linear.state_dict().items()})
    return x


def _data_of_a_buffer(linear: nn.Module, x: Tensor) -> Tensor:
    linear.base_0.data.mul_(1.1)
    return x


CHANGES = [_write_through_numpy, _write, _another_start, _data_of_a_buffer, lambda linear, x: x.clone() + 1]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_graph_was_made_of_changes(change: Callable[[nn.Module, Tensor], Tensor]) -> None:
    linear, x = pb.linearize(network()), drawn(4, 3)
    for _ in range(3):
        step(linear, linear(x))
    assert keeps(linear)
    x = change(linear, x)
    assert_same(linear(x).detach(), afresh(linear, lambda m: m(x)).detach(), 1e-12)
    assert not keeps(linear)


def test_other_samples_at_the_same_place_are_seen() -> None:
    """A batch made anew, of the same samples in another order, in memory that was let go of."""
    linear, x = pb.linearize(network()), drawn(4, 3)
    for order in ([0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0]):
        batch = x[order]
        for _ in range(3):
            found = linear(batch)
        assert_same(found.detach(), afresh(linear, lambda m, batch=batch: m(batch)).detach(), 1e-12)
        del batch, found


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.5, training=True)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Any = checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=False)
        return self.second(h)


class Hidden(torch.autograd.Function):
    """Its backward pass does not show autograd what it depends on."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * (u[0].detach() + 0 * u[0])

    @staticmethod
    def jvp(ctx: Any, *v: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * v[0]


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Hidden.apply(self.layer(x))
        return found


def test_checkpoints_keep_what_they_compute_in_a_graph_that_is_kept() -> None:
    """What they computed anew, later, was of the model's own weights: such graphs were not kept."""
    torch.manual_seed(0)
    model, x = Checkpointed().double().eval(), drawn(4, 3)
    linear, plain = pb.linearize(model), pb.linearize(nn.Sequential(model.first, nn.Tanh(), model.second))
    with torch.no_grad():
        for p in (*linear.parameters(), *plain.parameters()):
            p.add_(0.1)
    expected = plain(x).detach()
    for _ in range(4):
        assert_same(linear(x).detach(), expected, 1e-12)
    assert keeps(linear)


@pytest.mark.parametrize("make", [Noisy, Own])
def test_graphs_that_are_not_confirmed_are_not_kept(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    linear, x = pb.linearize(make().double().eval()), drawn(4, 3)
    for _ in range(3):
        linear(x)
    assert not keeps(linear)


def test_hooks_autocast_and_inference_run_the_network() -> None:
    linear, x = pb.linearize(network()), drawn(4, 3)
    for _ in range(3):
        kept = linear(x)
    assert keeps(linear)
    seen: list[object] = []
    hook = linear.model[0].register_forward_hook(lambda *each: seen.append(each))
    assert_same(linear(x).detach(), kept.detach(), 1e-12)
    assert seen
    hook.remove()
    for _ in range(2):
        linear(x)
    with torch.inference_mode():
        assert_same(linear(x).clone(), kept.detach(), 1e-12)
    linear, x = pb.linearize(network().float()), x.float()
    for _ in range(3):
        linear(x)
    assert keeps(linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16


def test_without_gradients_and_in_copies() -> None:
    """Kept graphs are made without grad mode too, used within, and neither copied nor saved."""
    linear, x = pb.linearize(network()), drawn(4, 3)
    step(linear, linear(x))
    with torch.no_grad():
        for _ in range(2):
            found = linear(x)
            assert not found.requires_grad
    assert keeps(linear)
    saved = io.BytesIO()
    torch.save(linear, saved)
    saved.seek(0)
    for other in (copy.deepcopy(linear), torch.load(saved, weights_only=False)):
        assert not keeps(other)
        for _ in range(3):
            assert_same(other(x).detach(), found, 1e-12)
        assert keeps(other)


def test_nothing_of_the_model_is_left_changed() -> None:
    model, x = network(act=nn.ReLU(inplace=True)), drawn(4, 3)
    linear = pb.linearize(model)
    state, given = {k: v.clone() for k, v in linear.state_dict().items()}, x.clone()
    random = torch.get_rng_state()
    for _ in range(3):
        linear(x)
    assert keeps(linear)
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in linear.state_dict().items())
    assert all(p.grad is None for p in linear.parameters())
    assert [type(p) for p in linear.model.parameters()] == [nn.Parameter] * 4
