"""Parameters that reach the samples through something computed from parameters alone, against the loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pullback as pb
from pullback import reference
from tests.compare import assert_same

LOSS = nn.MSELoss(reduction="sum")


class Positions(nn.Module):
    """A table looked up by place, a parameter of places, a class token, layer scales."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(7, 4), nn.Parameter(torch.randn(1, 5, 4))
        self.token, self.scale = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(4))
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table(torch.arange(x.shape[1]))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.places
        return x + self.scale * torch.tanh(self.body(x))


class Products(nn.Module):
    """Weights as operands of products, straight, transposed and from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5, 3))
        self.mix, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mix @ x @ self.a) @ self.b.T - self.bias


class Merged(nn.Module):
    """A low-rank change merged into a weight, and a weight that is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.up, self.down = (nn.Parameter(torch.randn(s)) for s in ((4, 4), (4, 2), (2, 4)))
        self.gain = nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(nn.functional.linear(x, self.w + self.up @ self.down))
        return nn.functional.linear(h, self.w * self.gain)


class Queries(nn.Module):
    """Learned queries spread over the batch before the first layer, and a state that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.project, self.cell = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 4, dtype=x.dtype)
        for step in x.unbind(1):
            state = torch.tanh(self.cell(state) + step)
        q = self.project(self.queries.expand(len(x), -1, -1))
        return torch.softmax(q @ x.mT, -1) @ x + state.unsqueeze(1)


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(4, 6)), nn.Tanh(), norm(nn.Linear(6, 3)))


def convolved() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv1d(4, 3, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "positions": Positions,
    "products": Products,
    "merged": Merged,
    "queries": Queries,
    "weight norm": lambda: normed(parametrizations.weight_norm),
    "spectral norm": lambda: normed(parametrizations.spectral_norm),
    "orthogonal": lambda: normed(parametrizations.orthogonal),
    "weight norm of a convolution": convolved,
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_loop(name: str) -> None:
    """Kernel, tangent kernel and gradient rows, and nothing in the fallback."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    model = MODELS[name]().eval()
    x = torch.randn(5, 4, 4)
    torch.set_default_dtype(before)
    y = torch.randn_like(model(x)).detach()
    kernel = pb.backward_kernel(model, LOSS, x, y)
    assert_same(kernel.total, reference.total_kernel(model, LOSS, x, y))
    assert not [layer.parameters for layer in kernel.plan.layers if layer.form == "fallback"]
    theta = reference.tangent_kernel(model, x).diagonal(dim1=2, dim2=3).sum(2)
    assert_same(pb.tangent_kernel(model, x).total, theta)
    assert_same(pb.GradientMatrix(model, LOSS, x, y).to_dense(), reference.gradient_matrix(model, LOSS, x, y))
    few = pb.backward_kernel(model, LOSS, x[:1], y[:1], x2=x[1:], y2=y[1:]).total
    assert_same(few, kernel.total[:1, 1:], scale=float(kernel.total.abs().max()))
