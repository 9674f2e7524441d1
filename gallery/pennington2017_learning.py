"""Deep networks learn in fewer steps from orthogonal weights than from Gaussian ones (Pennington et al. 2017).

Claims of "Resurrecting the sigmoid in deep learning through dynamical isometry" (arXiv:1711.04735), section 3: deep
linear networks, and deep tanh networks whose lengths q* are small, have Jacobians with singular values next to 1 if
their weights are orthogonal, and not if they are Gaussian (page ``pennington2017_isometry``). The first learn faster,
the more so the deeper they are. The paper trains 200 tanh layers on CIFAR-10; this page at most 32 layers.

Here the digits that scikit-learn ships are learnt by gradient descent on all samples at once, without momentum. Both
starts are on the critical line, tanh with the paper's biases, σ_b² = 2.01e-5 and σ² = 1.05, and are tried at the same
rates. Counts are of steps until the mean cross entropy is at most 0.5 (ln 10 = 2.30 is chance); where it is not reached
the largest number of steps is counted, which is too few. The table compares the two starts at the rate at which the
Gaussian one needs fewest steps: the comparison that is kindest to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import measure, theory

TARGET = 0.5  # cross entropy to be reached
DEEP = 16  # layers from which on the starts are compared
INITS = ("gaussian", "orthogonal")
NETWORKS = {  # σ_b, and rates of gradient descent
    "linear": (0.0, (0.01, 0.03, 0.1)),
    "tanh": (2.01e-5**0.5, (0.03, 0.1, 0.3)),
}


@dataclass(frozen=True)
class Training:
    """Full-batch gradient descent on some digits, from several random starts."""

    x: Tensor
    y: Tensor
    width: int
    starts: int
    most_steps: int

    @classmethod
    def on_digits(cls, count: int, *sizes: int) -> Training:
        """The first of the digits, of mean 0 and mean square 1."""
        digits = pb.functional.load_digits(0)
        x = digits.x_train[:count].flatten(1)
        return cls((x - x.mean()) / x.std(), digits.y_train[:count], *sizes)

    def steps(self, net: theory.MeanField, weights: str, depth: int, rate: float) -> measure.Profile:
        """Steps until the loss is at most ``TARGET``; ``most_steps`` where it is not by then."""
        taken = [self.one(net, weights, depth, rate, seed) for seed in range(self.starts)]
        return measure.Profile.over_seeds(torch.tensor(taken, dtype=torch.float64)[:, None])

    def one(self, net: theory.MeanField, weights: str, depth: int, rate: float, seed: int) -> int:
        """From one start."""
        sizes = [self.x.shape[1], *[self.width] * depth, 10]
        scales = {"sigma_w": net.sigma_w, "sigma_b": net.sigma_b}
        model = pb.modules.MLP(sizes, net.phi.name, init=weights, seed=seed, **scales)
        optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=rate), nn.CrossEntropyLoss()
        for step in range(self.most_steps):
            loss = loss_fn(model(self.x), self.y)
            if loss.item() <= TARGET:
                return step
            if not math.isfinite(loss.item()):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self.most_steps


def build(page: Page) -> None:
    """Fill the page."""
    page.row("tanh: critical σ² for σ_b² = 2.01e-5", 1.05, critical("tanh").sigma_w ** 2, 1e-3, source="the paper's")
    learning(page)


def critical(activation: str) -> theory.MeanField:
    """The network on the critical line with its biases."""
    sigma_b, _ = NETWORKS[activation]
    return theory.MeanField(activation, theory.critical_sigma_w(activation, sigma_b), sigma_b)


def learning(page: Page) -> None:
    """Both starts of both networks, at several depths and rates."""
    training = Training.on_digits(*page.pick(small=(128, 64, 6, 150), full=(128, 64, 8, 150)))
    depths = page.pick(small=(4, 8, 16), full=(4, 16, 32))
    page.set(seed=0, digits=len(training.x), width=training.width, starts=training.starts)
    page.set(target_loss=TARGET, most_steps=training.most_steps)
    table, best = [], {}
    for activation, (_, rates) in NETWORKS.items():
        net = critical(activation)
        for depth in depths:
            taken = {w: [training.steps(net, w, depth, rate) for rate in rates] for w in INITS}
            best |= {(f"{activation}, {w}", depth): min(tried, key=mean) for w, tried in taken.items()}
            for weights, tried in taken.items():
                counts = zip(rates, map(words, tried), strict=True)
                table += [[activation, depth, weights, *each] for each in counts]
            if depth >= DEEP:
                saved(page, f"{activation}, {depth} layers", taken)
    header = ("activation", "layers", "weights", "rate", "steps")
    page.facts(f"Steps to a loss of {TARGET:g}, at most {training.most_steps}", header, table)
    draw(page, depths, best)


def mean(steps: measure.Profile) -> float:
    """Over starts."""
    return float(steps.value)


def words(steps: measure.Profile) -> str:
    """A count with its standard error."""
    return f"{mean(steps):.0f} ± {float(steps.stderr):.0f}"


def saved(page: Page, name: str, taken: dict[str, list[measure.Profile]]) -> None:
    """How many steps orthogonal weights save, at the rate that is best for Gaussian ones."""
    gaussian, orthogonal = min(zip(*taken.values(), strict=True), key=lambda both: mean(both[0]))
    error = float((gaussian.stderr**2 + orthogonal.stderr**2).sqrt())
    sure = mean(gaussian) - mean(orthogonal) - 3 * error
    counts = f"{words(gaussian)} steps Gaussian, {words(orthogonal)} orthogonal"
    page.at_least(f"{name}: steps saved, less 3 standard errors", 1, sure, source=counts)


def draw(page: Page, depths: tuple[int, ...], best: dict[tuple[str, int], measure.Profile]) -> None:
    """Steps against depth, each start at the rate best for it."""
    drawn = []
    for name in dict.fromkeys(key for key, _ in best):
        found = [best[name, depth] for depth in depths]
        drawn.append(Curve(name, depths, list(map(mean, found)), stderr=[float(each.stderr) for each in found]))
    page.draw(
        curves(
            "steps",
            f"Steps to a loss of {TARGET:g} by depth",
            "Each start at the best of the rates tried; bars are standard errors over starts. Orthogonal weights need "
            "fewer steps, and the more layers there are, the more they save.",
            drawn,
            x="layers",
            y="steps",
            log_x=True,
            log_y=True,
        )
    )


if __name__ == "__main__":
    run(build)
