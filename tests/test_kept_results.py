"""What diagnostics, measures, spectra, influence and dynamics find on fixed inputs is ``tests/data/results.json``.

Other files hold each of these to another way to it; here is that none moves by itself. Who changes one on purpose
writes the file anew: ``python -m tests.test_kept_results``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import diagnostics, measure, modules
from tests.kept import differences, flat

FILE = Path(__file__).parent / "data" / "results.json"
F64 = torch.float64
CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()


def waves(*shape: int, shift: float = 0.0) -> Tensor:
    """Numbers that no generator draws."""
    count = torch.Size(shape).numel()
    return torch.sin(1.7 * torch.arange(count, dtype=F64) + shift).view(shape)


def filled(model: nn.Module) -> Any:
    for place, parameter in enumerate(model.double().parameters()):
        with torch.no_grad():
            parameter.copy_(waves(*parameter.shape, shift=float(place)))
    return model.eval()


def network(outputs: int = 3) -> nn.Sequential:
    return filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, outputs)))


def normalised() -> nn.Sequential:
    return filled(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)))


X, Y, T = waves(7, 4), torch.arange(7) % 3, waves(7, 3, shift=2.0)
X2, Y2 = waves(3, 4, shift=0.5), torch.tensor([2, 0, 1])
G, G2 = waves(8, 20), waves(8, 20, shift=0.4)
K, K2 = G @ G.T, G2 @ G2.T
S = torch.diag(torch.linspace(-1, 4, 12, dtype=F64)) + 0.1 * (waves(12, 12) + waves(12, 12).T)
P = S @ S + torch.eye(12, dtype=F64)
B = waves(12, 2)
CLASSES, SQUARES = (CE, (X, Y)), (MSE, (X, T))
SPEC = measure.NetworkSpec("tanh", 1.5, 0.2, depth=4, width=12)
CURVED: dict[str, Any] = {"damping": 0.3, "tol": 1e-12}


def stepped(kind: Any, **settings: Any) -> tuple[nn.Module, Any]:
    model = network()
    optimizer = kind(model.parameters(), **settings)
    CE(model(X), Y).backward()
    optimizer.step()
    return model, optimizer


def preconditioned() -> Any:
    model, optimizer = stepped(torch.optim.Adam, lr=0.01)
    return diagnostics.preconditioned_sharpness(model, CE, (X, Y), optimizer, tol=1e-10)


def limits() -> list[Any]:
    kinds = [(torch.optim.SGD, {"lr": 0.1}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})]
    kinds += [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True})]
    kinds += [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "dampening": 0.3}), (torch.optim.Adam, {"lr": 0.1})]
    return [diagnostics.stability_limit(kind(network().parameters(), **settings)) for kind, settings in kinds]


def linear() -> list[Any]:
    found = []
    for momentum in (0.0, 0.7):
        for lr in (None, 0.01):
            given: dict[str, Any] = {"cross": K[:3], "initial": waves(8), "cross_initial": waves(3)}
            times = [0, 1, 5, 40] if lr else [0.0, 0.5, 7.0]
            found.append(pb.linear_dynamics(K, waves(8, shift=1.0), lr=lr, time=times, momentum=momentum, **given))
    return found


def boundary() -> Any:
    model = network()
    labels = model(X).argmax(1)
    apart = (labels != labels[0]).nonzero().flatten()
    return measure.boundary_points(model, X[:1].expand(len(apart), -1), X[apart])


DIAGNOSTICS: dict[str, Callable[[], Any]] = {
    "alignment": lambda: pb.alignment(K, num_pairs=4),
    "moments": lambda: [pb.moments(K, num_params=20, normalisation=n) for n in ("mean", "sum")],
    "trade_off": lambda: [pb.trade_off(each) for each in (K, torch.ones(4, 4), torch.eye(5))],
    "spectrum": lambda: [pb.spectrum(K), pb.spectrum(G.T @ G)],
    "gradient_noise": lambda: pb.gradient_noise(K + 2.0),
    "kernel_drift": lambda: pb.kernel_drift(K, K2),
    "label_alignment": lambda: [diagnostics.label_alignment(K, y) for y in (torch.arange(8) % 3, waves(8))],
    "layer_flow": lambda: pb.layer_flow(pb.backward_kernel(network(), CE, X, Y)),
    "layer_spectra": lambda: pb.layer_spectra(pb.backward_kernel(network(), CE, X, Y)),
    "equilibrium_norm": lambda: [diagnostics.equilibrium_norm(0.1, 0.01, 2.0, optimizer=o) for o in ("sgd", "adam")],
    "scale_schedule": lambda: [
        diagnostics.scale_schedule(0.1, 2.0, 9, weight_decay=w, start=1.5, optimizer=o)
        for w in (0.0, 0.02) for o in ("sgd", "adam")
    ],
    "stability_limit": limits,
    "sharpness": lambda: pb.sharpness(network(), *CLASSES, lr=0.1, tol=1e-10),
    "preconditioned_sharpness": preconditioned,
    "compare_curvatures": lambda: pb.compare_curvatures(network(), CE, X, Y, k=2),
    "unit_activity": lambda: diagnostics.unit_activity(network(), X),
    "scale_invariance": lambda: [diagnostics.scale_invariance(each, X) for each in (network(), normalised())],
    "curvature_spectrum": lambda: [
        (found.values, found.converged)
        for m in ("gauss_newton", "empirical_fisher") for k, w in ((None, "largest"), (3, "largest"), (2, "smallest"))
        for found in (pb.curvature_spectrum(network(), *CLASSES, m, k=k, which=w),)  # type: ignore[arg-type]
    ],
}  # fmt: skip
MEASURES: dict[str, Callable[[], Any]] = {
    "signal_propagation": lambda: measure.signal_propagation(network(), X),
    "signal_propagation of networks": lambda: measure.signal_propagation(SPEC, seeds=3, q0=0.7, c0=0.2),
    "jacobian_spectrum": lambda: measure.jacobian_spectrum(network(), X[:1], layers=True),
    "jacobian_spectrum of networks": lambda: measure.jacobian_spectrum(SPEC, seeds=3),
    "jacobian_extremes": lambda: measure.jacobian_extremes(network(), X[:1], 2, "both", tol=1e-10),
    "effective_variances": lambda: measure.effective_variances(network()),
    "gradient_factors": lambda: measure.gradient_factors(SPEC, 6, seeds=3),
    "curve_metrics": lambda: measure.curve_metrics(SPEC, points=12, seeds=3),
    "smoothness": lambda: measure.smoothness(network(), CE, X, Y, [0.1, 0.5]),
    "internal_covariate_shift": lambda: measure.internal_covariate_shift(network(), CE, X, Y, 0.1),
    "matrix_powers": lambda: measure.matrix_powers(0.4 * waves(5, 5), 12),
    "norm_221": lambda: measure.norm_221(waves(3, 4, 5)),
    "lyapunov_exponents": lambda: measure.lyapunov_exponents([waves(4, 4, shift=k) for k in range(6)], 3),
    "boundary_points": boundary,
    "linearity": lambda: measure.linearity(filled(modules.WideNetwork(4, [6])), X[:1], tol=1e-8),
}
SPECTRAL: dict[str, Callable[[], Any]] = {
    "trace": lambda: [pb.trace(S, num_matvecs=n, method=m) for n in (6, 24) for m in ("xtrace", "hutchinson")],
    "diagonal": lambda: pb.diagonal(S, num_matvecs=20),
    "norms": lambda: (pb.frobenius_norm(S, 20), pb.spectral_norm(S)),
    "density": lambda: pb.spectral_density(S, 8, 4, grid=9).share(low=0.0, high=2.0),
    "eigenvalues": lambda: [
        pb.eigenvalues(S, k, w, tol=1e-10, block_size=b)
        for k, w, b in ((3, "largest", 1), (2, "both", 2), (2, "smallest", 1))
    ],
    "solve": lambda: [pb.solve(P, B, damping=d, tol=1e-12).x for d in (0.0, 0.5)],
    "neumann_solve": lambda: pb.neumann_solve(P, B, damping=0.5, tol=1e-10, step=0.05).x,
    "inertia": lambda: (
        pb.morse_index(S), pb.is_positive_definite(S), pb.is_positive_definite(P), pb.loewner_order(P, 2 * P),
        pb.classify_stationary_point(S, torch.zeros(12, dtype=F64)), pb.rayleigh_quotient(S, B[:, 0]),
    ),
    "convexity": lambda: [
        pb.is_convex_between(f, X[:2], X[2:4] + 1, num_points=5)
        for f in (torch.linalg.vector_norm, lambda v: v.sin().sum())
    ],
}  # fmt: skip
INFLUENCE: dict[str, Callable[[], Any]] = {
    **{
        f"self_influence {m} {method}": lambda m=m, method=method: pb.self_influence(
            network(), *CLASSES, matrix=m, method=method, **CURVED
        )
        for m in ("gauss_newton", "empirical_fisher")
        for method in ("cg", "dual")
    },
    **{
        f"query_influence {w}": lambda w=w: pb.query_influence(network(), *SQUARES, X2, waves(3, 3), wrt=w, **CURVED)
        for w in ("weights", "inputs", "targets", "decay")
    },
    "query_influence on outputs": lambda: pb.query_influence(network(), *CLASSES, X2, **CURVED),
    "leave_one_out": lambda: [
        pb.leave_one_out(network(), *CLASSES, estimate=e, **CURVED)  # type: ignore[arg-type]
        for e in ("leverage", "first_order")
    ],
    "response": lambda: pb.response(network(), *CLASSES, waves(7), wrt="weights", **CURVED).change,
    "gradient_influence": lambda: [
        pb.gradient_influence(network(), *CLASSES, X2, Y2, normalise=n)  # type: ignore[arg-type]
        for n in ("dot", "cosine")
    ],
    "plan_influence": lambda: [
        pb.plan_influence(network(), (X, Y), q, matrix=m, iterations=20, block=2)
        for q in (1, 9) for m in ("gauss_newton", "hessian", "empirical_fisher")
    ],
}  # fmt: skip
DYNAMICS: dict[str, Callable[[], Any]] = {
    "linear_dynamics": linear,
    "ensemble_dynamics": lambda: pb.ensemble_dynamics(
        (K + torch.eye(8, dtype=F64), K), waves(8), cross=(K[:3], K[:3]), test=K[:3, :3] + torch.eye(3), time=[0.0, 2.0]
    ),
    "kernel_regression": lambda: [
        pb.kernel_regression(K, waves(8), cross=K[:3], ridge=ridge) for ridge in ("leave_one_out", 0.1)
    ],
}  # fmt: skip


def watched(model: nn.Module, loss_fn: Any, y: Tensor, kind: Any, **settings: Any) -> dict[str, Any]:
    """All records of four steps with every probe, but for what was timed."""
    optimizer = kind(model.parameters(), **settings)
    with tempfile.TemporaryDirectory() as folder:
        with pb.Monitor(
            model, loss_fn, f"{folder}/run", optimizer=optimizer, every=2, probes="full", budget=None
        ) as monitor:
            for _ in range(4):
                optimizer.zero_grad()
                loss = loss_fn(model.train()(X), y)
                loss.backward()
                optimizer.step()
                monitor.step(X, y, loss=loss)
        run = pb.load_run(f"{folder}/run")
        assert not [record for record in run.records if record.error]
        told = {f"about {key}": run.meta[key] for key in ("model", "loss", "optimizer", "settings") if key in run.meta}
        records = [record for record in run.records if record.probe not in TIMED]
        return told | {f"{r.step} {r.probe} {name}": value for r in records for name, value in r.values.items()}


TIMED = {"cost"}
MONITOR: dict[str, Callable[[], Any]] = {
    "classes": lambda: watched(network(), CE, Y, torch.optim.SGD, lr=0.1, momentum=0.5),
    "numbers": lambda: watched(network(), MSE, T, torch.optim.Adam, lr=0.01),
    "normalised": lambda: watched(normalised(), CE, Y, torch.optim.SGD, lr=0.1, weight_decay=0.02),
}  # fmt: skip
CALLS = DIAGNOSTICS | MEASURES | SPECTRAL | INFLUENCE | DYNAMICS


@pytest.mark.parametrize("name", MONITOR)
def test_the_record_has_what_is_kept(name: str) -> None:
    """It may have more."""
    kept, found = json.loads(FILE.read_text())[name], MONITOR[name]()
    wrong = {key: differences(flat(found.get(key)), numbers, 1e-5, 1e-8) for key, numbers in kept.items()}
    assert {key: each for key, each in wrong.items() if each} == {}


@pytest.mark.parametrize("name", CALLS)
def test_the_result_is_the_one_that_is_kept(name: str) -> None:
    assert differences(flat(CALLS[name]()), json.loads(FILE.read_text())[name], 1e-5, 1e-8) == []


if __name__ == "__main__":
    kept: dict[str, Any] = {name: flat(call()) for name, call in CALLS.items()}
    kept |= {name: {key: flat(value) for key, value in call().items()} for name, call in MONITOR.items()}
    FILE.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(numbers)}' for name, numbers in kept.items()) + "\n}\n")
