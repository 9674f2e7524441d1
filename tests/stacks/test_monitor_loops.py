"""Plain loops with accumulation, autocast and a scaler, compiled models: the same to the bit, watched or not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.modules import MLP
from tests.compare import assert_different
from tests.stacks.watched import assert_same_to_the_bit, assert_untouched, options, read, state

CE = nn.CrossEntropyLoss()
STEPS = 6

Train = Callable[[nn.Module, torch.optim.Optimizer, pb.Monitor | None], None]


def batch(number: int, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)


def trained(train: Train, folder: Path | None, wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> list[Tensor]:
    """The state after training a network with dropout and batch norm; watched if there is a folder."""
    torch.manual_seed(0)
    model = MLP([6, 16, 16, 3], dropout=0.2, normalisation="batch")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    used = wrap(model)
    monitor = None if folder is None else pb.Monitor(used, CE, folder, optimizer=optimizer, **options())
    train(used, optimizer, monitor)
    if monitor is not None:
        monitor.close()
    assert_untouched(model)
    assert all(module.training for module in model.modules())
    return state(model, [optimizer])


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: pb.Monitor | None) -> None:
    """Three batches a step; the monitor is told once, with the last."""
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(3):
            x, y = batch(3 * step + part)
            loss = CE(model(x), y)
            (loss / 3).backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(x, y, loss=loss)


def in_half_precision(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: pb.Monitor | None) -> None:
    """Autocast to float16 and a scaler that unscales, clips, and skips a step whose gradients overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=2)
    scales = []
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = CE(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if monitor is not None:
            with torch.autocast("cpu", dtype=torch.float16):
                monitor.step(x, y, loss=loss)
    falls = sum(b < a for a, b in pairwise([2.0**18, *scales]))
    assert 0 < falls < STEPS - 1, scales  # some steps were skipped, some not


def plainly(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: pb.Monitor | None) -> None:
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = CE(model(x), y)
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(x, y, loss=loss)


def test_gradient_accumulation(tmp_path: Path) -> None:
    watched, alone = (trained(accumulating, folder) for folder in (tmp_path / "run", None))
    assert_same_to_the_bit(watched, alone)
    run = read(tmp_path / "run", [2, 4, 6])
    assert run.series("kernel", "num_samples")[1] == [12, 12, 12]  # the samples of one batch


def test_autocast_with_a_scaler(tmp_path: Path) -> None:
    """Measured under the training's autocast; gradients are those of the loss, without the scale."""
    watched, alone = (trained(in_half_precision, folder) for folder in (tmp_path / "run", None))
    assert_same_to_the_bit(watched, alone)
    run = read(tmp_path / "run", [2, 4, 6])
    sizes = run.series("gradients", "rms_gradient_norm")[1]
    assert all(1e-3 < size < 1e3 for size in sizes)


def test_autocast_is_what_is_measured(tmp_path: Path) -> None:
    """The norm of the half-precision model, as the loop finds it, and not that of the full one."""
    torch.manual_seed(0)
    model, (x, y) = MLP([6, 16, 16, 3]), batch(0)
    found = {}
    for name, enabled in (("half", True), ("full", False)):
        with (
            pb.Monitor(model, CE, tmp_path / name, **options(every=1, probes="light")) as monitor,
            torch.autocast("cpu", dtype=torch.float16, enabled=enabled),
        ):
            monitor.step(x, y)
            norms = reference.gradient_matrix(model, CE, x, y).norm(dim=1)
        run = read(tmp_path / name, [1], ["gradients"])
        found[name] = torch.tensor(run.series("gradients", "rms_gradient_norm")[1])
        expected = norms.square().mean().sqrt()
        tolerance = 4 * 3 * torch.finfo(torch.float16).eps if enabled else 1e-5
        assert float(found[name]) == pytest.approx(float(expected), rel=tolerance)
    assert_different(found["half"], found["full"], 1e-5)


def test_curvature_is_measured_in_full_precision(tmp_path: Path) -> None:
    """Under autocast, and where a wrapper like that of accelerate's casts, the largest eigenvalue is the plain one."""
    found = {}
    for name in ("plain", "autocast", "wrapped"):
        torch.manual_seed(0)
        model, (x, y) = MLP([6, 16, 16, 3]), batch(0)
        if name == "wrapped":
            model._original_forward = model.forward
            model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
            assert model(x).dtype == torch.bfloat16
        cast = model.__dict__.get("forward")
        with (
            pb.Monitor(model, CE, tmp_path / name, **options(every=1, probes=["sharpness"])) as monitor,
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "autocast"),
        ):
            monitor.step(x, y)
        assert model.__dict__.get("forward") is cast
        found[name] = read(tmp_path / name, [1], ["sharpness"]).series("sharpness", "hessian")[1]
    rounding = 1000 * torch.finfo(torch.float32).eps  # a thirtieth of bfloat16's, which a cast would bring in
    assert found["autocast"] == pytest.approx(found["plain"], rel=rounding)
    assert found["wrapped"] == pytest.approx(found["plain"], rel=rounding)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
@pytest.mark.parametrize("way", ["wrapper", "in place"])
def test_compiled(tmp_path: Path, way: str) -> None:
    """Nothing is compiled anew because of the monitor, and training stays compiled."""
    compilations = []

    def wrap(model: nn.Module) -> nn.Module:
        torch.compiler.reset()
        count = [0, 0]
        compilations.append(count)

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
            count[0] += 1

            def run(*args: Any) -> Any:
                count[1] += 1
                return graph(*args)

            return run

        if way == "wrapper":
            return torch.compile(model, backend=backend)
        model.compile(backend=backend)
        return model

    watched, alone = (trained(plainly, folder, wrap) for folder in (tmp_path / "run", None))
    assert_same_to_the_bit(watched, alone)
    assert compilations[0] == compilations[1]
    assert compilations[0][1] >= STEPS
    run = read(tmp_path / "run", [2, 4, 6])
    assert run.meta["model"]["class"] == "MLP"
    assert "layers.0.linear" in run.meta["model"]["layers"]
