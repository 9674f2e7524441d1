"""What batch norm does to training: smoother, not more stable (Santurkar et al. 2018, figures 1 to 4).

Claims of arXiv:1805.11604: networks with batch norm train faster, and at more learning rates. So they do with noise
after the normalisation, which unsettles the layers' inputs more than they are without batch norm. Internal covariate
shift, the change of a layer's gradient when the layers before it have moved, is no smaller with batch norm. What
differs is smoothness: along the gradient the loss and the gradient vary less.

    shift of layer l: |G - G'| / |G|, and cos(G, G')

    along the gradient: L and |∇L| at w - η ∇L; effective β = max |∇L(w - η ∇L) - ∇L(w)| / (η |∇L(w)|)

G is the gradient of the loss L in W^l on one batch before a step, and G' the same with layers 1 .. l - 1 as they are
after it; η are half to four learning rates.

The paper's networks are VGG on CIFAR-10 and a deep linear network on random data. Here they are fully connected ones on
the digits that ship with scikit-learn, on the critical line, all kinds from the same weights, trained by plain gradient
descent. The noise is the paper's: in every step each unit draws a shift of U(-1/2, 1/2) and a scale of U(1, 5/4), and
each sample a shift within 1/10 of the unit's and a scale of N(the unit's, 1/10²).

Two learning rates tell the claims apart: one that every kind bears, and a larger one that batch norm alone bears. At
the first the gradients turn less with batch norm, and it trains no faster; at the second, where it trains best, they
turn as much as in the standard network. Shift goes with the rate, and does not tell how well a network trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import measure, modules, theory

KINDS = ("standard", "batch norm", "noisy batch norm")
COLOURS = dict(zip(KINDS, ("#D55E00", "#0072B2", "#009E73"), strict=True))
CONVERGED = 1.0  # a loss that counts as trained; chance is ln 10 = 2.3
WORST = 1e3  # larger losses, and those that are no numbers, are drawn here
LEARNT = 0.5  # a loss by which to tell how fast a network learns
LAST = 10  # steps that losses are averaged over
LOSS = nn.CrossEntropyLoss()
BATCH = 128
LOW, HIGH = 0.05, 0.8  # a rate that all kinds bear, and one that batch norm alone does
CASES = (("standard", LOW), ("batch norm", LOW), ("noisy batch norm", LOW), *((kind, HIGH) for kind in KINDS[1:]))
REACH = (0.5, 1.0, 2.0, 4.0)  # steps along the gradient, in learning rates: the paper's range
EDGE = {"standard": 0.03, "batch norm": 0.1}  # of deep linear networks, which both bear 0.01
MET: dict[str, tuple[str, Callable[[measure.Smoothness], float]]] = {
    "range of the loss": ("range", lambda s: s.loss_range[1] - s.loss_range[0]),
    "change of the gradient": ("gradient", lambda s: s.gradient_range[1]),
    "effective β": ("beta", lambda s: s.effective_beta),
}
Case = tuple[str, float]  # a kind and its learning rate
AllRuns = dict[Case, "Runs"]


class Noise(nn.Module):
    """Moves every unit's distribution (the paper's appendix A): the same way until ``step`` changes."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place, self.step = place, 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, units) to (B, units)."""
        draw = torch.Generator().manual_seed(1000 * self.step + self.place)
        unit = torch.rand(2, 1, x.shape[1], generator=draw, dtype=x.dtype)
        shift = unit[0] - 0.5 + 0.2 * (torch.rand(x.shape, generator=draw, dtype=x.dtype) - 0.5)
        scale = 1 + 0.25 * unit[1] + 0.1 * torch.randn(x.shape, generator=draw, dtype=x.dtype)
        return scale * x + shift


def network(kind: str, sizes: Sequence[int], activation: str = "relu", seed: int = 0) -> modules.MLP:
    """A network of some kind on the critical line; its linear layers start from the same weights in all of them."""
    norm, sigma_w = ("none" if kind == "standard" else "batch"), theory.critical_sigma_w(activation, 0.0)
    model = modules.MLP(sizes, activation, normalisation=norm, init="gaussian", sigma_w=sigma_w, seed=seed)
    if kind == "noisy batch norm":
        for place, layer in enumerate(model.layers[:-1]):
            layer.norm = nn.Sequential(layer.norm, Noise(place))
    return model


def renew_noise(model: nn.Module, step: int) -> None:
    """The noise of a step, which differs from that of all others."""
    for module in model.modules():
        if isinstance(module, Noise):
            module.step = step


def batches(data: pb.functional.Dataset, B: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of B samples, none of them twice in one; the same for all kinds of network."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randperm(len(data.x_train), generator=draw)[:B]
        yield data.x_train[index], data.y_train[index]


@dataclass(frozen=True)
class Seen:
    """What is measured at one step of training, of L hidden layers."""

    shift: Tensor  # |G - G'| / |G| of hidden layers 2 to L, (L - 1,)
    cosine: Tensor  # of G and G', (L - 1,)
    drift: Tensor  # change of the units' means to the next step over their standard deviations, both rms, (L,)
    smoothness: measure.Smoothness


def moments(model: modules.MLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every hidden unit's output over a batch, (L, units) each."""
    with pb.functional.undisturbed(model), torch.no_grad():
        hidden = torch.stack(model.activations(x)[1:-1])
    return hidden.mean(1), hidden.std(1)


def train(
    model: modules.MLP, data: pb.functional.Dataset, B: int, steps: int, rate: float, seed: int = 0, every: int = 0
) -> tuple[list[float], list[Seen]]:
    """By plain gradient descent; the losses, and what is seen every so many steps (0 for never)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses, seen = [], []
    for step, (x, y) in enumerate(batches(data, B, steps, seed)):
        watch = bool(every) and step % every == 0
        if watch:
            shift = measure.internal_covariate_shift(model, LOSS, x, y, rate)
            smooth = measure.smoothness(model, LOSS, x, y, [rate * part for part in REACH])
            before, spread = moments(model, x)
        optimizer.zero_grad()
        loss = LOSS(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        renew_noise(model, step + 1)
        if watch:
            after, _ = moments(model, x)
            drift = (after - before).square().mean(1).sqrt() / spread.square().mean(1).sqrt()
            at = [place for place, name in enumerate(shift.layers) if name.endswith("linear")][1:]
            seen.append(Seen((shift.shift / shift.norm)[at], shift.cosine[at], drift, smooth))
    return losses, seen


@dataclass(frozen=True)
class Runs:
    """Of one kind of network at one rate, over S seeds: losses (S, steps), and what is seen at K of the steps."""

    losses: Tensor
    seen: list[list[Seen]]

    def by_layer(self, name: str) -> Tensor:
        """Shift, cosine or drift, (S, K, layers)."""
        return torch.stack([torch.stack([getattr(each, name) for each in row]) for row in self.seen])

    def along(self, number: Callable[[measure.Smoothness], float]) -> Tensor:
        """A number of what is met along the gradient, (S, K)."""
        return torch.tensor([[number(each.smoothness) for each in row] for row in self.seen])


def build(page: Page) -> None:
    """Fill the page."""
    sizes = [64, *[64] * page.pick(small=6, full=8), 10]
    page.set(seed=0, layers=str(sizes), batch=BATCH)
    data = pb.functional.load_digits(0)
    small_steps(page, data, sizes)
    while_training(page, data, sizes)
    linear_network(page, data)
    learning_rates(page, data, sizes)


def while_training(page: Page, data: pb.functional.Dataset, sizes: Sequence[int]) -> None:
    """Train all cases from several seeds, and compare what is seen on the way."""
    seeds, steps, every = page.pick(small=(5, 121, 40), full=(6, 201, 25))
    page.set(networks=seeds, steps=steps)
    runs = {}
    for kind, rate in CASES:
        found = [train(network(kind, sizes, seed=k), data, BATCH, steps, rate, k, every) for k in range(seeds)]
        runs[kind, rate] = Runs(torch.tensor([losses for losses, _ in found]), [seen for _, seen in found])
    times = list(range(0, steps, every))
    training(page, runs)
    stability(page, runs, times)
    covariate_shift(page, runs)
    along_the_gradient(page, runs, times)
    overview(page, runs)


def small_steps(page: Page, data: pb.functional.Dataset, sizes: Sequence[int]) -> None:
    """What is measured, for steps so small that it is a product with the Hessian, which takes another route."""
    model, tiny = network("standard", sizes, "tanh").double(), 1e-6
    x, y = next(batches(data, BATCH, 1, 0))
    x, view = x.double(), pb.ModelView.of(model)
    w = view.flatten(view.parameters).detach()

    def cost(w: Tensor) -> Tensor:
        return LOSS(view(x, view.unflatten(w)), y)

    g = torch.func.grad(cost)(w)
    known, source = pb.hvp(cost, w, g).norm() / g.norm(), "|Hg| / |g|"
    found = measure.smoothness(model, LOSS, x, y, [tiny]).effective_beta
    page.row("effective β, small steps", known, found, 1e-4, relative=True, source=source, computed=True)
    last = sum(p.numel() for p in model.layers[-1].parameters())  # the read-out's, which come last
    before = torch.cat([g[:-last], torch.zeros_like(g[-last:])])
    known, source = pb.hvp(cost, w, before)[-last:].norm(), "the Hessian's rows of the read-out, times the others' g"
    found = measure.internal_covariate_shift(model, LOSS, x, y, tiny).shift[-1] / tiny
    shifted = "shift of the read-out over the rate, small steps"
    page.row(shifted, known, found, 1e-4, relative=True, source=source, computed=True)


def sure(page: Page, quantity: str, limit: float, above: Tensor, below: Tensor, source: str, unlike: str = "") -> None:
    """Hold the geometric mean of a ratio above a limit, by two standard errors over seeds (the first axis)."""
    logs = (above / below).log().reshape(len(above), -1).mean(1, keepdim=True)
    mean = measure.Profile.over_seeds(logs)
    found, error = float(mean.value), float(mean.stderr)
    told = f"{source}; the ratio is {math.exp(found):.3g}, its logarithm's standard error {error:.2g}"
    quantity = f"{quantity}, less 2 standard errors"
    page.at_least(quantity, limit, math.exp(found - 2 * error), source=told, not_reproduced=unlike)


def by_case(
    runs: AllRuns, x: Sequence[float], values: Callable[[Runs], Tensor], *, logs: bool = True, bars: bool = False
) -> list[Curve]:
    """A curve for each kind and rate: (geometric) means over seeds of (S, x), with standard errors if ``bars``."""
    drawn = []
    for case, each in runs.items():
        samples = values(each)
        mean = measure.Profile.over_seeds(samples.log() if logs else samples)
        height = mean.value.exp() if logs else mean.value
        stderr = (mean.stderr * height if logs else mean.stderr).tolist() if bars else None
        drawn.append(Curve(label(case), x, height.tolist(), style(case), COLOURS[case[0]], stderr))
    return drawn


def label(case: Case) -> str:
    """A kind and its rate."""
    return f"{case[0]}, rate {case[1]:g}"


def style(case: Case) -> str:
    """Dashes for the larger of two rates."""
    return "dash" if case[1] in (HIGH, *EDGE.values()) else "plain"


def steps_needed(losses: Tensor) -> Tensor:
    """Steps until the mean of the last few losses is that of a network that has learnt, or all there are, (S,)."""
    smooth = losses.unfold(1, LAST, 1).mean(2)
    learnt = smooth < LEARNT
    return torch.where(learnt.any(1), learnt.int().argmax(1) + LAST, losses.shape[1]).double()


def training(page: Page, runs: AllRuns) -> None:
    """Losses while training, and what noise costs."""
    needed = {case: steps_needed(each.losses) for case, each in runs.items()}
    source = "figures 1 and 2"
    for kind, rate, known in (
        ("batch norm", HIGH, ""),
        ("noisy batch norm", HIGH, ""),
        ("noisy batch norm", LOW, "at so small a rate noise costs more steps than the normalisation saves"),
    ):
        quantity = f"steps to a loss of {LEARNT}, standard at rate {LOW:g} over {kind} at {rate:g}"
        sure(page, quantity, 1, needed["standard", LOW], needed[kind, rate], source, known)
    ends = [runs[kind, LOW].losses[:, -LAST:].mean(1) for kind in KINDS[:2]]
    known = "at a rate far below its own batch norm ends no lower, in so few steps"
    sure(page, f"final loss at rate {LOW:g}, standard over batch norm", 1, *ends, source, known)
    steps = list(range(len(runs["standard", LOW].losses[0])))
    reading = (
        "Training loss of each step's batch, geometric mean over networks. Solid at a rate that all bear, dashed at "
        "one that batch norm alone bears, and at which it beats the standard network with and without noise."
    )
    drawn = by_case(runs, steps, lambda r: r.losses)
    page.draw(curves("training", "Training (figures 1 and 2)", reading, drawn, x="step", y="loss", log_y=True))


def stability(page: Page, runs: AllRuns, times: list[int]) -> None:
    """How much the layers' inputs move from step to step (figure 2)."""
    half = len(times) // 2
    drift = {case: each.by_layer("drift")[:, half:] for case, each in runs.items()}
    quantity = "drift of the units' means in the second half, noisy batch norm over standard"
    sure(page, quantity, 1, drift["noisy batch norm", HIGH], drift["standard", LOW], "figure 2: less stable")
    reading = (
        "Change of the units' means over a batch from one step to the next, in standard deviations; mean over layers. "
        "The noisy networks' inputs are the least stable in the end, and yet they train."
    )
    drawn = by_case(runs, times, lambda r: r.by_layer("drift").mean(2))
    axes = {"x": "step", "y": "drift", "log_y": True}
    page.draw(curves("drift", "Stability of the layers' inputs (figure 2)", reading, drawn, **axes))


def covariate_shift(page: Page, runs: AllRuns) -> None:
    """Internal covariate shift, by layer (figure 3)."""
    shift = {case: each.by_layer("shift") for case, each in runs.items()}
    source = 'figure 3: "similar, or even worse", taken as half'
    pair = shift["batch norm", HIGH], shift["standard", LOW]
    sure(page, "covariate shift at own rates, batch norm over standard", 0.5, *pair, source)
    layers = list(range(2, shift["standard", LOW].shape[2] + 2))
    reading = (
        "How much a layer's gradient changes when the layers before it have moved: geometric mean over steps and "
        "networks, with standard errors. It grows with the rate, and is no smaller where batch norm trains best."
    )
    drawn = by_case(runs, layers, lambda r: r.by_layer("shift").log().mean(1).exp(), bars=True)
    page.draw(curves("shift", "Covariate shift by layer (figure 3)", reading, drawn, x="layer", y="|G - G'| / |G|"))
    reading = "The same as an angle; 1 means that the layers before do not matter to a layer's step. Means over steps."
    drawn = by_case(runs, layers, lambda r: r.by_layer("cosine").mean(1), logs=False, bars=True)
    page.draw(curves("cosine", "Covariate shift as an angle (figure 3)", reading, drawn, x="layer", y="cos(G, G')"))


def linear_network(page: Page, data: pb.functional.Dataset) -> None:
    """Figure 3's deep linear network: how much its gradients turn is a matter of the learning rate."""
    depth, steps, seen_every = page.pick(small=(10, 24, 1), full=(16, 120, 8))
    runs = {}
    for case in [(kind, rate) for kind, edge in EDGE.items() for rate in (0.01, edge)]:
        model = network(case[0], [64, *[32] * depth, 10], "linear")
        _, seen = train(model, data, len(data.x_train), steps, case[1], every=seen_every)
        runs[case] = torch.stack([each.cosine.mean() for each in seen])
    late = {case: float(cosine[1:].mean()) for case, cosine in runs.items()}  # the first step is the start's own
    source = "figure 3: hardly any shift"
    page.at_least("linear, standard, rate 0.01: mean cosine", 0.99, late["standard", 0.01], source=source)
    source, name = "figure 3: almost uncorrelated, taken as half", "linear, batch norm, rate {:g}: mean cosine"
    page.at_most(name.format(0.1), 0.5, late["batch norm", 0.1], source=source)
    why = "at a rate both kinds bear, batch norm's gradients turn as little as the standard network's"
    page.at_most(name.format(0.01), 0.5, late["batch norm", 0.01], source=source, not_reproduced=why)
    x = list(range(0, steps, seen_every))
    drawn = [Curve(label(case), x, cosine.tolist(), style(case), COLOURS[case[0]]) for case, cosine in runs.items()]
    reading = (
        "Mean over layers of the angle between a gradient and what it is when the layers before have moved. Solid at a "
        "rate both bear, dashed at the largest that each bears of those tried."
    )
    axes = {"x": "step", "y": "cos(G, G')"}
    page.draw(curves("linear", "Deep linear network, all samples in every step (figure 3)", reading, drawn, **axes))


def along_the_gradient(page: Page, runs: AllRuns, times: list[int]) -> None:
    """What steps of half to four learning rates along the gradient meet (figure 4)."""
    for name, (key, number) in MET.items():
        met = {case: each.along(number) for case, each in runs.items()}
        quantity = f"{name} at rate {LOW:g}, standard over batch norm"
        sure(page, quantity, 1, met["standard", LOW], met["batch norm", LOW], "figure 4")
        reading = f"{name[0].upper()}{name[1:]} over steps of half to four learning rates along the gradient."
        drawn = by_case(runs, times, lambda r, number=number: r.along(number))
        title = f"{name[0].upper()}{name[1:]} along the gradient (figure 4)"
        page.draw(curves(key, title, reading, drawn, x="step", y=name, log_y=True))


def learning_rates(page: Page, data: pb.functional.Dataset, sizes: Sequence[int]) -> None:
    """Learning rates that converge."""
    steps, octaves = page.pick(small=(40, range(-8, 5, 2)), full=(100, range(-10, 5)))
    tried = [2.0**k for k in octaves]
    within, drawn = {}, []
    for kind in KINDS:
        ends = []
        for rate in tried:
            losses, _ = train(network(kind, sizes), data, BATCH, steps, rate)
            end = sum(losses[-LAST:]) / LAST
            ends.append(min(end, WORST) if math.isfinite(end) else WORST)
        within[kind] = [rate for rate, end in zip(tried, ends, strict=True) if end < CONVERGED]
        drawn.append(Curve(kind, tried, ends, "line", COLOURS[kind]))
    for kind in KINDS[1:]:
        factor = max(within[kind]) / max(within["standard"])
        source = f"larger learning rates; {max(within[kind]):g} here"
        page.at_least(f"largest rate that converges, {kind} over standard", 2, factor, source=source)
        wider = len(within[kind]) - len(within["standard"])
        page.at_least(f"rates that converge, {kind} less standard", 1, wider, source=f"of {len(tried)} rates")
    rows = [[kind, min(found), max(found)] for kind, found in within.items()]
    page.facts(f"Learning rates that converge within {steps} steps", ("network", "smallest", "largest"), rows)
    reading = f"Mean loss of the last {LAST} of {steps} steps; a rate converges if it is below the dashed line."
    drawn.append(Curve("converged", [tried[0], tried[-1]], [CONVERGED] * 2, "dash"))
    axes = {"x": "learning rate", "y": "final loss", "log_x": True, "log_y": True}
    page.draw(curves("rates", "Learning rates that converge", reading, drawn, **axes))


def overview(page: Page, runs: AllRuns) -> None:
    """Everything measured while training, geometric means over steps, layers and seeds (arithmetic of cosines)."""
    rows: list[list[str | float]] = []
    for case, each in runs.items():
        numbers = [
            steps_needed(each.losses),
            each.losses[:, -LAST:].mean(1),
            each.by_layer("shift"),
            each.by_layer("drift"),
        ]
        numbers += [each.along(number) for _, number in MET.values()]
        means = [float(number.log().mean().exp()) for number in numbers]
        rows.append([label(case), *means, float(each.by_layer("cosine").mean())])
    header = ("network", f"steps to {LEARNT}", "final loss", "shift / |G|", "drift", *MET, "cosine")
    page.facts("While training, means over steps, layers and networks", header, rows)


if __name__ == "__main__":
    run(build)
