"""Batch norm makes gradients explode at initialisation (Yang et al. 2019, figures 1 to 4).

Claims of arXiv:1902.08129: with batch norm between weights and activation, mean squares of gradients grow on their way
back by a fixed factor a layer. It is (B - 2) / (B - 3) for the identity over batches of B, falls to π / (π - 1) = 1.467
for ReLU as batches grow, is above the identity's for every other activation, and no choice of the weights' variance
changes it. Networks deeper than 16 ξ do not train. A single step of training evens the gradients out.

    λ = E|∂C/∂x^l|² / E|∂C/∂x^{l+1}|²,    ξ = 1 / log λ

C is the cost, x^l are the outputs of layer l. The theory is ``theory.batch_norm_gradient_factor``, of infinite width;
networks are measured by ``measure.gradient_factors`` and ``measure.signal_propagation``, with standard errors. At width
N they are off by c / N, near-linear ones most of all, so that factors are extrapolated from widths N and 2 N.

A unit's variance over a batch of B is a chi-square with B - 1 degrees of freedom, and the factor holds its inverse: a
mean of the ratio exists from B = 4 on, a variance from B = 6 on. Smaller batches are not measured here, as their
standard error would mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from kit.charts import Curve, beside, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import measure, modules, theory
from pullback.charts.chart import PALETTE

Activation = str | Callable[[Tensor], Tensor]
BLUE, RED, GREEN = PALETTE[0], PALETTE[1], PALETTE[2]
LOSS = nn.CrossEntropyLoss()
BATCH = 128
RATE = 0.0128  # ten times the paper's at this batch, as there are fewer steps here


@dataclass(frozen=True)
class Size:
    """Of the networks at initialisation: units of a layer (and twice as many), layers, and how many networks."""

    width: int
    depth: int
    networks: int

    def spec(self, activation: Activation, sigma_w: float = 1.0) -> measure.NetworkSpec:
        """A network with batch norm."""
        return measure.NetworkSpec(activation, sigma_w, depth=self.depth, width=self.width, batch_norm=True)


def build(page: Page) -> None:
    """Fill the page."""
    size = page.pick(small=Size(150, 6, 20), full=Size(300, 6, 30))
    page.set(seed=0, widths=f"{size.width} and {2 * size.width}", depth=size.depth, networks=size.networks)
    closed_forms(page)
    figure_1(page, size)
    by_layer(page, size)
    any_variance(page, size)
    near_linear(page, size)
    trained_depth(page)
    first_steps(page)


def relu_factor(B: int) -> float:
    """Theorem 8 for ReLU; J is the arc-cosine kernel of degree 1 at c = -1 / (B - 1), J' its derivative."""
    c = -1 / (B - 1)
    slope = (math.pi - math.acos(c)) / math.pi
    J = math.sqrt(1 - c * c) / math.pi + slope * c
    return (slope + B - 1) / ((B - 3) * (1 - J)) - 1 / (B - 3)


def factor(activation: Activation, B: float = math.inf) -> float:
    """λ in theory."""
    return theory.batch_norm_gradient_factor(activation, B)


def closed_forms(page: Page) -> None:
    """The theory against the paper's theorems."""
    for B in (8, 32, 128):
        page.row(f"λ of ReLU, B = {B}", relu_factor(B), factor("relu", B), 1e-9, source="theorem 8")
    page.row("λ of ReLU, large B", math.pi / (math.pi - 1), factor("relu"), 1e-12, source="theorem 8: π / (π - 1)")
    for B in (4, 8, 32):
        page.row(f"λ of the identity, B = {B}", (B - 2) / (B - 3), factor("linear", B), 1e-9, source="theorem 8")
    others = ("relu", "leaky_relu", "tanh", "erf", "hard_tanh", "silu", "gelu", "sin", torch.sigmoid)
    least = min(factor(name, 16) for name in others)
    source = "theorem 9: the identity"
    page.at_least("least λ of nine activations, B = 16", factor("linear", 16), least, source=source, computed=True)


def growth(page: Page, name: str, activation: Activation, B: int, size: Size) -> pb.Estimate:
    """λ of networks at initialisation, extrapolated to infinite width, and held to theory."""
    spec = size.spec(activation)
    narrow = measure.gradient_factors(spec, B, seeds=size.networks).mean
    twice = replace(spec, width=2 * size.width)
    wide = measure.gradient_factors(twice, B, seeds=size.networks, seed=1000).mean
    # what is off at width N is c / N + O(1 / N²), which this leaves without its first term
    found = pb.Estimate(2 * wide.value - narrow.value, math.hypot(2 * wide.stderr, narrow.stderr), 2 * size.networks)
    page.measured(
        f"λ measured: {name}, B = {B}", factor(activation, B), found.value, found.stderr,
        at_most=page.pick(small=0.2, full=0.1), source="theory, within 3 standard errors",
    )  # fmt: skip
    return found


def figure_1(page: Page, size: Size) -> None:
    """The factor by batch size, figure 1 (a)."""
    batches = page.pick(small=(8, 32, 128), full=(6, 8, 16, 32, 64, 128))
    drawn, surest = [], []
    for name, colour in (("relu", BLUE), ("tanh", RED), ("linear", GREEN)):
        found = [growth(page, name, name, B, size) for B in batches]
        surest += [(each.value - 1) / each.stderr for each in found if name != "linear"]
        values, errors = [each.value for each in found], [each.stderr for each in found]
        drawn += beside(name, batches, [factor(name, B) for B in batches], values, errors, colour)
    quantity = "standard errors by which λ of ReLU and tanh is above 1, least"
    page.at_least(quantity, 3, min(surest), source="batch norm itself makes gradients explode")
    reading = (
        "Growth of mean squared gradients a layer. Lines are the theory of infinite width; points are networks, "
        "extrapolated from two widths, with standard errors."
    )
    axes = {"x": "batch size B", "y": "λ", "log_x": True}
    page.draw(curves("factor", "Growth a layer by batch size (figure 1, a)", reading, drawn, **axes))


def by_layer(page: Page, size: Size) -> None:
    """Figure 1 (b): mean squares of gradients by layer, over that of the last layer behind a batch norm."""
    depth, drawn = 15, []
    last, layers = depth - 1, list(range(2, depth))  # the first layer's own lengths are those of the inputs
    spec = replace(size.spec("relu"), depth=depth, width=2 * size.width)
    for B, colour in ((8, BLUE), (128, RED)):
        x = torch.randn(B, spec.width, generator=torch.Generator().manual_seed(-1), dtype=torch.float64)
        found = measure.signal_propagation(spec, x, seeds=size.networks).gradients
        values, errors = (each[1:last] / found.value[last - 1] for each in (found.value, found.stderr))
        predicted = [factor("relu", B) ** (last - layer) for layer in layers]
        drawn += beside(f"B = {B}", layers, predicted, values.tolist(), errors.tolist(), colour)
    reading = (
        "Mean squared gradients at the layers' pre-activations, over that of the last layer shown; the input is on the "
        "left. Straight lines on this axis are exponential growth."
    )
    axes = {"x": "layer", "y": "mean square, relative", "log_y": True}
    page.draw(curves("layers", "ReLU: gradients by layer (figure 1, b)", reading, drawn, **axes))


def any_variance(page: Page, size: Size) -> None:
    """No scale of the weights changes the factor; without batch norm the scale sets it."""
    found = [measure.gradient_factors(size.spec("relu", scale), 32, seeds=3).mean.value for scale in (0.5, 1.0, 1.9)]
    spread = max(found) / min(found) - 1
    page.at_most("spread of λ over σ_w = 0.5, 1, 1.9, relative", 1e-3, spread, source="cancels, but for torch's ε")
    plain = replace(size.spec("relu", theory.critical_sigma_w("relu", 0.0)), batch_norm=False)
    without = measure.gradient_factors(plain, 32, seeds=size.networks).mean
    page.measured(
        "without batch norm, growth a layer", plain.theory().chi, without.value, without.stderr,
        at_most=page.pick(small=0.1, full=0.05), source="χ_1 = 1 at σ_w = √2, within 3 standard errors",
    )  # fmt: skip


def near_linear(page: Page, size: Size) -> None:
    """Figure 4 (a, b): scale and shift bring the activation near a linear one, and the factor near the identity's."""
    B, drawn = 32, []
    measured = page.pick(small=[0.5, 2.0], full=[0.25, 0.5, 1.0, 1.5, 2.0])
    families: tuple[tuple[str, str, Callable[[float], Activation], str], ...] = (
        ("tanh(γ u)", "γ", lambda g: lambda u: torch.tanh(g * u), RED),
        ("ReLU(u + β)", "β", lambda b: lambda u: torch.relu(u + b), BLUE),
    )
    grid = [0.1 * k for k in range(1, 21)]
    for name, letter, make, colour in families:
        drawn.append(Curve(name, grid, [factor(make(value), B) for value in grid], "plain", colour))
        found = [growth(page, f"{name}, {letter} = {value:g}", make(value), B, size) for value in measured]
        values, errors = [each.value for each in found], [each.stderr for each in found]
        drawn.append(Curve(f"{name}, networks", measured, values, "points", colour, errors, legend=False))
    linear = factor("linear", B)
    smallest = factor(families[0][2](0.05), B)
    source = "figure 4 (a): γ to 0"
    page.row(f"λ of tanh(γ u), γ = 0.05, B = {B}", linear, smallest, 1e-4, source=source, computed=True)
    drawn.append(Curve("identity", [0.1, 2.0], [linear] * 2, "dash"))
    reading = "The factor falls towards the identity's (dashed) as γ goes to 0 and as β grows; points are networks."
    page.draw(curves("linear", "Nearer the linear regime (figure 4, a and b)", reading, drawn, x="γ or β", y="λ"))


def network(depth: int, width: int, normalisation: str = "batch") -> modules.MLP:
    """ReLU with batch norm and the paper's ε, or without one on the critical line."""
    sigma_w = 1.0 if normalisation == "batch" else theory.critical_sigma_w("relu", 0.0)
    sizes = [64, *[width] * depth, 10]
    model = modules.MLP(sizes, "relu", normalisation=normalisation, init="gaussian", sigma_w=sigma_w, seed=0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.eps = 1e-3
    return model


def train(model: modules.MLP, steps: int) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
    """Plain gradient descent on the digits, by batches; before every step its number, loss and activations."""
    data, draw = pb.functional.load_digits(0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(steps):
        index = torch.randperm(len(data.x_train), generator=draw)[:BATCH]
        *hidden, outputs = model.activations(data.x_train[index])[1:]
        loss = LOSS(outputs, data.y_train[index])
        yield step, loss, hidden
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: nn.Module) -> float:
    """Share of the test digits named rightly, normalised with their own statistics."""
    data = pb.functional.load_digits(0)
    with torch.no_grad():
        outputs = model.train()(data.x_test)
    return float((outputs.argmax(1) == data.y_test).double().mean())


def trained_depth(page: Page) -> None:
    """Figure 2: accuracy after training by depth, beside 16 ξ."""
    width, steps, depths = page.pick(small=(64, 100, (10, 80)), full=(64, 400, (10, 20, 30, 40, 60, 80)))
    reach = 16 / math.log(factor("relu", BATCH))
    page.set(batch=BATCH, trained_width=width, steps=steps, rate=RATE)
    drawn = []
    for name, normalisation in (("batch norm", "batch"), ("critical, no batch norm", "none")):
        found = []
        for depth in depths:
            model = network(depth, width, normalisation)
            for _ in train(model, steps):
                pass
            found.append(accuracy(model))
        drawn.append(Curve(name, depths, found))
    found = dict(zip(depths, drawn[0].y, strict=True))
    shallow, deep = page.pick(small=(10, 80), full=(30, 60))
    page.at_least(
        f"accuracy, {shallow} layers", 0.5, found[shallow], source=f"figure 2: below 16 ξ = {reach:.1f} layers"
    )
    page.at_most(
        f"accuracy, {deep} layers", 0.25, found[deep], source=f"figure 2: above 16 ξ = {reach:.1f}; chance 0.1"
    )
    drawn.append(Curve(f"16 ξ = {reach:.1f}", [reach, reach], [0.0, 1.0], "dash"))
    reading = (
        "Share of right answers on the test digits after training; the dashed line is the paper's estimate of the "
        "largest depth that trains with batch norm. In so few steps the network without one, whose gradients neither "
        "grow nor shrink, gets no deeper: the estimate is borne out, its cause is not."
    )
    axes = {"x": "hidden layers", "y": "accuracy", "y_range": (0, 1)}
    page.draw(curves("depth", "Depth that trains (figure 2)", reading, drawn, **axes))


def first_steps(page: Page) -> None:
    """Figure 3: gradients by layer before and after the first step."""
    depth, width = 60, 64
    model, shown, layers = network(depth, width), {}, list(range(1, depth + 1))
    for step, loss, hidden in train(model, page.pick(small=2, full=11)):
        if step in (0, 1, 10):
            gradients = torch.autograd.grad(loss, hidden, retain_graph=True)
            squares = torch.stack([gradient.double().square().mean() for gradient in gradients])
            shown[step] = (squares / squares[-1]).tolist()
    # one network, over the 50 layers whose gradients come from below the read-out
    slope = math.exp((math.log(shown[0][0]) - math.log(shown[0][50])) / 50)
    page.row(
        "λ before training, one network", factor("relu", BATCH), slope, 0.05, relative=True, source="theory, to 5 %"
    )
    page.at_least("first over tenth layer, before training", 10, shown[0][0] / shown[0][9], source="λ⁹ = 34")
    page.at_most("first over tenth layer, after a step", 10, shown[1][0] / shown[1][9], source="figure 3: stable")
    drawn = [Curve(f"step {step}", layers, squares) for step, squares in shown.items()]
    reading = "Mean squared gradients at the layers' outputs, over that of the last; input on the left."
    axes = {"x": "layer", "y": "mean square, relative", "log_y": True}
    page.draw(curves("steps", "A step evens out what exploded (figure 3)", reading, drawn, **axes))


if __name__ == "__main__":
    run(build)
