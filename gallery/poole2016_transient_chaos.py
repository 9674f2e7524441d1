"""Order and chaos in deep random networks (Poole et al. 2016, figures 1 and 2).

Claims of "Exponential expressivity in deep neural networks through transient chaos" (arXiv:1606.05340), for tanh
networks of 1,000 units a layer: the length of a signal settles within a few layers at a value that does not depend on
where it starts (figure 1). The correlation of two signals settles at 1 where χ₁ ≤ 1, the ordered phase, and below 1
where χ₁ > 1, the chaotic phase (figure 2). Networks follow the theory of infinite width.

    h^l = W^l x^{l-1} + b^l,  x^l = tanh(h^l),  W ~ N(0, σ_w² / N),  b ~ N(0, σ_b²)

    V(q) = σ_w² E tanh²(√q z) + σ_b²: from the length q = |h|² / N of a layer to that of the next, q* = V(q*)

    C(c) = (σ_w² E tanh(u) tanh(u') + σ_b²) / q*: from the correlation of two signals of length q* to the next

    χ₁ = C'(1) = σ_w² E tanh'²(√q* z): the factor by which a layer's mean squared gradients grow on their way back

In all figures lines are theory, and points are means over networks with bars of one standard error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from kit.charts import Curve, beside, curves, heat_map
from kit.page import Page
from kit.run import run

from pullback import measure, theory
from pullback.charts.chart import PALETTE

BIAS, DEPTH = 0.3, 10
COLOURS = dict(zip((1.3, 2.5, 4.0), PALETTE, strict=False))  # by σ_w of the paper's three networks
KNOWN = {  # q*, χ₁, c* at (σ_w, 0.3)
    1.3: (0.607046791909, 0.939807428682, 1.0),
    2.5: (4.079123875282, 1.585224765006, 0.122103747306),
    4.0: (12.604149497844, 2.367261035546, 0.029695921580),
}
QUADRATURE = "adaptive quadrature of the same integrals"
UNCHANGED = {"style": "dash", "legend": False}
Nets = Mapping[float, theory.MeanField]
Pairs = list[tuple[measure.Profile, Sequence[float]]]


def build(page: Page) -> None:
    """Fill the page."""
    width, networks = page.pick(small=(200, 10), full=(1000, 20))
    page.set(seed=0, activation="tanh", sigma_b=BIAS, width=width, depth=DEPTH, networks=networks)
    nets = {w: theory.MeanField("tanh", w, BIAS) for w in COLOURS}
    fixed_points(page, nets)
    lengths(page, nets, width, networks)
    correlations(page, nets, width, networks)
    cut(page, width, networks)
    maps(page)


def fixed_points(page: Page, nets: Nets) -> None:
    """Numbers of the theory."""
    for w, known in KNOWN.items():
        for name, number, here in zip(
            ("q*", "χ₁", "c*"), known, (nets[w].q_star, nets[w].chi, nets[w].c_star), strict=True
        ):
            page.row(f"{name}, σ_w = {w}", number, here, 1e-10, source=QUADRATURE)
    critical = theory.critical_sigma_w("tanh", BIAS)
    page.row("σ_w where χ₁ = 1, for σ_b = 0.3", 1.395583975155, critical, 1e-10, source=QUADRATURE)


def spec_of(w: float, width: int, depth: int = DEPTH) -> measure.NetworkSpec:
    """A network of the page."""
    return measure.NetworkSpec("tanh", w, BIAS, depth=depth, width=width)


def input_length(w: float, q: float) -> float:
    """Mean square of the inputs whose length in the first layer is ``q``."""
    return (q - BIAS**2) / w**2


def lengths(page: Page, nets: Nets, width: int, networks: int) -> None:
    """Figure 1, A and B: the length map, and lengths by layer from three starts."""
    grid = torch.linspace(0.01, 15, 60).tolist()
    on_map, by_layer, pairs = [Curve("unchanged", grid, grid, **UNCHANGED)], [], []
    for w, net in nets.items():
        on_map.append(Curve(f"σ_w = {w}", grid, [net.q_map(q) for q in grid], "plain", COLOURS[w]))
        for start in (0.5, 5.0, 15.0):
            q0 = input_length(w, start)
            found = measure.signal_propagation(spec_of(w, width), q0=q0, seeds=networks).q
            pairs.append((found, theory.signal_profile(net, DEPTH, q0=q0).q))
            by_layer += by_layers(w, *pairs[-1], legend=start == 15)
            on_map.append(steps(w, found))
        page.measured(
            f"q in layer {DEPTH}, σ_w = {w}", net.q_star, found.value[-1], found.stderr[-1],
            at_most=page.pick(small=0.15, full=0.06), source="q*, 3 standard errors",
        )  # fmt: skip
    page.mostly(
        "lengths", pairs, at_most=page.pick(small=0.15, full=0.06), source="figure 1, A and B: points on the lines"
    )
    on_map.append(fixed("q*", [net.q_star for net in nets.values()]))
    reading = (
        "What a layer makes of a signal's length. Where a line meets the dashed diagonal lengths stay as they are; the "
        "points are lengths of neighbouring layers."
    )
    summary = [f"q* = {net.q_star:.4f} for σ_w = {w}." for w, net in nets.items()]
    axes = {"x": "q of a layer", "y": "q of the next", "summary": summary}
    page.draw(curves("length-map", "Length map (figure 1, A)", reading, on_map, **axes))
    reading = "From q = 0.5, 5 and 15 in the first layer: a few layers later nothing tells the three apart."
    axes = {"x": "layer", "y": "q", "summary": ends(nets, pairs)}
    page.draw(curves("lengths", "Lengths by layer (figure 1, B)", reading, by_layer, **axes))


def correlations(page: Page, nets: Nets, width: int, networks: int) -> None:
    """Figure 2, A and B: the correlation map, and correlations by layer from three starts."""
    grid = torch.linspace(0, 1, 60).tolist()
    on_map, by_layer, pairs = [Curve("unchanged", grid, grid, **UNCHANGED)], [], []
    for w, net in nets.items():
        on_map.append(Curve(f"σ_w = {w}", grid, [net.c_map(c) for c in grid], "plain", COLOURS[w]))
        for start in (0.0, 0.5, 0.9):
            inputs = {"q0": input_length(w, net.q_star), "c0": start}
            found = measure.signal_propagation(spec_of(w, width), **inputs, seeds=networks).c
            pairs.append((found, theory.signal_profile(net, DEPTH, **inputs).c))
            by_layer += by_layers(w, *pairs[-1], legend=start == 0)
            on_map.append(steps(w, found))
    cap = page.pick(small=0.15, full=0.06)
    page.mostly("correlations", pairs, at_most=cap, relative=False, source="figure 2, A and B: points on the lines")
    on_map.append(fixed("c*", [net.c_star for net in nets.values()]))
    reading = "What a layer makes of the correlation of two signals of length q*, to be read as the length map."
    summary = [f"c* = {net.c_star:.4f}, slope at 1 χ₁ = {net.chi:.4f}, for σ_w = {w}." for w, net in nets.items()]
    axes = {"x": "c of a layer", "y": "c of the next", "summary": summary}
    page.draw(curves("correlation-map", "Correlation map (figure 2, A)", reading, on_map, **axes))
    reading = (
        "From correlations 0, 0.5 and 0.9 of the inputs. In the ordered phase (σ_w = 1.3) signals become alike, but "
        "slowly; in the chaotic phase they part until c is c*."
    )
    axes = {"x": "layer", "y": "c", "summary": ends(nets, pairs)}
    page.draw(curves("correlations", "Correlations by layer (figure 2, B)", reading, by_layer, **axes))


def ends(nets: Nets, pairs: Pairs) -> list[str]:
    """The last layer's numbers in words, three starts for each network."""
    sentences = []
    for place, w in enumerate(nets):
        parts = pairs[3 * place : 3 * place + 3]
        found = ", ".join(f"{float(profile.value[-1]):.3f} ({known[-1]:.3f})" for profile, known in parts)
        sentences.append(f"Layer {DEPTH} of networks, and of theory, for σ_w = {w}: {found}.")
    return sentences


def by_layers(w: float, found: measure.Profile, known: Sequence[float], *, legend: bool) -> list[Curve]:
    """A quantity by layer, theory and networks."""
    layers = list(range(1, DEPTH + 1))
    return beside(f"σ_w = {w}", layers, known, found.value, found.stderr, COLOURS[w], legend=legend)


def steps(w: float, found: measure.Profile) -> Curve:
    """Pairs of neighbouring layers, as points of a map."""
    values = found.value.tolist()
    return Curve(f"σ_w = {w}, networks", values[:-1], values[1:], "points", COLOURS[w], legend=False)


def fixed(name: str, at: list[float]) -> Curve:
    """Fixed points of a map."""
    return Curve(name, at, at, "points", "#808080")


def cut(page: Page, width: int, networks: int) -> None:
    """c* and χ₁ over σ_w at σ_b = 0.3, beside networks of 25 layers."""
    depth, at, fine = 25, (0.9, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0), torch.linspace(0.8, 4, 65).tolist()
    lines = [theory.MeanField("tanh", w, BIAS) for w in fine]
    found, known = [], []
    for w in at:
        net = theory.MeanField("tanh", w, BIAS)
        inputs = {"q0": input_length(w, net.q_star), "c0": 0.5}
        found.append(measure.signal_propagation(spec_of(w, width, depth), **inputs, seeds=networks))
        known.append((theory.signal_profile(net, depth, **inputs).c[-1], net.chi))
    last, growth = of_layer([each.c for each in found], -1), of_layer([each.gradients for each in found], -2)
    quantity = f"correlations after {depth} layers"
    cap = page.pick(small=0.3, full=0.1)
    page.mostly(quantity, [(last, [c for c, _ in known])], at_most=cap, relative=False, source="figure 2, C")
    quantity = "growths of squared gradients"
    page.mostly(quantity, [(growth, [chi for _, chi in known])], at_most=cap, source="χ₁ of figure 2, D")
    drawn = [
        Curve("c*", fine, [net.c_star for net in lines], "plain", PALETTE[0]),
        Curve(f"c after {depth} layers", at, last.value, "points", PALETTE[0], last.stderr, legend=False),
        Curve("χ₁", fine, [net.chi for net in lines], "plain", PALETTE[1]),
        Curve("growth of gradients", at, growth.value, "points", PALETTE[1], growth.stderr, legend=False),
        Curve("1", fine, [1.0] * len(fine), **UNCHANGED),
    ]
    reading = (
        f"Where χ₁ rises above the dashed 1, c* falls below it. Points are correlations after {depth} layers, next to "
        "the crossing too few to settle, and a layer's growth of squared gradients."
    )
    axes = {"x": "σ_w", "y": "c*, χ₁", "summary": ["They meet at σ_w = 1.3956."]}
    page.draw(curves("cut", "Order and chaos at σ_b = 0.3 (figure 2, C and D)", reading, drawn, **axes))


def of_layer(profiles: Sequence[measure.Profile], layer: int) -> measure.Profile:
    """One layer of several measurements."""
    parts = [(each.value[layer], each.stderr[layer]) for each in profiles]
    return measure.Profile(*(torch.stack(part) for part in zip(*parts, strict=True)))


def maps(page: Page) -> None:
    """Figures 1 and 2, C and D: the plane of σ_w and σ_b."""
    across, up = page.pick(small=(17, 9), full=(41, 33))
    w, b = torch.linspace(1, 5, across).tolist(), torch.linspace(0, 4, up).tolist()
    plane = theory.phase_diagram("tanh", w, b)
    ordered = plane.sigma_w <= plane.critical[:, None] + 1e-9
    page.row(
        "share of the plane where χ₁ ≤ 1 left of the line",
        1,
        (ordered == (plane.chi <= 1 + 1e-8)).mean(),
        0,
        source="figure 2, D",
    )
    page.row(
        "share of the plane where c* = 1 left of the line",
        1,
        (ordered == (plane.c_star > 1 - 1e-9)).mean(),
        0,
        source="figure 2, C",
    )
    slowest = max(settling(theory.MeanField("tanh", x, BIAS)) for x in COLOURS)
    source = "figure 1, D: rapid, taken as the depth here"
    page.at_most("layers to 1 percent of q*, from 0.1 and from 15", DEPTH, slowest, source=source)
    counts = [[settling(theory.MeanField("tanh", x, y)) for x in w] for y in b]
    fine = torch.linspace(0, 4, 41).tolist()
    marks = [Curve("χ₁ = 1", [theory.critical_sigma_w("tanh", y) for y in fine], fine, "plain", "#ff4d6d")]
    marks += [Curve(f"σ_w = {x}", [x], [BIAS], "points", colour) for x, colour in COLOURS.items()]
    for key, title, name, z, top, reading in (
        ("q-star", "Settled length (figure 1, C)", "q*", plane.q_star, 30, "Longer for larger weights and biases."),
        ("settling", "Layers to 1 percent of q* (figure 1, D)", "layers", counts, 20, "Few, unless both are small."),
        ("c-star", "Settled correlation (figure 2, C)", "c*", plane.c_star, 1, "1 left of the line, less right of it."),
        (
            "chi",
            "Slope of the correlation map at 1 (figure 2, D)",
            "χ₁",
            plane.chi,
            2.5,
            "Above 1 right of the line: chaos.",
        ),
    ):
        axes = ("σ_w", w), ("σ_b", b), (name, z)
        page.draw(heat_map(key, title, f"{name} by colour. {reading}", *axes, bounds=(0, top), drawn=marks))


def settling(net: theory.MeanField) -> int:
    """Layers until q is within one percent of q*, from the slower of two starts; at most 100."""
    counts = []
    for q in (0.1, 15.0):
        counts.append(0)
        while abs(q - net.q_star) > 0.01 * net.q_star and counts[-1] < 100:
            q = net.q_map(q)
            counts[-1] += 1
    return max(counts)


if __name__ == "__main__":
    run(build)
