"""Every public call that evaluates a model on data, as one table: what holds for one must hold for all.

An entry takes (model, loss_fn, x, y) and returns numbers: a tensor, or several. The data are a few samples with two
classes; the model is in eval mode.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pullback as pb
from pullback import diagnostics, measure, reference
from pullback.functional import num_samples, take
from pullback.modules import frozen_batch_norm
from pullback.runs import load_run

Entry = Callable[[Any, Any, Any, Any], Tensor | tuple[Tensor, ...]]

TIGHT: dict[str, Any] = {"damping": 0.1, "tol": 1e-10}


def _vectors(operator: Any) -> Tensor:
    make = torch.Generator().manual_seed(0)
    return operator @ torch.randn(operator.shape[1], 2, generator=make, dtype=torch.float64, device="cpu")


def _stored(model: Any, loss_fn: Any, x: Any, y: Any) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        return pb.kernel_to_store(model, loss_fn, (x, y), Path(folder) / "store", tile=2).to_dense()


def _watched(model: Any, loss_fn: Any, x: Any, y: Any) -> tuple[Tensor, ...]:
    """A training of two steps with every probe, to be the same to the bit; which weights it ends in."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tempfile.TemporaryDirectory() as folder:
        about = Path(folder) / "run"
        monitor = pb.Monitor(model, loss_fn, about, optimizer=optimizer, every=1, probes="full", budget=None)
        for _ in range(2):
            monitor.step(x, y)
        failed = {r.probe: r.error for r in load_run(about).records if r.error}
        assert not failed, failed
    return tuple(p.detach() for p in model.parameters())


def _half(x: Any, y: Any) -> list[tuple[Any, Any]]:
    first, second = slice(0, num_samples(y) // 2), slice(num_samples(y) // 2, None)
    return [(take(x, part), take(y, part)) for part in (first, second)]


def _frozen(model: Any, loss_fn: Any, x: Any, y: Any) -> Tensor:
    with torch.inference_mode(False):
        normalised = torch.nn.Sequential(model, torch.nn.BatchNorm1d(2)).double()
    with frozen_batch_norm(normalised, x):
        return pb.backward_kernel(normalised, loss_fn, x, y).total


def _boundary(model: Any, loss_fn: Any, x: Any, y: Any) -> Tensor:
    far = torch.full_like(x[:1], 9.0)
    with torch.no_grad():
        other = model(far.clone()).argmax() != model(x.clone()).argmax(1)
    return measure.boundary_points(model, x[other], far.expand_as(x[other]).clone()).x


KERNELS: dict[str, Entry] = {
    "backward_kernel": lambda m, f, x, y: pb.backward_kernel(m, f, x, y).total,
    "backward_kernel parameters": lambda m, f, x, y: tuple(pb.backward_kernel(m, f, x, y).parameters.values()),
    "backward_kernel two sets": lambda m, f, x, y: pb.backward_kernel(m, f, x, y, x2=x, y2=y).total,
    "backward_kernel limit": lambda m, f, x, y: pb.backward_kernel(m, f, x, y, memory_limit=2**30).total,
    "tangent_kernel": lambda m, f, x, y: pb.tangent_kernel(m, x).total,
    "tangent_kernel two sets": lambda m, f, x, y: pb.tangent_kernel(m, x, x2=x, contract="trace").total,
    "plan_kernel": lambda m, f, x, y: torch.tensor(pb.plan_kernel(m, f, x, y).flops, device="cpu"),
    "sketch_kernel": lambda m, f, x, y: pb.sketch_kernel(m, f, x, y, size=4, repeats=4).total,
    "GradientMatrix": lambda m, f, x, y: _vectors(pb.GradientMatrix(m, f, x, y)),
    "check_gradients": lambda m, f, x, y: torch.tensor(float(pb.check_gradients(m, f, x, y).ok), device="cpu"),
    "kernel_to_store": _stored,
}
OPERATORS: dict[str, Entry] = {
    "Hessian": lambda m, f, x, y: _vectors(pb.Hessian(m, f, (x, y))),
    "Hessian batches": lambda m, f, x, y: _vectors(pb.Hessian(m, f, _half(x, y))),
    "GaussNewton": lambda m, f, x, y: _vectors(pb.GaussNewton(m, f, (x, y))),
    "Fisher empirical": lambda m, f, x, y: _vectors(pb.Fisher(m, f, (x, y), kind="empirical")),
    "Jacobian": lambda m, f, x, y: _vectors(pb.Jacobian(m, x)),
    "Jacobian dense": lambda m, f, x, y: pb.Jacobian(m, x).to_dense(),
    "sharpness": lambda m, f, x, y: diagnostics.sharpness(m, f, (x, y)).hessian.values,
    "curvature_spectrum": lambda m, f, x, y: pb.curvature_spectrum(m, f, (x, y), k=3).values,
    "unit_activity": lambda m, f, x, y: diagnostics.unit_activity(m, x).saturated,
    "scale_invariance": lambda m, f, x, y: torch.tensor(len(diagnostics.scale_invariance(m, x)), device="cpu"),
}
INFLUENCE: dict[str, Entry] = {
    "query_influence": lambda m, f, x, y: pb.query_influence(m, f, (x, y), x, y, **TIGHT).values,
    "self_influence": lambda m, f, x, y: pb.self_influence(m, f, (x, y), **TIGHT).values,
    "self_influence dual": lambda m, f, x, y: pb.self_influence(m, f, (x, y), method="dual", **TIGHT).values,
    "leave_one_out": lambda m, f, x, y: pb.leave_one_out(m, f, (x, y), **TIGHT).losses,
    "response": lambda m, f, x, y: (
        pb.response(m, f, (x, y), torch.ones(6, device="cpu"), wrt="weights", **TIGHT).change
    ),
    "MixedDerivative": lambda m, f, x, y: _vectors(pb.MixedDerivative(m, f, (x, y), "inputs")),
}
MEASURES: dict[str, Entry] = {
    "signal_propagation": lambda m, f, x, y: measure.signal_propagation(m, x).q.value,
    "smoothness": lambda m, f, x, y: measure.smoothness(m, f, x, y, [0.1]).losses,
    "internal_covariate_shift": lambda m, f, x, y: measure.internal_covariate_shift(m, f, x, y, 0.1).shift,
    "Monitor": _watched,
}
ON_TENSORS: dict[str, Entry] = {
    "Jacobian inputs": lambda m, f, x, y: pb.Jacobian(m, x, wrt="input").to_dense(),
    "layer_jacobians": lambda m, f, x, y: tuple(pb.layer_jacobians(m, x)),
    "jacobian_spectrum": lambda m, f, x, y: measure.jacobian_spectrum(m, x).squares,
    "boundary_points": _boundary,
    "frozen_batch_norm": _frozen,
    "linearize": lambda m, f, x, y: pb.linearize(m)(x).detach(),
    "taylor_expand": lambda m, f, x, y: pb.taylor_expand(m, 2)(x).detach(),
    "reference gradients": lambda m, f, x, y: reference.gradient_matrix(m, f, x, y),
    "reference inputs": lambda m, f, x, y: reference.input_gradients(m, x),
}
EVERYWHERE: dict[str, Entry] = {**KERNELS, **OPERATORS, **INFLUENCE, **MEASURES}
