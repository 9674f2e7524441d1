"""Dead and saturated units, and the rank of activations, where the answer is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pullback as pb
from pullback.diagnostics import unit_activity
from tests.compare import assert_same


class Function(nn.Module):
    """A linear layer and a function that is no module."""

    def __init__(self, phi: Callable[[Tensor], Tensor], weight: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
        self.phi = phi

    def forward(self, x: Tensor) -> Tensor:
        return self.phi(self.linear(x))


def named(value: object) -> str:
    """What a test is called after: no address, which differs from worker to worker."""
    return getattr(value, "__name__", str(value))


def test_saturated_sigmoid_and_dead_relu() -> None:
    """S3-08: phi' = 4.54e-5 at z = 10 is flagged, and so is a ReLU below zero; what is inside is not."""
    x = torch.ones(1, 1)
    slope = torch.sigmoid(torch.tensor(10.0)) * (1 - torch.sigmoid(torch.tensor(10.0)))
    assert float(slope) == pytest.approx(4.54e-5, rel=1e-3)
    found = unit_activity(Function(torch.sigmoid, torch.tensor([[10.0], [0.0]])), x)
    assert found.dead[0].tolist() == [True, False]
    assert found.saturated.tolist() == [0.5]
    found = unit_activity(Function(torch.relu, torch.tensor([[-1.0], [1.0], [-2.0]])), x)
    assert found.dead[0].tolist() == [True, False, True]
    assert float(found.dead_share[0]) == pytest.approx(2 / 3)


def test_zero_one_loss_is_a_plateau() -> None:
    """S3-08: the loss that counts mistakes has no gradient anywhere it has one."""

    def mistakes(out: Tensor, y: Tensor) -> Tensor:
        return (1 - torch.sign((2 * y - 1) * out.squeeze(1))) / 2

    x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    kernel = pb.backward_kernel(nn.Linear(3, 1), mistakes, x, y)
    assert set(kernel.losses.tolist()) <= {0.0, 1.0}
    assert float(kernel.total.abs().max()) == 0


@pytest.mark.parametrize(
    ("phi", "kind"),
    [
        (torch.relu, "relu"), (F.relu, "relu"), (nn.ReLU(inplace=True), "relu"), (torch.relu_, "relu"),
        (lambda u: u.tanh(), "tanh"), (lambda u: F.relu(input=u), "relu"), (nn.GELU("tanh"), "gelu"), (F.silu, "silu"),
        (nn.LeakyReLU(0.2), "leaky_relu"), (torch.erf, "erf"), (nn.Hardtanh(-0.3, 0.4), "hardtanh"), (nn.ELU(), "elu"),
    ],
    ids=named,
)  # fmt: skip
def test_every_way_to_call_an_activation(phi: Callable[[Tensor], Tensor], kind: str) -> None:
    """Modules, functions, methods and calls in place, against slopes by finite differences."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (7, 40))
    model = Function(phi, 2 * weight).double()
    expected = model(x).detach()
    found = unit_activity(model, x)
    assert (found.layers, found.kinds, found.widths) == (("linear",), (kind,), (7,))

    def slope(u: Tensor) -> Tensor:
        return (phi(u + 1e-6) - phi(u - 1e-6)).abs() / 2e-6

    u = model.linear(x).detach()
    largest = float(slope(torch.linspace(-8, 8, 3001, dtype=torch.float64)).max())
    share = float((slope(u) < 0.05 * largest).double().mean())
    assert found.saturated.tolist() == pytest.approx([share])
    assert found.dead[0].tolist() == (slope(u).amax(0) < 1e-3).tolist()
    singular = torch.linalg.svdvals(expected)
    assert float(found.effective_rank) == pytest.approx(float((singular**2).sum() ** 2 / (singular**4).sum()))
    assert_same(model(x).detach(), expected)


def test_units_of_a_convolution_are_channels() -> None:
    """And those of a transformer's layer its last axis; each is named after the weights before it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh())
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = -1
    x = torch.randn(6, 1, 6, 6)
    found = unit_activity(model.train(), x)
    assert (found.layers, found.kinds, found.widths) == (("0", "4"), ("relu", "tanh"), (3, 5))
    assert found.dead[0].tolist() == [False, True, False]
    assert model.training
    h = model.eval()[:3](x).detach().movedim(1, -1).reshape(-1, 3)
    singular = torch.linalg.svdvals(h)
    assert float(found.effective_rank[0]) == pytest.approx(
        float((singular**2).sum() ** 2 / (singular**4).sum()), rel=1e-5
    )
    tokens = unit_activity(nn.Sequential(nn.Linear(4, 8), nn.GELU()), torch.randn(2, 5, 4))
    assert tokens.widths == (8,)


def test_a_model_without_activations_and_a_rank_of_one() -> None:
    found = unit_activity(nn.Linear(3, 2), torch.randn(4, 3))
    assert found.layers == ()
    assert str(found) == ""
    same = unit_activity(nn.Sequential(nn.Linear(3, 9), nn.Tanh()), torch.ones(5, 3))
    assert float(same.effective_rank) == pytest.approx(1)
    assert "0 (tanh): 0% dead" in str(same)


class Wired(nn.Module):
    """Layers of width 6 and one activation, called in the order of a program."""

    def __init__(self, program: Callable[[Wired, Tensor], Tensor], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.conv = nn.Conv1d(6, 4, 1)
        self.act = act
        self.program = program
        self.note: Callable[[Tensor], object] = lambda u: None  # told every input of an activation

    def phi(self, u: Tensor) -> Tensor:
        self.note(u.detach().clone())
        return self.act(u)

    def forward(self, x: Tensor) -> Tensor:
        return self.program(self, x)


def gated(m: Wired, x: Tensor) -> Tensor:
    u, v = m.a(x), m.b(x)
    return m.c(m.phi(u - 100) * m.phi(v))


def late(m: Wired, x: Tensor) -> Tensor:
    """All layers first, then all activations, the last layer's first."""
    u, v, w = m.a(x), m.b(x) - 100, m.c(x)
    return m.phi(w) + m.phi(v) + m.phi(u)


def residual(m: Wired, x: Tensor) -> Tensor:
    return m.b(m.phi(m.a(m.phi(m.a(x) - 100) + x)))


@pytest.mark.parametrize("act", [F.relu, nn.ReLU(), nn.ReLU(inplace=True), torch.relu_, F.leaky_relu], ids=named)
@pytest.mark.parametrize(
    ("program", "layers"),
    [
        (gated, ("a", "b")),
        (late, ("c", "b", "a")),
        (residual, ("a", "a (2)")),
        (lambda m, x: m.phi(m.a(m.phi(x - 100))), ("kind", "a")),
        (lambda m, x: m.phi(m.phi(m.phi(m.a(x)) - 100)), ("a", "a (2)", "a (3)")),
        (lambda m, x: torch.cat([m.phi(h) for h in (m.a(x) - 100).chunk(2, -1)], -1), ("a", "a (2)")),
        (lambda m, x: m.phi(m.a(x) + m.b(x)) + m.phi(x), ("b", "kind")),
        (lambda m, x: m.phi(m.a(x)) + m.phi(m.conv(x.unsqueeze(2))).mean(), ("a", "conv")),
    ],
    ids=["gated", "late", "residual", "input first", "in a row", "chunks", "joined", "a convolution beside"],
)  # fmt: skip
def test_every_call_of_an_activation_has_its_own_row(
    program: Callable[[Wired, Tensor], Tensor], layers: tuple[str, ...], act: Callable[[Tensor], Tensor]
) -> None:
    """Named after the layer the numbers come from, whatever ran since; dead branches against the inputs themselves."""
    torch.manual_seed(0)
    model, x = Wired(program, act).double(), torch.randn(30, 6, dtype=torch.float64)
    found = unit_activity(model, x)
    kind = found.kinds[0]
    assert found.layers == tuple(kind if name == "kind" else name for name in layers)
    seen: list[Tensor] = []
    model.note = seen.append
    with torch.no_grad():  # in place on a chunk, too
        model(x)
    for dead, width, u in zip(found.dead, found.widths, seen, strict=True):
        units = u.movedim(1, -1).reshape(-1, u.shape[1])  # channels and features alike stand along axis 1 here
        off = (units <= 0).all(0) if kind == "relu" else torch.zeros(width, dtype=torch.bool)
        assert dead.tolist() == off.tolist()
    again = unit_activity(model, torch.randn(9, 6, dtype=torch.float64))
    assert again.layers == found.layers  # rows of two measurements belong together


def test_what_no_call_shows_is_named_after_the_layer_that_ran_last() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

    model = Wired(lambda m, x: m.phi(Hidden.apply(m.a(x))), F.relu)
    assert unit_activity(model, torch.randn(5, 6)).layers == ("a",)
