"""``pullback dynamics saddle``: steps to leave a saddle, by formula and as simulated."""

from __future__ import annotations

import torch

from pullback import dynamics
from pullback.cli.dynamics.pages.shared import F64, chart, heights, page_of
from pullback.report.dynamics.charts import landscape_chart
from pullback.report.theory.charts import Line
from pullback.report.theory.page import TheoryPage


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
    trajectories = dynamics.simulate_all(
        makers, problem, starts, int(min(most, 200 + max(f["gradient_descent"].steps for f in fates)))
    )
    lines, charts = [], []
    for method, each in trajectories.items():
        steps = dynamics.steps_away(each.x, [0.0, 0.0], 1.0, [[0.0], [1.0]])
        name = method.replace("_", " ")
        lines.append(
            Line(f"steps of {name}", away, [f[method].steps for f in fates], away, steps.tolist(), [0.0] * points)
        )
        reading = "Steps until the start's distance has grown to 1: one decade nearer takes as many more each time."
        charts.append(
            chart(lines[-1], method.replace("_", "-"), reading, x="distance at the start", y="steps", log="x")
        )
    x, y, z = heights(problem.loss, [(-1.2, 1.2)] * 2)
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
    return page_of("Leaving a saddle", facts, keys, "distance", lines, charts)
