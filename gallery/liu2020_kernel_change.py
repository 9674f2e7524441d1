"""How far the tangent kernel moves in training: output, bottleneck, optimizer (Liu, Zhu and Belkin 2020).

Claims of "On the linearity of large non-linear models" (arXiv:2010.01092), section 5 and on lazy training: with a
linear output the tangent kernel K moves the less the wider the network; with a softmax or swish output it moves as far
at every width, at the same rates and widths (experiment I); with a bottleneck it moves, the less the wider that is
(experiment II). What training needs is not that K stays but that it stays well-conditioned.

    ΔK = max over the observed steps of |K_t - K_0|_F / |K_0|_F, K of all inputs and outputs, (N C, N C)
    L: mean of half the squared error;  μ = λ_min(K) / N, smallest seen;  β = λ_max of L's Hessian, largest seen
    R = 2 √(2 β L_0) / μ: gradient descent at rates up to 1 / β does not leave the ball of that radius

The paper bounds ΔK by 1/√m. It is of order 1/m: the first-order term of the change has the random signs of v as well
(Dyer and Gur-Ari 2020; Huang and Yau 2020). The ball is proved for gradient descent; what others do is measured here.
Of the checklist: S4-10, S4-26 to S4-30.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

from pullback.charts.chart import PALETTE
from pullback.diagnostics import TangentPath, follow
from pullback.measure import Slope
from pullback.modules import WideNetwork

F64 = {"dtype": torch.float64}
SAMPLES, DIM, RATE = 10, 5, 0.5
SOURCE = "section 5"
Optimizers = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Optimizers, int]] = {  # with the samples of a step
    "gradient descent": (lambda p: torch.optim.SGD(p, lr=RATE), SAMPLES),
    "SGD, 2 samples a step": (lambda p: torch.optim.SGD(p, lr=RATE), 2),
    "momentum 0.9": (lambda p: torch.optim.SGD(p, lr=RATE / 10, momentum=0.9), SAMPLES),
    "Adam, rate 0.01": (lambda p: torch.optim.Adam(p, lr=0.01), SAMPLES),
    "Adam, rate 0.3": (lambda p: torch.optim.Adam(p, lr=0.3), SAMPLES),
}


def build(page: Page) -> None:
    """Fill the page."""
    page.set(seed=0, samples=SAMPLES, inputs=f"{DIM} dimensions, mean square 1", rate=RATE)
    outputs(page)
    bottlenecks(page)
    ball(page)
    conditioning(page)


def data(outputs: int = 1, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Inputs (N, D) of mean square 1 and targets (N, C) that a softmax, a swish and a linear output reach."""
    make = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, DIM, generator=make, **F64)
    y = torch.rand(SAMPLES, 1, generator=make, **F64)
    x, y = (x / x.square().mean(1, keepdim=True).sqrt())[:samples], y[:samples]
    return x, 2 * y if outputs == 1 else torch.cat([y, 1 - y], 1)


def half(z: Tensor, y: Tensor) -> Tensor:
    """Half the squared error of each sample."""
    return (z - y).square().sum(1) / 2


def trained(
    model: WideNetwork, steps: int, every: int, kind: str = "gradient descent", *, curvature: bool = False,
    samples: int = SAMPLES,
) -> TangentPath:  # fmt: skip
    """The path of a training from the model's weights."""
    dtype = model.readout.weight.dtype
    x, y = (each.to(dtype) for each in data(len(model.readout.weight), samples))
    make_optimizer, batch = OPTIMIZERS[kind]
    optimizer, draw = make_optimizer(list(model.parameters())), torch.Generator().manual_seed(0)
    path = TangentPath(model, half, x, y, curvature=curvature)

    def step() -> None:
        chosen = torch.randperm(len(x), generator=draw)[:batch]
        optimizer.zero_grad()
        half(model(x[chosen]), y[chosen]).mean().backward()
        optimizer.step()

    return follow(path, step, steps, every)


def errors_of(values: Tensor) -> list[float]:
    """Standard errors of means over draws, (W, S) to W of them."""
    return (values.std(1) / values.shape[1] ** 0.5).tolist()


def outputs(page: Page) -> None:
    """Experiment I."""
    widths = page.pick(small=[32, 128, 512], full=[64, 256, 1024, 4096])
    seeds, steps, every = page.pick(small=(3, 40, 20), full=(10, 100, 50))
    page.set(experiment_1={"widths": widths, "networks": seeds, "steps": steps, "observed_every": every})
    drawn, moved = [], {}
    for place, output in enumerate(("linear", "softmax", "swish")):
        found = [
            [trained(WideNetwork(DIM, [m], output=output, seed=s, **F64), steps, every).delta_k for s in range(seeds)]
            for m in widths
        ]
        values = torch.tensor(found, **F64)
        slope = Slope.of(torch.tensor(widths), values)
        moved[output] = values.mean(1)
        name = f"{output} output: exponent of m in ΔK"
        if output == "linear":
            page.at_most(name, -0.5, slope.high, source=f"{SOURCE}; upper end of the 95 percent interval")
            page.row(f"{output} output: the same", -1, slope.value, page.pick(small=0.4, full=0.2), source="order 1/m")
        else:
            page.row(name, 0, slope.value, page.pick(small=0.3, full=0.2), source=SOURCE)
        drawn.append(Curve(output, widths, moved[output].tolist(), "line", PALETTE[place], errors_of(values)))
    wide = widths.index(page.pick(small=512, full=4096))
    limit = page.pick(small=0.04, full=0.01)
    page.at_most(f"linear output, m = {widths[wide]}: ΔK", limit, float(moved["linear"][wide]), source="figure of ΔK")
    page.at_least(f"swish output, m = {widths[wide]}: ΔK", 0.3, float(moved["swish"][wide]), source="figure of ΔK")
    reading = "One hidden layer, gradient descent at one rate: only with a linear output does the kernel stay."
    page.draw(
        curves("outputs", "Change of the kernel against the width", reading, drawn, x="width m", y="ΔK",
               log_x=True, log_y=True)
    )  # fmt: skip


def bottlenecks(page: Page) -> None:
    """Experiment II."""
    width, narrow = page.pick(small=(256, [1, 8, 64]), full=(10_000, [1, 4, 16, 64, 256]))
    seeds, steps, every = page.pick(small=(3, 40, 20), full=(3, 40, 20))
    page.set(experiment_2={"width": width, "networks": seeds, "steps": steps, "observed_every": every})
    found = [
        [trained(WideNetwork(DIM, [width, b, width], seed=s, dtype=torch.float32), steps, every).delta_k
         for s in range(seeds)]
        for b in narrow
    ]  # fmt: skip
    values = torch.tensor(found, **F64)
    slope = Slope.of(torch.tensor(narrow), values)
    page.at_most("bottleneck: exponent of its width in ΔK", -0.2, slope.value, source=f"{SOURCE}: it decreases")
    page.at_most(
        "bottleneck: ΔK of the widest over that of 1", 0.5, float(values[-1].mean() / values[0].mean()), source=SOURCE
    )
    reading = f"Three hidden layers of {width:,}, the second replaced by the bottleneck."
    drawn = [Curve("networks", narrow, values.mean(1).tolist(), "line", stderr=errors_of(values))]
    page.draw(
        curves("bottleneck", "Change of the kernel against the width of a bottleneck", reading, drawn,
               x="width of the bottleneck", y="ΔK", log_x=True, log_y=True)
    )  # fmt: skip


def ball(page: Page) -> None:
    """Who stays in the ball of gradient descent."""
    widths, seeds = page.pick(small=([32, 256], 3), full=([64, 512, 4096], 5))
    steps, every = page.pick(small=(40, 40), full=(100, 50))
    page.set(ball={"widths": widths, "networks": seeds, "steps": steps, "observed_every": every})
    rows, drawn = [], []
    for place, kind in enumerate(OPTIMIZERS):
        paths = [
            [trained(WideNetwork(DIM, [m], seed=s, **F64), steps, every, kind, curvature=s == 0) for s in range(seeds)]
            for m in widths
        ]
        for m, (path, *_) in zip(widths, paths, strict=True):
            rows.append([kind, m, path.distance, path.radius, "yes" if path.inside else "no", path.points[-1].loss])
            if kind == "gradient descent":
                share = path.distance / path.radius
                page.at_most(f"{kind}, m = {m}: distance over R", 1, share, source="PL*: the path is at most R long")
        far = torch.tensor([[path.distance for path in row] for row in paths], **F64)
        slope = Slope.of(torch.tensor(widths), far)
        quantity = f"{kind}: exponent of m in the distance"
        if kind.startswith("Adam"):
            said = "lower end of the 95 percent interval: a step of rate η has length η √P in P weights"
            limit = page.pick(small=-0.1, full=0.0)  # of three networks the interval is wide: it does not fall
            page.at_least(quantity, limit, slope.low, source=said)
        else:
            page.row(quantity, 0, slope.value, page.pick(small=0.25, full=0.15), source="independent of the width")
        drawn.append(Curve(kind, widths, far.mean(1).tolist(), "line", PALETTE[place], errors_of(far)))
    page.facts("The ball of gradient descent", ("optimizer", "m", "distance", "R", "inside", "last loss"), rows)
    reading = "Means over networks. Of gradient descent, with momentum and in parts, it does not depend on the width."
    page.draw(curves("distance", "Largest distance from the start", reading, drawn, x="width m", y="|w - w_0|",
                     log_x=True, log_y=True))  # fmt: skip


def conditioning(page: Page) -> None:
    """A kernel that moves and stays well-conditioned lets gradient descent converge."""
    m, steps, samples = page.pick(small=(256, 300, 5), full=(1024, 1000, 5))
    page.set(conditioning={"width": m, "samples": samples, "steps": steps, "observed_every": steps // 10})
    path = trained(WideNetwork(DIM, [m], output="swish", seed=1, **F64), steps, steps // 10, samples=samples)
    points = path.points
    page.at_least(f"swish output, m = {m}: ΔK", 0.3, path.delta_k, source="the kernel moves")
    page.at_most(
        "the same: last loss over first", 0.01, points[-1].loss / points[0].loss, source="and training converges"
    )
    worst = max(point.condition for point in points) / points[0].condition
    page.at_most(
        "the same: largest condition number over the first", 10, worst, source="since K stays well-conditioned"
    )
    at = [point.step for point in points]
    drawn = [
        Curve("condition number of K", at, [point.condition for point in points], "line", PALETTE[0]),
        Curve("loss over the first", at, [point.loss / points[0].loss for point in points], "line", PALETTE[1]),
        Curve("drift of K", at[1:], [point.drift for point in points[1:]], "line", PALETTE[2]),
    ]
    reading = "A swish output: the kernel moves by as much as it is large, keeps its condition, and the loss falls."
    page.draw(curves("conditioning", "Conditioning along the path", reading, drawn, x="step", y="value", log_y=True))


if __name__ == "__main__":
    run(build)
