"""Second-order optimizers as they are used: other layers, a loss that is a plain function, float32, groups."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback import dynamics
from tests.compare import assert_same
from tests.dynamics.second_order.methods import METHODS
from tests.thinned import thinned


class Encoder(nn.Module):
    """Attention over positions, then their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def conv() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    return model, torch.randn(7, 1, 6, 6, dtype=torch.float64)


def encoder() -> tuple[nn.Module, Tensor]:
    return Encoder().eval(), torch.randn(7, 3, 4, dtype=torch.float64)


def plain(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


MODELS = {"conv": conv, "encoder": encoder}


def drawn(dtype: torch.dtype) -> torch.Tensor:
    chances = torch.tensor([[0.25, 0.25, 0.5]] * 50, dtype=dtype)
    return torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:.*fused attention:UserWarning")
@pytest.mark.parametrize(("kind", "method"), thinned(list(MODELS), list(METHODS)))
def test_a_step_in_float32_is_that_in_float64(kind: str, method: str) -> None:
    """Of two groups, one of half the rate; the loss falls; a loss without a likelihood is no Fisher matrix's."""
    if "sampled" in method and not torch.equal(drawn(torch.float32), drawn(torch.float64)):
        pytest.skip("this torch draws other classes in float32")
    loss_fn = nn.CrossEntropyLoss() if method.split()[0] == "natural" and "empirical" not in method else plain
    moved = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        model, x = MODELS[kind]()
        y = torch.arange(7) % 3
        model, x = model.to(dtype), x.to(dtype)
        first, second = (model[0], model[4]) if kind == "conv" else (model.layer, model.head)
        groups = [{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters(), "lr": 0.2}]
        optimizer = METHODS[method](model, loss_fn, params=groups, damping=1.0)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        loss = optimizer.step(x, y)
        moved.append((nn.utils.parameters_to_vector(model.parameters()).detach() - before).double())
        assert loss.dtype == dtype
        assert plain(model(x), y).mean() < loss
        assert optimizer.last.converged
    iterated = "products" in method or "free" in method or "lanczos" in method
    # what is iterated stops at a residual, which rounding may reach an iteration earlier; the rest is as far as eps
    assert_same(moved[1], moved[0], 0.05 if iterated else 1e-3)


@pytest.mark.parametrize("fisher", ["true", "sampled"])
def test_a_plain_function_has_no_likelihood(fisher: str) -> None:
    model, _ = conv()
    with pytest.raises(
        ValueError, match=r"a negative log-likelihood: .*got plain\. Use one of .* the empirical Fisher"
    ):
        dynamics.NaturalGradient(model, plain, fisher=fisher)
