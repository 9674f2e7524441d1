"""Models that return a row for every position, (N T, C): refused, or exact with a loss that counts by sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.functional.batch import check_rows

CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()
N, T, C = 6, 5, 4


class Rows(nn.Module):
    """Scores of every position, (N T, C), as loops of language models like to have them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, C)
        self.mix = nn.GRU(8, 8, batch_first=True) if kind == "recurrent" else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        return self.head(h if self.mix is None else self.mix(h)[0]).reshape(-1, C)


def by_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets.flatten(), reduction="none").view(len(targets), -1).mean(1)


def setup(kind: str = "plain") -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Rows(kind).double().eval(), torch.randint(11, (N, T)), torch.randint(C, (N, T))


def ones(model: nn.Module) -> Tensor:
    return torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)


CALLS: dict[str, Callable[[nn.Module, Any, Tensor, Tensor, Path], Any]] = {
    "backward_kernel": lambda m, loss, x, y, _: pb.backward_kernel(m, loss, x, y),
    "per token": lambda m, loss, x, y, _: pb.backward_kernel(m, loss, x, y, per="token"),
    "GradientMatrix": lambda m, loss, x, y, _: pb.GradientMatrix(m, loss, x, y),
    "plan_kernel": lambda m, loss, x, y, _: pb.plan_kernel(m, loss, x, y),
    "sketch_kernel": lambda m, loss, x, y, _: pb.sketch_kernel(m, loss, x, y),
    "kernel_to_store": lambda m, loss, x, y, path: pb.kernel_to_store(m, loss, (x, y), path / "store", progress=False),
    "Hessian": lambda m, loss, x, y, _: pb.Hessian(m, loss, [(x, y)]) @ ones(m),
    "GaussNewton": lambda m, loss, x, y, _: pb.GaussNewton(m, loss, [(x, y)]) @ ones(m),
    "Fisher": lambda m, loss, x, y, _: pb.Fisher(m, loss, [(x, y)]) @ ones(m),
    "curvature_spectrum": lambda m, loss, x, y, _: pb.curvature_spectrum(m, loss, [(x, y)]),
    "sharpness": lambda m, loss, x, y, _: pb.sharpness(m, loss, [(x, y)]),
    "self_influence": lambda m, loss, x, y, _: pb.self_influence(m, loss, (x, y), damping=1.0),
    "response": lambda m, loss, x, y, _: pb.response(m, loss, (x, y), damping=1.0),
    "gradient_influence": lambda m, loss, x, y, _: pb.gradient_influence(m, loss, (x, y), x, y),
    "check_gradients": lambda m, loss, x, y, _: pb.check_gradients(m, loss, x, y),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_takes_a_loss_refuses_rows_of_positions(name: str, tmp_path: Path) -> None:
    model, x, y = setup()
    with pytest.raises(pb.InputError, match=r"one row of outputs per sample, got \d+ rows .* Return \(N, T, \.\.\.\)"):
        CALLS[name](model, CE, x, y, tmp_path)
    with pytest.raises(pb.InputError, match="one row of outputs per sample"):
        CALLS[name](model, MSE, x, torch.zeros(N, T, C, dtype=torch.float64), tmp_path)
    with pytest.raises(pb.InputError, match="of the same length, got 6 and 30"):
        CALLS[name](model, CE, x, y.flatten(), tmp_path)


@pytest.mark.parametrize("kind", ["plain", "recurrent"])
@pytest.mark.parametrize("contract", ["trace", "diagonal", "full", "sum"])
def test_outputs_without_a_row_per_sample_have_no_tangent_kernel(kind: str, contract: Any) -> None:
    model, x, _ = setup(kind)
    for limit in (None, 10**9):
        with pytest.raises(pb.InputError, match=r"tangent_kernel: .* `outputs.unflatten\(0, \(len\(x\), 5\)\)`"):
            pb.tangent_kernel(model, x, contract=contract, memory_limit=limit)
    with pytest.raises(pb.InputError, match=r"Jacobian: expected one row of outputs per sample"):
        pb.Jacobian(model, x)


@pytest.mark.parametrize("kind", ["plain", "recurrent"])
def test_a_loss_that_counts_by_sample_takes_them_exactly(kind: str) -> None:
    """Against the gradients of every sample's own loss, one by one."""
    model, x, y = setup(kind)
    kernel = pb.backward_kernel(model, by_sample, x, y).total
    rows = []
    for i in range(N):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-12)


def test_rows_of_outputs() -> None:
    check_rows("f", torch.zeros(3, 2), 3)
    with pytest.raises(pb.InputError, match=r"f: .* got 6 rows of outputs for 3 samples. Return .*\(len\(x\), 2\)"):
        check_rows("f", torch.zeros(6, 2), 3)
    for outputs, rows in ((torch.zeros(4, 2), 4), (torch.tensor(1.0), 1), (torch.zeros(2), 2)):
        with pytest.raises(pb.InputError, match=rf"got {rows} rows .* Put samples along the first axis"):
            check_rows("f", outputs, 3)
