"""The pages of ``pullback dynamics``: what is computed for each, and its charts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from pullback import dynamics
from pullback._checks import check_option, check_positive, input_error
from pullback.report.dynamics_charts import FOUND, colour_of, landscape_chart
from pullback.report.plots import Curve, curves
from pullback.report.theory_charts import Line, line_chart
from pullback.report.theory_page import TheoryPage, theory_text, write_theory_page

F64 = torch.float64
SHOWN = 24  # points of a line
GRID = 81
Lines = list[Line]
_chart = partial(line_chart, found=FOUND)

OPTIMIZERS: dict[str, tuple[Callable[..., Any], float]] = {
    "SGD": (torch.optim.SGD, 1e-3),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 1e-3),
    "Nesterov": (partial(torch.optim.SGD, momentum=0.9, nesterov=True), 1e-3),
    "RMSprop": (torch.optim.RMSprop, 1e-2),
    "Adagrad": (torch.optim.Adagrad, 0.1),
    "Adam": (torch.optim.Adam, 0.05),
    "AdamW": (torch.optim.AdamW, 0.05),
    "LBFGS": (torch.optim.LBFGS, 1.0),
}


def show(page: TheoryPage, path: Path) -> None:
    """Print the numbers and write the page."""
    typer.echo(theory_text(page))
    typer.echo(f"Page: {write_theory_page(page, path)}")


def _page(title: str, facts: tuple[str, ...], keys: Any, place: str, lines: Lines, charts: Any) -> TheoryPage:
    return TheoryPage(title, facts, tuple(keys), place, lines, tuple(charts), FOUND, "dynamics")


def _numbers(text: str, option: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found:
        raise input_error("dynamics", f"`--{option}`: numbers by commas", repr(text), "Pass them as 100,1")
    return found


def _some(count: int, most: int = SHOWN) -> list[int]:
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def _beside(name: str, theory: Tensor, found: Tensor, errors: Tensor | None = None) -> Line:
    """Theory at every step, and what was found at some."""
    places = _some(len(theory))
    zero = torch.zeros(len(theory)) if errors is None else errors
    return Line(
        name, list(range(len(theory))), theory.tolist(), places, [float(found[k]) for k in places],
        [float(zero[k]) for k in places],
    )  # fmt: skip


def _map(function: Any, bounds: Any) -> tuple[list[float], list[float], list[list[float]]]:
    """A function over the first two coordinates."""
    x, y = (torch.linspace(low, high, GRID, dtype=F64) for low, high in bounds)
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return x.tolist(), y.tolist(), function(places).tolist()


def quadratic_page(
    curvatures: str, method: str, rate: tuple[float, float], noise: float, steps: int, seeds: int
) -> TheoryPage:
    """Exact beside simulated; with noise, means over runs."""
    check_option("dynamics quadratic", "method", method, ("gradient_descent", "heavy_ball", "nesterov"))
    h = _numbers(curvatures, "curvatures")
    problem, d = dynamics.Quadratic(h), len(h)
    lr, momentum = rate if rate[0] else problem.optimal(method)[:2]  # type: ignore[arg-type]
    momentum = 0.0 if method == "gradient_descent" else momentum
    start = [1.0] * d
    settings = {"lr": lr} | ({} if method == "gradient_descent" else {"momentum": momentum})
    exact = problem.trajectory(method, start, steps, **settings)  # type: ignore[arg-type]
    textbook = dynamics.textbook.Momentum if method == "heavy_ball" else None

    def make(p: list[Tensor]) -> Any:
        if textbook is not None:
            return textbook(p, lr=lr, momentum=momentum)
        return torch.optim.SGD(p, lr=lr, momentum=momentum, nesterov=method == "nesterov")

    starts = torch.ones(seeds if noise else 1, d, dtype=F64)
    found = dynamics.simulate(make, problem, starts, steps, noise_covariance=noise**2 if noise else None)
    clean = exact
    if method == "nesterov":  # torch keeps the place where the slope is taken, ahead by the momentum
        clean = exact + momentum * torch.diff(exact, dim=0, prepend=exact[:1])
    runs = len(starts)
    error = lambda values: values.std(0) / math.sqrt(runs) if runs > 1 else None  # noqa: E731
    extra = torch.zeros(steps + 1, dtype=F64)
    if noise and not momentum:
        extra = dynamics.noisy_moments(problem, start, steps, lr=lr, noise_covariance=noise**2).excess_loss
        extra = extra - problem.excess(exact)
    lines = [_beside("loss", problem.excess(clean) + extra, found.loss.mean(0), error(found.loss))]
    for place in range(min(d, 4)):
        of = found.x[..., place]
        lines.append(_beside(f"distance along h = {h[place]:g}", clean[:, place], of.mean(0), error(of)))
    reading = "The excess loss by formula" + (", with what noise adds." if noise and not momentum else ".")
    charts = [_chart(lines[0], "loss", reading, x="step", y="loss", log="y")]
    for place, line in enumerate(lines[1:]):
        text = "Each direction by itself: its factor to the power of the steps. Below and above 0 by turns is zig-zag."
        charts.append(_chart(line, f"direction-{place + 1}", text, x="step", y="distance"))
    if d > 1:
        reach = max(1.2, *(float(v) for v in exact[: min(steps, 50), :2].abs().max(0).values.clamp(max=4)))
        inner = dynamics.Quadratic(h[:2])
        x, y, z = _map(inner.loss, [(-reach, reach)] * 2)
        pairs = {"theory": clean, FOUND: found.x[0]}
        paths = {name: (path[:, 0].tolist(), path[:, 1].tolist()) for name, path in pairs.items()}
        charts.insert(0, landscape_chart(x, y, z, paths, [[0.0, 0.0]], ("along the first", "along the second")))
    regimes = problem.regimes(lr, momentum, method)  # type: ignore[arg-type]
    keys = [
        ("condition number", problem.condition_number, "largest over smallest curvature"),
        ("learning rate", lr, f"{method}" + (f", momentum {momentum:g}" if momentum else "")),
        ("stability limit", problem.stability_limit(momentum, "nesterov" if method == "nesterov" else "heavy_ball"),
         "of the rate"),
        *((f"h = {value:g}", regime, "what this direction does") for value, regime in zip(h, regimes, strict=True)),
    ]  # fmt: skip
    facts = (method, f"curvatures {curvatures}", f"{runs} runs" if noise else "no noise", f"{steps} steps")
    return _page("A quadratic", facts, keys, "step", lines, charts)


def _makers(text: str) -> dict[str, Any]:
    """Optimizers by the words typed."""
    found = {}
    for part in text.split(","):
        name, _, rate = part.strip().partition(":")
        check_option("dynamics landscape", "optimizers", name, tuple(OPTIMIZERS))
        kind, usual = OPTIMIZERS[name]
        lr = _numbers(rate, "optimizers")[0] if rate else usual
        found[f"{name} {lr:g}"] = lambda p, kind=kind, lr=lr: kind(p, lr=lr)
    return found


def landscape_page(name: str, optimizers: str, steps: int, record: Path | None) -> TheoryPage:
    """Trajectories and losses; nothing is predicted here."""
    world = dynamics.landscape(name)
    found = dynamics.simulate_all(_makers(optimizers), name, None, steps)
    if record is not None:
        from pullback.runs import RunWriter

        for label, each in found.items():
            with RunWriter(record / label.replace(" ", "-"), each.meta) as writer:
                each.write(writer)
    losses = [
        Curve(
            label,
            list(range(steps + 1)),
            [max(v, 1e-16) for v in each.loss.nan_to_num(1e300).tolist()],
            "plain",
            colour_of(place),
        )
        for place, (label, each) in enumerate(found.items())
    ]
    reading = "Of each optimizer, at the rate behind its name."
    positive = len(world.minimisers) > 0 and float(world(world.minimisers).min()) >= 0
    charts = [curves("loss", "Loss", reading, losses, x="step", y="loss", log_y=positive)]
    if len(world.start) == 2:
        x, y, z = _map(world, world.bounds)
        paths = {label: (each.x[:, 0].tolist(), each.x[:, 1].tolist()) for label, each in found.items()}
        charts.insert(0, landscape_chart(x, y, z, paths, world.minimisers.tolist()))
    keys = [(label, float(each.loss[-1]), f"loss after {steps} steps") for label, each in found.items()]
    facts = (f"start {', '.join(f'{v:g}' for v in world.start.tolist())}", f"{steps} steps")
    return _page(name, facts, keys, "step", [], charts)


def saddle_page(curvature: float, lr: float, momentum: float, damping: float, points: int) -> TheoryPage:
    """Steps to leave, by formula and as simulated, against the distance of the start."""
    problem = dynamics.Quadratic([1.0, curvature])
    away = [10.0 ** -(k + 1) for k in range(points)]
    starts = torch.tensor([[1.0, y] for y in away], dtype=F64)
    most = 4000
    fates = [
        dynamics.near_saddle(problem, s, 1.0, lr=lr, momentum=momentum, damping=damping, most=most) for s in starts
    ]
    makers = {
        "gradient_descent": lambda p: torch.optim.SGD(p, lr=lr),
        "heavy_ball": lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum),
    }
    found = dynamics.simulate_all(
        makers, problem, starts, int(min(most, 200 + max(f["gradient_descent"].steps for f in fates)))
    )
    lines, charts = [], []
    for method, each in found.items():
        steps = dynamics.steps_away(each.x, [0.0, 0.0], 1.0, [[0.0], [1.0]])
        name = method.replace("_", " ")
        lines.append(
            Line(f"steps of {name}", away, [f[method].steps for f in fates], away, steps.tolist(), [0.0] * points)
        )
        reading = "Steps until the start's distance has grown to 1: one decade nearer takes as many more each time."
        charts.append(
            _chart(lines[-1], method.replace("_", "-"), reading, x="distance at the start", y="steps", log="x")
        )
    x, y, z = _map(problem.loss, [(-1.2, 1.2)] * 2)
    methods = ("gradient_descent", "heavy_ball", "newton", "damped_newton", "saddle_free_newton", "truncated_newton")
    paths = {}
    for method in methods:
        setting: dict[str, float] = {"lr": lr} if method in makers else {}
        setting |= {"momentum": momentum} if method == "heavy_ball" else {}
        setting |= {"damping": damping} if method in ("damped_newton", "saddle_free_newton") else {}
        path = problem.trajectory(method, [1.0, 0.1], 60, **setting)  # type: ignore[arg-type]
        paths[method.replace("_", " ")] = (path[:, 0].tolist(), path[:, 1].tolist())
    charts.insert(0, landscape_chart(x, y, z, paths, [], ("along curvature 1", f"along curvature {curvature:g}")))
    keys = [(m.replace("_", " "), fate.kind, f"factor {fate.factor:.4g} a step") for m, fate in fates[0].items()]
    facts = (f"curvatures 1 and {curvature:g}", f"lr {lr:g}", f"momentum {momentum:g}", f"damping {damping:g}")
    return _page("Leaving a saddle", facts, keys, "distance", lines, charts)


def batch_page(curvatures: str, noise: float, target: float, points: int, seeds: int) -> TheoryPage:
    """Updates to the target in closed form and as means over runs; Adam's step in the same way."""
    check_positive("dynamics batch", "noise", noise)
    problem = dynamics.Quadratic(_numbers(curvatures, "curvatures"))
    d, sizes = len(problem.eigenvalues), [16 * 4**k for k in range(points)]
    curve = dynamics.batch_size_curve(problem, torch.ones(d, dtype=F64), target, sizes, noise_covariance=noise)
    steps, errors = [], []
    for size, lr, known in zip(sizes, curve.lr.tolist(), curve.steps.tolist(), strict=True):
        count = int(known) + 20 if known < math.inf else 20
        starts = torch.ones(seeds, d, dtype=F64)
        make = lambda p, lr=lr: torch.optim.SGD(p, lr=lr)  # noqa: E731
        loss = dynamics.simulate(make, problem, starts, count, noise_covariance=noise / size).loss - float(
            problem.loss(problem.minimiser)
        )
        halves = [_first(loss[part::4].mean(0), target) for part in range(4)]
        steps.append(_first(loss.mean(0), target))
        errors.append(float(torch.tensor(halves, dtype=F64).std()) / 2)
    updates = Line("updates to the target", sizes, curve.steps.tolist(), sizes, steps, errors)
    at = torch.tensor(sizes, dtype=F64)
    known = dynamics.adam_effective_step(0.1, 1.0, at)
    moved, spread = [], []
    for size in sizes:
        adam = lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.99))  # noqa: E731
        slope = lambda x: 0.1 * x.sum(-1)  # noqa: E731
        path = dynamics.simulate(adam, slope, torch.zeros(seeds, 1, dtype=F64), 300, noise_covariance=1 / size).x[
            ..., 0
        ]
        each = (path[:, 100] - path[:, -1]) / (200 * 1e-3)
        moved.append(float(each.mean()))
        spread.append(float(each.std()) / math.sqrt(seeds))
    effective = Line("Adam's step over its rate", sizes, known.tolist(), sizes, moved, spread)
    charts = [
        _chart(updates, "updates", "Each batch size at its best rate; level where noise has ceased to matter.",
               x="batch size", y="updates", log="xy", level=curve.least),
        _chart(effective, "adam", "A gradient of mean 0.1 and variance 1: larger batches take larger steps.",
               x="batch size", y="step / lr", log="x"),
    ]  # fmt: skip
    keys = [
        ("updates without noise", curve.least, "no batch size can do with fewer"),
        ("saturation", curve.saturation, "the smallest batch of these within twice as many"),
    ]
    facts = (f"curvatures {curvatures}", f"variance {noise:g}", f"target {target:g}", f"{seeds} runs a point")
    return _page("Batch size", facts, keys, "batch size", [updates, effective], charts)


def _first(losses: Tensor, target: float) -> float:
    below = losses < target
    return float(below.to(torch.uint8).argmax()) if bool(below.any()) else math.nan


def hessians_page(size: int, seeds: int, points: int) -> TheoryPage:
    """The semicircle, and the index of a spin glass against its energy."""
    values = torch.linalg.eigvalsh(dynamics.random_hessians(size, seeds)).flatten()
    edges = torch.linspace(-2.4, 2.4, 49, dtype=F64)
    middle = (edges[1:] + edges[:-1]) / 2
    heights = torch.histogram(values, edges)[0] / len(values) / (edges[1] - edges[0])
    drawn = [
        Curve(FOUND, middle.tolist(), heights.tolist(), "bars"),
        Curve("semicircle", middle.tolist(), dynamics.semicircle(middle).tolist(), "plain"),
    ]
    reading = "Eigenvalues of symmetric matrices with independent normal entries, half of them below zero."
    charts = [curves("semicircle", "Eigenvalues of random Hessians", reading, drawn, x="eigenvalue", y="density")]
    energies = torch.linspace(-1.8, 1.0, points, dtype=F64).tolist()
    shares, errors, known = [], [], []
    for place, energy in enumerate(energies):
        centre, radius = dynamics.spin_glass_spectrum(energy)
        known.append(float(dynamics.negative_share(centre, radius)))
        drawn_here = dynamics.random_hessians(size, seeds, shift=2 * centre / radius, seed=place + 1)
        share = (torch.linalg.eigvalsh(drawn_here) < 0).double().mean(1)
        shares.append(float(share.mean()))
        errors.append(float(share.std()) / math.sqrt(seeds))
    line = Line("index over dimension", energies, known, energies, shares, errors)
    reading = (
        "Share of directions that lead down at a critical point: none below a threshold, so only minima are there."
    )
    charts.append(_chart(line, "index", reading, x="energy a dimension", y="share of negative eigenvalues"))
    keys = [
        ("threshold", -2 * math.sqrt(2 / 3), "energy below which critical points are minima"),
        *((f"P(minimum), {n} dimensions", dynamics.all_positive_probability(n), "around zero") for n in (2, 3, 10)),
    ]
    return _page("Random Hessians", (f"{seeds} of {size} rows a point",), keys, "energy", [line], charts)


def scale_page(lr: float, decay: float, steps: int) -> TheoryPage:
    """Growth by recursion, and of weights that torch's optimizer turns."""
    known = dynamics.scale_invariant_growth(lr, 1.0, steps, weight_decay=decay)
    turning = lambda w: torch.atan2(w[..., 1], w[..., 0])  # noqa: E731
    make = lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay)  # noqa: E731
    squares = dynamics.simulate(make, turning, [1.0, 0.0], steps).x.square().sum(-1)
    growth = _beside("|w|²", known.squared_norm, squares)
    rate = _beside("effective rate", known.effective_rate, lr / squares)
    level = None if known.equilibrium == math.inf else known.equilibrium
    charts = [
        _chart(growth, "norm", "It grows like the root of the steps, up to where decay holds it.", x="step", y="|w|²",
               level=level),
        _chart(rate, "rate", "lr / |w|², at which the direction turns.", x="step", y="lr / |w|²", log="y"),
    ]  # fmt: skip
    keys = [("equilibrium |w|²", known.equilibrium, "of growth and decay"), ("last |w|²", float(squares[-1]), "found")]
    facts = (f"lr {lr:g}", f"weight decay {decay:g}", "gradient 1 at |w| = 1")
    return _page("Weights without scale", facts, keys, "step", [growth, rate], charts)
