"""Circles and decision boundaries in deep random networks (Poole et al. 2016, figures 3 and 4).

Claims of "Exponential expressivity in deep neural networks through transient chaos" (arXiv:1606.05340), for tanh
networks of 1,000 units a layer. A circle that goes through the network tangles in the chaotic phase, χ₁ > 1 (figure 3):
it is stretched exponentially and yet keeps its curvature, so that the path of its tangents grows too (figure 4, C to
E); in the ordered phase it shrinks. The decision boundary of a linear read-out bends exponentially on its way back to
the inputs (figure 4, G).

    h^l = W^l x^{l-1} + b^l,  x^l = tanh(h^l),  W ~ N(0, σ_w² / N),  b ~ N(0, σ_b²),  h⁰(θ) a circle of length q*

    χ₁ = σ_w² E tanh'²(√q* z),  χ₂ = σ_w² E tanh''²(√q* z)

    g^E = |dh/dθ|² grows by χ₁ a layer;  N κ² = 3 χ₂ / χ₁² + (N κ² of the layer before) / χ₁;  g^G = κ² g^E

    sum of κ_i² = σ_w² (g^G - 1) / (3 q*) for the principal curvatures κ_i of a boundary, g^G behind as many layers

The last line is not in the paper, which measures boundaries alone. The second derivative of a read-out is a sum over
layers of J' D J, with D a diagonal of random signs and J the Jacobian from the inputs. Along one direction its mean
square holds E z⁴ = 3 where the sum of its squared eigenvalues holds (E z²)² = 1, and along one direction it is what
bends the image of a curve. So the boundary's bending is a third of the Gauss metric's growth.

Lines are theory, points are means over networks with bars of one standard error; in figure 3, C, bars are the standard
deviation along the circle, as in the paper. The read-out's threshold is set so that its boundary passes through a point
drawn beforehand, of length q*; the paper keeps the threshold and searches for points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from kit.charts import Curve, beside, curves, slides
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

from pullback import measure, theory
from pullback.charts.chart import PALETTE, Chart

BIAS, DEPTH = 0.3, 10
COLOURS = dict(zip((1.3, 2.5, 4.0), PALETTE, strict=False))  # by σ_w of the paper's three networks
LAYERS = list(range(1, DEPTH + 1))
KNOWN = {  # q*, χ₁, χ₂ at (σ_w, 0.3)
    1.3: (0.607046791909, 0.939807428682, 0.543472018641),
    2.5: (4.079123875282, 1.585224765006, 1.196041291424),
    4.0: (12.604149497844, 2.367261035546, 1.857176041411),
}
POINTS, SHOWN = 480, (1, 3, 5, 10)  # on the circle; layers in figure 3, C
LAGS = range(12, POINTS // 2 + 1, 12)  # between the points that are compared
ANGLES = [360 * lag / POINTS for lag in LAGS]
METRICS = {
    "euclidean": ("g^E / N", "Stretching", "Squared speed along the image: in chaos it grows by χ₁ a layer."),
    "curvature": (
        "N κ²",
        "Bending",
        "Squared curvature: it grows where the image shrinks, and settles in chaos. Networks are above theory by some "
        "30 / N of it: κ² is a ratio whose denominator fluctuates along the curve.",
    ),
    "gauss": ("g^G", "Turning", "Squared speed of the tangent's direction: in chaos it grows as fast as the image."),
}
QUADRATURE = "adaptive quadrature of χ₁ and χ₂"
Nets = Mapping[float, theory.MeanField]


def build(page: Page) -> None:
    """Fill the page."""
    width, networks = page.pick(small=(300, 10), full=(1000, 12))
    page.set(seed=0, activation="tanh", sigma_b=BIAS, width=width, depth=DEPTH, networks=networks)
    nets = {w: theory.MeanField("tanh", w, BIAS) for w in COLOURS}
    formulas(page, nets)
    circles(page, nets, width, networks)
    metrics(page, nets, width, networks)
    boundaries(page, nets)


def formulas(page: Page, nets: Nets) -> None:
    """The recursions against their sums, from integrals found elsewhere."""
    for w, (q, chi, bend) in KNOWN.items():
        known = nets[w].curve_metrics(3)
        bent = 3 * bend / chi**2 * (1 + 1 / chi + 1 / chi**2) + 1 / (q * chi**3)
        page.row(f"g^E / N after 3 layers, σ_w = {w}", q * chi**3, known.euclidean[3], 1e-9, source=QUADRATURE)
        page.row(f"N κ² after 3 layers, σ_w = {w}", bent, known.curvature[3], 1e-9, source=QUADRATURE)
        if chi > 1:
            fixed = 3 * bend / (chi * (chi - 1))
            page.row(f"fixed point of N κ², σ_w = {w}", fixed, known.fixed_point, 1e-9, source=QUADRATURE)


def spec_of(w: float, width: int) -> measure.NetworkSpec:
    """A network of the page."""
    return measure.NetworkSpec("tanh", w, BIAS, depth=DEPTH, width=width)


def circles(page: Page, nets: Nets, width: int, networks: int) -> None:
    """Figure 3: the circle's image in its first principal components, and the correlation of its points."""
    tangles, correlations, pairs, five = [], [], [], {}
    for w, net in nets.items():
        samples, shares = [], []
        for seed in reversed(range(networks)):
            h = images(spec_of(w, width).build(seed), circle(net.q_star, width, seed))
            along = torch.stack([apart(h[layer - 1]) for layer in SHOWN])  # (layers, lags, points)
            samples.append(along.mean(2))
            shares.append(components(h[-1])[1][:5].sum())
        found = measure.Profile.over_seeds(torch.stack(samples))
        known = torch.tensor([expected(net, layer) for layer in SHOWN])
        pairs.append((found, known))
        five[w] = measure.Profile.over_seeds(torch.stack(shares))
        tangles += [tangle(w, layer, h[layer - 1]) for layer in (5, 10)]
        correlations.append(autocorrelation(w, known, along))
    page.draw(slides(tangles, [f"σ_w = {w}, layer {layer}" for w in COLOURS for layer in (5, 10)]))
    page.draw(slides(correlations, [f"σ_w = {w}" for w in COLOURS]))
    page.mostly(
        "correlations along the circle", pairs, at_most=0.3, relative=False, source="figure 3, C: points on the lines"
    )
    for low, high in pairwise(COLOURS):
        gap = five[low].value - five[high].value - 3 * (five[low].stderr + five[high].stderr)
        name = f"variance in 5 components: σ_w = {low} less {high}, less 3 standard errors"
        page.at_least(name, 0, gap, source="figure 3, A: flatter for larger weights, layer 10")


def circle(q: float, width: int, seed: int) -> Tensor:
    """Inputs tanh(h⁰) for points of a circle of squared radius N q in a random plane, (points, N)."""
    make = torch.Generator().manual_seed(1_000_000 + seed)  # not the network's own numbers
    plane = torch.linalg.qr(torch.randn(width, 2, generator=make, dtype=torch.float64)).Q * math.sqrt(width * q)
    theta = torch.arange(POINTS, dtype=torch.float64) * (2 * math.pi / POINTS)
    return (torch.stack([theta.cos(), theta.sin()], 1) @ plane.T).tanh()


@torch.no_grad()
def images(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """The pre-activations h of every layer, (points, N) each."""
    found = []
    for layer in model:
        found.append(layer.linear(x))
        x = layer.activation(found[-1])
    return found


def apart(h: Tensor) -> Tensor:
    """Correlation of every point with those further along the circle, (lags, points)."""
    unit = nn.functional.normalize(h, dim=1)
    pairs = unit @ unit.T
    return torch.stack([pairs.roll(-lag, 1).diagonal() for lag in LAGS])


def components(h: Tensor) -> tuple[Tensor, Tensor]:
    """Points in the first two principal components (points, 2), and the shares of variance of all of them."""
    centred = h - h.mean(0)
    values, vectors = (each.flip(-1) for each in torch.linalg.eigh(centred @ centred.T))  # descending
    return vectors[:, :2] * values[:2].sqrt(), values / values.sum()


def expected(net: theory.MeanField, layer: int) -> list[float]:
    """Correlations along the circle by theory, from the cosines of the circle itself."""
    found = [math.cos(math.radians(angle)) for angle in ANGLES]
    for _ in range(layer):
        found = [net.c_map(c) for c in found]
    return found


def tangle(w: float, layer: int, h: Tensor) -> Chart:
    """The circle's image in the plane where most of it is."""
    plane, shares = components(h)
    x, y = (torch.cat([plane, plane[:1]]) / math.sqrt(h.shape[1])).T.tolist()
    return curves(
        "tangle",
        "A circle's image (figure 3, A)",
        "One network's image in its first two principal components, per root of the number of units: a loop for "
        "σ_w = 1.3, a tangle for larger weights, which fills many more components than two.",
        [Curve(f"σ_w = {w}, layer {layer}", x, y, colour=COLOURS[w])],
        x="first component",
        y="second component",
        summary=[
            f"σ_w = {w}, layer {layer}: the first five components hold {float(shares[:5].sum()):.3f} of the variance."
        ],
        height=400,
    )


def autocorrelation(w: float, known: Tensor, along: Tensor) -> Chart:
    """Correlation by angle, of theory and along the circle in one network (layers, lags, points)."""
    drawn = []
    for layer, line, found, colour in zip(SHOWN, known, along, PALETTE, strict=False):
        drawn += beside(f"layer {layer}", ANGLES, line, found.mean(1), found.std(1), colour)
    return curves(
        "autocorrelation",
        "Correlation along the circle (figure 3, C)",
        "Correlation of two points of the image by the angle between them on the circle; bars are standard deviations "
        "along the circle of one network. In chaos neighbours part within a few layers, and all are equally far apart.",
        drawn,
        x="angle (degrees)",
        y="c",
        y_range=(-1.1, 1.1),
        summary=[f"σ_w = {w}: {known[-1][0]:.3f} at {ANGLES[0]:.0f} degrees in layer 10 of theory."],
    )


def metrics(page: Page, nets: Nets, width: int, networks: int) -> None:
    """Figure 4, C to E: how the image is stretched and bent."""
    drawn: dict[str, list[Curve]] = {name: [] for name in METRICS}
    means, bent = [], []
    for w, net in nets.items():
        found, known = measure.curve_metrics(spec_of(w, width), points=32, seeds=networks), net.curve_metrics(DEPTH)
        half = measure.curve_metrics(spec_of(w, width // 2), points=32, seeds=networks, seed=networks)
        for name in METRICS:
            line, profile = getattr(known, name)[1:], getattr(found, name)
            drawn[name] += beside(f"σ_w = {w}", LAYERS, line, profile.value, profile.stderr, COLOURS[w])
        means += [(found.euclidean, known.euclidean[1:]), (found.gauss, known.gauss[1:])]
        bent.append((wide(found.curvature, half.curvature), known.curvature[1:]))
        for name, (profile, line) in zip(("g^E / N", "g^G", "N κ² extrapolated"), [*means[-2:], bent[-1]], strict=True):
            page.measured(
                f"{name}, layer 3 of networks, σ_w = {w}", line[2], profile.value[2], profile.stderr[2],
                at_most=page.pick(small=0.4, full=0.15), source="theory of figure 4, C to E; 3 standard errors",
            )  # fmt: skip
        if net.chi > 1:
            grown(page, w, found.gauss_length, known.gauss_length)
    page.mostly(
        "g^E and g^G", means, at_most=page.pick(small=0.2, full=0.1), source="figure 4, C to E: points on the lines"
    )
    cap = page.pick(small=0.5, full=0.2)
    page.mostly("N κ², extrapolated to infinite width,", bent, at_most=cap, source="figure 4, C to E")
    for name, (symbol, title, reading) in METRICS.items():
        ends = [f"{line.name}: {line.y[-1]:.4g} in layer 10 by theory." for line in drawn[name][::2]]
        axes = {"x": "layer", "y": symbol, "log_y": True, "summary": ends}
        page.draw(curves(name, f"{title} (figure 4, C to E)", reading, drawn[name], **axes))


def wide(whole: measure.Profile, half: measure.Profile) -> measure.Profile:
    """Of infinite width, from networks of a width and of half of it, where what is off falls as 1 / N."""
    return measure.Profile(2 * whole.value - half.value, (4 * whole.stderr**2 + half.stderr**2).sqrt())


def grown(page: Page, w: float, found: measure.Profile, known: Sequence[float]) -> None:
    """The Gauss length's factor a layer, from the fifth to the tenth."""
    here = float(found.value[9] / found.value[4]) ** 0.2
    stderr = here / 5 * float((found.stderr / found.value)[[4, 9]].sum())
    name = f"growth of the tangent's path a layer, layers 5 to 10, σ_w = {w}"
    law = (known[10] / known[5]) ** 0.2
    page.measured(name, law, here, stderr, at_most=0.05, source="theory; errors of both ends added")


def boundaries(page: Page, nets: Nets) -> None:
    """Figure 4, G: principal curvatures of a read-out's boundary, behind one to ten layers."""
    width, networks = page.pick(small=(100, 10), full=(200, 12))
    behind = page.pick(small=(1, 2, 4, 6, 8, 10), full=tuple(LAYERS))
    page.set(boundary_width=width, boundary_networks=networks)
    sums, pairs = [], []
    for w, net in nets.items():
        draws = [principal_curvatures(w, net.q_star, width, seed, behind) for seed in range(networks)]
        values = torch.stack(draws)  # (networks, layers, N - 1), descending
        found = measure.Profile.over_seeds(values.square().sum(2))
        gauss = net.curve_metrics(DEPTH).gauss
        pairs.append((found, [w**2 * (gauss[layers] - 1) / (3 * net.q_star) for layers in behind]))
        sums += beside(f"σ_w = {w}", behind, pairs[-1][1], found.value, found.stderr, COLOURS[w])
    page.mostly(
        "sums of squared curvatures", pairs, at_most=page.pick(small=0.6, full=0.5), source="this page's formula"
    )
    reading = (
        "In chaos the boundary bends by another factor χ₁ for every layer, in order it settles. Behind many layers of "
        f"σ_w = 4 networks of only {width} units lie above theory."
    )
    summary = [
        f"σ_w = {w}: {known[0]:.4g} to {known[-1]:.4g} by theory." for w, (_, known) in zip(nets, pairs, strict=True)
    ]
    axes = {"x": "layers between boundary and read-out", "log_y": True}
    page.draw(
        curves("sums", "Bending of the boundary (figure 4, G)", reading, sums, **axes, y="sum of κ_i²", summary=summary)
    )
    outermost(page, values, behind, axes)


def outermost(page: Page, values: Tensor, behind: Sequence[int], axes: dict[str, Any]) -> None:
    """The four largest and the four smallest curvatures for σ_w = 4, of (networks, layers, N - 1)."""
    logs = torch.cat([values[..., :4], values[..., -4:].flip(-1)], -1).abs().log()  # (networks, layers, 8)
    found, drawn = measure.Profile.over_seeds(logs), []
    for k in range(8):
        name, colour = (("largest", PALETTE[0]), ("smallest, times -1", PALETTE[1]))[k // 4]
        mean = found.value[:, k].exp()
        drawn.append(Curve(name, behind, mean, "line", colour, mean * found.stderr[:, k], legend=k % 4 == 0))
    growth = measure.Profile.over_seeds((logs[:, -1] - logs[:, 0]) / (behind[-1] - behind[0]))
    name = "slowest growth of the 8 outermost curvatures a layer, less 3 standard errors"
    source = "figure 4, G: exponential growth; logarithm, 1 to 10 layers, σ_w = 4"
    page.at_least(name, 0, (growth.value - 3 * growth.stderr).min(), source=source)
    factors = ", ".join(f"{float(v):.3f}" for v in growth.value.exp())
    reading = (
        "The four largest and the four smallest principal curvatures for σ_w = 4, geometric means: straight lines are "
        "exponential growth on the boundary's way back to the inputs."
    )
    summary = [f"Factors a layer, from 1 to 10 layers: {factors}; the root of χ₁ is 1.539."]
    title = "Outermost curvatures of the boundary (figure 4, G)"
    page.draw(curves("outer", title, reading, drawn, **axes, y="|κ_i|", summary=summary))


def principal_curvatures(w: float, q: float, width: int, seed: int, behind: Sequence[int]) -> Tensor:
    """Curvatures at one point of a network's boundary, in the space of the last layers' inputs, (layers, N - 1)."""
    net, make = spec_of(w, width).build(seed), torch.Generator().manual_seed(2_000_000 + seed)
    x = (math.sqrt(q) * torch.randn(1, width, generator=make, dtype=torch.float64)).tanh()
    readout = nn.Linear(width, 1, dtype=torch.float64)
    with torch.no_grad():
        readout.weight.normal_(generator=make)
        readout.bias.copy_(-(net(x) @ readout.weight[0]))
        parts = [(nn.Sequential(net[DEPTH - layers :], readout), net[: DEPTH - layers](x)) for layers in behind]
    return torch.cat([measure.boundary_curvature(part, at).values for part, at in parts])


if __name__ == "__main__":
    run(build)
