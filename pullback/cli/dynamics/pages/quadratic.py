"""``pullback dynamics quadratic``: exact trajectories beside simulated ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback import dynamics
from pullback._checks import check_option
from pullback.charts.chart import Chart
from pullback.cli.dynamics.pages.shared import F64, Lines, beside, chart, heights, numbers, page_of
from pullback.report.dynamics.charts import FOUND, landscape_chart
from pullback.report.theory.page import TheoryPage

METHODS = ("gradient_descent", "heavy_ball", "nesterov")


@dataclass(frozen=True)
class _Setting:
    """A problem and the method on it, from ones; ``noise`` is the standard deviation of each gradient's."""

    problem: dynamics.Quadratic
    h: list[float]
    method: Any
    lr: float
    momentum: float
    noise: float
    steps: int

    def exact(self) -> Tensor:
        """(steps + 1, d) in closed form."""
        rates = {"lr": self.lr} | ({} if self.method == "gradient_descent" else {"momentum": self.momentum})
        return self.problem.trajectory(self.method, [1.0] * len(self.h), self.steps, **rates)

    def simulated(self, runs: int) -> dynamics.Trajectories:
        """By torch's optimizer; heavy ball as the notes have it."""

        def make(p: list[Tensor]) -> Any:
            if self.method == "heavy_ball":
                return dynamics.textbook.Momentum(p, lr=self.lr, momentum=self.momentum)
            return torch.optim.SGD(p, lr=self.lr, momentum=self.momentum, nesterov=self.method == "nesterov")

        starts, noise = torch.ones(runs, len(self.h), dtype=F64), self.noise**2 if self.noise else None
        return dynamics.simulate(make, self.problem, starts, self.steps, noise_covariance=noise)

    def as_torch_keeps(self, exact: Tensor) -> Tensor:
        """What torch keeps: with Nesterov's momentum the place where the slope is taken, ahead by the momentum."""
        if self.method != "nesterov":
            return exact
        return exact + self.momentum * torch.diff(exact, dim=0, prepend=exact[:1])


def quadratic_page(
    curvatures: str, method: str, rate: tuple[float, float], noise: float, steps: int, seeds: int
) -> TheoryPage:
    """Exact beside simulated; with noise, means over runs."""
    check_option("dynamics quadratic", "method", method, METHODS)
    h = numbers(curvatures, "curvatures")
    problem, runs = dynamics.Quadratic(h), seeds if noise else 1
    lr, momentum = rate if rate[0] else problem.optimal(method)[:2]  # type: ignore[arg-type]
    setting = _Setting(problem, h, method, lr, 0.0 if method == "gradient_descent" else momentum, noise, steps)
    exact, simulated = setting.exact(), setting.simulated(runs)
    lines = _lines(setting, exact, simulated)
    charts = _charts(lines, with_noise=noise > 0 and not setting.momentum)
    if len(h) > 1:
        charts.insert(0, _paths(setting, exact, simulated))
    facts = (method, f"curvatures {curvatures}", f"{runs} runs" if noise else "no noise", f"{steps} steps")
    return page_of("A quadratic", facts, _keys(setting), "step", lines, charts)


def _lines(setting: _Setting, exact: Tensor, simulated: dynamics.Trajectories) -> Lines:
    """The loss, and the first four directions."""
    runs, clean = len(simulated.x), setting.as_torch_keeps(exact)
    error = lambda values: values.std(0) / math.sqrt(runs) if runs > 1 else None
    known = setting.problem.excess(clean)
    if setting.noise and not setting.momentum:
        variance, start = setting.noise**2, [1.0] * len(setting.h)
        moments = dynamics.noisy_moments(
            setting.problem, start, setting.steps, lr=setting.lr, noise_covariance=variance
        )
        known = known + moments.excess_loss - setting.problem.excess(exact)
    lines = [beside("loss", known, simulated.loss.mean(0), error(simulated.loss))]
    for place, value in enumerate(setting.h[:4]):
        of = simulated.x[..., place]
        lines.append(beside(f"distance along h = {value:g}", clean[:, place], of.mean(0), error(of)))
    return lines


def _charts(lines: Lines, *, with_noise: bool) -> list[Chart]:
    reading = "The excess loss by formula" + (", with what noise adds." if with_noise else ".")
    charts = [chart(lines[0], "loss", reading, x="step", y="loss", log="y")]
    for place, line in enumerate(lines[1:]):
        text = "Each direction by itself: its factor to the power of the steps. Below and above 0 by turns is zig-zag."
        charts.append(chart(line, f"direction-{place + 1}", text, x="step", y="distance"))
    return charts


def _paths(setting: _Setting, exact: Tensor, simulated: dynamics.Trajectories) -> Chart:
    """The way over the contours of the first two directions."""
    reach = max(1.2, *(float(v) for v in exact[: min(setting.steps, 50), :2].abs().max(0).values.clamp(max=4)))
    x, y, z = heights(dynamics.Quadratic(setting.h[:2]).loss, [(-reach, reach)] * 2)
    pairs = {"theory": setting.as_torch_keeps(exact), FOUND: simulated.x[0]}
    paths = {name: (path[:, 0].tolist(), path[:, 1].tolist()) for name, path in pairs.items()}
    return landscape_chart(x, y, z, paths, [[0.0, 0.0]], ("along the first", "along the second"))


def _keys(setting: _Setting) -> list[tuple[str, Any, str]]:
    problem, method, lr, momentum = setting.problem, setting.method, setting.lr, setting.momentum
    limit = problem.stability_limit(momentum, "nesterov" if method == "nesterov" else "heavy_ball")
    regimes = zip(setting.h, problem.regimes(lr, momentum, method), strict=True)
    return [
        ("condition number", problem.condition_number, "largest over smallest curvature"),
        ("learning rate", lr, f"{method}" + (f", momentum {momentum:g}" if momentum else "")),
        ("stability limit", limit, "of the rate"),
        *((f"h = {value:g}", regime, "what this direction does") for value, regime in regimes),
    ]
