"""Watching never disturbs, and what is watched is right. S0-25, S0-26."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import undisturbed
from pullback.kernels import KernelSeries
from pullback.modules import MLP
from pullback.monitor import PRESETS, PROBES
from pullback.monitor.probes import Measurement, Observation, Probe
from pullback.monitor.snapshot import Snapshot
from tests.monitor import twins
from tests.thinned import thinned

CE = nn.CrossEntropyLoss()


def make(seed: int = 0, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = MLP([6, 12, 12, 3], **options)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    return model, optimizer, torch.randn(40, 6), torch.arange(40) % 3


def train(
    steps: int, folder: Path | None, model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, **options: Any
) -> None:
    """A user's loop, with dropout's random numbers, watched if there is a folder."""
    monitor = None if folder is None else pb.Monitor(model, CE, folder, optimizer=optimizer, **options)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        loss = CE(model(x), y)
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(x, y, loss=loss)
    if monitor is not None:
        monitor.close()


@pytest.mark.parametrize(
    ("options", "probes"),
    thinned([{}, {"dropout": 0.3}, {"normalisation": "batch"}], ["full", "standard", "light"]),
)
def test_weights_are_the_same_to_the_bit(tmp_path: Path, options: dict[str, Any], probes: str) -> None:
    """Weights, buffers, optimizer state, gradients, modes and random state after n steps, watched or not."""
    states = []
    for folder in (None, tmp_path / "run"):
        model, optimizer, x, y = make(**options)
        extra = {} if folder is None else {"every": 3, "probes": probes}
        train(10, folder, model, optimizer, x, y, **extra)
        moments = [t for state in optimizer.state.values() for t in state.values()]
        gradients = [p.grad for p in model.parameters()]
        states.append([*model.state_dict().values(), *moments, *gradients, torch.get_rng_state()])
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert not [r for r in pb.load_run(tmp_path / "run").records if r.error]


def test_every_five_of_twenty_steps_are_four_records(tmp_path: Path) -> None:
    """S0-25."""
    model, optimizer, x, y = make()
    train(20, tmp_path / "run", model, optimizer, x, y, every=5, budget=None)
    run = pb.load_run(tmp_path / "run")
    for probe in ("loss", "gradients", "kernel", "alignment", "flow", "cost"):
        assert [record.step for record in run.of(probe)] == [5, 10, 15, 20], probe
    assert [record.step for record in run.of("sharpness")] == [5]  # dear: the 1st, 8th, 64th measurement
    assert run.array_steps("alignment", "cosine") == [5]


def test_a_measurement_before_the_first_step_takes_no_turn_of_those_that_follow(tmp_path: Path) -> None:
    model, optimizer, x, y = make()
    with pb.Monitor(model, CE, tmp_path / "run", optimizer=optimizer, every=5, budget=None) as monitor:
        monitor.measure(x, y)
        for _ in range(10):
            monitor.step(x, y)
        monitor.measure(x, y)
    assert pb.load_run(tmp_path / "run").series("sharpness", "hessian")[0] == [0, 5, 10]


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(finite(each) for each in value.values())
    if isinstance(value, list):
        return all(finite(each) for each in value)
    return not isinstance(value, float) or math.isfinite(value)


def test_every_metric_is_present_finite_and_json(tmp_path: Path) -> None:
    """S0-26."""
    model, optimizer, x, y = make()
    train(4, tmp_path / "run", model, optimizer, x, y, every=2, budget=None)
    run = pb.load_run(tmp_path / "run")
    expected = {
        "loss": {"loss", "accuracy", "constant_accuracy", "batch_loss", "constant_loss", "form", "outputs"},
        "gradients": {"mean_gradient_norm", "rms_gradient_norm"},
        "kernel": {
            "M1",
            "M2",
            "conditioning",
            "effective_rank",
            "eigenvalues",
            "num_samples",
            "num_params",
            "normalisation",
        },
        "alignment": {"mean_cosine", "conflict_fraction", "worst_pairs"},
        "flow": {
            "gradient_norm",
            "frobenius",
            "spectral",
            "spectral_residual",
            "trace_share",
            "slope",
            "verdict",
            "balance",
        },
        "sharpness": {
            "hessian",
            "gauss_newton",
            "hessian_residual",
            "gauss_newton_residual",
            "smallest",
            "smallest_residual",
            "preconditioned",
            "preconditioned_residual",
            "preconditioned_limit",
            "learning_rate",
            "limit",
            "optimizer",
            "num_samples",
        },
        "cost": {"seconds"},
    }
    for probe, metrics in expected.items():
        for record in run.of(probe):
            dear = {"spectral", "spectral_residual"} if record.step > 2 else set()
            assert set(record.values) == metrics - dear
            assert finite(record.values), record
    assert json.dumps(run.table())
    assert run.meta["model"]["num_params"] == sum(p.numel() for p in model.parameters())
    assert run.meta["optimizer"] == {"class": "Adam", "learning_rate": 1e-2, "momentum": 0.9}


P = 6 * 12 + 12 + 12 * 12 + 12 + 12 * 3 + 3

TWINS = {
    "loss": lambda k, m, x, y: {
        "loss": float(CE(m(x), y).detach()),
        "accuracy": float((m(x).argmax(1) == y).float().mean()),
        "constant_accuracy": max(y.tolist().count(label) for label in y.tolist()) / len(y),
        "constant_loss": twins.constant_loss(y),
        "form": "cross-entropy",
        "outputs": "scores",
    },
    "gradients": lambda k, m, x, y: {
        "mean_gradient_norm": float(reference.gradient_matrix(m, CE, x, y).mean(0).norm()),
        "rms_gradient_norm": float(k.diagonal().mean().sqrt()),
    },
    "kernel": lambda k, m, x, y: {
        "M1": float(k.trace()) / len(k) / P,
        "M2": float(k.square().mean()) / P,
        "conditioning": P * float(k.square().sum() / k.trace() ** 2),
        "effective_rank": float(k.trace() ** 2 / k.square().sum()),
        "eigenvalues": (torch.linalg.eigvalsh(k).flip(0)[:16] / len(k)).tolist(),
    },
    "alignment": lambda k, m, x, y: {
        "conflict_fraction": float((k.triu(1) < 0).sum() / (len(k) * (len(k) - 1) / 2)),
    },
    "flow": lambda k, m, x, y: {
        "gradient_norm": {
            n: float(b.diagonal().mean().sqrt()) for n, b in reference.layer_kernels(m, CE, x, y).items()
        },
        "spectral": {
            n: float(torch.linalg.matrix_norm(b, 2)) / len(k) for n, b in reference.layer_kernels(m, CE, x, y).items()
        },
    },
    "sharpness": lambda k, m, x, y: {
        "hessian": float(torch.linalg.eigvalsh(reference.dense_hessian(m, CE, x, y))[-1]),
        "gauss_newton": float(torch.linalg.eigvalsh(reference.dense_gauss_newton(m, CE, x, y))[-1]),
    },
    "noise": twins.noise,
    "updates": twins.updates,
    "targets": twins.targets,
    "classes": twins.classes,
    "activations": twins.activations,
    "inputs": twins.inputs,
    "batch_norm": lambda k, m, x, y: {},  # see tests/monitor/test_probes.py
    "samples": twins.samples,
    "labels": twins.labels,
    "attention": lambda k, m, x, y: {},  # likewise
    "tangent": twins.tangent,
    "effective_lr": twins.effective_lr,
    "shift": twins.shift,
    "jacobian": twins.jacobian,
    "initialisation": twins.initialisation,
}


@pytest.mark.parametrize("name", PROBES)
def test_probes_against_their_reference_twins(name: str) -> None:
    """Every probe has a twin made of loops; a probe without one fails here."""
    model, optimizer, x, y = make()
    earlier, memory = make(seed=1)[0].eval(), {}
    before = Snapshot.of(earlier)
    first = Observation(earlier, CE, x, y, optimizer, None, KernelSeries(earlier, CE).rows, memory=memory)
    PROBES[name](first, dear=True)
    seen = Observation(
        model, CE, x, y, optimizer, None, KernelSeries(model, CE).rows, batch_size=64, before=before, memory=memory,
        step=2, earlier=lambda: [(x, y)],
    )  # fmt: skip
    with undisturbed(model, training=False):
        found = PROBES[name](seen, dear=True).values
    double, x = make()[0].double(), x.double()
    kernel = reference.total_kernel(double, CE, x, y)
    expected = TWINS[name](kernel, double, x, y)
    tolerance = 0.02 if name == "sharpness" else 1e-3
    for metric, value in expected.items():
        assert_close(found[metric], value, tolerance, metric)


def assert_close(found: Any, expected: Any, tolerance: float, where: str) -> None:
    """Numbers within the tolerance, however deep they lie in lists and dicts."""
    if isinstance(expected, dict | list):
        assert type(found) is type(expected), where
        assert len(found) == len(expected), where
        pairs = expected.items() if isinstance(expected, dict) else enumerate(expected)
        for key, value in pairs:
            assert_close(found[key], value, tolerance, f"{where}.{key}")
    elif isinstance(expected, str):
        assert found == expected, where
    else:
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-6), where


def test_samples_are_the_first_of_the_batch(tmp_path: Path) -> None:
    model, optimizer, x, y = make()
    train(1, tmp_path / "run", model, optimizer, x, y, every=1, budget=None, max_samples=7)
    run = pb.load_run(tmp_path / "run")
    assert run.series("kernel", "num_samples") == ([1], [7])
    assert run.series("loss", "loss")[1][0] == pytest.approx(float(CE(model.eval()(x[:7]), y[:7]).detach()), rel=1e-5)


def test_an_exception_in_training_passes_through(tmp_path: Path) -> None:
    model, _, x, y = make()
    with pytest.raises(ZeroDivisionError), pb.Monitor(model, CE, tmp_path / "run", every=1) as monitor:  # noqa: PT012
        monitor.step(x, y)
        raise ZeroDivisionError
    assert len(list(pb.load_run(tmp_path / "run").of("loss"))) == 1


def test_a_probe_that_fails_is_recorded_and_never_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(seen: Observation) -> Measurement:
        torch.rand(3)
        seen.model.train()
        raise MemoryError("no room")

    monkeypatch.setitem(PROBES, "flow", Probe("flow", broken))
    states = []
    for folder in (None, tmp_path / "run"):
        model, optimizer, x, y = make(dropout=0.2)
        train(6, folder, model, optimizer, x, y, **({} if folder is None else {"every": 2, "budget": None}))
        states.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    run = pb.load_run(tmp_path / "run")
    assert [r.error for r in run.records if r.probe == "flow"] == ["MemoryError: no room"] * 3
    assert len(list(run.of("kernel"))) == 3


def test_what_cannot_be_measured_is_recorded(tmp_path: Path) -> None:
    """A loss that diverged, and a batch of mismatched lengths."""
    model, _, x, y = make()
    with pb.Monitor(model, CE, tmp_path / "run", every=1) as monitor:
        monitor.step(x, y[:3])
        with torch.no_grad():
            model.layers[0].linear.weight.fill_(float("nan"))
        monitor.step(x, y, loss=float("nan"))
    errors = [r.error for r in pb.load_run(tmp_path / "run").records if r.error]
    assert any("same length" in error for error in errors)
    assert any("a finite loss for every sample" in error for error in errors)


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, x, y = make()
    monitor = pb.Monitor(model, CE, tmp_path / "run", optimizer=optimizer, every=1, budget=None)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.warns(UserWarning, match="a record was lost .*No space left.* training goes on") as warned:
            monitor.step(x, y)
            monitor.step(x, y)
        assert len(warned) == 1
    monitor.step(x, y)
    monitor.close()
    assert [r.step for r in pb.load_run(tmp_path / "run").of("loss")] == [3]


def test_probes_together_are_probes_alone(tmp_path: Path) -> None:
    tables = {}
    for probes in ("standard", *[[name] for name in PRESETS["standard"]]):
        model, optimizer, x, y = make()
        folder = tmp_path / str(len(tables))
        train(2, folder, model, optimizer, x, y, every=2, budget=None, probes=probes)
        tables[str(probes)] = {
            k: v for k, v in pb.load_run(folder).table().items() if not k.startswith(("cost", "work", "schedule"))
        }
    together = tables.pop("standard")
    for alone in tables.values():
        for column, values in alone.items():  # norms of gradients are read off the kernel, alone off the rows
            rounded = column.startswith("gradients.")
            assert together[column] == (pytest.approx(values, rel=1e-5) if rounded else values)


def test_own_numbers_can_be_logged(tmp_path: Path) -> None:
    model, _, x, y = make()
    with pb.Monitor(model, CE, tmp_path / "run", every=10) as monitor:
        for _ in range(3):
            monitor.step(x, y)
        monitor.log("epoch", {"epoch": 1, "test_accuracy": 0.5})
    assert pb.load_run(tmp_path / "run").series("epoch", "test_accuracy") == ([3], [0.5])


def test_regression_and_dict_inputs(tmp_path: Path) -> None:
    """No accuracy where targets are no classes; any batch a model takes."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(a + b)

    with pb.Monitor(Sum(), nn.MSELoss(), tmp_path / "run", every=1, budget=None) as monitor:
        monitor.step({"a": torch.randn(5, 3), "b": torch.randn(5, 3)}, torch.randn(5, 2))
    run = pb.load_run(tmp_path / "run")
    assert not [r.error for r in run.records if r.error]
    assert "accuracy" not in next(run.of("loss")).values
    assert "limit" not in next(run.of("sharpness")).values


@pytest.mark.parametrize(("held", "sizes"), [(2**26, [40]), (0, [4, 4, 4, 4])])
def test_the_graph_of_the_hessian_is_held_as_far_as_memory_is_no_matter(
    held: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pullback.monitor.probes import sharpness

    model, optimizer, x, y = make()
    parts: list[int] = []
    real = sharpness.Hessian

    def noted(model: nn.Module, loss_fn: Any, data: Any) -> Any:
        parts[:] = [len(part[0]) for part in (data if isinstance(data, list) else [data])]
        return real(model, loss_fn, data)

    monkeypatch.setattr(sharpness, "HELD_BYTES", held)
    monkeypatch.setattr(sharpness, "Hessian", noted)
    found = sharpness.measure(Observation(model.eval(), CE, x, y, optimizer, None, KernelSeries(model, CE).rows)).values
    assert parts == sizes
    count = sum(sizes)
    assert found["num_samples"] == count
    top = float(torch.linalg.eigvalsh(pb.Hessian(model, CE, (x[:count], y[:count])).to_dense()).max())
    assert found["hessian"] == pytest.approx(top, rel=0.02)


def test_errors(tmp_path: Path) -> None:
    model, *_ = make()
    with pytest.raises(pb.InputError, match="Monitor: expected `model` to be an nn.Module, got str. Pass the model"):
        pb.Monitor("model", CE, tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="`probes` to be one of 'light', 'standard', 'full', got 'all'"):
        pb.Monitor(model, CE, tmp_path / "a", probes="all")
    with pytest.raises(pb.InputError, match="probes among loss, .* got 'nothing'"):
        pb.Monitor(model, CE, tmp_path / "a", probes=["loss", "nothing"])
    with pytest.raises(pb.InputError, match="`max_samples` of at least 2, got 1"):
        pb.Monitor(model, CE, tmp_path / "a", max_samples=1)
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text("{}")
    with pytest.raises(pb.InputError, match="one that holds a run"):
        pb.Monitor(model, CE, tmp_path / "b")
