"""What the note on backward kernels says of a kernel, as findings of a run that was trained and watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.modules import MLP
from tests.advisor.runs import found, severities

CE = nn.CrossEntropyLoss()
PROBES = ("loss", "kernel", "alignment", "classes", "flow")


def trained(folder: Path, model: nn.Module, x: Tensor, y: Tensor, lr: float = 0.01, steps: int = 10) -> pb.Run:
    optimizer = torch.optim.SGD(model.parameters(), lr)
    with pb.Monitor(model, CE, folder, optimizer=optimizer, every=5, probes=PROBES) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = CE(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(x, y, loss=loss)
    return pb.load_run(folder)


def named(run: pb.Run) -> dict[str, pb.Finding]:
    return {finding.name: finding for finding in pb.diagnose(run)}


def data(count: int = 32, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=generator), torch.arange(count) % 3


def test_a_step_on_one_of_the_conflicting_samples_raises_the_loss_of_the_other(tmp_path: Path) -> None:
    """S0-16, S0-17: the finding's worst pair, and L_i(w - eta g_j) - L_i(w) = -eta K_ij above zero."""
    torch.manual_seed(0)
    x = torch.randn(1, 6).expand(8, 6)
    y = torch.tensor([0, 1] * 4)
    model = nn.Linear(6, 2, bias=False)
    finding = named(trained(tmp_path / "run", model, x, y, lr=1e-3))["conflicting-gradients"]
    cosine = finding.evidence["cosine of the worst pair"]
    i, j = (int(word) for word in finding.action.split("samples ")[1].split(" of")[0].split(" and "))
    model = model.double()
    each = x.double()
    (gradient,) = torch.autograd.grad(CE(model(each[j : j + 1]), y[j : j + 1]), [model.weight])
    before = CE(model(each[i : i + 1]), y[i : i + 1]).detach()
    with torch.no_grad():
        model.weight -= 1e-4 * gradient
    assert cosine < -0.99
    assert CE(model(each[i : i + 1]), y[i : i + 1]).detach() > before


def test_gradients_at_right_angles_are_no_conflict_and_no_one_direction(tmp_path: Path) -> None:
    """S0-19: of an orthogonal batch the eigenvalues are the squared norms, and nothing is found."""
    x, y = torch.eye(8), torch.arange(8) % 2
    run = trained(tmp_path / "run", nn.Linear(8, 2, bias=False), x, y)
    assert {"conflicting-gradients", "ill-conditioning"}.isdisjoint(named(run))
    eigenvalues = run.series("kernel", "eigenvalues")[1][0]
    K = pb.backward_kernel(nn.Linear(8, 2, bias=False), CE, x, y).total
    assert torch.allclose(K, torch.diag(K.diagonal()), atol=1e-6)
    assert max(eigenvalues) / min(eigenvalues) < 2


def test_what_alignment_buys_stands_beside_what_it_costs(tmp_path: Path) -> None:
    """S0-20, S0-24: copies of a sample are aligned and ill-conditioned, and both are said."""
    x, y = data()
    run = trained(tmp_path / "run", MLP([6, 8, 3]), x[:1].repeat(64, 1), y[:1].repeat(64))
    finding = named(run)["ill-conditioning"]
    assert finding.evidence["mean cosine"] == pytest.approx(1, abs=1e-5)
    assert finding.action.endswith("gradients are aligned, so that samples still help each other")
    spread = [(50, "kernel", {"effective_rank": 1.5, "num_samples": 256})]
    apart = (50, "alignment", {"mean_cosine": 0.01, "conflict_fraction": 0.5})
    assert found("ill-conditioning", *spread, apart).action.endswith("evens the directions out")  # type: ignore[union-attr]


def deep(**options: Any) -> MLP:
    return MLP([6, *[32] * 10, 3], **{"activation": "sigmoid", "init": "xavier", "seed": 0, **options})


@pytest.mark.slow
def test_the_remedies_of_vanishing_gradients_cure_it(tmp_path: Path) -> None:
    """S0-21, S0-22, S0-29, S0-30: what the finding says is the flow's, and each remedy it names ends it."""
    x, y = data()
    run = trained(tmp_path / "ill", deep(), x, y)
    finding = named(run)["vanishing-gradients"]
    norms = list(run.of("flow"))[-1].values["gradient_norm"]
    assert finding.evidence["first layer's gradient norm"] == next(iter(norms.values()))
    cures: dict[str, dict[str, Any]] = {
        "activation": {"activation": "relu", "init": "he"},
        "normalisation": {"activation": "tanh", "normalisation": "layer"},
        "skip connections": {"residual": True, "activation": "tanh"},
    }
    for remedy, options in cures.items():
        assert remedy in finding.action
        assert "vanishing-gradients" not in named(trained(tmp_path / remedy, deep(**options), x, y)), remedy


def test_unbalanced_layers(tmp_path: Path) -> None:
    """S0-23: one rate cannot suit layers whose kernels are of other orders; identical layers are balanced."""
    x, y = data()
    finding = named(trained(tmp_path / "run", deep(), x, y))["unbalanced-layers"]
    assert finding.evidence["balance"] > 1e4
    assert finding.layer == "layers.0.linear"
    alike = {"balance": 1.0, "frobenius": {"a": 1.0, "b": 1.0}}
    assert found("unbalanced-layers", (50, "flow", alike)) is None
    ill = (50, "flow", {"balance": 2e4, "frobenius": {"a": 1.0, "b": 2e4}})
    assert severities("unbalanced-layers", ill) == ("info", "warning")
