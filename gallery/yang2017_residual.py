"""Residual networks: powers of depth where plain networks have exponentials (Yang and Schoenholz 2017).

Claims of "Mean field residual networks: on the edge of chaos" (arXiv:1712.08969), its theorems on tanh and ReLU. In a
plain network correlations of inputs approach their limit, and gradients vanish or explode, exponentially in depth.
With a skip around every layer a bounded activation has lengths that grow linearly, correlations that fall as a power
of depth and gradients that grow as exp(A √l); with ReLU lengths and gradients stay exponential, but correlations
approach 1 only as 1/l², and the gradients of all weight matrices are of one size. Tanh networks explode by how large
σ √depth is, so that the best σ depends on depth.

    plain:  h ← W φ(h) + b      residual:  x ← x + W φ(x) + b      W ~ N(0, σ²/N), b ~ N(0, σ_b²)
    length q: mean square of a unit;  correlation c: of two inputs;  gradient g_l: mean square of dE/dx_l over that of
    dE/dx_L

The paper's block x + V φ(Wx) is the one above, since Wx is as Gaussian as x. Lines are theory at infinite width
(``theory.residual_profile``, ``theory.signal_profile``), points are real networks: means over draws of the weights with
standard errors. Where a law of tanh holds for large l only, its exponent is taken at two depths l and 4l and
extrapolated, 2 e(4l) - e(l), which removes a correction of order 1/√l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor

from pullback import measure, theory
from pullback.charts.chart import PALETTE
from pullback.modules import activation_module

START = 0.5  # correlation of the two inputs
ROUNDING = 1e-12  # of a correlation that is 1
CLOSED, INFINITE = "closed form for large l", "theory at infinite width, within 3 standard errors"
LABELS = {"length": "length q", "correlation": "correlation c", "gradient": "gradient g over the last layer's"}
LABEL = {"tanh": "tanh", "relu": "ReLU"}
FACTOR = "(1 + σ²/2) a block"
READINGS = {  # how to read the figure of each quantity, by activation
    "tanh length": "Plain networks settle at a length; residual ones add about σ² + σ_b² a block: straight lines.",
    "tanh correlation": "Plain networks reach their limit, 0 or 1, exponentially, and forget how alike inputs were; "
    "residual ones remember far longer.",
    "tanh gradient": "From 1 at the last layer back to the first: straight lines are exponential, in plain networks up "
    "or down; residual ones rise ever less, as exp(A √l) does.",
    "relu length": "Residual blocks multiply lengths by 1 + σ²/2; the plain network is at its critical point.",
    "relu correlation": "Both approach 1 as 1/l², a straight line of slope -2 far out; the smaller σ, the later.",
    "relu gradient": "Gradients grow on the way back by the factor that lengths grow by on the way forward.",
}

Predicted = dict[str, Sequence[float]]  # by layer, from x_0 in residual networks and from h_1 in plain ones
Measured = dict[str, measure.Profile]


@dataclass(frozen=True)
class Network:
    """An activation with its weights, plain or with skips, drawn in one colour."""

    activation: str
    sigma_w: float
    sigma_b: float
    skip: bool
    colour: str

    @property
    def name(self) -> str:
        """As in the legends."""
        return f"{'residual' if self.skip else 'plain'}, σ = {self.sigma_w:.3g}"

    def predicted(self, depth: int) -> Predicted:
        """By mean field."""
        if self.skip:
            blocks = theory.residual_profile(self.activation, self.sigma_w, self.sigma_b, depth, correlation=START)
            return {name: getattr(blocks, name) for name in LABELS}
        plain = theory.signal_profile(self.spec(depth, 1).theory(), depth, c0=START)
        return dict(zip(LABELS, (plain.q, plain.c, plain.gradients), strict=True))

    def measured(self, depth: int, width: int, seeds: int) -> Measured:
        """Over real networks; of residual ones also mean squares of the weights' gradients, relative to the last."""
        if not self.skip:
            found = measure.signal_propagation(self.spec(depth, width), c0=START, seeds=seeds)
            return dict(zip(LABELS, (found.q, found.c, found.gradients), strict=True))
        drawn = [self.one(depth, width, torch.Generator().manual_seed(seed)) for seed in range(seeds)]
        return {name: measure.Profile.over_seeds(torch.stack([each[name] for each in drawn])) for name in drawn[0]}

    def spec(self, depth: int, width: int) -> measure.NetworkSpec:
        """The plain network."""
        return measure.NetworkSpec(self.activation, self.sigma_w, self.sigma_b, depth=depth, width=width)

    def one(self, depth: int, width: int, make: torch.Generator) -> dict[str, Tensor]:
        """A residual network: two inputs of length 1 forward, a random direction of outputs back."""
        draw = {"generator": make, "dtype": torch.float64}
        phi, states = activation_module(self.activation), [inputs(width, make).requires_grad_()]
        for _ in range(depth):
            weight = self.sigma_w / math.sqrt(width) * torch.randn(width, width, **draw)
            states.append(states[-1] + phi(states[-1]) @ weight.T + self.sigma_b * torch.randn(width, **draw))
        readout = torch.randn(width, **draw)
        back = torch.stack(torch.autograd.grad(states[-1][0] @ readout, states))[:, 0]  # (L + 1, N)
        x = torch.stack(states).detach()  # (L + 1, 2, N)
        squares = x.square().mean(-1)
        gradient = back.square().mean(-1)
        weights = gradient[1:] * phi(x[:-1, 0]).square().mean(-1)  # dE/dW is an outer product
        return {
            "length": squares[:, 0],
            "correlation": (x[:, 0] * x[:, 1]).mean(-1) / squares.prod(-1).sqrt(),
            "gradient": gradient / gradient[-1],
            "weights": weights / weights[-1],
        }


def inputs(width: int, make: torch.Generator) -> Tensor:
    """Two inputs (2, N) of mean square 1 and correlation ``START``, exactly, in random directions."""
    basis = torch.linalg.qr(torch.randn(width, 2, generator=make, dtype=torch.float64)).Q  # orthonormal columns
    mix = torch.tensor([[1.0, 0.0], [START, math.sqrt(1 - START**2)]], dtype=torch.float64)
    return math.sqrt(width) * mix @ basis.T


TANH = (
    Network("tanh", 2.0, 0.0, True, PALETTE[0]),
    Network("tanh", 2.0, 0.0, False, PALETTE[1]),
    Network("tanh", 0.9, 0.3, True, PALETTE[2]),
    Network("tanh", 0.9, 0.3, False, PALETTE[3]),
)
RELU = (Network("relu", 0.5, 0.0, True, PALETTE[0]), Network("relu", math.sqrt(2), 0.0, False, PALETTE[1]))


def build(page: Page) -> None:
    """Fill the page."""
    tanh_laws(page)
    relu_laws(page)
    networks(page)


def networks(page: Page) -> None:
    """Real networks of all kinds beside theory."""
    depth, width, seeds = page.pick(small=(40, 200, 40), full=(64, 512, 40))
    page.set(seed=0, blocks=depth, width=width, networks=seeds, first_correlation=START)
    for kinds in (TANH, RELU):
        held = [(net, net.predicted(depth), net.measured(depth, width, seeds)) for net in kinds]
        for each in held:
            rows(page, *each)
        draw(page, held)
    weights(page, *held[0])


def rate(values: Sequence[float], at: int, *, power: bool) -> float:
    """Slope of ln values in ln l (``power``) or in √l, from l = at to 2 at and from at / 4 to at / 2, extrapolated."""

    def slope(low: int) -> float:
        high = 2 * low
        along = math.log(2) if power else math.sqrt(high) - math.sqrt(low)
        return math.log(values[high] / values[low]) / along

    return 2 * slope(at) - slope(at // 4)


def tanh_laws(page: Page) -> None:
    """Linear lengths, correlations as a power, gradients as exp(A √l)."""
    at, sigma = page.pick(small=256, full=512), 1.0
    profile = theory.residual_profile("tanh", sigma, 0.0, 2 * at, correlation=START)
    growth = np.diff(profile.length)
    page.row("tanh: growth of the length a block", sigma**2, 2 * growth[at] - growth[at // 4], 0.01, source=CLOSED)
    found, within = rate(profile.correlation, at, power=True), page.pick(small=0.015, full=0.01)
    page.row("tanh: correlation falls as l to the power", 2 / math.pi - 1, found, within, source=f"{CLOSED}, 2/π - 1")
    back = profile.gradient[0] / profile.gradient  # what l blocks multiply a gradient by
    A = 4 / 3 * math.sqrt(2 / math.pi) * sigma
    page.row("tanh: A of gradients exp(A √l)", A, rate(back, at, power=False), 0.01, source=f"{CLOSED}, 4/3 √(2/π) σ")
    halved = theory.residual_profile("tanh", sigma / 2, 0.0, at).gradient[0]
    ratio = math.log(halved) / math.log(back[at // 4])
    page.row("tanh: ln of the growth, σ/2 and 4 times as deep over σ", 1, ratio, 0.05, source="σ √depth decides")


def relu_laws(page: Page) -> None:
    """Lengths and gradients by one factor a block, 1 - c as 1/l²: 1/√(1 - c) grows by a constant."""
    at, sigma = 1024, 0.4
    profile = theory.residual_profile("relu", sigma, 0.0, 2 * at, correlation=START)
    gain = sigma**2 / 2
    exact = (1 + gain) ** (2 * at)
    page.row("ReLU: length after 2048 blocks of σ = 0.4", exact, profile.length[-1], 1e-9, relative=True, source=FACTOR)
    page.row("ReLU: gradient before them", exact, profile.gradient[0], 1e-9, relative=True, source=FACTOR)
    plain = theory.signal_profile(theory.MeanField("relu", math.sqrt(2)), 2 * at + 1, c0=START).c
    for name, c, share in (("plain", plain, 1.0), ("residual", profile.correlation, gain / (1 + gain))):
        roots = 1 / np.sqrt(1 - c[[at, 2 * at]])
        found, expected = (roots[1] - roots[0]) / at, share * math.sqrt(2) / (3 * math.pi)
        page.row(f"ReLU, {name}: growth of 1/√(1 - c) a layer", expected, found, 0.02, relative=True, source=CLOSED)


def rows(page: Page, net: Network, predicted: Predicted, measured: Measured) -> None:
    """Real networks, held to theory at the end that is farthest from where the quantity is set."""
    kind = f"{LABEL[net.activation]}, {net.name}"
    for name in ("length", "correlation"):
        value, stderr = (float(each[-1]) for each in (measured[name].value, measured[name].stderr))
        page.measured(
            f"{kind}: {name} after the last layer", predicted[name][-1], value, stderr,
            at_most=_width(net, name), relative=name == "length", floor=ROUNDING, source=INFINITE,
        )  # fmt: skip
    value, stderr = (float(each[0]) for each in (measured["gradient"].value, measured["gradient"].stderr))
    expected = math.log(predicted["gradient"][0])
    page.measured(
        f"{kind}: ln of the gradient", expected, math.log(value), stderr / value,
        at_most=page.pick(small=1.0, full=0.5), relative=False, source=INFINITE,
    )  # fmt: skip


def _width(net: Network, name: str) -> float:
    """Three standard errors may be so wide: lengths of plain ReLU networks have a heavy tail, others do not."""
    if name == "correlation":
        return 0.1
    return 0.9 if net.activation == "relu" else 0.15


def weights(page: Page, net: Network, predicted: Predicted, measured: Measured) -> None:
    """With ReLU and skips what gradients gain on the way back, lengths have gained on the way forward."""
    product = np.asarray(predicted["gradient"][1:]) * np.asarray(predicted["length"][:-1])
    spread = float(product.max() / product.min()) - 1
    page.row(
        "ReLU, residual: theory's gradients of weights, largest over smallest",
        1,
        1 + spread,
        1e-10,
        source=f"by construction: {FACTOR}",
        computed=True,
    )
    first = measured["weights"]
    value, stderr = float(first.value[0]), float(first.stderr[0])
    quantity = "ReLU, residual: gradient of the first weights over the last"
    page.measured(quantity, 1, value, stderr, at_most=page.pick(small=0.5, full=0.25), source=INFINITE)


def draw(page: Page, held: Sequence[tuple[Network, Predicted, Measured]]) -> None:
    """A figure for each quantity of one activation, plain networks beside residual ones, from layer 1 on."""
    kind = held[0][0].activation
    for name, label in LABELS.items():
        distance = (kind, name) == ("relu", "correlation")
        drawn = []
        for net, predicted, measured in held:
            parts = (predicted[name], measured[name].value, measured[name].stderr)
            line, value, stderr = (np.asarray(part)[1 if net.skip else 0 :] for part in parts)
            line, value = (1 - line, 1 - value) if distance else (line, value)
            layers = np.arange(1, len(line) + 1)
            few = np.geomspace(1, len(line), 13) if distance else np.linspace(1, len(line), 13)
            some = np.unique(few.round().astype(int)) - 1
            x, y, errors = (each[some].tolist() for each in (layers, value, stderr))
            drawn.append(Curve(net.name, layers, line, "plain", net.colour))
            drawn.append(Curve(f"{net.name}, measured", x, y, "points", net.colour, errors, legend=False))
        page.draw(
            curves(
                f"{kind}-{name}",
                f"{LABEL[kind]}: {name} by layer",
                READINGS[f"{kind} {name}"],
                drawn,
                x="layer l",
                y="distance 1 - c" if distance else label,
                log_x=distance,
                log_y=distance or name == "gradient" or (kind, name) == ("relu", "length"),
            )
        )


if __name__ == "__main__":
    run(build)
