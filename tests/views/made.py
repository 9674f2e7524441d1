"""Results of every kind that has a drawing, and of some that have none: small, each from the call that makes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pullback as pb
from pullback import measure, theory
from pullback.runs import RunWriter

NASTY = "<b onload='1' \"2\">&amp;</b></script></style></svg>"
CE = nn.CrossEntropyLoss()


class Made:
    """A model, its data, and results by name, each made when it is asked for and kept."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        layers = {NASTY: nn.Linear(16, 5), "act": nn.Tanh(), "out": nn.Linear(5, 3)}
        self.model = nn.Sequential()
        for name, layer in layers.items():
            self.model.add_module(name, layer)
        self.model.double()
        self.x, self.y = torch.randn(12, 16, dtype=torch.float64), torch.arange(12) % 3
        self.folder = folder
        self.known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.known[name] = RESULTS[name](self)
        return self.known[name]

    @property
    def kernel(self) -> pb.Kernel:
        return self["kernel"]

    @property
    def data(self) -> tuple[Any, Any]:
        return self.x, self.y

    @property
    def images(self) -> tuple[Any, nn.Module]:
        return self.x.view(-1, 1, 4, 4), nn.Sequential(nn.Flatten(), self.model)


def recorded(made: Made) -> pb.Run:
    """A run whose loss leaves the finite numbers; all its names are nasty."""
    path = made.folder / "run"
    with RunWriter(path, {"settings": {NASTY: NASTY}}) as writer:
        for step in range(1, 6):
            writer.append(step, "loss", {"loss": 2.0**step})
        finding = pb.Finding(NASTY, "critical", NASTY, (2, 5), {NASTY: 3.0}, NASTY, NASTY, NASTY, NASTY)
        writer.append(5, "finding", finding.as_record())
        writer.append(6, "loss", {"loss": float("nan")})
    return pb.load_run(path)


def stored(made: Made) -> pb.KernelStore:
    path = made.folder / "store"
    return pb.kernel_to_store(made.model, CE, made.data, path, tile=5, progress=False)


def solved(made: Made) -> pb.Solution:
    return pb.solve(made.kernel, torch.ones(12, dtype=torch.float64), damping=1.0)


DRAWN: dict[str, Callable[[Made], Any]] = {
    "kernel": lambda m: pb.backward_kernel(m.model, CE, *m.data),
    "cross kernel": lambda m: pb.backward_kernel(m.model, CE, *m.data, x2=m.x[:4], y2=m.y[:4]),
    "tangent, trace": lambda m: pb.tangent_kernel(m.model, m.x),
    "tangent, diagonal": lambda m: pb.tangent_kernel(m.model, m.x, contract="diagonal"),
    "tangent, full": lambda m: pb.tangent_kernel(m.model, m.x, contract="full"),
    "sketch": lambda m: pb.sketch_kernel(m.model, CE, *m.data, size=2, repeats=4),
    "plan": lambda m: m.kernel.plan,
    "store plan": lambda m: m["store"].plan,
    "scale plan": lambda m: pb.plan_store(m.model, CE, *m.data),
    "influence plan": lambda m: pb.plan_influence(m.model, m.data, 2),
    "estimate": lambda m: pb.trace(m.kernel, 6),
    "estimates": lambda m: pb.diagonal(m.kernel, 6),
    "density": lambda m: pb.spectral_density(m.kernel, 6, 3),
    "curvature spectrum": lambda m: pb.curvature_spectrum(m.model, CE, m.data, k=4),
    "kernel spectrum": lambda m: pb.spectrum(m.kernel),
    "eigenpairs": lambda m: pb.eigenvalues(m.kernel, 3),
    "jacobian, predicted": lambda m: theory.jacobian_density(theory.MeanField("relu", 2**0.5, 0.0), 3),
    "jacobian, measured": lambda m: measure.jacobian_spectrum(m.model, m.x[:3]),
    "self-influence": lambda m: pb.self_influence(m.model, CE, [(m.x[:7], m.y[:7]), (m.x[7:], m.y[7:])], damping=0.1),
    "query influence": lambda m: pb.query_influence(
        m.images[1], CE, (m.images[0], m.y), m.images[0][:2], m.y[:2], damping=0.1, wrt="weights"
    ),
    "influence of inputs": lambda m: pb.query_influence(m.model, CE, m.data, m.x[:2], damping=0.1, wrt="inputs"),
    "influence of decay": lambda m: pb.query_influence(m.model, CE, m.data, m.x[:2], m.y[:2], damping=0.1, wrt="decay"),
    "leave one out": lambda m: pb.leave_one_out(m.model, CE, m.data, damping=0.1),
    "run": recorded,
    "findings": lambda m: pb.diagnose(m["run"]),
    "finding": lambda m: m["findings"][-1],
}
OTHERS: dict[str, Callable[[Made], Any]] = {
    "store": stored,
    "solution": solved,
    "no findings": lambda m: pb.Findings(),
    "moments": lambda m: pb.moments(m.kernel),
    "alignment": lambda m: pb.alignment(m.kernel),
    "flow": lambda m: pb.layer_flow(m.kernel),
    "noise": lambda m: pb.gradient_noise(m.kernel),
    "sharpness": lambda m: pb.sharpness(m.model, CE, m.data, lr=0.1),
    "drift": lambda m: pb.kernel_drift(m.kernel, m.kernel),
    "gradient check": lambda m: pb.check_gradients(m.model, CE, *m.data),
    "response": lambda m: pb.response(m.model, CE, m.data, direction=1.0, damping=0.1, wrt="decay"),
    "model view": lambda m: pb.ModelView.of(m.model),
    "mean field": lambda m: theory.MeanField("tanh", 1.2, 0.1),
    "dynamics": lambda m: pb.linear_dynamics(m.kernel, torch.ones(12, 1, dtype=torch.float64), lr=0.1, time=[0, 1]),
    "operator": lambda m: pb.Hessian(m.model, CE, m.data),
    "gradient rows": lambda m: pb.GradientMatrix(m.model, CE, *m.data),
    "rank collapse": lambda m: measure.rank_collapse(measure.AttentionSpec(2, width=8, heads=2, tokens=3)),
}
RESULTS = DRAWN | OTHERS
