"""Singular values of deep networks' Jacobians (Pennington, Schoenholz and Ganguli 2017).

Claims of "Resurrecting the sigmoid in deep learning through dynamical isometry" (arXiv:1711.04735, section 2)
and of "The emergence of spectral universality in deep networks" (2018, arXiv:1802.09979). On the critical line the
mean squared singular value is 1 at every depth, but the spread grows: by one unit of variance a layer and more with
Gaussian weights. Orthogonal weights take that unit away. ReLU keeps another one at its only critical point, so that
no ReLU network is isometric; hard tanh and tanh lose theirs as lengths q* become small. What that does to learning
is the matter of page ``pennington2017_learning``.

    J = D_L W_L … D_1 W_1,  D_l = diag φ'(h_l);  s: its singular values
    E s² = (σ² μ_1)^L,  Var s² / (E s²)² = L (μ_2 / μ_1² - 1 - s_1),  μ_k = E φ'(√q* z)^{2k},  s_1 = -1 Gaussian, 0
    orthogonal

Lines are theory at infinite width, points are real networks: means over draws of the weights with standard errors.
A number of the table that is measured "at infinite width" comes from networks of two widths, as 2 r(2N) - r(N), which
removes a correction of order 1/N. The law of tanh has no polynomial; with m = E φ'² / (w - φ'²) it is, for orthogonal
weights, s² = (1 + m)/m (σ² m w / (1 + m))^L, with Gaussian ones s² = (1 + m)/m (σ² m w)^L, solved for w by Newton's
method just above the real axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from scipy.integrate import cumulative_trapezoid
from torch import Tensor

from pullback import measure, theory
from pullback.charts.chart import PALETTE

DEPTH = 8
BIASES = {"linear": 0.0, "relu": 0.0, "hard_tanh": 0.3, "tanh": 0.3}  # σ_b; σ_w is the critical one
INITS = ("gaussian", "orthogonal")
ROUNDING = 1e-9  # where theory says exactly 0 or 1, and networks differ by nothing else
EMPTY = 2e-3  # density that is only the tilt's
LEVEL = 2.0  # of s²: the share above it is compared
LABEL = {"linear": "linear", "relu": "ReLU", "hard_tanh": "hard tanh", "tanh": "tanh", "erf": "erf"}
FORMULA, INFINITE = "L (μ_2 / μ_1² - 1 - s_1)", "theory; measured at infinite width, 3 standard errors"
PRINTED = {  # Var s² / (E s²)² of 8 layers
    ("linear", "gaussian"): 8.0, ("linear", "orthogonal"): 0.0, ("relu", "gaussian"): 16.0, ("relu", "orthogonal"): 8.0,
    ("hard_tanh", "gaussian"): 9.966, ("hard_tanh", "orthogonal"): 1.966,
    ("tanh", "gaussian"): 11.643, ("tanh", "orthogonal"): 3.643,
}  # fmt: skip


def build(page: Page) -> None:
    """Fill the page."""
    width, seeds = page.pick(small=(64, 24), full=(128, 64))
    page.set(seed=0, layers=DEPTH, widths=f"{width} and {2 * width}", networks=seeds)
    spectra(page, width, seeds)
    edges(page)
    spreads(page, width, seeds)


def critical(activation: str, sigma_b: float) -> theory.MeanField:
    """The network on the critical line with these biases."""
    return theory.MeanField(activation, theory.critical_sigma_w(activation, sigma_b), sigma_b)


@dataclass(frozen=True)
class Measured:
    """Squared singular values of ``DEPTH`` layers in real networks of two widths, (S, N) and (S, 2N)."""

    narrow: Tensor
    wide: Tensor

    @classmethod
    def of(cls, net: theory.MeanField, weights: str, width: int, seeds: int) -> Measured:
        """Of networks drawn anew, on inputs of the length that layers keep."""
        shape = {"depth": DEPTH, "weights": weights}
        specs = (
            measure.NetworkSpec(net.phi.name, net.sigma_w, net.sigma_b, width=w, **shape) for w in (width, 2 * width)
        )
        return cls(*(measure.jacobian_spectrum(spec, seeds=seeds).squares for spec in specs))

    def limit(self, statistic: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """A number of each network, (S,) from (S, N): its mean extrapolated to infinite width, and its error."""
        small, large = (measure.Profile.over_seeds(statistic(s)[:, None]) for s in (self.narrow, self.wide))
        return float(2 * large.value - small.value), float((4 * large.stderr**2 + small.stderr**2).sqrt())

    def histogram(self, ends: Tensor) -> measure.Profile:
        """Density of the singular values s in ln s between these ends, of the wider networks."""
        counts = torch.stack([torch.histogram(s.sqrt().log(), ends.log()).hist for s in self.wide])
        return measure.Profile.over_seeds(counts / self.wide.shape[1] / ends.log().diff())


def relative_variance(squares: Tensor) -> Tensor:
    """Var s² / (E s²)² of every network."""
    return squares.var(1, correction=0) / squares.mean(1) ** 2


def share_above(squares: Tensor) -> Tensor:
    """Share of s² above ``LEVEL`` in every network."""
    return (squares > LEVEL).double().mean(1)


@dataclass(frozen=True)
class Law:
    """Distribution of s² at infinite width: d mass / d ln s² at some s², and point masses."""

    squares: np.ndarray
    density: np.ndarray
    edge: float  # the largest s²
    top: float = 0.0  # mass at the edge itself

    def share_above(self, level: float) -> float:
        """Mass beyond a level, by the trapezoid rule."""
        atom = self.top * (self.edge > level)
        if not len(self.squares):
            return float(atom)
        logs = np.log(self.squares)
        below = cumulative_trapezoid(self.density, logs, initial=0.0)
        return float(below[-1] - np.interp(math.log(level), logs, below) + atom)


def law(net: theory.MeanField, weights: str) -> Law:
    """Of ``DEPTH`` layers."""
    if net.phi.smooth and not net.phi.homogeneous:
        return smooth_law(net, weights)
    found = theory.jacobian_density(net, DEPTH, weights)
    return Law(found.squares, found.density * found.squares, found.edge, found.top)


def smooth_law(net: theory.MeanField, weights: str, tilt: float = 0.005) -> Law:
    """Of an activation whose slopes are spread out: w followed from large s² inwards, at s² e^{i tilt}."""
    z = (np.arange(16000) + 0.5) / 1600 - 5  # z, by the midpoint rule
    mass = np.exp(-(z**2) / 2)
    mass /= mass.sum()
    slopes = net.phi.slope(math.sqrt(net.q_star) * z) ** 2
    squares = np.geomspace(1e3, 1e-6, 600)
    w, density = slopes @ mass * squares[0] + 0j, np.empty(len(squares))
    for place, square in enumerate(squares):
        target = square * np.exp(1j * tilt)
        for _ in range(50):
            m, slope_m = mass @ (slopes / (w - slopes)), -mass @ (slopes / (w - slopes) ** 2)
            power, slope_power = net.sigma_w**2 * m * w, slope_m / m + 1 / w
            if weights == "orthogonal":
                power, slope_power = power / (1 + m), slope_power - slope_m / (1 + m)
            miss = np.log((1 + m) / m * power**DEPTH / target)
            step = miss / (slope_m / (1 + m) - slope_m / m + DEPTH * slope_power)
            w -= step
            if abs(step) < 1e-12 * abs(w):
                break
        density[place] = -m.imag / math.pi
    return Law(squares[::-1], density[::-1], float(squares[density > EMPTY].max()))


def spectra(page: Page, width: int, seeds: int) -> None:
    """Table and densities of four activations, with both kinds of weights."""
    means = []
    for activation, sigma_b in BIASES.items():
        net, drawn, summary = critical(activation, sigma_b), [], []
        for weights, colour in zip(INITS, PALETTE, strict=False):
            found, expected = Measured.of(net, weights, width, seeds), law(net, weights)
            name = f"{LABEL[activation]}, {weights}"
            variance, error = found.limit(relative_variance)
            predicted = net.jacobian_moments(DEPTH, weights).relative_variance
            page.row(f"{name}: Var s² / (E s²)², theory", PRINTED[activation, weights], predicted, 6e-4, source=FORMULA)
            page.measured(
                f"{name}: the same, measured", predicted, variance, error,
                at_most=page.pick(small=4.5, full=1.5), relative=False, floor=ROUNDING, source=INFINITE,
            )  # fmt: skip
            share, error = found.limit(share_above)
            above = f"{name}: share of s² above {LEVEL:g}"
            page.measured(
                above, expected.share_above(LEVEL), share, error,
                at_most=page.pick(small=0.07, full=0.025), relative=False, floor=ROUNDING, source=INFINITE,
            )  # fmt: skip
            mean, error = found.limit(lambda s: s.mean(1))
            means.append(abs(mean - 1) / max(error, ROUNDING))
            drawn += densities(expected, found, weights, colour)
            largest = float(found.wide.max(1).values.mean())
            summary.append(
                f"{weights}: Var s² / (E s²)² {variance:.3g}, largest s² {largest:.3g} at width {2 * width}."
            )
        draw_densities(page, activation, drawn, summary)
    page.at_most("mean s² of all eight: farthest from 1, in standard errors", 4, max(means), source="critical line")


def densities(expected: Law, found: Measured, weights: str, colour: str) -> list[Curve]:
    """Line and points of one kind of weights, against s; densities in ln s, of which there is 2 s² ρ(s²)."""
    seen = (expected.squares > 1e-4) & (expected.squares < 1.01 * expected.edge)
    if not seen.any():  # all of the mass in one place
        ends = [float(found.wide.min()) ** 0.5, float(found.wide.max()) ** 0.5]
        return [Curve(f"{weights}: all of them, measured", ends, [0.0, 0.2], "plain", colour)]
    histogram = found.histogram(torch.logspace(-2.05, 1.05, 32, dtype=torch.float64))
    filled = histogram.value > 0
    middle = torch.logspace(-2, 1, 31, dtype=torch.float64)
    x, y, stderr = (each[filled].tolist() for each in (middle, histogram.value, histogram.stderr))
    points = Curve(f"{weights}, measured", x, y, "points", colour, stderr, legend=False)
    return [Curve(weights, np.sqrt(expected.squares[seen]), 2 * expected.density[seen], "plain", colour), points]


def draw_densities(page: Page, activation: str, drawn: list[Curve], summary: list[str]) -> None:
    """One figure."""
    reading = (
        "Share of the singular values per unit of ln s, theory as a line, real networks as points; the wider the hump, "
        "the more unequally directions are treated. Values at 0, which units without a slope make, are not drawn."
    )
    title = f"Singular values of {DEPTH} layers, {LABEL[activation]}"
    axes = {"x": "singular value s", "y": "density in ln s", "log_x": True}
    page.draw(curves(f"density-{activation}", title, reading, drawn, summary=summary, **axes))


def edges(page: Page) -> None:
    """The largest singular value, and the paper's critical tanh networks."""
    L, printed = DEPTH, "closed form of the paper"
    linear = theory.jacobian_density(critical("linear", 0.0), L)
    page.row(
        "linear, Gaussian: largest s²", (L + 1) ** (L + 1) / L**L, linear.edge, 1e-6, relative=True, source=printed
    )
    for activation, sigma_b in (("relu", 0.0), ("hard_tanh", BIASES["hard_tanh"])):
        net = critical(activation, sigma_b)
        p = 1 / (net.jacobian_moments(1, "orthogonal").relative_variance + 1)  # share of units with a slope
        expected, found = (1 - p) / p * L**L / (L - 1) ** (L - 1), theory.jacobian_density(net, L, "orthogonal").edge
        page.row(f"{LABEL[activation]}, orthogonal: largest s²", expected, found, 1e-6, relative=True, source=printed)
    for square, bias in ((1.05, 2.01e-5), (2.0, 0.104)):
        found = theory.critical_sigma_w("tanh", math.sqrt(bias)) ** 2
        page.row(f"tanh: critical σ² for σ_b² = {bias:g}", square, found, 1e-3, source="the paper's networks")


def spreads(page: Page, width: int, seeds: int) -> None:
    """Variance a layer along the critical line."""
    for weights, expected in zip(INITS, (2.0, 1.0), strict=True):
        net = critical("relu", 0.0)
        page.row(
            f"ReLU, {weights}: variance a layer", expected, net.jacobian_moments(1, weights).relative_variance, 1e-12
        )
    biases, drawn = np.geomspace(1e-3, 1.0, 41), []
    for activation, colour in zip(("hard_tanh", "tanh", "erf"), PALETTE, strict=False):
        nets = [critical(activation, bias) for bias in biases]
        lengths = [net.q_star for net in nets]
        for weights, style in zip(INITS, ("dash", "plain"), strict=True):
            spread = [net.jacobian_moments(1, weights).relative_variance for net in nets]
            drawn.append(Curve(f"{LABEL[activation]}, {weights}", lengths, spread, style, colour))
    for weights, style, height in (("gaussian", "dash", 2.0), ("orthogonal", "plain", 1.0)):
        drawn.append(Curve(f"ReLU, {weights}", np.geomspace(0.01, 3, 41), [height] * 41, style, PALETTE[3]))
    net = critical("hard_tanh", 0.05)
    for weights, expected in zip(INITS, (1.01779, 0.01779), strict=True):
        found = net.jacobian_moments(1, weights).relative_variance
        page.row(f"hard tanh, {weights}: variance a layer, σ_b = 0.05", expected, found, 5e-6, source="1/p - 1 - s_1")
        value, error = Measured.of(net, weights, width, seeds).limit(relative_variance)
        page.measured(
            f"hard tanh, {weights}: the same, measured", found, value / DEPTH, error / DEPTH,
            at_most=page.pick(small=0.2, full=0.05), relative=False, source=INFINITE,
        )  # fmt: skip
        drawn.append(
            Curve(
                f"hard tanh, {weights}, measured",
                [net.q_star],
                [value / DEPTH],
                "points",
                PALETTE[0],
                [error / DEPTH],
                legend=False,
            )
        )
    small = critical("hard_tanh", 1e-3)
    for weights, limit in zip(INITS, (1.0, 0.0), strict=True):
        found = small.jacobian_moments(1, weights).relative_variance
        page.row(f"hard tanh, {weights}: variance a layer as q* → 0", limit, found, 1e-3, source="σ_b = 0.001")
    reading = (
        "What a layer adds to the spread: orthogonal weights leave what the activation makes, Gaussian ones add 1. "
        "Towards small q* hard tanh, tanh and erf are linear for all units, and isometric with orthogonal weights; the "
        "two points are measured."
    )
    page.draw(
        curves(
            "spread",
            "Spread a layer along the critical line",
            reading,
            drawn,
            x="length q*",
            y="Var s² / (E s²)² a layer",
            log_x=True,
        )
    )


if __name__ == "__main__":
    run(build)
