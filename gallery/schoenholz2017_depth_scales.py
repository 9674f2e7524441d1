"""Over how many layers signals and gradients are forgotten (Schoenholz et al. 2017, figures 1, 2 and 4).

"Deep information propagation", arXiv:1611.01232. Claims: in a wide random network the length q of a signal and the
correlation c of two signals settle exponentially (figure 1), over ξ_q and ξ_c layers; ξ_q stays small, ξ_c diverges
where order turns into chaos, at σ_w² = 1.76 for σ_b² = 0.05 (figure 2); gradients shrink or grow exponentially with
ξ_grad, which diverges at the same place (figure 4). At that place correlations settle like 1 / layer.

    |q - q*| ~ exp(-l / ξ_q),   1 / ξ_q = -log V'(q*)
    |c - c*| ~ exp(-l / ξ_c),   1 / ξ_c = -log(σ_w² E φ'(u) φ'(u'))  at c*
    E(dE/dh^l)² ~ exp(-(L - l) / ξ_grad),   1 / ξ_grad = -log χ_1

Closed forms are lines; they are checked twice. The maps of the infinitely wide network are iterated, and a straight
line is fitted to the logarithm of what remains in late layers. And tanh networks are drawn: each is shown signals whose
q, or whose c, lie on both sides of the fixed point, and the difference is followed while it is above the noise of a
finite width. A rate 1 / ξ is the slope of the logarithm of the mean over networks, its standard error a jackknife over
networks. For ξ_c one also reads -1 / log χ_1, which is right in the ordered phase alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from kit.charts import Curve, beside, curves
from kit.page import Page
from kit.run import run
from scipy.special import ndtr, stdtrit
from torch import Tensor

from pullback import measure, theory
from pullback.charts.chart import PALETTE, Chart

PHI, SIGMA_B2 = "tanh", 0.05
CRITICAL = theory.critical_sigma_w(PHI, math.sqrt(SIGMA_B2)) ** 2
SPREAD = 1.5  # lengths start this factor above and below q*
INPUTS, DIRECTIONS = 8, 1_000_000  # inputs of a network; seed of their directions, far from those of weights
Q_END, C_END = 0.05, 0.2  # of the starting difference, to which measured differences are followed
LONGEST, TOP = 30, 300  # layers: networks with a larger ξ_c are not drawn, longer scales not shown
CHANGES = {
    "q": "two lengths approach each other",
    "c": "two correlations approach each other",
    "grad": "mean squared gradients change",
}


@dataclass(frozen=True)
class Rate:
    """1 / ξ as measured, with its standard error, and by its closed form."""

    value: float
    stderr: float
    known: float

    @property
    def holds(self) -> bool:
        """Within three standard errors."""
        return abs(self.value - self.known) <= 3 * self.stderr

    @property
    def scale(self) -> tuple[float, float]:
        """|ξ| and its standard error, to first order."""
        return 1 / abs(self.value), self.stderr / self.value**2


def build(page: Page) -> None:
    """Fill the page."""
    width, seeds = page.pick(small=(300, 16), full=(400, 20))
    page.set(seed=0, activation=PHI, width=width, networks=seeds, sigma_b2=SIGMA_B2)
    closed_forms(page)
    iterates(page)
    scales(page, width, seeds)
    backwards(page, width, seeds)


def net_of(variance: float, bias: float = SIGMA_B2) -> theory.MeanField:
    """The infinitely wide network with these variances of weights (times fan-in) and biases."""
    return theory.MeanField(PHI, math.sqrt(variance), math.sqrt(bias))


def fit(values: Tensor) -> float:
    """Slope of the least-squares line through log values (L,)."""
    layers = torch.arange(len(values), dtype=torch.float64)
    layers = layers - layers.mean()
    return float(layers @ values.double().log() / (layers @ layers))


def fit_networks(samples: Tensor) -> tuple[float, float]:
    """Slope of the log of the mean over networks (S, L), and its standard error by leaving out one at a time."""
    count = len(samples)
    without = torch.tensor([fit((samples.sum(0) - one) / (count - 1)) for one in samples], dtype=torch.float64)
    return fit(samples.mean(0)), float(without.std(correction=0)) * math.sqrt(count - 1) * student(count - 1)


def student(freedom: int) -> float:
    """How much wider Student's distribution is than the normal one at three standard errors."""
    return float(stdtrit(freedom, ndtr(3.0))) / 3


def closed_forms(page: Page) -> None:
    """Where the scales diverge, and where not."""
    page.row("critical σ_w² at σ_b² = 0.05", 1.76, CRITICAL, 0.005, source="figure 5: the peak")
    at = net_of(CRITICAL)
    page.at_most("ξ_q where ξ_c diverges", 3, at.xi_q, source="figure 2: ξ_q stays small")
    for side, factor in (("below", 0.998), ("above", 1.002)):
        near = net_of(CRITICAL * factor)
        page.row(f"ξ_c |χ_1 - 1| 0.2 percent {side} it", 1, near.xi_c * abs(near.chi - 1), 0.01, source="ξ_c diverges")
    ratio = min(net.xi_c / net.xi_q for net in map(net_of, (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)))
    page.at_least("smallest ξ_c / ξ_q, σ_w² from 1 to 4", 1, ratio, source="figure 2: correlations reach further")
    c, gaps = 0.5, []
    for _ in range(600):
        c = at.c_map(c)
        gaps.append(1 - c)
    exponent = math.log(gaps[599] / gaps[299]) / math.log(2)
    page.row("exponent of 1 - c in the layer, at the critical point", -1, exponent, 0.02, source="layers 300 to 600")


def iterates(page: Page) -> None:
    """Scales fitted to late iterates of the exact maps, and figure 1."""
    errors = {"ξ_q": 0.0, "ξ_c": 0.0}
    for bias in (0.01, 0.05, 0.1, 0.3):
        for variance in (1.0, 1.3, 1.6, 2.2, 2.8, 4.0):
            net = net_of(variance, bias)
            for name, found, known in zip(errors, fitted(net), (net.xi_q, net.xi_c), strict=True):
                errors[name] = max(errors[name], abs(found / known - 1))
    for name, error in errors.items():
        page.at_most(f"{name} fitted to iterates, off its closed form by (24 networks)", 0.01, error, source="relative")
    for sigma_w, name, known in ((1.3, "ξ_q", 1.337668), (0.9, "ξ_c", 1.959989), (2.0, "ξ_c", 6.648264)):
        found = fitted(net_of(sigma_w**2, 0.09))[name == "ξ_c"]
        page.row(f"{name} fitted to iterates at (σ_w, σ_b) = ({sigma_w}, 0.3)", known, found, 1e-3, relative=True)
    for sigma_w, known in ((1.3, 16.108), (2.5, -2.170486)):
        found = net_of(sigma_w**2, 0.09).xi_grad
        page.row(f"ξ_grad at (σ_w, σ_b) = ({sigma_w}, 0.3)", known, found, 1e-4, relative=True, source="-1 / log χ_1")


def fitted(net: theory.MeanField) -> tuple[float, float]:
    """(ξ_q, ξ_c) from iterates: lines through six late layers of log |q - q*| and log |c - c*|."""
    scales = []
    for step, start, end in (
        (net.q_map, 1.1 * net.q_star, net.q_star),
        (net.c_map, net.c_star - 0.05, net.c_star),
    ):
        value, gaps = start, [abs(start - end)]
        while gaps[-1] > 1e-5 * gaps[0]:
            value = step(value)
            gaps.append(abs(value - end))
        scales.append(-1 / fit(torch.tensor(gaps[-6:])))
    return scales[0], scales[1]


@dataclass(frozen=True)
class Cell:
    """One (σ_w², σ_b²): the three rates as measured, and the differences that were followed.

    Attributes:
        variance: of the weights, times fan-in.
        bias: variance of the biases.
        rates: of q, c and gradients.
        gaps: differences of q and of c by layer, over their first: mean, standard error, and the exact maps', (K,).
    """

    variance: float
    bias: float
    rates: dict[str, Rate]
    gaps: dict[str, tuple[Tensor, Tensor, Tensor]]


def signals(net: theory.MeanField, q0: float, c0: float, depth: int, width: int, seeds: int) -> Tensor:
    """q, c and mean squared gradients of ``seeds`` networks by layer, (S, 3, L).

    Every network is shown INPUTS inputs of mean square q0, each two of correlation c0, in directions of its own.
    """
    spec = measure.NetworkSpec(PHI, net.sigma_w, net.sigma_b, depth=depth, width=width)
    gram = (1 - c0) * torch.eye(INPUTS, dtype=torch.float64) + c0
    root = math.sqrt(width * q0) * torch.linalg.cholesky(gram)
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(DIRECTIONS + seed)
        drawn = torch.randn(width, INPUTS, generator=generator, dtype=torch.float64)
        p = measure.signal_propagation(spec, root @ torch.linalg.qr(drawn).Q.T, seeds=1, seed=seed)
        found.append(torch.stack([p.q.value, p.c.value, p.gradients.value]))
    return torch.stack(found)


def iterate(step: Callable[[float], float], low: float, high: float, end: float) -> Tensor:
    """Differences of two iterates, over the first one, until they are below ``end``."""
    gaps, first = [1.0], high - low
    while gaps[-1] >= end:
        low, high = step(low), step(high)
        gaps.append((high - low) / first)
    return torch.tensor(gaps[:-1], dtype=torch.float64)


def measured(variance: float, bias: float, width: int, seeds: int) -> Cell:
    """The rates of one kind of network."""
    net = net_of(variance, bias)
    reach = 0.02 + 0.25 * (1 - net.c_star)
    below, above = net.c_star - reach, min(1.0, net.c_star + reach)
    expected = {
        "q": iterate(net.q_map, net.q_star / SPREAD, net.q_star * SPREAD, Q_END),
        "c": iterate(lambda c: min(1.0, net.c_map(c)), below, above, C_END),  # C(1) = 1, rounded
    }

    def drawn(q1: float, c1: float, layers: Tensor) -> Tensor:  # from q1 and c1 in the first layer
        q0, c0 = (q1 - bias) / variance, (c1 * q1 - bias) / (q1 - bias)
        return signals(net, q0, c0, len(layers), width, seeds)

    at = drawn(net.q_star, below, expected["c"])
    other = drawn(net.q_star, above, expected["c"])[:, 1] if above < 1 else 1.0  # equal inputs stay equal
    longer, shorter = (drawn(q1, bias / q1, expected["q"])[:, 0] for q1 in (net.q_star * SPREAD, net.q_star / SPREAD))
    samples = {"q": longer - shorter, "c": other - at[:, 1]}
    rates, gaps = {}, {}
    for name, values in (samples | {"grad": at[:, 2]}).items():
        slope, stderr = fit_networks(values)  # of gradients from the first layer on, against their way
        rates[name] = Rate(slope if name == "grad" else -slope, stderr, 1 / getattr(net, f"xi_{name}"))
    for name, values in samples.items():
        profile = measure.Profile.over_seeds(values / values[:, 0].mean())
        gaps[name] = (profile.value, profile.stderr, expected[name])
    return Cell(variance, bias, rates, gaps)


def scales(page: Page, width: int, seeds: int) -> None:
    """Figures 1 and 2, and the second half of figure 4: rates of drawn networks beside the closed forms."""
    variances = page.pick(small=(1.0, 1.4, 2.5, 4.0), full=(1.0, 1.2, 1.5, 2.1, 2.5, 3.0, 4.0))
    biases = page.pick(small=(0.05,), full=(0.05, 0.1, 0.3))
    cells = [measured(v, b, width, seeds) for b in biases for v in variances if net_of(v, b).xi_c <= LONGEST]
    for name in CHANGES:
        rates = [cell.rates[name] for cell in cells]
        quantity = f"1 / ξ_{name} within 3 standard errors, share of {len(cells)} kinds of networks"
        page.at_least(quantity, 0.95, sum(rate.holds for rate in rates) / len(rates), source="closed form")
        error = sorted(rate.stderr / abs(rate.known) for rate in rates)[len(rates) // 2]
        page.at_most(f"median standard error of 1 / ξ_{name}, relative", 0.1, error, source="so that agreement counts")
    right = sum((cell.rates["grad"].value < 0) == (net_of(cell.variance, cell.bias).chi > 1) for cell in cells)
    page.row("gradients grow in chaos and shrink in order", len(cells), right, 0, source="figure 4")
    for name, figure in (("q", "1 b"), ("c", "1 c")):
        page.draw(residuals(name, figure, [cell for cell in cells if cell.bias == SIGMA_B2]))
    for name, figure in (("q", "2 a"), ("c", "2 b"), ("grad", "4 b")):
        page.draw(against_theory(name, figure, biases, cells))
    header = ["σ_w²", "σ_b²", *(f"1 / ξ_{name}{part}" for name in CHANGES for part in ("", ", here", ", error"))]
    rows = [[c.variance, c.bias, *(v for r in c.rates.values() for v in (r.known, r.value, r.stderr))] for c in cells]
    page.facts("Rates per layer, by closed form and in networks", header, rows)


def residuals(name: str, figure: str, cells: Sequence[Cell]) -> Chart:
    """What is left of a difference, by layer: lines by the exact maps, points in drawn networks."""
    drawn: list[Curve] = []
    for colour, cell in zip(PALETTE, cells[:: -(-len(cells) // 4)], strict=False):  # four at most
        value, stderr, known = cell.gaps[name]
        layers = torch.arange(1, len(known) + 1)
        x, y, error = (part[value > 2 * stderr].tolist() for part in (layers, value, stderr))
        title = f"σ_w² = {cell.variance:g}"
        drawn.append(Curve(title, layers.tolist(), known.tolist(), "plain", colour))
        drawn.append(Curve(f"{title}, networks", x, y, "points", colour, error, legend=False))
    what = "two lengths" if name == "q" else "two correlations"
    return curves(
        f"residual-{name}",
        f"How {what} on either side of {name}* approach each other (figure {figure})",
        f"The difference of {what} over the first layer's, at σ_b² = {SIGMA_B2:g}; exponentials are straight. Lines "
        "are the exact maps, points means over networks, where they are two standard errors above zero.",
        drawn,
        x="layer",
        y=f"difference of {name} over the first",
        log_y=True,
    )


def against_theory(name: str, figure: str, biases: Sequence[float], cells: Sequence[Cell]) -> Chart:
    """A depth scale over σ_w²: lines by the closed form, points in drawn networks."""
    drawn: list[Curve] = []
    grid = [1 + 0.02 * k for k in range(151)]
    for colour, bias in zip(PALETTE, biases, strict=False):
        known = [abs(getattr(net_of(variance, bias), f"xi_{name}")) for variance in grid]
        there = [cell for cell in cells if cell.bias == bias]
        y, error = zip(*(cell.rates[name].scale for cell in there), strict=True)
        x, title = [cell.variance for cell in there], f"σ_b² = {bias:g}"
        drawn.append(Curve(title, grid, [v if v < TOP else math.nan for v in known], "plain", colour))
        drawn.append(Curve(f"{title}, networks", x, y, "points", colour, error, legend=False))
    peak = "" if name == "q" else " It diverges where order, on the left, turns into chaos."
    return curves(
        f"scale-{name}",
        f"ξ_{name} over the variance of the weights (figure {figure})",
        f"Layers over which {CHANGES[name]} by a factor e.{peak} Lines are closed forms, points networks with standard "
        "errors.",
        drawn,
        x="σ_w²",
        y=f"{'|ξ_grad|' if name == 'grad' else 'ξ_' + name} (layers)",
        log_y=name != "q",
    )


def backwards(page: Page, width: int, seeds: int) -> None:
    """The first half of figure 4: gradients by layer."""
    depth, good, total = page.pick(small=30, full=50), 0, 0
    drawn: list[Curve] = []
    layers = list(range(1, depth + 1))
    for colour, variance in zip(PALETTE, (1.0, 1.4, CRITICAL, 2.5, 4.0), strict=False):
        net = net_of(variance)
        spec = measure.NetworkSpec(PHI, net.sigma_w, net.sigma_b, depth=depth, width=width)
        q0 = (net.q_star - SIGMA_B2) / variance
        found = measure.signal_propagation(spec, q0=q0, seeds=seeds, seed=10_000).gradients
        known = torch.tensor([net.chi ** (depth - layer) for layer in layers], dtype=torch.float64)
        good += int(((found.value - known).abs() <= 3 * found.stderr)[:-1].sum())
        total += depth - 1
        here = found.value.tolist(), found.stderr.tolist()
        drawn += beside(f"σ_w² = {variance:.3g}", layers, known.tolist(), *here, colour)
    source = "closed form χ_1^(L - l); layers of one network vary together"
    page.at_least(f"gradients within 3 standard errors, share of {total} layers", 0.95, good / total, source=source)
    page.draw(
        curves(
            "gradients",
            "Gradients by layer (figure 4 a)",
            "Mean square of the gradient with respect to a layer's pre-activations, over the last layer's, at "
            f"σ_b² = {SIGMA_B2:g}. Lines are χ_1 to the power of the layers in between, points networks.",
            drawn,
            x="layer",
            y="mean square over the last",
            log_y=True,
        )
    )


if __name__ == "__main__":
    run(build)
