"""Wide networks train as their linearisation does, and that by formula (Lee et al. 2019, figures 1 to 3).

Claims of arXiv:1902.06720: under gradient descent of the squared loss a wide network follows its first-order Taylor
model in the weights, whose training has a closed form. The distance is at most of the order 1/√m at width m. While
training, weights of the first and the last layer change by 1/√m of their norm, those between by 1/m, and the tangent
kernel by at most 1/√m, as measured by nearly 1/m (figure 1). Over networks, outputs are Gaussian at every time, with
the mean and variance that follow from the NNGP and NTK kernels (figure 2). Network, linearised network and formula
agree at single samples (figure 3).

    linearised model   f_lin(x; w) = f(x; w_0) + J(x) (w - w_0)

    its outputs        f_lin(t) = f(0) - Θ (1 - (1 - η Θ / n)^t) Θ^-1 (f(0) - y)

    ensemble           mean A y, covariance K** - A K*ᵀ - K* Aᵀ + A K Aᵀ, A = Θ* (1 - (1 - η Θ / n)^t) Θ^-1

n is the number of outputs in all, Θ the tangent kernel, K the NNGP kernel of the limit, * the test samples. The paper
trains on MNIST and CIFAR-10; here it is two digits of those that ship with scikit-learn, and networks of erf units in
NTK scaling whose last layer starts from random signs, which have the same limit.
"""

from __future__ import annotations

import numpy as np
import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor

import pullback as pb
from pullback import dynamics, measure, theory
from pullback.charts.chart import PALETTE, Chart
from pullback.modules import WideNetwork

COLOURS = ("#4c78a8", "#f58518", "#54a24b")


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half of the squared error, (N,)."""
    return ((outputs - targets) ** 2).sum(1) / 2


def digits(count: int, tests: int) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros and ones as vectors of mean square 1, and targets -1 and 1; some more as test samples."""
    data = pb.functional.load_digits(0)
    kept = data.y_train < 2
    x = data.x_train[kept].flatten(1).double()
    x = x / x.square().mean(1, keepdim=True).sqrt()
    y = 2.0 * data.y_train[kept].double()[:, None] - 1
    return x[:count], y[:count], x[count : count + tests]


def network(width: int, depth: int, seed: int) -> WideNetwork:
    """Hidden layers of erf units; all weights are trained."""
    return WideNetwork(64, [width] * depth, "erf", train_output=True, seed=seed, dtype=torch.float64).eval()


def build(page: Page) -> None:
    """Fill the page."""
    samples, depth = page.pick(small=(12, 2), full=(16, 3))
    page.set(seed=0, samples=samples, hidden_layers=depth, activation="erf")
    x, y, x_test = digits(samples, 6)
    rate = 0.5 * pb.linear_dynamics(theory.limit_of(network(8, depth, 0), weights=ones(depth))(x)[1], y).max_lr
    page.set(rate=rate)
    widths(page, x, y, x_test, depth, rate)
    ensemble(page, x, y, x_test, rate)


def ones(depth: int) -> dict[str, float]:
    """Standard deviations that the weights are drawn with."""
    return {f"layers.{k}.weight": 1.0 for k in range(depth)}


def widths(page: Page, x: Tensor, y: Tensor, x_test: Tensor, depth: int, rate: float) -> None:
    """Trainings over widths and seeds, beside their linearisation (figures 1 and 3)."""
    sizes, seeds, steps = page.pick(small=((32, 128, 512), 3, 60), full=((32, 64, 128, 256, 512), 3, 120))
    page.set(widths=list(sizes), seeds=seeds, steps=steps)
    rows, shown, error = [], {}, 0.0
    for width in sizes:
        for seed in range(seeds):
            found, closed, row = trained(network(width, depth, seed), x, y, x_test, rate, steps)
            error = max(error, float((closed.test - found.test_expansion).abs().max()))
            rows.append(row)
            if seed == 0:
                shown[width] = (found, closed)
    page.at_most(
        "largest |f_lin - formula|, all runs, times and test samples", 1e-6, error, source="equation 10", computed=True
    )
    table = np.array(rows).reshape(len(sizes), seeds, -1)
    slopes = np.polyfit(np.log(sizes), np.log(table).mean(1), 1)[0]
    page.at_most(
        "slope of log |f - f_lin| in log m", -0.4, slopes[0], source="the bound 1/√m, less a tenth for the fit"
    )
    page.row("slope of the first layer's relative change", -0.5, slopes[1], 0.15, source="figure 1: 1/√m")
    page.row("slope of the second layer's relative change", -1.0, slopes[2], 0.15, source="figure 1: 1/m")
    page.row("slope of the last layer's relative change", -0.5, slopes[3], 0.15, source="figure 1: 1/√m")
    page.at_most(
        "slope of the tangent kernel's relative change", -0.5, slopes[4], source="figure 1: at most 1/√m, nearer 1/m"
    )
    page.draw(_changes_drawn(sizes, table))
    page.draw(_one_sample_drawn({width: shown[width] for width in (sizes[0], sizes[-1])}))


def trained(
    model: WideNetwork, x: Tensor, y: Tensor, x_test: Tensor, rate: float, steps: int
) -> tuple[dynamics.SideBySide, dynamics.Dynamics, list[float]]:
    """One network beside its linearisation, what the formula says of the same times, and what moved (as drawn)."""
    kernel, cross = pb.tangent_kernel(model, x), pb.tangent_kernel(model, x_test, x2=x)
    found = pb.train_side_by_side(
        model, half_square, x, y, lambda p: torch.optim.SGD(p, rate), steps=steps, every=10, x_test=x_test
    )
    closed = pb.linear_dynamics(
        kernel, y, cross=cross, initial=model(x), cross_initial=model(x_test), lr=rate, time=found.steps
    )
    network_after = found.trained[0]
    drift = pb.kernel_drift(kernel, pb.tangent_kernel(network_after, x)).drift
    return found, closed, [float(found.distance.max()), *changes(model, network_after), drift]


def _changes_drawn(sizes: tuple[int, ...], table: np.ndarray) -> Chart:
    """Distance and changes against the width, of (widths, networks, 5)."""
    names = ("distance |f - f_lin|", "first layer", "second layer", "last layer", "tangent kernel")
    means = np.exp(np.log(table).mean(1))
    reading = (
        "Root mean square of |f - f_lin|, its largest over the training, and changes relative to the start, geometric "
        "means over networks. Straight lines are powers of the width."
    )
    drawn = [Curve(name, sizes, means[:, k].tolist()) for k, name in enumerate(names)]
    title = "Distance from the linearisation, and what changes (figure 1)"
    return curves("widths", title, reading, drawn, x="width m", y="change", log_x=True, log_y=True)


def _one_sample_drawn(shown: dict[int, tuple[dynamics.SideBySide, dynamics.Dynamics]]) -> Chart:
    """Outputs of the network, its linearisation and the formula, by width."""
    drawn = []
    for (width, (found, closed)), colour in zip(shown.items(), COLOURS, strict=False):
        for values, name, style in (
            (found.test_network, "network", "plain"), (found.test_expansion, "linearised", "dash"),
            (closed.test, "formula", "points"),
        ):  # fmt: skip
            drawn.append(Curve(f"{name}, m = {width}", found.steps, values[:, 0, 0].tolist(), style, colour))
    title = "Network, linearised network, formula (figure 3)"
    reading = "The output at one test sample. Points (the formula) lie on the dashes; the lines near them as m grows."
    return curves("one-sample", title, reading, drawn, x="step", y="output")


def changes(model: WideNetwork, trained: torch.nn.Module) -> list[float]:
    """Relative change of the first, the second and the last layer's weights."""
    before, after = (dict(m.named_parameters()) for m in (model, trained))
    names = ("layers.0.weight", "layers.1.weight", "readout.weight")
    return [float((after[name] - before[name]).detach().norm() / before[name].detach().norm()) for name in names]


def ensemble(page: Page, x: Tensor, y: Tensor, x_test: Tensor, rate: float) -> None:
    """Means and variances over networks beside the limit's (figure 2)."""
    width, count, steps = page.pick(small=(128, 60, 40), full=(512, 100, 80))
    page.set(ensemble_width=width, ensemble=count)
    limit = theory.limit_of(network(8, 1, 0), weights=ones(1))
    rate = 0.5 * pb.linear_dynamics(limit(x)[1], y).max_lr
    every = steps // 4
    known = pb.ensemble_dynamics(
        limit(x), y, cross=limit(x_test, x), test=limit(x_test), lr=rate, time=list(range(steps + 1))
    )
    outputs = []
    for seed in range(count):
        model = network(width, 1, 1000 + seed)
        optimizer = torch.optim.SGD(model.parameters(), rate)
        seen = []
        for step in range(steps + 1):
            if step % every == 0:
                seen.append(model(x_test).detach()[:, 0])
            optimizer.zero_grad()
            half_square(model(x), y).mean().backward()
            optimizer.step()
        outputs.append(torch.stack(seen))
    found = torch.stack(outputs)  # (S, T, M)
    mean = known.mean[::every, :, 0]
    over = measure.Profile.over_seeds
    places, squares = found.flatten(1), ((found - mean) ** 2).flatten(1)
    pairs = [(over(places), mean.flatten().tolist())]
    page.mostly(
        "means over networks, all times and test samples,", pairs, at_most=0.5, relative=False, source="figure 2"
    )
    variances = torch.diagonal(known.covariance[::every], dim1=1, dim2=2)
    pairs = [(over(squares), variances.flatten().tolist())]
    page.mostly("variances over networks", pairs, at_most=0.8, source="figure 2")
    page.draw(_ensemble_drawn(known, found, every))


def _ensemble_drawn(known: dynamics.Ensemble, found: Tensor, every: int) -> Chart:
    """Mean and standard deviation at two test samples, of outputs (S, T, M) at every so many steps."""
    seen, drawn = list(known.times)[::every], []
    for sample in (0, 1):
        average = measure.Profile.over_seeds(found[:, :, sample])
        for k, (what, limit, here, stderr) in enumerate((
            ("mean", known.mean[:, sample, 0], average.value, average.stderr.tolist()),
            ("standard deviation", known.stddev[:, sample], found[:, :, sample].std(0), None),
        )):  # fmt: skip
            name, colour = f"{what}, sample {sample}", PALETTE[2 * sample + k]
            drawn.append(Curve(name, known.times, limit.tolist(), "plain", colour))
            drawn.append(Curve(f"{name}, networks", seen, here.tolist(), "points", colour, stderr, legend=False))
    reading = "Mean and standard deviation of outputs at two test samples: lines are the limit's, points the networks'."
    return curves("ensemble", "An ensemble while it trains (figure 2)", reading, drawn, x="step", y="output")


if __name__ == "__main__":
    run(build)
