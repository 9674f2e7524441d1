"""What a constant kernel does not say, and where small Hessians come from: counter-examples (Liu, Zhu and Belkin 2020).

Statements of "On the linearity of large non-linear models" (arXiv:2010.01092), sections 2 and 4, and of talks on it,
held to what is true. A kernel that is constant everywhere belongs to a model linear in its weights; on a ball, which is
where the statement is used, it does not: f(w) = |w - a| has K = 1. Small Hessians in a ball of radius R do
bound the kernel's change:

    |K_w(x, x') - K_0(x, x')| ≤ R ε (|g(x)| + |g(x')|) + (R ε)²,  ε the largest |H| in it, g = ∇f at its centre

A Hessian that is zero almost everywhere (ReLU) says nothing; a non-linear output bends f only where φ''(f) is not
zero; and at distance R from the start the Hessian's norm grows slowly with R, if at all, along the directions tried.
Of the checklist: S4-06, S4-08, S4-09, S4-12, S4-22, S4-31.
"""

from __future__ import annotations

import math

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import measure, theory
from pullback.charts.chart import PALETTE
from pullback.modules import WideNetwork

F64 = {"dtype": torch.float64}
CLOSED = "closed form"


def build(page: Page) -> None:
    """Fill the page."""
    page.set(seed=0)
    constant_kernel(page)
    kinks(page)
    literal_kernel(page)
    flat_output(page)
    change_within(page)
    balls(page)


class Distance(nn.Module):
    """f(w) = |w - a|, whatever the input."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1)."""
        return (self.w - torch.tensor([2.0, 0.0], **F64)).norm().expand(len(x), 1)


def constant_kernel(page: Page) -> None:
    """K = 1 on a ball around 0 that does not hold a = (2, 0), and H is not 0."""
    make, x = torch.Generator().manual_seed(0), torch.zeros(1, 1, **F64)
    kernels = []
    for _ in range(20):
        w = torch.randn(2, generator=make, **F64)
        kernels.append(pb.tangent_kernel(Distance(w / w.norm()), x).total.item())
    spread = max(kernels) - min(kernels)
    page.row("|w - a|: spread of K over a ball", 0, spread, 1e-12, source=CLOSED)
    found = measure.linearity(Distance(torch.zeros(2, **F64)), x)
    page.row(
        "|w - a|: |H| at 0, a constant kernel all the same",
        0.5,
        float(found.hessian_norm.value),
        1e-9,
        source=f"{CLOSED}, 1 / |w - a|",
    )
    affine = measure.linearity(pb.linearize(WideNetwork(2, [20], **F64)), torch.ones(1, 2, **F64))
    page.row("a linearised network: |H|", 0, float(affine.hessian_norm.value), 1e-12, source="linear in w")


def kinks(page: Page) -> None:
    """One hidden ReLU layer: a Hessian of zeros, and a kernel that changes."""
    x = torch.ones(1, 1, **F64)
    model = WideNetwork(1, [50], "relu", **F64)
    H = pb.Hessian(model, lambda z, y: z[:, 0], (x, torch.zeros(1)))
    page.row(
        "one hidden ReLU layer: |H|, by autograd", 0, pb.spectral_norm(H).value, 1e-12, source="zero almost everywhere"
    )
    before = pb.tangent_kernel(model, x).total
    with torch.no_grad():
        model.layers[0].weight.neg_()
    moved = pb.kernel_drift(before, pb.tangent_kernel(model, x).total).drift
    page.at_least(
        "the same: change of K where weights change sign", 0.01, moved, source="the kinks, which H leaves out"
    )
    try:
        measure.linearity(model, x)
        refused = 0.0
    except pb.UnsupportedError:
        refused = 1.0
    page.row("the same: refused by measure.linearity (1)", 1, refused, 0, source="by name")


def literal_kernel(page: Page) -> None:
    """The limit of K(1, 1) has the slope squared: tanh'² has the mean 0.464, tanh' 0.606."""
    limit = float(theory.wide_network_kernels("tanh", 1, [[1.0]])[1][0, 0])
    w = WideNetwork(1, [200_000], seed=0, **F64).layers[0].weight.detach()
    slope = 1 - torch.tanh(w).square()
    values = slope.square()
    page.measured(
        "mean of tanh'(w)²", limit, float(values.mean()), float(values.std()) / len(values) ** 0.5, at_most=0.01,
        source="quadrature",
    )  # fmt: skip
    page.at_least(
        "mean of tanh'(w), which some print, over it", 1.2, float(slope.mean()) / limit, source="not the kernel"
    )


def flat_output(page: Page) -> None:
    """φ = tanh at f = 0: φ''(0) = 0, and the Hessian is that of f. Away from 0 it has the rank-one part."""
    plain, bent = (WideNetwork(1, [500], output=output, seed=2, **F64) for output in ("linear", "tanh"))
    for model in (plain, bent):  # each unit twice, with both signs: f = 0 everywhere
        with torch.no_grad():
            model.layers[0].weight[250:] = model.layers[0].weight[:250]
            model.readout.weight[:, 250:] = -model.readout.weight[:, :250]
    x = torch.ones(1, 1, **F64)
    norms = [float(measure.linearity(model, x).hessian_norm.value) for model in (plain, bent)]
    page.row("tanh output at f = 0: |H| over that of f", 1, norms[1] / norms[0], 1e-2, source="φ''(0) = 0, φ'(0) = 1")
    plain, bent = (WideNetwork(1, [500], output=output, seed=6, **F64) for output in ("linear", "tanh"))
    found = [measure.linearity(model, x) for model in (plain, bent)]
    f = plain(x).detach()
    t = torch.tanh(f)
    slope, bend = 1 - t * t, -2 * t * (1 - t * t)
    gradient, hessian = float(found[0].kernel_diagonal) ** 0.5, float(found[0].hessian_norm.value)
    bound = float(theory.output_hessian_bound(float(slope), float(bend), gradient, hessian))
    share = float(found[1].hessian_norm.value) / bound
    page.at_least(f"tanh output at f = {float(f):.3g}: the lower bound", 0.01, bound, source="φ''(f) is not 0 there")
    page.at_least("the same: |H| over it", 1 - 1e-3, share, source="triangle inequality")


def change_within(page: Page) -> None:
    """The bound on the kernel's change, at random weights in two balls."""
    m, make = 256, torch.Generator().manual_seed(1)
    model, x = WideNetwork(1, [m], seed=3, **F64), torch.tensor([[1.0], [-0.6]], **F64)
    start = model.layers[0].weight.detach().clone()
    first = pb.tangent_kernel(model, x).total
    eps = theory.smoothness_constants("tanh").beta / math.sqrt(m)
    lengths = first.diagonal().sqrt().tolist()
    for radius in (0.5, 2.0):
        bound = float(theory.kernel_change_bound(radius, eps, *lengths))
        changes = []
        for _ in range(page.pick(small=30, full=100)):
            step = torch.randn(start.shape, generator=make, **F64)
            with torch.no_grad():
                model.layers[0].weight.copy_(start + radius * step / step.norm())
            changes.append(float((pb.tangent_kernel(model, x).total - first)[0, 1].abs()))
        page.at_most(
            f"R = {radius}: largest change of K over the bound", 1, max(changes) / bound, source="with its constants"
        )


def balls(page: Page) -> None:
    """How the Hessian's norm grows with the ball around the start, along f's gradient and random directions."""
    radii, m = (0.0, 1.0, 4.0, 16.0), page.pick(small=64, full=256)
    draws = page.pick(small=1, full=4)
    x, make = torch.ones(1, 4, **F64), torch.Generator().manual_seed(4)
    drawn = []
    for place, hidden in enumerate((1, 2)):
        model = WideNetwork(4, [m] * hidden, seed=5, **F64)
        start = [p.detach().clone() for p in model.parameters()]
        uphill = list(torch.autograd.grad(model(x).sum(), list(model.parameters())))
        directions = [uphill, [-g for g in uphill]]
        directions += [[torch.randn(p.shape, generator=make, **F64) for p in start] for _ in range(draws)]
        largest = []
        for radius in radii:
            norms = []
            for step in directions if radius else directions[:1]:
                length = math.sqrt(sum(float(d.square().sum()) for d in step))
                with torch.no_grad():
                    for p, w, d in zip(model.parameters(), start, step, strict=True):
                        p.copy_(w + radius / length * d)
                norms.append(float(measure.linearity(model, x, tol=1e-2).hessian_norm.value))
            largest.append(max(norms))
        drawn.append(Curve(f"hidden layers: {hidden}", radii, largest, "line", PALETTE[place]))
        page.at_most(
            f"{hidden} hidden: |H| at R = 4 over R = 0",
            1.5,
            largest[2] / largest[0],
            source="grows slowly, open in the talk",
        )
        page.at_most(
            f"{hidden} hidden: |H| at R = 16 over R = 0", 10, largest[3] / largest[0], source="finite for each R"
        )
    reading = (
        f"Width {m}; the largest of ±∇f and {draws} random directions, from below. The theorem's constant depends on R."
    )
    page.draw(curves("radius", "|H| at a distance R from the start", reading, drawn, x="R", y="|H|"))


if __name__ == "__main__":
    run(build)
