"""Every public call refuses numbers and options that make no sense: each argument by its name, the rest as they are."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import diagnostics, measure, modules, theory
from pullback._checks import PullbackError

F64 = torch.float64
CE = nn.CrossEntropyLoss()
X = torch.randn(5, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(5) % 3
SYMMETRIC = torch.diag(torch.arange(1.0, 7.0, dtype=F64))
TWO = (SYMMETRIC, SYMMETRIC)
NEGATIVE, NOT_COUNTS = (-1, math.nan), (0, -1)
NO_OPTION = ("nonsense",)

# What is wrong for an argument of a name, in whatever call it stands.
WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_matvecs", "num_probes", "grid", "k", "points", "seeds", "n", "num_pairs"), NOT_COUNTS),
    "block": NOT_COUNTS,
    **dict.fromkeys(("block_size", "num_points", "size", "repeats", "every", "samples", "num_samples"), NOT_COUNTS),
    **dict.fromkeys(("iterations", "num_queries", "max_matvecs", "workers", "depth", "steps"), NOT_COUNTS),
    **dict.fromkeys(("smallest", "max_samples", "tile", "batch_size", "layers", "num_seeds", "width"), NOT_COUNTS),
    **dict.fromkeys(("tol", "damping", "gradient_tol", "ridge", "weight_decay", "sigma_b"), NEGATIVE),
    **dict.fromkeys(("lr", "sigma_w", "time", "confidence", "keep_prob", "target"), (-1, math.nan)),
    **dict.fromkeys(("method", "matrix", "which", "mode", "kind", "per", "estimate", "contract", "wrt"), NO_OPTION),
    **dict.fromkeys(("normalise", "normalisation", "phase", "weights", "loss", "optimizer", "exact"), NO_OPTION),
    **dict.fromkeys(("activation", "parametrisation", "padding", "readout", "init", "output", "probes"), NO_OPTION),
    "order": (3, -1),
    "max_iters": (-1,),
    "momentum": (-0.1, 1.0, math.nan),
    "dropout": (-0.1, 1.0),
}  # fmt: skip


def model(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


@cache
def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after a step; its optimizer."""
    made = model()
    optimizer = torch.optim.Adam(made.parameters(), 1e-6)
    CE(made(X), Y).backward()
    optimizer.step()
    return made, optimizer


def of(call: Callable[..., Any], *args: Callable[[], Any], **given: Any) -> Callable[..., Any]:
    """A call whose arguments are made anew."""

    def made(**wrong: Any) -> Any:
        named = inspect.signature(call).bind_partial(*(each() for each in args), **given).arguments
        return call(**(named | wrong))

    made.__wrapped__ = call  # type: ignore[attr-defined]
    return made


DATA: Callable[[], Any] = lambda: (X, Y)
LOSS: Callable[[], Any] = lambda: CE
MATRIX: Callable[[], Any] = lambda: SYMMETRIC
INPUTS: Callable[[], Any] = lambda: X
LABELS: Callable[[], Any] = lambda: Y
KERNEL: Callable[[], Any] = lambda: SYMMETRIC
ONES: Callable[[], Any] = lambda: torch.ones(6, dtype=F64)
NET: Callable[[], Any] = lambda: theory.MeanField("tanh", 1.5, 0.3)
ACTIVATION: Callable[[], Any] = lambda: "relu"
FULL = (model, LOSS, DATA)
APART = (model, LOSS, INPUTS, LABELS)

OTHER = {(call, "points") for call in ("query_influence", "self_influence", "leave_one_out", "response")}  # indices
OTHER |= {("layer_flow", "num_matvecs"), ("preconditioned_sharpness", "optimizer")}  # 0 leaves it out; an object
CALLS: dict[str, Callable[..., Any]] = {
    "alignment": of(pb.alignment, KERNEL),
    "backward_kernel": of(pb.backward_kernel, *APART),
    "check_gradients": of(pb.check_gradients, *APART),
    "classify_stationary_point": of(pb.classify_stationary_point, MATRIX, lambda: ONES() * 1e-9),
    "compare_curvatures": of(pb.compare_curvatures, *APART),
    "curvature_spectrum": of(pb.curvature_spectrum, *FULL),
    "diagonal": of(pb.diagonal, MATRIX),
    "eigenvalues": of(pb.eigenvalues, MATRIX),
    "ensemble_dynamics": of(pb.ensemble_dynamics, lambda: TWO, ONES, cross=TWO, test=SYMMETRIC),
    "Fisher": of(pb.Fisher, *FULL),
    "frobenius_norm": of(pb.frobenius_norm, MATRIX),
    "gradient_influence": of(pb.gradient_influence, *FULL, INPUTS, LABELS),
    "is_convex_between": of(pb.is_convex_between, lambda: torch.linalg.vector_norm, INPUTS, lambda: X + 1),
    "is_positive_definite": of(pb.is_positive_definite, MATRIX),
    "kernel_regression": of(pb.kernel_regression, KERNEL, ONES),
    "layer_flow": of(pb.layer_flow, lambda: pb.backward_kernel(model(), CE, X, Y)),
    "leave_one_out": of(pb.leave_one_out, *FULL, damping=0.1),
    "linear_dynamics": of(pb.linear_dynamics, KERNEL, ONES),
    "MixedDerivative": of(pb.MixedDerivative, *FULL, wrt="inputs"),
    "moments": of(pb.moments, KERNEL, num_params=9),
    "morse_index": of(pb.morse_index, MATRIX),
    "neumann_solve": of(pb.neumann_solve, MATRIX, ONES),
    "plan_influence": of(pb.plan_influence, model, DATA, lambda: 2),
    "plan_kernel": of(pb.plan_kernel, *APART),
    "pullback_metric": of(pb.pullback_metric, model, INPUTS, lambda: torch.eye(3, dtype=F64)),
    "query_influence": of(pb.query_influence, *FULL, INPUTS, LABELS, damping=0.1),
    "response": of(pb.response, *FULL, lambda: torch.ones(5), wrt="weights", damping=0.1),
    "self_influence": of(pb.self_influence, *FULL, damping=0.1),
    "sharpness": of(pb.sharpness, *FULL),
    "sketch_kernel": of(pb.sketch_kernel, *APART),
    "solve": of(pb.solve, MATRIX, ONES),
    "spectral_density": of(pb.spectral_density, MATRIX),
    "spectral_norm": of(pb.spectral_norm, MATRIX),
    "tangent_kernel": of(pb.tangent_kernel, model, INPUTS),
    "trace": of(pb.trace, MATRIX),
    "initialise": of(pb.initialise, model),
    "MLP": of(modules.MLP, lambda: [4, 5, 3], init="gaussian"),
    "WideNetwork": of(modules.WideNetwork, lambda: 4, lambda: [6]),
    "NetworkSpec": of(measure.NetworkSpec, activation="tanh", sigma_w=1.5, depth=3, width=10),
    "AttentionSpec": of(measure.AttentionSpec, depth=3, width=8),
    "rank_collapse": of(measure.rank_collapse, lambda: measure.AttentionSpec(1, width=8, tokens=3)),
    "signal_propagation": of(measure.signal_propagation, lambda: measure.NetworkSpec("tanh", 1.5, depth=3, width=10)),
    "jacobian_extremes": of(measure.jacobian_extremes, model, lambda: X[:1]),
    "lyapunov_exponents": of(measure.lyapunov_exponents, lambda: [torch.eye(3, dtype=F64)] * 3),
    "MeanField": of(theory.MeanField, activation="tanh", sigma_w=1.5),
    "jacobian_moments": of(theory.MeanField.jacobian_moments, NET, depth=3),
    "curve_metrics of theory": of(NET().curve_metrics, lambda: 3),
    "signal_profile": of(theory.signal_profile, NET, lambda: 4),
    "infinite_width_kernels": of(theory.infinite_width_kernels, ACTIVATION, lambda: 2, lambda: 1, lambda: 0, INPUTS),
    "preconditioned_sharpness": of(
        diagnostics.preconditioned_sharpness, lambda: trained()[0], LOSS, DATA, lambda: trained()[1]
    ),
    "equilibrium_norm": of(diagnostics.equilibrium_norm, lambda: 0.1, lambda: 0.1, lambda: 1.0),
}  # fmt: skip


def wrong() -> Iterator[Any]:
    for name, call in CALLS.items():
        for argument in inspect.signature(call).parameters:
            for value in () if (name, argument) in OTHER else WRONG.get(argument, ()):
                yield pytest.param(name, argument, value, id=f"{name}-{argument}={value}")


@pytest.mark.parametrize(("name", "argument", "value"), list(wrong()))
def test_what_makes_no_sense_is_refused(name: str, argument: str, value: Any) -> None:
    with pytest.raises(PullbackError, match=rf"expected .*{argument}|expected .*got .*{value}"):
        CALLS[name](**{argument: value})


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_right_without(name: str) -> None:
    assert CALLS[name]() is not None
