"""The few changes of weights that a dense chain's Hessian sees: all its eigenvalues, and no others but zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.measure.linearity.visible_changes import visible_changes
from pullback.measure.networks.chain import signals_of
from pullback.modules import WideNetwork

F64 = {"dtype": torch.float64}
CHAINS = {
    "one hidden": lambda: WideNetwork(3, [7], **F64),
    "three hidden, all trained": lambda: WideNetwork(3, [7, 5, 6], "silu", train_output=True, seed=1, **F64),
    "softmax": lambda: WideNetwork(3, [8, 6], output="softmax", seed=2, **F64),
    "bottleneck": lambda: WideNetwork(3, [8, 1, 8], bottleneck=(2, 1), seed=3, **F64),
    "biases": lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)).double(),
    "frozen": lambda: _frozen(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid()).double()),
}


def _frozen(model):
    """Weights of the first layer and the biases of the second are not trained."""
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def eigenvalues_of(model, x, output):
    """Of the dense Hessian, by autograd alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(model(x)[0, output], parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in flat]
    return torch.linalg.eigvalsh(torch.stack([torch.cat([r.flatten() for r in row]) for row in rows]))


def nonzero(values):
    values = values.detach()  # zeros that torch 2.6 fills in ask for gradients
    return values[values.abs() > 1e-10 * values.abs().max()]


@pytest.mark.parametrize("name", CHAINS)
def test_the_same_eigenvalues_but_zeros(name):
    torch.manual_seed(0)
    model = CHAINS[name]().eval()
    x = torch.randn(2, 3, **F64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    signals = signals_of(model, x, 2, "test")
    for sample in range(2):
        for output in range(model(x).shape[1]):
            few = visible_changes(signals.maps, sample, output)
            alone = x[sample : sample + 1]
            exact = nonzero(eigenvalues_of(model, alone, output))
            found = nonzero(eigenvalues_of(few, alone, output))
            assert found == pytest.approx(exact, rel=1e-9, abs=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_an_input_of_zeros_and_an_output_that_nothing_moves():
    """Unit vectors of nothing are nothing: the first layer has no Hessian, or none of them has."""
    model = WideNetwork(3, [7, 5], **F64).eval()
    x = torch.zeros(1, 3, **F64)
    few = visible_changes(signals_of(model, x, 1, "test").maps, 0, 0)
    exact, found = eigenvalues_of(model, x, 0), eigenvalues_of(few, x, 0)
    assert float(found.abs().max()) == pytest.approx(float(exact.abs().max()), abs=1e-14)
    model.readout.weight.zero_()
    few = visible_changes(signals_of(model, x + 1, 1, "test").maps, 0, 0)
    assert float(eigenvalues_of(few, x + 1, 0).abs().max()) == 0


def test_other_layers_are_left_to_all_weights():
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 1))
    x = torch.randn(1, 4)
    maps = signals_of(model, x, 1, "test").maps
    assert maps
    assert visible_changes(maps, 0, 0) is None


def test_the_norm_of_a_wide_network_is_that_of_all_its_weights():
    """By products in the few, against products in all of them."""
    from pullback import measure

    model = WideNetwork(3, [60, 50], seed=4, **F64).eval()
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), **F64)
    H = pb.Hessian(model, lambda z, y: z[:, 0], (x, torch.zeros(1)))
    assert float(measure.linearity(model, x, tol=1e-6).hessian_norm.value) == pytest.approx(
        pb.spectral_norm(H, tol=1e-6).value, rel=1e-6
    )
