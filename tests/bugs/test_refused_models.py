"""Models that were answered wrongly, refused wrongly, or failed inside torch instead of with a sentence."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import measure, theory
from tests.compare import assert_same

LOSS = nn.CrossEntropyLoss()


def _data() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3


class Counting(nn.Module):
    """Counts its calls in a buffer, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)


def test_influence_of_a_model_that_writes_to_a_buffer() -> None:
    """The buffer is put back, its version is not: that was taken for other weights."""
    model, (x, y) = Counting().double().eval(), _data()
    body, damping = model.body, {"damping": 0.5}
    assert_same(
        pb.leave_one_out(model, LOSS, (x, y), **damping).losses, pb.leave_one_out(body, LOSS, (x, y), **damping).losses
    )
    for ask in (model, body):
        found = pb.query_influence(ask, LOSS, (x, y), x, y, **damping).values
        response = pb.response(ask, LOSS, (x, y), -torch.eye(5, dtype=x.dtype)[0], wrt="weights", **damping)
        response.outputs(x)
        assert_same(response.losses(x, y), -found[:, 0], tolerance=1e-5)
    assert int(model.calls) == 0
    with torch.no_grad():
        body[0].weight += 1
    with pytest.raises(pb.InputError, match="expected the weights the response was computed at, got others"):
        response.losses(x, y)


class Pair(nn.Module):
    """Returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def test_several_outputs_are_refused() -> None:
    """A linearised model put the outputs and their changes behind one another, in one tuple of four."""
    (x, y), model = _data(), Pair().double()
    calls: list[Callable[[], Any]] = [
        lambda: pb.linearize(model)(x),
        lambda: pb.taylor_expand(model, 2)(x),
        lambda: pb.plan_influence(model, (x, y), num_queries=1),
        lambda: pb.TangentPath(model, lambda z, y: LOSS(z[0], y).repeat(5), x, y),
    ]
    for call in calls:
        with pytest.raises(
            pb.UnsupportedError, match="a model that returns one tensor, or has `logits`, got tuple. Wrap"
        ):
            call()


CALLS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "backward_kernel": lambda m, x, y: pb.backward_kernel(m, LOSS, x, y),
    "Jacobian": lambda m, x, y: pb.Jacobian(m, x, wrt="input"),
    "layer_jacobians": lambda m, x, y: pb.layer_jacobians(m, x),
    "boundary_points": lambda m, x, y: measure.boundary_points(m, x, -x),
    "boundary_curvature": lambda m, x, y: measure.boundary_curvature(m, x),
    "signal_propagation": lambda m, x, y: measure.signal_propagation(m, x),
    "rank_collapse": lambda m, x, y: measure.rank_collapse(m, x),
    "effective_variances": lambda m, x, y: measure.effective_variances(m),
}


@pytest.mark.parametrize("call", CALLS)
def test_lazy_layers_and_what_is_no_module(call: str) -> None:
    """They ended in an error about an uninitialised parameter, and in attribute errors."""
    x, y = _data()
    lazy = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(3)).double()
    with pytest.raises(pb.InputError, match="`0.weight` without a shape, of a lazy layer. Call the model on one batch"):
        CALLS[call](lazy, x, y)
    with pytest.raises(pb.InputError, match=r"nn.Module.*, got function. Pass the model itself"):
        CALLS[call](lambda x: x, x, y)


def test_the_remedy_for_lazy_layers() -> None:
    x, y = _data()
    lazy = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(3)).double()
    lazy(x[:1])
    assert pb.backward_kernel(lazy, LOSS, x, y).num_params == 51
    with pytest.raises(pb.InputError, match="limit_of: expected a model whose parameters are there, got `0.weight`"):
        theory.limit_of(nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(3)))
    with pytest.raises(pb.InputError, match="initialise: expected `model` to be an nn.Module, got function. Pass"):
        pb.initialise(lambda x: x)  # type: ignore[arg-type]


def test_inputs_that_are_no_tensor() -> None:
    x, _ = _data()
    model = nn.Sequential(nn.Linear(4, 2)).double()
    for call in (pb.layer_jacobians, measure.boundary_curvature):
        with pytest.raises(pb.InputError, match=r"expected `x` as one tensor \(N, ...\), got dict. Pass"):
            call(model, {"input": x})


def test_layers_cannot_be_differentiated_in_whole_numbers() -> None:
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(pb.InputError, match=f"expected `x` of real numbers, got {dtype}. Convert it"):
            pb.layer_jacobians(nn.Sequential(nn.Linear(4, 2)), torch.ones(3, 4, dtype=dtype))


def test_influence_plans_refuse_what_influence_does() -> None:
    """One sample in batch norm ended in torch's error about values per channel."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(pb.UnsupportedError, match=r"batch norm in train mode in layer `1`. Call model.eval\(\)"):
        pb.plan_influence(model, _data(), num_queries=1)
    assert pb.plan_influence(model.eval(), _data(), num_queries=1).num_params == 21


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Factors in half precision ended in a remedy that cannot be followed, and singular values in torch's error."""
    model, (x, y) = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype), _data()
    calls: dict[str, Callable[..., Any]] = {
        "self_influence": lambda m, x: pb.self_influence(m, LOSS, (x, y), damping=0.1).values,
        "leave_one_out": lambda m, x: pb.leave_one_out(m, LOSS, (x, y), damping=0.1).losses,
        "DampedInverse": lambda m, x: pb.DampedInverse(m, LOSS, x, y, damping=0.1).to_dense(),
    }
    for name, call in calls.items():
        with pytest.raises(
            pb.InputError, match=rf"{name}: expected parameters in float32 or float64, got {dtype}. Pass a"
        ):
            call(model, x.to(dtype))
        assert torch.isfinite(call(copy.deepcopy(model).float(), x.float())).all()  # the remedy
    squares = measure.jacobian_spectrum(model, x.to(dtype)).squares
    assert_same(squares, measure.jacobian_spectrum(copy.deepcopy(model).float(), x.float()).squares, tolerance=0.1)


@pytest.mark.parametrize("call", ["backward_kernel", "Jacobian", "Hessian"])
def test_errors_of_the_model_itself_say_so(call: str) -> None:
    """They pass through, with a note; integers in a float layer were reported as tensors that require gradients."""
    x, y = _data()
    calls: dict[str, Callable[[Any, Tensor], Any]] = {
        "backward_kernel": lambda m, x: pb.backward_kernel(m, LOSS, x, y),
        "Jacobian": lambda m, x: pb.Jacobian(m, x),
        "Hessian": lambda m, x: pb.Hessian(m, LOSS, (x, y)),
    }
    model = nn.Sequential(nn.Linear(4, 3)).double()
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as raised:
        calls[call](model, x[:, :3])
    note = "Raised by the model in its forward pass, called with (5, 3) float64: try model(x) alone."
    assert raised.value.__notes__ == [note]
    with pytest.raises(RuntimeError, match="must have the same dtype, but got Long and Double"):
        calls[call](model, x.long())


def test_a_linearised_model_has_no_backward_hooks() -> None:
    """Where J^T was taken twice they ended in torch's error about transforms; the model keeps its own."""
    model = nn.Sequential(
        nn.Linear(4, 5), First(nn.LSTM(5, 3, batch_first=True))
    ).eval()  # fused: no forward derivative
    x, seen = torch.randn(2, 6, 4), []
    plain = pb.linearize(copy.deepcopy(model))(x).detach()
    model[0].register_full_backward_hook(lambda *given: seen.append(1))
    assert_same(pb.linearize(model)(x).detach(), plain)
    model(x.requires_grad_()).sum().backward()
    assert seen == [1]


def test_a_linearised_model_that_writes_to_a_buffer() -> None:
    """Torch's transforms refused the write; the buffer stays what it is."""
    model, (x, _) = Counting().double().eval(), _data()
    for order in (1, 2):
        expanded, plain = pb.taylor_expand(model, order), pb.taylor_expand(model.body, order)
        with torch.no_grad():
            for given in (expanded, plain):
                for parameter in given.parameters():
                    parameter.add_(0.1)
        assert_same(expanded(x).detach(), plain(x).detach())
    assert int(model.calls) == int(expanded.model.calls) == 0


def test_a_progress_bar_leaves_pythons_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich draws from them when it is imported, so that a first call of influence changed a training's."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    model, (x, y) = nn.Linear(4, 3).double(), _data()
    before = random.getstate()
    pb.self_influence(model, LOSS, (x, y), damping=0.1)
    assert "rich.console" in sys.modules
    assert random.getstate() == before


class First(nn.Module):
    """The outputs of a recurrent layer without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Solving(nn.Module):
    """A linear system a sample, whose batching rule of torch's returns N rows for one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4) + 4 * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.solve(self.weight, x.unsqueeze(2))[:, :3, 0]


def test_batching_rules_that_are_wrong_go_to_the_loop() -> None:
    """The loss's error about a batch size of five came up from inside the fallback."""
    model, (x, y) = Solving().double(), _data()
    kernel = pb.backward_kernel(model, LOSS, x, y)
    assert_same(kernel.total, pb.reference.total_kernel(model, LOSS, x, y))
