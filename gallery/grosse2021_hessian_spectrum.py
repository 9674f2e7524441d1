"""The Hessian's spectrum while a network learns: many zeros, few large eigenvalues, a negative part that goes.

Section 4.1 of Grosse's lecture "Taylor approximations" (2021), which states it without numbers, after Ghorbani et al.
(2019), "An investigation into neural net optimization via Hessian eigenvalue density". Claims: at initialisation the
Hessian has positive and negative eigenvalues of various sizes; the large negative ones are quickly gone, since descent
follows them; from then on there are some large positive eigenvalues, some small ones of both signs, and a great many
that are zero.

    spectral density: share of eigenvalues per unit, smoothed by a Gaussian of the stated width
    bulk: eigenvalues of at most a thousandth of the largest; outliers: the large ones that stand apart

The network is the training note's MLP (ReLU, softmax cross-entropy) on scikit-learn's digits, all samples in every
step of Adam. Densities come from stochastic Lanczos quadrature, outer eigenvalues from Lanczos; both carry their
errors. As autograd has it, the kinks of ReLU count as zero; the mixed derivatives between layers remain, and with
them the negative eigenvalues. The thresholds in the table are this page's reading of the claims' words. That as many
outliers stand apart as there are classes, less one, is known from others (Sagun et al. 2017, Papyan 2018), not from
the lecture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from kit.charts import Curve, curves, slides
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback.charts.chart import Chart

BULK = 1e-3  # of the largest eigenvalue
LOSS = nn.CrossEntropyLoss()
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class State:
    """What is measured at one step."""

    step: int
    loss: float
    density: pb.Density
    top: pb.Eigenpairs
    bottom: pb.Eigenpairs

    @property
    def largest(self) -> float:
        """Largest eigenvalue."""
        return float(self.top.values[0])

    @property
    def smallest(self) -> float:
        """Smallest eigenvalue; below zero throughout."""
        return float(self.bottom.values[0])

    @property
    def bulk(self) -> pb.Estimate:
        """Share of eigenvalues of at most a thousandth of the largest, with its standard error."""
        return self.density.share(-BULK * self.largest, BULK * self.largest)


def build(page: Page) -> None:
    """Fill the page."""
    sizes, rate = page.pick(small=([64, 16, 16, 10], 0.01), full=([64, 128, 128, 128, 128, 128, 10], 0.001))
    count, probes, products = page.pick(small=(256, 6, 80), full=(512, 6, 80))
    marks = page.pick(small=(0, 10, 30, 100, 300), full=(0, 10, 30, 100, 300, 1000))
    page.set(seed=0, layers=str(sizes), samples=count, learning_rate=rate, probes=probes, products_a_probe=products)
    digits = pb.functional.load_digits(0)
    data = digits.x_train[:count].double(), digits.y_train[:count]
    model = pb.modules.MLP(sizes, "relu", seed=0).double()
    states = train(model, data, rate, marks, probes, products)
    claims(page, states)
    checks(page, model, data)
    stuck(page, sizes, data)
    draw(page, states)


def train(model: nn.Module, data: Data, rate: float, marks: tuple[int, ...], probes: int, products: int) -> list[State]:
    """Train on all samples at once, and measure the Hessian at some steps."""
    optimizer, states = torch.optim.Adam(model.parameters(), lr=rate), []
    for step in range(marks[-1] + 1):
        loss = LOSS(model(data[0]), data[1])
        if step in marks:
            hessian = pb.Hessian(model, LOSS, data)
            density = pb.spectral_density(hessian, products, probes, seed=0, grid=400)
            top = pb.eigenvalues(hessian, 12, tol=1e-4, seed=0, repeated=False)
            bottom = pb.eigenvalues(hessian, 1, "smallest", tol=1e-6, seed=0)  # small beside the largest, soon
            states.append(State(step, loss.item(), density, top, bottom))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return states


def claims(page: Page, states: list[State]) -> None:
    """The lecture's sentences as numbers."""
    first, last, words = states[0], states[-1], "section 4.1"
    page.at_least(
        "negative part at the start, -smallest / largest", 0.25, -first.smallest / first.largest, source=words
    )
    early = next(state for state in states if state.step == 30)
    page.at_most(
        "negative part at step 30, -smallest / largest", 0.1, -early.smallest / early.largest, source="quickly"
    )
    page.at_most("negative part at the end, -smallest / largest", 0.01, -last.smallest / last.largest, source=words)
    below = last.smallest + float(last.bottom.residuals[0])
    page.at_most("smallest eigenvalue at the end, plus its residual", 0, below, source="some small negative ones")
    sure = last.bulk.value - 3 * last.bulk.stderr
    page.at_least("share in the bulk at the end, less 3 standard errors", 0.5, sure, source='"a great many 0"')
    gap = float(last.top.values[8] / last.top.values[9])
    page.at_least("9th over 10th eigenvalue at the end", 2, gap, source="9 outliers: classes - 1")
    residual = max(float(pairs.residuals.max()) / s.largest for s in states for pairs in (s.top, s.bottom))
    page.at_most(
        "largest residual of an eigenpair, of the largest eigenvalue", 1e-4, residual, source="tolerance asked"
    )
    rows = [
        [
            state.step,
            state.loss,
            *(float(v) for v in (state.top.values[0], state.top.values[8], state.top.values[9])),
            state.smallest,
            str(state.bulk),
            state.density.num_matvecs + state.top.num_matvecs + state.bottom.num_matvecs,
        ]
        for state in states
    ]
    header = ("step", "loss", "largest", "9th", "10th", "smallest", "share in the bulk", "products")
    page.facts("Eigenvalues while training", header, rows)


def checks(page: Page, model: nn.Module, data: Data) -> None:
    """The iterations against dense matrices, on the last layers (at most a few hundred weights)."""
    names = page.pick(small=["layers.1", "layers.2"], full=["layers.5"])
    block = pb.Hessian(model, LOSS, data, params=names)
    dense = torch.linalg.eigvalsh(block.to_dense())
    found = float(pb.eigenvalues(block, 1, tol=1e-6, seed=0).values[0])
    name = f"largest eigenvalue by Lanczos, {len(dense)} weights"
    page.row(name, dense[-1], found, 1e-4, relative=True, source="dense", computed=True)
    density = pb.spectral_density(block, 40, 8, seed=0)
    bound = BULK * found
    share = density.share(low=bound)
    truth = float((dense > bound).double().mean())
    name = "share above the bulk, by quadrature"
    page.measured(
        name,
        truth,
        share.value,
        share.stderr,
        at_most=page.pick(small=0.9, full=0.5),
        source="dense, within the quadrature's bound",
    )


def stuck(page: Page, sizes: list[int], data: Data) -> None:
    """From all-zero weights only the last bias moves: a saddle with no way out for gradient descent."""
    model = pb.modules.MLP(sizes, "relu").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        LOSS(model(data[0]), data[1]).backward()
        optimizer.step()
    *others, (_, bias) = model.named_parameters()
    moved = max(float(parameter.detach().abs().max()) for _, parameter in others)
    page.row("weights after 20 steps from all zeros", 0, moved, 0, source="margin note: stuck at a saddle")
    page.at_least("the last bias meanwhile", 1e-3, bias.detach().abs().max(), source="it alone has a gradient")


def draw(page: Page, states: list[State]) -> None:
    """The density with a slider over the steps, and the outer eigenvalues over the steps."""
    page.draw(densities(states))
    steps = [state.step + 1 for state in states]
    lines = [
        Curve("largest", steps, [s.largest for s in states]),
        Curve("9th", steps, [float(s.top.values[8]) for s in states]),
        Curve("10th", steps, [float(s.top.values[9]) for s in states]),
        Curve("-smallest", steps, [-s.smallest for s in states]),
    ]
    reading = "The most negative eigenvalue starts out as large as the outliers and falls far below them."
    axes = {"x": "step + 1", "y": "eigenvalue", "log_x": True, "log_y": True}
    page.draw(curves("outer", "Outer eigenvalues while training", reading, lines, **axes))
    shares = [Curve("bulk", steps, [s.bulk.value for s in states], stderr=[s.bulk.stderr for s in states])]
    reading = (
        "Share of eigenvalues of at most a thousandth of the largest, the lecture's zeros; bars are standard errors."
    )
    page.draw(curves("bulk", "Share in the bulk", reading, shares, x="step + 1", y="share", log_x=True, y_range=(0, 1)))


def densities(states: list[State]) -> Chart:
    """One density for each step, behind a slider."""
    charts = []
    for state in states:
        d = state.density
        floor = 1 / (100 * d.num_eigenvalues * d.width)  # a hundredth of what one eigenvalue makes
        shown = d.density.clamp(min=floor)
        charts.append(
            curves(
                "density",
                "Density of the Hessian's eigenvalues",
                "Shares of eigenvalues per unit, on a logarithmic axis; the peak at 0 is the bulk, the bumps to the "
                "right are the outliers, what is left of 0 is the negative part.",
                [Curve(f"step {state.step}", d.grid, shown)],
                x="eigenvalue",
                y="density",
                log_y=True,
                summary=[f"Step {state.step}: {d}."],
            )
        )
    return slides(charts, [f"step {state.step}" for state in states])


if __name__ == "__main__":
    run(build)
