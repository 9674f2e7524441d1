"""Every step is seen, whatever form its loss comes in; what goes wrong is told when it does."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.monitor import steps as seen_steps
from pullback.monitor.alarms import bad_samples
from pullback.monitor.steps import AT_START, BLOCK, CALLING, DENSE, READING, rates, total_norm

CE = nn.CrossEntropyLoss()


@contextmanager
def said(about: str) -> Iterator[list[str]]:
    """What is said in the block about this, as texts."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [text for each in caught if about in (text := str(each.message))]


def network(width: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)), torch.randn(24, 6), torch.arange(24) % 3


def train(
    folder: Path,
    steps: int,
    rate: float = 0.1,
    change: Callable[[int, nn.Module, Tensor, Tensor], None] | None = None,
    loss_of: Callable[[Tensor], Any] = lambda loss: loss,
    **options: Any,
) -> pb.Run:
    model, x, y = network()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    settings = {"probes": "light", "optimizer": optimizer} | options
    with pb.Monitor(model, CE, folder, **settings) as monitor:
        for step in range(1, steps + 1):
            if change is not None:
                change(step, model, x, y)
            optimizer.zero_grad()
            loss = CE(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(x, y, loss=loss_of(loss))
    return pb.load_run(folder)


def test_loss_rate_and_gradient_norm_of_every_step(tmp_path: Path) -> None:
    """Against a loop that keeps them itself."""
    model, x, y = network()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    kept: list[tuple[float, float, float, float]] = []
    with pb.Monitor(model, CE, tmp_path / "run", optimizer=optimizer, every=50, probes="light") as monitor:
        for _ in range(AT_START):
            optimizer.zero_grad()
            loss = CE(model(x), y)
            loss.backward()
            optimizer.step()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            first, second = (group["lr"] for group in optimizer.param_groups)
            kept.append((float(loss.detach()), float(gradient.double().norm()), first, second))
            monitor.step(x, y, loss=loss)
            schedule.step()
    run = pb.load_run(tmp_path / "run")
    for name, values in zip(
        ("loss", "gradient_norm", "learning_rate", "learning_rate.1"), zip(*kept, strict=True), strict=True
    ):
        steps, found = run.course(name)
        assert steps.tolist() == list(range(1, AT_START + 1))
        assert found.tolist() == pytest.approx(list(values), rel=0 if name != "gradient_norm" else 1e-6)


def test_gradient_norms_cost_a_hundredth_of_the_multiplications(tmp_path: Path) -> None:
    """At the start all, later every so many steps, by sizes; none where gradients are gone or zeroed."""
    run = train(tmp_path / "run", 300)
    found = run.course("gradient_norm")[0]
    size, batch = 6 * 8 + 8 + 8 * 3 + 3, 24
    apart = math.ceil((READING * size + 4 * CALLING) / (0.01 * 3 * size * batch))
    assert found[:AT_START].tolist() == list(range(1, AT_START + 1))
    later = found[AT_START - 1 :]
    assert np.diff(later).tolist() == [min(apart, max(1, step // DENSE)) for step in later[:-1]]
    assert later[-1] * (1 + 1 / DENSE) > 300 - 1  # the next one would have come after the last step
    assert len(later) <= DENSE * math.log(300 / AT_START) + DENSE
    for how in (True, False):
        model, x, y = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pb.Monitor(model, CE, tmp_path / str(how), optimizer=optimizer, probes="light") as monitor:
            for _ in range(3):
                CE(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=how)
                monitor.step(x, y)
        assert not len(pb.load_run(tmp_path / str(how)).course("gradient_norm")[0])


def test_norms_of_all_kinds_of_gradients() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(4, 3), torch.randn(5).double(), torch.randn(6).half(), torch.randn(3).bfloat16()]
    slow = math.sqrt(sum(float(part.double().square().sum()) for part in parts))
    assert float(total_norm(parts)) == pytest.approx(slow, rel=1e-5)
    assert float(total_norm([torch.full((4,), 1e30)])) == pytest.approx(2e30)  # squares overflow in single precision
    assert float(total_norm([torch.full((4,), 6e4, dtype=torch.half)])) == pytest.approx(1.2e5, rel=1e-3)
    assert math.isnan(float(total_norm([torch.tensor([1.0, math.nan])])))
    sparse = torch.sparse_coo_tensor([[1, 1]], [3.0, 1.0], (4,), check_invariants=True)  # one entry twice: 4
    assert float(total_norm([sparse, torch.tensor([3.0])])) == pytest.approx(5.0)


def test_rates_of_groups_that_train() -> None:
    p, q, frozen = (nn.Parameter(torch.zeros(1), requires_grad=flag) for flag in (True, True, False))
    adam = torch.optim.Adam(
        [{"params": [frozen], "lr": 9.0}, {"params": [p], "lr": torch.tensor(0.5)}, {"params": [q]}], 0.1
    )
    assert rates(adam) == {"learning_rate": 0.5, "learning_rate.1": 0.1}
    assert rates((torch.optim.SGD([p], 0.25), torch.optim.SGD([q], 0.75))) == {
        "learning_rate": 0.25,
        "learning_rate.1": 0.75,
    }
    adam.param_groups[1]["lr"] = None
    assert rates(adam) == {"learning_rate.1": 0.1}
    assert rates(None) == {}


def test_what_is_on_a_device_is_fetched_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CPU tensors in the place of a device's: none is read in its own step, all come in order, none is lost."""
    read: list[int] = []
    real = torch.stack

    def on_device(value: Any) -> Tensor | None:
        return value.detach().clone() if isinstance(value, Tensor) and value.dim() == 0 else None

    def stack(tensors: Any, *rest: Any, **options: Any) -> Tensor:
        if sys._getframe(1).f_code.co_name == "fetch":
            read.append(len(tensors))
        return real(tensors, *rest, **options)

    monkeypatch.setattr(seen_steps, "on_device", on_device)
    monkeypatch.setattr(seen_steps.torch, "stack", stack)
    model, x, y = network()
    with pb.Monitor(model, CE, tmp_path / "run", every=1000, probes=["inputs"]) as monitor:
        for step in range(1, 300):
            monitor.step(x, y, loss=float(step) if step == 200 else torch.tensor(float(step)))
    steps, values = pb.load_run(tmp_path / "run").course("loss")
    assert steps.tolist() == values.tolist() == list(range(1, 300))
    # at the measured steps 1, 2, 4, ... 256, and the number of 200, and the end; between them in blocks
    assert sorted(read, reverse=True)[:3] == [BLOCK] * 3 or max(read) == BLOCK
    assert sum(read) == 298
    assert len(read) <= 9 + 2 + 300 // BLOCK


def test_a_run_that_is_no_number_within_seven_steps(tmp_path: Path) -> None:
    """It has its course, its reason at once, and is told of once, whatever its schedule."""

    def change(step: int, model: nn.Module, x: Tensor, y: Tensor) -> None:
        if step == 5:
            x[3, 2] = math.nan
            x[7, 0] = math.inf

    with said("loss of step") as texts:
        run = train(tmp_path / "run", 7, change=change)
    assert len(texts) == 1
    assert "the loss of step 5 is nan; not finite either: 2 samples of the inputs" in texts[0]
    assert np.isfinite(run.course("loss")[1]).tolist() == [True] * 4 + [False] * 3
    first, second = run.of("not_finite")
    assert (first.step, second.step) == (5, 6)  # the 1st, 2nd, 4th, ... of them
    found = first.values
    assert math.isnan(found["loss"])
    assert (found["inputs"], found["targets"]) == ([3, 7], [])
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert set(found["gradients"]) == set(found["weights"]) == set(names)
    assert found["outputs"] == list(range(24))  # the weights are gone by now
    (end,) = run.of("end")
    assert end.values == {"steps": 7, "error": None}


def test_what_is_not_finite_is_told_apart(tmp_path: Path) -> None:
    """Outputs without weights or inputs: a model that overflows for one sample."""

    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + 0 * (x[:, :1] * 1e30).exp()

    model = Explodes()
    x, y = -torch.ones(6, 3), torch.zeros(6, 1)
    x[2] = 1.0
    y[4] = math.nan
    with said("is inf") as texts, pb.Monitor(model, nn.MSELoss(), tmp_path / "run", probes="light") as monitor:
        monitor.step(x, y, loss=math.inf)
    assert len(texts) == 1
    (record,) = pb.load_run(tmp_path / "run").of("not_finite")
    assert record.values == {
        "loss": math.inf, "gradients": [], "weights": [], "inputs": [], "targets": [4], "outputs": [2]
    }  # fmt: skip


def test_of_thousands_that_are_no_number_few_are_recorded(tmp_path: Path) -> None:
    model, x, y = network()
    with (
        said("loss of step 1 is nan") as texts,
        pb.Monitor(model, CE, tmp_path / "run", every=10_000, probes=["inputs"]) as monitor,
    ):
        for _ in range(1000):
            monitor.step(x, y, loss=math.nan)
    assert len(texts) == 1
    run = pb.load_run(tmp_path / "run")
    assert [record.step for record in run.of("not_finite")] == [2**k for k in range(10)]
    assert len(run.course("loss")[0]) == 1000


@pytest.mark.parametrize(
    ("losses", "batch", "leaps"),
    [
        ([2.3, 2.2, 9.0], 32, [(3, 2.3)]),
        ([2.3, 2.2, 4.7], 512, [(3, 2.3)]),
        ([2.3, 5.0, 20.0, 100.0, 500.0], 64, [(2, 2.3), (3, 5.0), (5, 100.0)]),  # the 1st, 2nd and 4th
        ([2.3, 2.2, 3.0, 1.0, 4.0], 32, []),
        ([0.001, 0.02, 2.3], 1, []),  # single samples scatter
        ([1.0] * 8 + [8.0, 100.0], 1, [(10, 8.0)]),
        ([-100.0, -90.0, -10.0, 5.0], 32, []),
        ([-1.0, -0.9, 40.0], 32, [(3, -0.9)]),
        ([0.01, -0.01, 0.03], 32, []),
        ([2.3, math.nan, 2.2, 9.0], 32, [(4, 2.3)]),
    ],
)
def test_a_loss_that_leaps(losses: list[float], batch: int, leaps: list[tuple[int, float]], tmp_path: Path) -> None:
    model, x, y = network()[0], torch.zeros(batch, 6), torch.zeros(batch, dtype=torch.long)
    with said("at most") as texts, pb.Monitor(model, CE, tmp_path / "run", probes=["inputs"]) as monitor:
        for loss in losses:
            monitor.step(x, y, loss=loss)
    found = [(record.step, record.values["before"]) for record in pb.load_run(tmp_path / "run").of("leap")]
    assert found == leaps
    assert len(texts) == bool(leaps)


def test_samples_that_are_not_finite_in_any_batch() -> None:
    bad = torch.tensor([[1.0, math.nan], [0.0, 0.0], [math.inf, 0.0]])
    assert bad_samples(bad) == [0, 2]
    assert bad_samples({"a": torch.arange(3), "b": (torch.zeros(3), bad)}) == [0, 2]
    assert bad_samples(bad, 4) == []
    assert bad_samples(None) == bad_samples("text") == bad_samples(torch.tensor(math.nan)) == []
    assert bad_samples(torch.complex(bad, bad)) == [0, 2]
