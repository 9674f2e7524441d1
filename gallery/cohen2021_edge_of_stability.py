"""Full-batch training settles at the edge of stability, and why it stays there (Cohen et al. 2021, figures 1 and 5).

Claims of arXiv:2103.00065: under full-batch gradient descent the sharpness, the largest eigenvalue S of the Hessian,
rises until it is 2/η and then hovers there, while the loss, no longer monotone from step to step, goes on falling over
longer times; the same holds with momentum β at (2 + 2β)/η, and, by arXiv:2207.14484, under Adam for the preconditioned
sharpness at (2 + 2β₁)/((1 - β₁)η). Damian, Nichani & Lee (2023, arXiv:2209.15594) say why: an oscillation x along the
top eigenvector pushes along -∇S by x²/2, against the slope that sharpens. With α = -∇L·∇S, β = |∇S|² and y = S - 2/η,

    x ← -(1 + η y) x,   y ← y + η (α - β x²/2),

so that y is 0 on average, x² is 2α/β, and both circle around that with the period 2π/(η √(2α)).

The paper trains on CIFAR-10; here it is 100 of the digits that ship with scikit-learn, a tanh network and squared
errors. The equations are checked on the function of two parameters that they are exact for to leading order,
(2/η + y) x²/2 - α y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import diagnostics, dynamics

TOL = 1e-2  # of each sharpness
SEED = 0


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half of the squared error, (N,)."""
    return ((outputs - targets) ** 2).sum(1) / 2


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Images as vectors, classes as unit vectors."""
    data = pb.functional.load_digits(0)
    return data.x_train[:count].flatten(1).double(), nn.functional.one_hot(data.y_train[:count], 10).double()


def network(seed: int) -> nn.Module:
    """Two hidden layers of tanh units."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))
        return nn.Sequential(*layers).double().eval()


def build(page: Page) -> None:
    """Fill the page."""
    page.set(seed=SEED, samples=100, hidden=(16, 16), activation="tanh")
    descent(page)
    adam(page)
    stabilisation(page)


def trained(
    make: Callable[[Any], torch.optim.Optimizer],
    steps: int,
    every: int,
    sharpness: Callable[..., Any],
    seed: int = SEED,
) -> tuple[list[int], list[float], list[float]]:
    """Steps at which it was measured, the sharpness there, and the loss at every step."""
    x, y = digits(100)
    model = network(seed)
    optimizer, at, found, losses = make(model.parameters()), [], [], []
    for step in range(steps + 1):
        optimizer.zero_grad()
        loss = half_square(model(x), y).mean()
        losses.append(loss.item())
        if step and step % every == 0:
            at.append(step)
            found.append(float(sharpness(model, (x, y), optimizer).values[0]))
        loss.backward()
        optimizer.step()
    return at, found, losses


def plain(model: nn.Module, data: Any, _: Any) -> Any:
    """The largest eigenvalue of the Hessian."""
    return pb.eigenvalues(pb.Hessian(model, half_square, data), 1, tol=TOL)


def descent(page: Page) -> None:
    """Gradient descent with and without momentum at several rates (figures 1 and 5)."""
    steps, every = 600, 20
    settings = page.pick(small=((0.2, 0.0), (0.25, 0.5)), full=((0.2, 0.0), (0.15, 0.0), (0.25, 0.5)))
    page.set(steps=steps, rates=[list(pair) for pair in settings])
    drawn, losses = [], []
    for lr, momentum in settings:
        limit = 2 * (1 + momentum) / lr
        make = lambda p, lr=lr, m=momentum: torch.optim.SGD(p, lr=lr, momentum=m)
        at, found, loss = trained(make, steps, every, plain)
        name = f"η = {lr:g}" + (f", β = {momentum:g}" if momentum else "")
        late = [value / limit for value in found[len(found) // 2 :]]
        page.row(f"sharpness over its limit, second half, {name}", 1.0, sum(late) / len(late), 0.1, source="figure 5")
        half = len(loss) // 2
        rises = sum(b > a for a, b in zip(loss[half:], loss[half + 1 :], strict=False))
        if not momentum:  # figure 1 is of gradient descent
            page.at_least(f"steps at which the loss rises, second half, {name}", 1, rises, source="figure 1")
        page.at_most(f"loss at the end over that halfway, {name}", 0.9, loss[-1] / loss[half], source="figure 1")
        drawn.append(Curve(name, at, [value / limit for value in found], "plain"))
        losses.append(Curve(name, list(range(0, len(loss), 5)), loss[::5], "plain"))
    drawn.append(Curve("the limit", [0, steps], [1.0, 1.0], "dash"))
    reading = "The largest eigenvalue of the Hessian over (2 + 2β)/η: it rises to 1 and hovers there."
    page.draw(
        curves("sharpness", "Sharpness over its limit (figures 1 and 5)", reading, drawn, x="step", y="S η / (2 + 2β)")
    )
    reading = "Not monotone from step to step, falling over longer times."
    page.draw(curves("loss", "Loss", reading, losses, x="step", y="loss", log_y=True))


def adam(page: Page) -> None:
    """Adam's preconditioned sharpness (arXiv:2207.14484)."""
    steps, every, lr = 500, 20, 0.02
    limit = (2 + 2 * 0.9) / ((1 - 0.9) * lr)

    def preconditioned(model: nn.Module, data: Any, optimizer: Any) -> Any:
        return diagnostics.preconditioned_sharpness(model, half_square, data, optimizer, tol=TOL)

    at, found, _ = trained(lambda p: torch.optim.Adam(p, lr=lr), steps, every, preconditioned)
    ratio = [value / limit for value in found]
    late = ratio[len(ratio) // 2 :]
    page.set(adam_steps=steps, adam_rate=lr)
    page.row(
        "Adam: preconditioned sharpness over 38/η, second half", 1.0, sum(late) / len(late), 0.15, source="figure 1"
    )
    drawn = [Curve("Adam", at, ratio, "plain"), Curve("the limit", [0, steps], [1.0, 1.0], "dash")]
    reading = "Largest eigenvalue of P^(-1/2) H P^(-1/2), P the root of Adam's second moments, over 38/η."
    page.draw(curves("adam", "Adam's preconditioned sharpness", reading, drawn, x="step", y="over its limit"))


def stabilisation(page: Page) -> None:
    """The two equations, against gradient descent on the function they come from (Damian et al.)."""
    lr, alpha, turns = 0.1, 1e-3, 4
    period = 2 * math.pi / (lr * math.sqrt(2 * alpha))
    steps, start = round(turns * period), 1.1 * math.sqrt(2 * alpha)
    page.set(stabilisation_rate=lr, alpha=alpha)

    def function(p: Tensor) -> Tensor:
        return (2 / lr + p[..., 1]) * p[..., 0].square() / 2 - alpha * p[..., 1]

    found = dynamics.simulate(lambda p: torch.optim.SGD(p, lr=lr), function, [start, 0.0], steps).x
    x, y = found.T
    sharp = float((2 / lr + y).mean())
    page.row("mean sharpness over 2/η", 1.0, sharp * lr / 2, 1e-4, source="y is 0 on average", computed=True)
    page.row("mean of x² over 2α", 1.0, float(x.square().mean()) / (2 * alpha), 1e-3, source="x² = 2α/β", computed=True)
    up = [k for k in range(1, steps + 1) if y[k - 1] < 0 <= y[k]]
    seen = (up[-1] - up[0]) / (len(up) - 1)
    page.row("period over 2π/(η √(2α))", 1.0, seen / period, 0.02, source="linearised around the centre", computed=True)
    shown = range(0, steps + 1, max(1, steps // 400))
    drawn = [
        Curve("sharpness less 2/η", list(shown), [float(y[k]) for k in shown], "plain"),
        Curve("|x| less its mean", list(shown), [float(x[k].abs()) - math.sqrt(2 * alpha) for k in shown], "plain"),
    ]
    reading = "Sharpness above 2/η lets the oscillation grow, which takes sharpness down, which lets it shrink."
    page.draw(curves("stabilisation", "Self-stabilisation", reading, drawn, x="step", y="distance from the centre"))


if __name__ == "__main__":
    run(build)
