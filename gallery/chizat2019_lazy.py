"""Lazy training is a matter of scale, and costs what features bring (Chizat, Oyallon and Bach 2019).

Claims of arXiv:1812.07956: multiply a model by α and the loss by 1/α², and training becomes lazy as α grows, at any
width: weights move by 1/α, the model follows its linearisation, and the tangent kernel stays. Small α is where features
are learned, and test performance is best there (figures 1 and 3).

    outputs   α (f(x; w) - f(x; w_0)),    loss   (1 / α²) mean |outputs - y|² / 2

With this loss one rate fits every α, and α = ∞ is the linearised model, whose training has a closed form with the
tangent kernel of the start. The paper trains on CIFAR-10 and on synthetic data. Here it is the digits that ship with
scikit-learn, in a task whose features must be found: two of them side by side, zeros and ones, and as many or more
pixels of noise; the target is 1 where the two are the same and -1 where not. The network has a hidden layer of GELU
units, as many at every α. Images of the test pairs are in none of the training pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import measure
from pullback.charts.chart import PALETTE
from pullback.modules import WideNetwork

F64 = {"dtype": torch.float64}
WIDTH, TESTS, SHARE = 64, 300, 0.15  # SHARE of the largest stable rate
LAZY = 16.0  # the scales from here on are fitted
CHANGES = ("weights", "distance from the linearisation", "tangent kernel")


@dataclass(frozen=True)
class Task:
    """Pairs of digits with noise: (N, D) and targets (N, 1), for training and for testing."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @classmethod
    def drawn(cls, seed: int, samples: int, noise: int) -> Task:
        """Pairs of training images, and pairs of others."""
        data = pb.functional.load_digits(0)
        make = torch.Generator().manual_seed(seed)
        parts: list[Tensor] = []
        for images, labels, count in (
            (data.x_train, data.y_train, samples), (data.x_test, data.y_test, TESTS),
        ):  # fmt: skip
            pixels, classes = images[labels < 2].flatten(1).double(), labels[labels < 2]
            pixels = (pixels - pixels.mean(0)) / (pixels - pixels.mean(0)).square().mean().sqrt()
            first, second = torch.randint(len(pixels), (2, count), generator=make)
            x = torch.cat([pixels[first], pixels[second], torch.randn(count, noise, generator=make, **F64)], 1)
            parts += [x / x.square().mean(1, keepdim=True).sqrt(), 2 * (classes[first] == classes[second]).double() - 1]
        x, y, x_test, y_test = parts
        return cls(x, y[:, None], x_test, y_test[:, None])

    def share_right(self, outputs: Tensor) -> float:
        """Of test pairs whose outputs (N, 1) have the target's sign."""
        return float((outputs.detach() * self.y_test > 0).double().mean())


class Scaled(nn.Module):
    """A network times a scale, less what it returned at the start."""

    def __init__(self, features: int, seed: int, scale: float) -> None:
        super().__init__()
        self.network, self.start = (
            WideNetwork(features, [WIDTH], "gelu", train_output=True, seed=seed, **F64) for _ in range(2)
        )
        self.start.requires_grad_(False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) to (N, 1)."""
        return self.scale * (self.network(x) - self.start(x))


def loss_of(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Half of the squared error over the squared scale, (N,)."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).sum(1) / (2 * scale**2)

    return loss


def build(page: Page) -> None:
    """Fill the page."""
    samples, noise, steps = page.pick(small=(120, 128, 250), full=(160, 192, 300))
    scales = page.pick(small=[0.25, 16.0, 64.0], full=[0.25, 1.0, 4.0, 16.0, 64.0])
    seeds = page.pick(small=4, full=6)
    page.set(seed=0, samples=samples, noise_pixels=noise, width=WIDTH, steps=steps, scales=scales, draws=seeds)
    formula(page, Task.drawn(0, 40, noise))
    by_scale(page, [Task.drawn(seed, samples, noise) for seed in range(seeds)], scales, steps)


def formula(page: Page, task: Task, scale: float = 64.0, steps: int = 20) -> None:
    """The linearised network's training against the closed form."""
    model = Scaled(task.x.shape[1], 0, scale).eval()
    kernel = pb.tangent_kernel(model, task.x).total / scale**2
    rate = SHARE * pb.linear_dynamics(kernel, task.y).max_lr
    found = pb.train_side_by_side(
        model, loss_of(scale), task.x, task.y, lambda p: torch.optim.SGD(p, rate), steps=steps, every=steps
    )
    closed = pb.linear_dynamics(kernel, task.y, lr=rate, time=steps)
    error = float((closed.train - found.expansion[-1]).abs().max())
    page.at_most("|f_lin - closed form|, largest over samples", 1e-6, error, source="linear in w", computed=True)


def by_scale(page: Page, tasks: list[Task], scales: list[float], steps: int) -> None:
    """Trainings at every scale, each draw of its own pairs and its own start."""
    found = [one_draw(task, seed, scales, steps) for seed, task in enumerate(tasks)]
    changes = torch.stack([each[0] for each in found], 2)  # (3, scales, draws)
    scores = torch.stack([each[1] for each in found], 1)  # (scales + 3, draws)
    changed(page, scales, changes)
    scored(page, scales, scores)


def one_draw(task: Task, seed: int, scales: list[float], steps: int) -> tuple[Tensor, Tensor]:
    """What moves, (3, scales), and shares of test pairs told right: by scale, then of three kernel methods."""
    start = Scaled(task.x.shape[1], seed, 1.0).eval()
    kernel, cross = kernels(start, task)
    rate = SHARE * pb.linear_dynamics(kernel, task.y).max_lr
    lazy = pb.linear_dynamics(kernel, task.y, cross=cross, lr=rate, time=steps)
    moves, scores = [], []
    for scale in scales:
        model = Scaled(task.x.shape[1], seed, scale).eval()
        weights = nn.utils.parameters_to_vector(model.network.parameters()).detach()
        descend(model, task, rate, steps)
        moved = nn.utils.parameters_to_vector(model.network.parameters()).detach() - weights
        away = (model(task.x).detach() - lazy.train).norm() / lazy.train.norm()
        after, after_cross = kernels(model, task)
        drift = pb.kernel_drift(kernel, after / scale**2).drift
        moves.append([float(moved.norm() / weights.norm()), float(away), drift])
        scores.append(task.share_right(model(task.x_test)))
        if scale == scales[0]:
            again = pb.kernel_regression(after, task.y, cross=after_cross).test
    ridge = pb.kernel_regression(kernel, task.y, cross=cross).test
    scores += [task.share_right(each) for each in (lazy.test, ridge, again)]
    return torch.tensor(moves, **F64).T, torch.tensor(scores, **F64)


def kernels(model: Scaled, task: Task) -> tuple[Tensor, Tensor]:
    """Tangent kernel of the training pairs, and of the test pairs with them."""
    return pb.tangent_kernel(model, task.x).total, pb.tangent_kernel(model, task.x_test, x2=task.x).total


def descend(model: Scaled, task: Task, rate: float, steps: int) -> None:
    """Gradient descent."""
    optimizer, loss = torch.optim.SGD(model.network.parameters(), rate), loss_of(model.scale)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(task.x), task.y).mean().backward()
        optimizer.step()


def changed(page: Page, scales: list[float], changes: Tensor) -> None:
    """Powers of the scale, and what moves where features are learned."""
    large = [k for k, scale in enumerate(scales) if scale >= LAZY]
    fitted = torch.tensor([scales[k] for k in large], **F64)
    for name, values in zip(CHANGES, changes, strict=True):
        slope = measure.Slope.of(fitted, values[large])
        page.row(f"exponent of α in the change of: {name}, α ≥ {LAZY:g}", -1.0, slope.value, 0.15, source="theorem 2.2")
    low = float(changes[2, 0].min())
    page.at_least(f"tangent kernel's relative change at α = {scales[0]:g}, least of all draws", 0.5, low,
                  source="figure 1: features are learned at small scales")  # fmt: skip
    high = float(changes[2, -1].max())
    page.at_most(f"the same at α = {scales[-1]:g}, largest of all draws", 0.1, high, source="lazy")
    drawn = [
        Curve(name, scales, values.log().mean(1).exp().tolist(), "line", PALETTE[place])
        for place, (name, values) in enumerate(zip(CHANGES, changes, strict=True))
    ]
    reading = "Relative changes in the training, geometric means over draws: at large α all fall as 1/α."
    page.draw(curves("changes", "What moves, by scale (figure 1)", reading, drawn, x="scale α", y="relative change",
                     log_x=True, log_y=True))  # fmt: skip


def scored(page: Page, scales: list[float], scores: Tensor) -> None:
    """Test scores beside those of kernels."""
    small, large, lazy, ridge, again = scores[0], scores[len(scales) - 1], *scores[len(scales) :]
    for name, other in (("trained as long", lazy), ("with the best ridge", ridge)):
        found = measure.Profile.over_seeds((small - other)[:, None])
        low = float(found.value - 3 * found.stderr)
        quantity = f"share right at α = {scales[0]:g} less that of the kernel of the start, {name}"
        page.at_least(quantity, 0.0, low, source="figure 3: less three standard errors over draws")
    same = float((large - lazy).abs().max())
    page.at_most(f"difference in the share right, α = {scales[-1]:g} and α = ∞, largest of all draws", 0.03, same,
                 source="α to infinity: the linearised model")  # fmt: skip
    means, errors = scores.mean(1), scores.std(1) / scores.shape[1] ** 0.5
    names = ("kernel of the start, trained as long (α = ∞)", "kernel of the start, ridge by leave-one-out",
             f"kernel after training at α = {scales[0]:g}, ridge by leave-one-out")  # fmt: skip
    shown = [(f"network, α = {scale:g}", k) for k, scale in enumerate(scales)]
    shown += [(name, len(scales) + k) for k, name in enumerate(names)]
    page.facts("Share of test pairs told right", ("method", "mean over draws", "standard error"),
               [*([name, float(means[k]), float(errors[k])] for name, k in shown),
                ["the last less the one before", float((again - ridge).mean()),
                 float((again - ridge).std() / len(ridge) ** 0.5)]])  # fmt: skip
    count = len(scales)
    drawn = [Curve("network", scales, means[:count].tolist(), "line", PALETTE[0], errors[:count].tolist())]
    drawn += [
        Curve(name, [scales[0], scales[-1]], [float(means[count + k])] * 2, "dash", PALETTE[k + 1])
        for k, name in enumerate(("kernel of the start, α = ∞", "the same, best ridge", "kernel after training"))
    ]
    reading = "Share of test pairs told right; bars are standard errors over draws. Small scales learn what tells."
    page.draw(
        curves("scores", "Test score, by scale (figure 3)", reading, drawn, x="scale α", y="share right", log_x=True)
    )


if __name__ == "__main__":
    run(build)
