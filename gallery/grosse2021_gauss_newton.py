"""The Gauss-Newton matrix is the Hessian of the loss after the network has been replaced by its tangent.

Figure 3 of Grosse's lecture "Taylor approximations" (2021), with equations 13 and 14. Claim: linearise the network
f at the weights w and leave the loss L as it is; the second derivative of what results is the Gauss-Newton matrix G.

    J(w) = L(f(w), t),   H = ∇²J = G + Σ_a ∂L/∂z_a ∇²f_a,   G = Jᵀ H_z J

with z = f(w) the outputs, J their derivative in the weights and H_z that of L in z, twice. So G is exact (equal to H)
where the network is linear in its weights or where every sample's own loss is stationary in its outputs, and not in
general, not even at an optimum. G has no negative eigenvalue where L is convex; H may have.

Drawn for the smallest network that shows it, f(w) = w_2 tanh(w_1 x) with x = 1.5 at w = (0.5, 2), along w_1: for the
squared error, where the linearised cost is itself the Gauss-Newton quadratic, and for the logistic loss, where the
quadratic only touches it. The lecture's figure has no numbers; those below follow from the formulas by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn
from torch.nn.functional import softplus

import pullback as pb

X, START = 1.5, (0.5, 2.0)
HAND = "closed form, by hand"


class Unit(nn.Module):
    """f(w) = w_2 phi(w_1 x), (N, 1) to (N, 1)."""

    def __init__(self, start: tuple[float, float] = START, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1) to (N, 1)."""
        return self.weight[1] * self.activation(self.weight[0] * x)


def squared(z: Tensor, t: Tensor) -> Tensor:
    """(z - t)² / 2 of each sample (N,)."""
    return ((z - t) ** 2).sum(1) / 2


def logistic(z: Tensor, t: Tensor) -> Tensor:
    """Log-loss of the logit z for a label t of 0 or 1, (N,)."""
    return (softplus(z) - t * z).sum(1)


def build(page: Page) -> None:
    """Fill the page."""
    page.set(seed=0, x=X, weights=str(START), targets="0.3 and 0", points=page.pick(small=61, full=481))
    slice_of_one_weight(page)
    both_matrices(page)
    where_exact(page)


def both_matrices(page: Page) -> None:
    """Numbers of the tanh and the ReLU unit."""
    data = column(X), column(0.3)
    model = Unit()
    hessian, gauss_newton = (make(model, squared, data).to_dense() for make in (pb.Hessian, pb.GaussNewton))
    page.row("output f", 1.2702979047745746, model(data[0]).item(), 1e-12, source=HAND)
    for name, matrix, entries in (
        ("G", gauss_newton, (3.2032316397842067, 1.1367625534170323, 0.40341419171866855)),
        ("H", hessian, (-0.10576333163601781, 2.005061493107465, 0.40341419171866855)),
    ):
        for place, value in zip(((0, 0), (0, 1), (1, 1)), entries, strict=True):
            page.row(f"{name}, entry {place[0] + 1}{place[1] + 1}", value, matrix[place], 1e-12, source=HAND)
    page.at_least("smallest eigenvalue of G", -1e-12, torch.linalg.eigvalsh(gauss_newton)[0], source="L is convex")
    page.at_most("smallest eigenvalue of H", -1, torch.linalg.eigvalsh(hessian)[0], source="H is indefinite here")
    bent = Unit(activation=torch.relu)
    hessian, gauss_newton = (make(bent, squared, data).to_dense() for make in (pb.Hessian, pb.GaussNewton))
    missing = hessian[0, 1] - gauss_newton[0, 1]
    page.row("H - G of a ReLU unit, entry 12", 1.8, missing, 1e-12, source="(f - t) x: not zero between layers")


class Slice:
    """The cost along w_1, a function of one weight (1,), and its three approximations around the start."""

    def __init__(self, loss_fn: Callable[[Tensor, Tensor], Tensor], target: float) -> None:
        self.loss_fn, self.target = loss_fn, column(target)
        self.start = torch.tensor(START[:1], dtype=torch.float64)
        self.tangent = pb.taylor(self.network, self.start, 1)
        self.hessian = pb.taylor(self.cost, self.start, 2)
        one = torch.ones_like(self.start)
        self.slope = pb.vjp(self.cost, self.start, torch.ones((), dtype=torch.float64))
        self.bend = pb.gauss_newton_vp(self.network, self.loss, self.start, one)
        self.bend_of_linearised = pb.hvp(self.linearised, self.start, one)

    def network(self, w: Tensor) -> Tensor:
        """Output for a first weight w."""
        return START[1] * torch.tanh(w * X)

    def loss(self, z: Tensor) -> Tensor:
        """Loss of the one sample for output z."""
        return self.loss_fn(z[:, None], self.target).sum()

    def cost(self, w: Tensor) -> Tensor:
        """J(w)."""
        return self.loss(self.network(w))

    def linearised(self, w: Tensor) -> Tensor:
        """The cost of the linearised network."""
        return self.loss(self.tangent(w))

    def gauss_newton(self, w: Tensor) -> Tensor:
        """The quadratic with the Gauss-Newton matrix in place of the Hessian."""
        step = w - self.start
        return self.cost(self.start) + (self.slope * step + self.bend * step**2 / 2).sum()


def slice_of_one_weight(page: Page) -> None:
    """Figure 3 along w_1, for both losses."""
    points = torch.linspace(-1.0, 1.6, page.settings["points"], dtype=torch.float64)
    for name, each in (("squared", Slice(squared, 0.3)), ("logistic", Slice(logistic, 0.0))):
        operator = pb.GaussNewton(Unit(), each.loss_fn, (column(X), each.target)).to_dense()[0, 0]
        found = each.bend_of_linearised
        page.row(f"second derivative of the linearised curve, {name}", operator, found, 1e-12, source="entry 11 of G")
        apart = (values(each.linearised, points) - values(each.gauss_newton, points)).abs().max()
        label = f"linearised curve apart from its quadratic, {name}"
        if name == "squared":
            draw_network(page, each, points)
            page.at_most(label, 1e-12, apart, source="none: L is quadratic")
        else:
            page.at_least(label, 0.05, apart, source="L is not quadratic")
        draw_costs(page, name, each, points)
        draw_errors(page, name, each)


def draw_network(page: Page, each: Slice, points: Tensor) -> None:
    """The function and its linearisation."""
    drawn = [
        Curve("network f", points, values(each.network, points)),
        Curve("linearised f", points, values(each.tangent, points)),
        Curve("current weight", START[:1], values(each.network, each.start), "points", "#808080"),
    ]
    reading = "Output along the first weight; the tangent touches at w₁ = 0.5."
    page.draw(curves("network", "The network and its tangent (figure 3)", reading, drawn, x="w₁", y="output"))


def draw_costs(page: Page, name: str, each: Slice, points: Tensor) -> None:
    """The cost, that of the linearised network, and both quadratics."""
    drawn = [
        Curve("cost", points, values(each.cost, points)),
        Curve("linearised network", points, values(each.linearised, points)),
        Curve("Gauss-Newton quadratic", points, values(each.gauss_newton, points), "dash", "#009E73"),
        Curve("Hessian quadratic", points, values(each.hessian, points), "dash", "#C46BA0"),
        Curve("current weight", START[:1], values(each.cost, each.start), "points", "#808080"),
    ]
    title = f"Cost and its approximations, {name} loss (figure 3)"
    reading = (
        "The Hessian's quadratic bends with the cost at w₁ = 0.5, the Gauss-Newton quadratic with the cost of the "
        "linearised network."
    )
    page.draw(curves(f"cost-{name}", title, reading, drawn, x="w₁", y="cost", y_range=(-1.5, 4.0)))


def draw_errors(page: Page, name: str, each: Slice) -> None:
    """How fast each quadratic leaves the cost: with the third power of the step, or with the second."""
    steps = torch.logspace(-3, -0.5, 26, dtype=torch.float64)
    truth = values(each.cost, each.start + steps)
    errors = []
    for label, quadratic, order in (("Gauss-Newton", each.gauss_newton, 2), ("Hessian", each.hessian, 3)):
        error = (values(quadratic, each.start + steps) - truth).abs()
        errors.append(Curve(f"{label} quadratic", steps, error))
        power = (error[5] / error[0]).log() / (steps[5] / steps[0]).log()
        page.row(f"power of the step in the {label} error, {name}", order, power, 0.05, source="Taylor's theorem")
    title = f"Distance of the quadratics from the cost, {name} loss"
    reading = "Slope 3 for the Hessian, 2 for Gauss-Newton: near w₁ = 0.5 the steeper line is the better quadratic."
    axes = {"x": "step in w₁", "y": "error", "log_x": True, "log_y": True}
    if name == "squared":  # the other loss looks the same
        page.draw(curves(f"errors-{name}", title, reading, errors, **axes))


def where_exact(page: Page) -> None:
    """Equal at a perfect fit and for networks linear in their weights; not at the optimum of one that cannot fit."""
    model, x = Unit(), column(X)
    page.at_most(
        "|H - G| where every residual is 0", 1e-12, apart(model, squared, (x, model(x).detach())), source="eq. 13"
    )
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(8, 3, dtype=torch.float64, generator=generator), torch.arange(8) % 4
    linear = nn.Linear(3, 4).double()
    page.at_most("|H - G| of a linear network, cross-entropy", 1e-12, apart(linear, nn.CrossEntropyLoss(), (x, labels)),
                 source="eq. 13")  # fmt: skip
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    data = x, x + torch.sin(3 * x) / 2
    small = Unit((1.0, 0.5))
    optimizer = torch.optim.LBFGS(
        small.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def cost() -> Tensor:
        optimizer.zero_grad()
        value = squared(small(x), data[1]).mean()
        value.backward()
        return value

    optimizer.step(cost)
    gradient = torch.autograd.grad(squared(small(x), data[1]).mean(), small.weight)[0]
    page.at_most("gradient of a unit too small to fit, at its optimum", 1e-8, gradient.norm(), source="L-BFGS")
    page.at_least(
        "|H - G| / |H| there", 0.01, apart(small, squared, data, relative=True), source="section 4.4: inexact"
    )


def apart(model: nn.Module, loss_fn: Callable, data: tuple[Tensor, Tensor], *, relative: bool = False) -> float:
    """Frobenius norm of H - G, over that of H if ``relative``."""
    hessian, gauss_newton = (make(model, loss_fn, data).to_dense() for make in (pb.Hessian, pb.GaussNewton))
    return float((hessian - gauss_newton).norm() / (hessian.norm() if relative else 1))


def values(f: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """A function of one weight at many places."""
    with torch.no_grad():
        return torch.stack([f(point.reshape(1)).reshape(()) for point in points])


def column(value: float) -> Tensor:
    """One sample of one number."""
    return torch.tensor([[value]], dtype=torch.float64)


if __name__ == "__main__":
    run(build)
