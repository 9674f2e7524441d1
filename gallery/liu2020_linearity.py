"""Linearity of wide networks: Hessians that vanish like 1/√m, and two kinds that do not (Liu, Zhu and Belkin 2020).

Claims of "On the linearity of large non-linear models: when and why the tangent kernel is constant"
(arXiv:2010.01092), sections 3 and 4. With a linear output and wide layers the Hessian H of the output f vanishes with
the width m while the kernel K does not, so that f becomes linear in its weights; with a non-linear output, or a layer
that stays narrow, H does not vanish, however small the learning rate or the change of the weights.

    f = φ(v · a^L / √m),  a^l = σ(W^l a^{l-1} / √m_{l-1}),  W ~ N(0, 1) trained, v of signs, fixed
    Q_∞ = max over layers and units of |df/da|,  Q_2 = max over layers of |df/da|_2
    |T|_{2,2,1} = sup over unit a, b of Σ_k |Σ_ij T_ijk a_i b_j|

The paper's |H| = Õ(1/√m) hides √(log m) from two hidden layers on: Q_∞ is then the largest of m Gaussian entries, so
that slopes over a finite range lie above -1/2 and those of |H| / √(log m) at -1/2. Its table gives a non-linear output
max |df/da| = Õ(1): so it is for the output neuron alone, and what keeps H from vanishing is φ''(f) ∇f ∇fᵀ. For a
bottleneck the bound is of order √m and |H| of order 1, since the signs of v are random. Norms are found by products.

Of the checklist: S4-11 to S4-13, S4-16, S4-18, S4-19 and S4-21 to S4-25.
"""

from __future__ import annotations

import math

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor

from pullback import measure, theory
from pullback.charts.chart import PALETTE
from pullback.modules import WideNetwork

F64 = {"dtype": torch.float64}
ONE_HIDDEN, BENT, NARROW = "one hidden layer", "swish output", "bottleneck of 1"
DEEP = {2: "two hidden layers", 3: "three hidden layers"}
LINEAR = (ONE_HIDDEN, *DEEP.values())
# draws of the small and of the full size: the first hardly differs from draw to draw, the last most
SEEDS = {ONE_HIDDEN: 3, DEEP[2]: 4, DEEP[3]: 3, BENT: 8, NARROW: 16}
FULL_SEEDS = {ONE_HIDDEN: 10, DEEP[2]: 10, DEEP[3]: 10, BENT: 20, NARROW: 30}
LIMIT = "limit of infinite width"
SLOPE = "the paper's table"


def build(page: Page) -> None:
    """Fill the page."""
    warm_up(page)
    few_products(page)
    widths = page.pick(small=[16, 256], full=[64, 512, 4096])
    networks = page.pick(small=SEEDS, full=FULL_SEEDS)
    page.set(seed=0, widths=widths, networks=networks, inputs="one, of mean square 1, in 4 dimensions")
    found = over_widths(widths, networks)
    table(page, found)
    bounds(page, found)
    draw(page, found)
    sweep(page)


def an_input() -> Tensor:
    """One input, (1, 4), of mean square 1."""
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0), **F64)
    return x / x.norm() * 2


def warm_up(page: Page) -> None:
    """One hidden layer on the number 1, where everything has a closed form (section 3.1 of the paper)."""
    x, m = torch.ones(1, 1, **F64), 1024
    model = WideNetwork(1, [m], seed=1, **F64)
    found = measure.linearity(model, x, tol=1e-4)
    t = torch.tanh(model.layers[0].weight.detach())
    largest = float((2 * t * (1 - t * t)).abs().max())
    closed = "closed form"
    hessian = float(found.hessian_norm.value)
    page.row("|H|, m = 1024", largest / math.sqrt(m), hessian, 1e-4, relative=True, source=closed, computed=True)
    beta = theory.smoothness_constants("tanh").beta
    page.at_most("|H| √m over β of tanh", 1, hessian * math.sqrt(m) / beta, source="section 3.1")
    page.row("Q_∞ √m", 1, float(found.q_inf.value) * math.sqrt(m), 1e-12, source="section 3.1")
    page.row("Q_2", 1, float(found.q_2.value), 1e-12, source="section 3.1")
    tensor = float(torch.as_tensor(found.q_221.lower))
    page.row("(2,2,1) norm of d²a/dw²", largest, tensor, 1e-9, source=f"{closed}, x² max |σ''|", computed=True)
    page.row("|H| over what the theorem allows", 1, hessian / float(found.bound), 1e-3, source="here it is an equality")
    seeds = page.pick(small=40, full=100)
    kernels = [float(measure_kernel(WideNetwork(1, [m], seed=s, **F64), x)) for s in range(seeds)]
    values = torch.tensor(kernels, **F64)
    limit = float(theory.wide_network_kernels("tanh", 1, [[1.0]])[1][0, 0])
    page.measured("K(1, 1)", limit, float(values.mean()), float(values.std()) / seeds**0.5, at_most=0.02, source=LIMIT)


def few_products(page: Page) -> None:
    """The norm at width 10,000 from 30 products, beside its closed form."""
    m, x = 10_000, an_input()
    model = WideNetwork(4, [m], seed=1, **F64)
    found = measure.linearity(model, x, max_matvecs=28)
    t = torch.tanh(model.layers[0].weight.detach() @ x[0] / 2)
    exact = float((2 * t * (1 - t * t)).abs().max()) / math.sqrt(m)  # |x|^2 / 4 = 1
    estimate = found.hessian_norm
    page.row(
        f"|H|, m = 10,000, by {estimate.num_matvecs} products", exact, float(estimate.value), 0.01, relative=True,
        source="closed form", computed=True,
    )  # fmt: skip
    page.facts(
        "That norm",
        ("|H|", "residual", "products"),
        [[float(estimate.value), float(estimate.stderr), estimate.num_matvecs]],
    )


def measure_kernel(model: WideNetwork, x: Tensor) -> Tensor:
    """|∇f|² at one input."""
    (gradient,) = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    return gradient.square().sum()


def over_widths(widths: list[int], networks: dict[str, int]) -> dict[str, measure.Linearity]:
    """The kinds of networks, measured."""
    kinds = {
        ONE_HIDDEN: WideNetwork(4, [4], **F64),
        DEEP[2]: WideNetwork(4, [4, 4], dtype=torch.float32),
        DEEP[3]: WideNetwork(4, [4, 4, 4], dtype=torch.float32),
        BENT: WideNetwork(4, [4], output="swish", **F64),
        NARROW: WideNetwork(4, [4, 1, 4], bottleneck=(2, 1), **F64),
    }
    x = an_input()
    found = {}
    for name, model in kinds.items():
        found[name] = measure.linearity(model, x.to(model.readout.weight.dtype), widths, networks[name], tol=1e-2)
    return found


def table(page: Page, found: dict[str, measure.Linearity]) -> None:
    """Exponents of the width, and the overview with its verdicts."""
    slopes = {name: each.slopes for name, each in found.items()}
    exponent = "exponent of m in"
    page.row(f"{ONE_HIDDEN}: {exponent} |H|", -0.5, slopes[ONE_HIDDEN]["hessian_norm"].value, 0.02, source=SLOPE)
    for depth, name in DEEP.items():
        corrected, plain = (slopes[name][key].value for key in ("hessian_norm / sqrt(log m)", "hessian_norm"))
        within = page.pick(small=0.25, full=0.06)
        page.row(f"{name}: {exponent} |H| / √(log m)", -0.5, corrected, within, source="theory, Õ written out")
        ends = found[name].widths
        expected = theory.hessian_slope(depth, ends[0], ends[-1])
        source = "√(2 log m / m) at both ends"
        page.row(f"{name}: {exponent} |H|", expected, plain, within, source=source, computed=True)
    for name in (BENT, NARROW):
        within = page.pick(small=0.2, full=0.1)
        page.row(f"{name}: {exponent} |H|", 0, slopes[name]["hessian_norm"].value, within, source=SLOPE)
    tensor = slopes[NARROW]["tensor_221"]
    error = (tensor.high - tensor.low) / 2 / 1.96  # what Student's distribution adds makes it a little larger
    page.measured(f"{NARROW}: {exponent} the (2,2,1) norm", 1, tensor.value, error, at_most=0.5, source=SLOPE)
    for name in LINEAR:
        page.row(f"{name}: {exponent} |K|", 0, slopes[name]["kernel_norm"].value, 0.1, source="|K| = Θ(1)")
    becomes = {name: int(name in LINEAR) for name in found}
    lines = [line.strip("| ").split(" | ") for line in measure.linearity_table(found).splitlines()]
    for name, cells in zip(found, lines[2:], strict=True):
        verdict = {"yes": 1.0, "no": 0.0}.get(cells[-1], math.nan)
        page.row(f"{name}: becomes linear (1) or not (0)", becomes[name], verdict, 0, source=SLOPE)
    page.facts("The paper's table: exponents of the width, with 95 percent confidence intervals", lines[0], lines[2:])
    shown = {"|H|": "hessian_norm", "Q_∞": "q_inf", "Q_2": "q_2", "Q_{2,2,1}": "q_221", "|K|": "kernel_norm",
             "the theorem's bound": "bound"}  # fmt: skip
    rows = [
        [name, *(str(each[key]) if key in each else "-" for key in shown.values())] for name, each in slopes.items()
    ]
    page.facts("Exponents of the width in the theorem's quantities", ("exponent of m in", *shown), rows)


def bounds(page: Page, found: dict[str, measure.Linearity]) -> None:
    """The main theorem beside what it bounds."""
    for name, each in found.items():
        share = (each.hessian_norm.value / each.bound).flatten()
        page.at_most(f"{name}: |H| over the theorem's bound, largest", 1, float(share.max()), source="main theorem")
        if name in (ONE_HIDDEN, DEEP[2]):
            spread = float(share.max() / share.min())
            page.row(f"{name}: that share, largest over smallest", 1, spread, 0.3, source="same order in m")


def draw(page: Page, found: dict[str, measure.Linearity]) -> None:
    """Hessian norms, signals and tensors against the width."""
    for key, title, y, reading, get in (
        ("hessian", "Spectral norm of the Hessian", "|H|",
         "Straight lines are powers of the width: with wide layers and a linear output they fall, the others stay.",
         lambda one: one.hessian_norm),
        ("kernel", "Norm of the tangent kernel", "|K|", "It stays in every kind: what vanishes is its change.",
         lambda one: one.kernel_norm),
        ("signals", "Largest derivative in an activation, output neurons included", "max |df/da|",
         "In hidden layers alone it falls in every kind but the bottleneck's own.", lambda one: one.q_inf),
    ):  # fmt: skip
        drawn = []
        for place, (name, each) in enumerate(found.items()):
            estimate = get(each)
            value, stderr = (torch.as_tensor(v).flatten().tolist() for v in (estimate.value, estimate.stderr))
            drawn.append(Curve(name, each.widths, value, "line", PALETTE[place], stderr))
        page.draw(curves(key, title, reading, drawn, x="width m", y=y, log_x=True, log_y=True))


def sweep(page: Page) -> None:
    """|H| against the width of a bottleneck between two wide layers (section 4.2)."""
    narrow, seeds = page.pick(small=([1, 8, 64], 4), full=([1, 2, 4, 8, 16, 32, 64], 8))
    between = page.pick(small=256, full=512)
    page.set(bottleneck_of=narrow, between=between, bottleneck_networks=seeds)
    x, values = an_input(), []
    for width in narrow:
        drawn = [WideNetwork(4, [between, width, between], seed=s, **F64) for s in range(seeds)]
        values.append([float(measure.linearity(model, x, tol=1e-2).hessian_norm.value) for model in drawn])
    found = torch.tensor(values, **F64)
    means = found.mean(1)
    said = "section 4.2, wider is more linear"
    page.at_most("|H|, bottleneck of 64 over 1", 0.5, float(means[-1] / means[0]), source=said)
    slope = measure.Slope.of(torch.tensor(narrow), found)
    page.at_most("exponent of the bottleneck's width in |H|, upper end of its interval", 0, slope.high, source=said)
    drawn = [Curve("networks", narrow, means.tolist(), "line", stderr=(found.std(1) / seeds**0.5).tolist())]
    reading = f"Between two layers of {between}: the wider the bottleneck, the smaller the Hessian."
    page.draw(
        curves("bottleneck", "|H| against the width of a bottleneck", reading, drawn, x="width of the bottleneck",
               y="|H|", log_x=True, log_y=True)
    )  # fmt: skip


if __name__ == "__main__":
    run(build)
