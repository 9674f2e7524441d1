"""Networks train as deep as signals reach (Schoenholz et al. 2017, figures 3, 5 and 6).

"Deep information propagation", arXiv:1611.01232. Claims of figure 5, tanh networks with σ_b² = 0.05: whether a network
of L layers can be trained is decided by the depth ξ_c over which the correlation of two inputs settles; networks up to
about 6 ξ_c deep train and much deeper ones do not, so that very deep ones train next to the critical σ_w² = 1.76 alone.
Claims of figures 3 and 6: dropout leaves no critical point, since the masks of two inputs differ; ξ_c is finite for
every σ_w, and with it the depth that trains.

    ξ_c = -1 / log(σ_w² E φ'(u) φ'(u')),  u and u' of variance q* and correlation c*

The paper trains on MNIST and CIFAR-10, in networks of up to 300 layers and by thousands of steps of SGD. Here the data
are scikit-learn's digits, and 200 steps of SGD are taken, by all networks of L layers at the rate 0.3 / L. Weights are
orthogonal, one draw scaled to every σ_w: the maps of q and c are those of Gaussian weights, but narrow networks carry
signals deeper with them. What is mapped is the accuracy on the training digits, without dropout. A network counts as
trained if it gets half of them right, where one class in ten is chance. Bounds in the table are this page's reading of
the claims' words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from kit.charts import Curve, curves, heat_map
from kit.page import Page
from kit.run import run
from scipy.stats import spearmanr
from torch import Tensor, nn

import pullback as pb
from pullback import theory
from pullback.charts.chart import PALETTE, Chart

SIGMA_B = math.sqrt(0.05)
CRITICAL = theory.critical_sigma_w("tanh", SIGMA_B) ** 2
TRAINED = 0.5  # accuracy on the training digits; chance is 0.1
REACH, BEYOND = 6, 12  # multiples of xi_c: up to the first networks should train, beyond the second they should not
RATE = 0.3  # of learning, times the number of hidden layers
BATCH, STEPS = 64, 200
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Map:
    """Accuracies by depth and variance of the weights.

    Attributes:
        keep: probability that dropout keeps a unit.
        variances: sigma_w^2, (M,).
        depths: hidden layers, (D,).
        accuracy: on the training data, (D, M).
    """

    keep: float
    variances: tuple[float, ...]
    depths: tuple[int, ...]
    accuracy: Tensor

    @property
    def multiples(self) -> Tensor:
        """Depths in units of xi_c, (D, M)."""
        scales = torch.tensor([reach(v, self.keep) for v in self.variances], dtype=torch.float64)
        return torch.tensor(self.depths, dtype=torch.float64)[:, None] / scales

    @property
    def trained(self) -> Tensor:
        """Which networks did, (D, M)."""
        return self.accuracy >= TRAINED

    def deepest(self, variance: float) -> int:
        """The depth up to which all networks of this sigma_w^2 trained; 0 if the shallowest did not."""
        column = self.trained[:, self.variances.index(variance)]
        return (0, *self.depths)[int(column.long().cumprod(0).sum())]


def build(page: Page) -> None:
    """Fill the page."""
    width = page.pick(small=64, full=128)
    page.set(seed=0, width=width, steps=STEPS, batch=BATCH, rate_times_depth=RATE, sigma_b2=0.05, trained_from=TRAINED)
    data = load()
    without_dropout(page, width, data)
    no_critical_point(page)
    with_dropout(page, width, data)


def reach(variance: float, keep: float = 1.0) -> float:
    """xi_c of the infinitely wide network, in layers."""
    return theory.MeanField("tanh", math.sqrt(variance), SIGMA_B, keep).xi_c


def load() -> Data:
    """The training digits (N, 64), less their mean, with mean square 1; and their classes."""
    digits = pb.functional.load_digits(0)
    x = digits.x_train.flatten(1)
    x = x - x.mean(0)
    return x / x.square().mean().sqrt(), digits.y_train


def start(depth: int, width: int, sigma_w: Tensor) -> list[Tensor]:
    """Weights (M, inputs, outputs) and biases (M, 1, outputs) of M networks, layer by layer, scaled to each sigma_w."""
    sizes = [64, *[width] * depth, 10]
    model = pb.modules.MLP(sizes, "tanh", init="orthogonal", sigma_w=1.0, sigma_b=SIGMA_B, seed=0)
    found = []
    for name, parameter in model.named_parameters():
        drawn = parameter.detach()
        one = sigma_w[:, None, None] * drawn.T if name.endswith("weight") else drawn.expand(len(sigma_w), 1, -1)
        found.append(one.clone(memory_format=torch.contiguous_format).requires_grad_())
    return found


def outputs(parameters: list[Tensor], x: Tensor, keep: float, generator: torch.Generator | None = None) -> Tensor:
    """Of M networks, (M, N, 10); units are dropped if a generator is given, inputs are not."""
    h = x.expand(len(parameters[0]), -1, -1)
    for layer, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        if layer:
            h = torch.tanh(h)
            if generator is not None and keep < 1:
                h = h * (torch.rand(h.shape, generator=generator) < keep) / keep
        h = torch.baddbmm(bias, h, weight)
    return h


def train(depth: int, width: int, variances: Sequence[float], keep: float, data: Data, steps: int = STEPS) -> Tensor:
    """Accuracies (M,) after some steps of SGD; the networks of all variances at once, in one batch."""
    (x, y), count = data, len(variances)
    parameters = start(depth, width, torch.tensor(variances).sqrt())
    generator = torch.Generator().manual_seed(depth)
    for _ in range(steps):
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        scores = outputs(parameters, x[chosen], keep, generator)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), y[chosen].repeat(count), reduction="sum") / BATCH
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=RATE / depth)
    with torch.no_grad():
        return (outputs(parameters, x, keep).argmax(2) == y).double().mean(1)  # NaN counts as class 0


def trained_map(depths: tuple[int, ...], width: int, variances: tuple[float, ...], keep: float, data: Data) -> Map:
    """Train the networks of all depths."""
    return Map(keep, variances, depths, torch.stack([train(d, width, variances, keep, data) for d in depths]))


def without_dropout(page: Page, width: int, data: Data) -> None:
    """Figure 5."""
    variances = page.pick(small=(1.0, CRITICAL, 4.0), full=(1.0, 1.2, 1.4, 1.6, CRITICAL, 2.0, 2.5, 4.0))
    depths = page.pick(small=(10, 50, 100), full=(10, 20, 40, 70, 110, 200))
    page.row("critical σ_w² at σ_b² = 0.05", 1.76, CRITICAL, 0.005, source="figure 5: the peak")
    found = trained_map(depths, width, variances, 1.0, data)
    shares(page, found)
    rank = spearmanr(found.multiples.flatten(), found.accuracy.flatten()).statistic
    page.at_most("rank correlation of accuracy and L / ξ_c", -0.7, rank, source="figure 5: ξ_c decides")
    page.row(
        "deepest trained at the critical point", depths[-1], found.deepest(CRITICAL), 0, source="the deepest there is"
    )
    for variance in (variances[0], variances[-1]):
        limit = BEYOND * reach(variance)
        page.at_most(f"deepest trained at σ_w² = {variance:g}", limit, found.deepest(variance), source=f"{BEYOND} ξ_c")
    page.draw(map_of(found, "figure 5"))
    page.draw(collapse(found))


def no_critical_point(page: Page) -> None:
    """Figure 3: what dropout does to xi_c."""
    known = theory.MeanField("tanh", 1.3, 0.3, 0.9)
    for name, value, here in (
        ("q*", 0.719823, known.q_star),
        ("c*", 0.512223, known.c_star),
        ("C(1)", 0.912503, known.c_map(1.0)),
        ("ξ_c", 3.935054, known.xi_c),
    ):
        page.row(f"{name} at (σ_w, σ_b) = (1.3, 0.3), a tenth dropped", value, here, 1e-6, source="closed form")
    few, fewer = (reach(CRITICAL, 1 - dropped) for dropped in (1e-4, 1e-5))
    page.row("exponent of ξ_c in the share dropped, at the critical point", -0.5, math.log10(few / fewer), 0.01)
    page.draw(limits())


def with_dropout(page: Page, width: int, data: Data) -> None:
    """Figure 6."""
    keeps = page.pick(small=(0.9,), full=(0.98, 0.9))
    variances = page.pick(small=(1.4, CRITICAL, 2.5), full=(1.0, CRITICAL, 4.0))
    depths = page.pick(small=(10, 20, 80), full=(10, 20, 40, 70, 110))
    for keep in keeps:
        found = trained_map(depths, width, variances, keep, data)
        shares(page, found)
        limit = BEYOND * reach(CRITICAL, keep)
        quantity = f"deepest trained at σ_w² = {CRITICAL:.3g}, {name_of(keep)}"
        page.at_most(quantity, limit, found.deepest(CRITICAL), source=f"figure 6: {BEYOND} ξ_c")
        page.draw(map_of(found, "figure 6"))


def name_of(keep: float) -> str:
    """How a page calls networks with or without dropout."""
    return "no dropout" if keep == 1 else f"{1 - keep:.2g} dropped"


def shares(page: Page, found: Map) -> None:
    """Which networks should have trained and did, and the other way round."""
    near, far = found.multiples <= REACH, found.multiples > BEYOND
    for quantity, cells, right in (
        (f"up to {REACH} ξ_c deep: trained", near, found.trained),
        (f"more than {BEYOND} ξ_c deep: not trained", far, ~found.trained),
    ):
        count = int(cells.sum())
        share = float(right[cells].double().mean())
        page.at_least(
            f"{name_of(found.keep)}, {quantity}, share of {count} networks", 0.9, share, source="figures 5, 6"
        )


def map_of(found: Map, figure: str) -> Chart:
    """Accuracies with the multiples of xi_c on them."""
    top = 4 * found.depths[-1]
    grid = [0.7 + 0.05 * k for k in range(80)]
    scales = [reach(variance, found.keep) for variance in grid]
    lines = [
        Curve(f"{m} ξ_c", grid, [min(m * scale, top) for scale in scales], style, "#E8590C")
        for m, style in ((REACH, "line"), (BEYOND, "dash"))
    ]
    rows = [[float(a) for a in row] for row in found.accuracy]
    best = max(found.variances, key=found.deepest)
    return heat_map(
        f"map-{round(100 * found.keep)}",
        f"Trained accuracy by depth, {name_of(found.keep)} ({figure})",
        "Each cell is a network; bright ones have learned the training digits, dark ones are at chance. By the theory "
        "the bright part ends near the solid line.",
        ("σ_w²", found.variances),
        ("hidden layers", found.depths),
        ("accuracy", rows),
        bounds=(0, 1),
        drawn=lines,
        log_y=True,
        summary=(f"Deepest trained: {found.deepest(best)} layers at σ_w² = {best:.3g}.",),
    )


def collapse(found: Map) -> Chart:
    """Accuracy over the depth in units of xi_c."""
    drawn = []
    for colour, name, chosen in (
        (PALETTE[0], "ordered", [v < 0.99 * CRITICAL for v in found.variances]),
        (PALETTE[1], "chaotic", [v > 1.01 * CRITICAL for v in found.variances]),
    ):
        columns = torch.tensor(chosen)
        x, y = found.multiples[:, columns].flatten(), found.accuracy[:, columns].flatten()
        order = x.argsort()
        drawn.append(Curve(name, x[order].tolist(), y[order].tolist(), "points", colour))
    drawn.append(Curve(f"{REACH} ξ_c", [REACH, REACH], [0, 1], "dash"))
    others = torch.tensor([abs(v - CRITICAL) > 0.01 * CRITICAL for v in found.variances])
    x, y = found.multiples[:, others], found.accuracy[:, others]
    near, far = y[x <= REACH].min(), y[x > BEYOND].max()
    return curves(
        "collapse",
        "Accuracy over the depth in units of ξ_c (figure 5)",
        "Networks of every σ_w² but the critical one on one axis: accuracy falls to chance about the same multiple.",
        drawn,
        x="layers / ξ_c",
        y="accuracy on the training digits",
        log_x=True,
        y_range=(0, 1.02),
        summary=(f"At least {near:.2f} up to {REACH} ξ_c, at most {far:.2f} beyond {BEYOND} ξ_c.",),
    )


def limits() -> Chart:
    """6 xi_c over sigma_w^2 with more and more dropout."""
    grid = [1 + 0.05 * k for k in range(61)]
    drawn = [
        Curve(name_of(keep), grid, [min(REACH * reach(v, keep), 1000) for v in grid])
        for keep in (1.0, 0.999, 0.99, 0.98, 0.9)
    ]
    return curves(
        "limits",
        "Depth that signals reach, with dropout (figure 3)",
        "Without dropout it grows without bound at the critical point; with any dropout it ends in a finite maximum.",
        drawn,
        x="σ_w²",
        y=f"{REACH} ξ_c (layers)",
        log_y=True,
        height=380,
    )


if __name__ == "__main__":
    run(build)
