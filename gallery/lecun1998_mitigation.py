"""What helps against ill-conditioning, tried on one real problem (after LeCun, Bottou, Orr and Müller 1998).

Claims, as "Efficient BackProp", textbooks and lecture notes hand them on: centred and scaled inputs, normalisation,
good starts, skips, momentum, adaptive rates, clipping, second-order methods, decay, dropout and schedules each make an
ill-conditioned problem easier. Here each is tried alone, by what it is said to do: condition the Gauss-Newton matrix A,

    κ = largest eigenvalue of A over the median of its N largest,

take fewer updates to a loss, or tell more of the test samples. The problem is the breast-cancer data that ships with
scikit-learn, whose 30 features differ by five orders of magnitude, and a tanh network of six layers.

Each remedy has the best of its rates, as plain descent has, by a run that does not count. One that is said to change
where training starts is held to κ there, the others to κ where training ends. Runs that do not reach the loss count
with all their updates; L-BFGS counts evaluations of all samples as updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from kit.charts import Curve, curves
from kit.claims import HEADER, decide, table
from kit.page import Page
from kit.run import run
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import pullback as pb
from pullback import dynamics

LOSS = nn.CrossEntropyLoss()
TARGET, BATCH, WATCHED, TRAINING = 0.25, 32, 64, 400
TUNED = 100  # the seed of the runs that pick rates
SIZES = (30, 16, 16, 16, 16, 16)
KINDS = ("raw inputs", "standardised inputs")
LOST = 100 * math.log(2)  # the loss of a training that has diverged
Numbers = dict[str, float]
Found = dict[tuple[str, str], dict[str, Tensor]]  # by inputs and remedy


class Chain(nn.Module):
    """Linear layers and activations, with what remedies add."""

    def __init__(self, norm: Any = None, activation: Any = nn.Tanh, skip: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(a, b), *([norm(b)] if norm else []), activation(), *([nn.Dropout(dropout)] if dropout else [])
            )
            for a, b in pairwise(SIZES)
        )
        self.out, self.skip = nn.Linear(SIZES[-1], 2), skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, 30) to (N, 2)."""
        for block in self.blocks:
            signal = block(x)
            x = x + signal if self.skip and signal.shape == x.shape else signal
        return self.out(x)


@dataclass(frozen=True)
class Remedy:
    """One change.

    Attributes:
        name: of it.
        rates: to choose from.
        make: (model, rate) to an optimizer; SGD if None.
        network: arguments of ``Chain``.
        initialise: whether weights are drawn at the edge of chaos.
        clip: largest norm of a gradient.
        cosine: whether the rate falls to zero like a cosine.
        start: whether it changes where training starts.
        most: updates it is given; those of all if None. One that does not reach the loss counts with those of all.
    """

    name: str
    rates: tuple[float, ...] = (0.1, 0.03, 0.3, 1.0)
    make: Callable[[nn.Module, float], Any] | None = None
    network: dict[str, Any] = field(default_factory=dict)
    initialise: bool = False
    clip: float = math.inf
    cosine: bool = False
    start: bool = False
    most: int | None = None


def of(optimizer: Any, **options: Any) -> Callable[[nn.Module, float], Any]:
    """An optimizer of torch as a remedy takes it."""
    return lambda model, lr: optimizer(model.parameters(), lr=lr, **options)


PLAIN = Remedy("plain descent")
FAST = ("plain descent", "clipped gradients")  # tried at ten times their rate, too
SMALL = (0.003, 0.001, 0.01, 0.03)
REMEDIES = (
    Remedy("critical start", initialise=True, start=True),
    Remedy("ReLU units", network={"activation": nn.ReLU}, start=True),
    Remedy("batch norm", network={"norm": nn.BatchNorm1d}, start=True),
    Remedy("layer norm", network={"norm": nn.LayerNorm}, start=True),
    Remedy("residual connections", network={"skip": True}, start=True),
    Remedy("momentum 0.9", (0.03, 0.01, 0.1, 0.3), of(torch.optim.SGD, momentum=0.9)),
    Remedy("Adam", SMALL, of(torch.optim.Adam)),
    Remedy("RMSprop", SMALL, of(torch.optim.RMSprop)),
    Remedy("Adagrad", (0.03, 0.01, 0.1, 0.3), of(torch.optim.Adagrad)),
    Remedy("clipped gradients", clip=0.5),
    Remedy("natural gradient", (0.1, 0.3), make=lambda m, lr: dynamics.NaturalGradient(m, LOSS, lr, 0.1), most=20),
    Remedy("L-BFGS", (1.0, 0.3), of(torch.optim.LBFGS, max_iter=10, line_search_fn="strong_wolfe")),
    Remedy("weight decay 0.01", make=of(torch.optim.SGD, weight_decay=1e-2)),
    Remedy("dropout 0.1", network={"dropout": 0.1}),
    Remedy("cosine schedule", cosine=True),
)


@dataclass(frozen=True)
class Problem:
    """Samples of one draw: (N, 30) and classes, for training and for testing."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @classmethod
    def drawn(cls, seed: int, standardised: bool) -> Problem:
        """Features as they are, but for one scale of all of them, or each of mean 0 and variance 1 in training."""
        data = load_breast_cancer()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
        x, y = torch.tensor(data.data)[order], torch.tensor(data.target)[order]
        x = x / x.square().mean().sqrt()
        if standardised:
            x = (x - x[:TRAINING].mean(0)) / x[:TRAINING].std(0)
        return cls(x[:TRAINING], y[:TRAINING], x[TRAINING:], y[TRAINING:])


def build(page: Page) -> None:
    """Fill the page."""
    updates, seeds, rates = page.pick(small=(40, 2, 1), full=(200, 5, 3))
    names = page.pick(small=("critical start", "Adam"), full=tuple(r.name for r in REMEDIES))
    page.set(seed=0, updates=updates, seeds=seeds, rates_tried=rates, target=TARGET, batch=BATCH, widths=SIZES)
    conditioning(page)
    tried = [PLAIN, *(r for r in REMEDIES if r.name in names)]
    found = {
        (kind, remedy.name): over_seeds(remedy, kind == KINDS[1], (updates, seeds, rates))
        for kind in KINDS
        for remedy in tried
    }
    held(page, found)
    listed(page, tried, found)
    said(page, [r for r in tried if r is not PLAIN], found)


def conditioning(page: Page) -> None:
    """κ by the kernel of the rows, against singular values of rows that autograd makes."""
    model, problem = start(Remedy("", initialise=True), 0), Problem.drawn(0, True)
    x, y = problem.x[:WATCHED], problem.y[:WATCHED]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    outputs = lambda w: torch.func.functional_call(model, w, x)
    slopes = torch.cat([each.flatten(2) for each in torch.func.jacrev(outputs)(weights).values()], 2)
    p = outputs(weights).softmax(1)
    rows = (p[:, 0] * p[:, 1]).sqrt()[:, None] * (slopes[:, 0] - slopes[:, 1])  # two classes: one row a sample
    values = torch.linalg.svdvals(rows).square()
    known = float(values[0] / values.median())
    page.row("ln κ, by autograd's rows", math.log(known), math.log(condition(model, x, y)), 1e-6, computed=True,
             source="singular values of the rows of A")  # fmt: skip


def start(remedy: Remedy, seed: int) -> nn.Module:
    """The network a remedy begins with, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Chain(**remedy.network).double().eval()
    return pb.initialise(model, seed=seed) if remedy.initialise else model


def condition(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """κ of the Gauss-Newton matrix; eigenvalues lost in rounding count as rounding."""
    found = pb.curvature_spectrum(model, LOSS, (x, y), method="gram", vectors=False)
    values = torch.full((len(x),), found.noise_floor, dtype=torch.float64)
    values[: len(found.values)] = found.values
    return float(values[0] / values.median())


def watched(model: nn.Module, problem: Problem, statistics: bool) -> Numbers:
    """κ, and what per-sample gradients say; batch norm has the statistics of its own, or those of the samples."""
    x, y = problem.x[:WATCHED], problem.y[:WATCHED]
    if statistics and any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        with pb.frozen_batch_norm(model, x):
            return watched(model, problem, False)
    kernel = pb.backward_kernel(model, LOSS, x, y)
    layers = pb.layer_flow(kernel, num_matvecs=0).gradient_norms.log()
    norms = kernel.total.diag().sqrt()
    return {
        "ln κ": math.log(condition(model, x, y)),
        "ln variance of gradient norms": float(norms.var().log()),
        "mean cosine": pb.alignment(kernel).mean_cosine,
        "spread of ln gradient norms over layers": float(layers.max() - layers.min()),
    }


def over_seeds(remedy: Remedy, standardised: bool, size: tuple[int, int, int]) -> dict[str, Tensor]:
    """What was measured at the best rate, (seeds,) each."""
    updates, seeds, rates = size
    run = lambda lr, seed, counted: trained(remedy, lr, standardised, seed, updates, counted)
    tuning = {lr: run(lr, TUNED, False) for lr in remedy.rates[:rates]} if rates > 1 else {}
    best = min(tuning, key=lambda lr: (tuning[lr]["updates"], tuning[lr]["loss"]), default=remedy.rates[0])
    runs = [run(best, seed, True) for seed in range(seeds)]
    fast = remedy.name in FAST and rates > 1
    ten = [run(10 * best, seed, False)["loss"] if fast else math.nan for seed in range(seeds)]
    found = {name: torch.tensor([each[name] for each in runs], dtype=torch.float64) for name in runs[0]}
    return found | {"rate": torch.full((seeds,), best), "loss at ten times the rate": torch.tensor(ten)}


def trained(remedy: Remedy, lr: float, standardised: bool, seed: int, updates: int, counted: bool = True) -> Numbers:
    """One training: updates to the target, loss and accuracy at its end, and what the weights say before and after."""
    problem, model = Problem.drawn(seed, standardised), start(remedy, seed)
    before = watched(model, problem, True) if counted else {}
    first, batches = math.inf, torch.Generator().manual_seed(seed)
    optimizer = (remedy.make or of(torch.optim.SGD))(model, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates) if remedy.cosine else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of dropout
        done = 0
        while done < (remedy.most or updates):
            chosen = torch.randint(TRAINING, (BATCH,), generator=batches)
            calls = update(model, optimizer, remedy, problem, chosen)
            done += calls
            if schedule:
                schedule.step()
            if first == math.inf and done % 5 < calls and loss_of(model, problem) < TARGET:  # looked at every five
                first = done
    loss = loss_of(model, problem)
    after = watched(model, problem, False) if counted and loss < LOST else dict.fromkeys(before, math.nan)
    with torch.no_grad():
        right = float((model(problem.x_test).argmax(1) == problem.y_test).double().mean())
    rest = {"updates": float(min(first, updates)), "loss": loss, "accuracy": right}
    return rest | {f"{k}, start": v for k, v in before.items()} | {f"{k}, end": v for k, v in after.items()}


def update(model: nn.Module, optimizer: Any, remedy: Remedy, problem: Problem, chosen: Tensor) -> int:
    """One step in train mode; how many updates it counts for."""
    x, y = problem.x[chosen], problem.y[chosen]
    if isinstance(optimizer, dynamics.NaturalGradient):
        optimizer.step(x, y)
        return 1
    calls = 0
    whole = isinstance(optimizer, torch.optim.LBFGS)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = LOSS(model(problem.x if whole else x), problem.y if whole else y)
        loss.backward()
        if remedy.clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), remedy.clip)
        return loss

    model.train()
    optimizer.step(closure)
    model.eval()
    return calls


def loss_of(model: nn.Module, problem: Problem) -> float:
    """Over all training samples; a training that has diverged has lost."""
    with torch.no_grad():
        loss = float(LOSS(model(problem.x), problem.y))
    return loss if loss < LOST else LOST


def held(page: Page, found: Found) -> None:
    """What no statistics are needed for: the inputs' scales are what makes the problem ill-conditioned."""
    raw, standardised = (found[kind, PLAIN.name]["ln κ, start"] for kind in KINDS)
    gain = float((raw - standardised).min())
    page.at_least("ln κ at the start, raw less standardised, least of all seeds", math.log(10), gain,
                  source="centring and scaling of inputs")  # fmt: skip


def listed(page: Page, tried: list[Remedy], found: Found) -> None:
    """Means and standard errors, and a figure."""
    rows: list[list[Any]] = []
    names = ("ln κ, start", "ln κ, end", "updates", "loss", "accuracy")
    for remedy in tried:
        for kind in KINDS:
            each = found[kind, remedy.name]
            rows.append([remedy.name, kind, float(each["rate"][0]), *(pair(each[name]) for name in names)])
    page.facts("Measured, mean ± standard error over seeds", ("remedy", "inputs", "rate", *names), rows)
    drawn = []
    for kind in KINDS:
        points = [(found[kind, r.name][f"ln κ, {place(r)}"], found[kind, r.name]["updates"]) for r in tried]
        points = [(k, u) for k, u in points if k.isfinite().all()]  # a training that diverges ends nowhere
        x, y = [float(k.mean().exp()) for k, _ in points], [float(u.mean()) for _, u in points]
        drawn.append(Curve(kind, x, y, "points", stderr=[float(u.std() / len(u) ** 0.5) for _, u in points]))
    reading = "A point a remedy, κ where training starts or ends as it is said to change. Left is well conditioned."
    page.draw(curves("conditioning", "Updates to the loss against conditioning", reading, drawn, x="κ",
                     y=f"updates to {TARGET}", log_x=True))  # fmt: skip


def pair(values: Tensor) -> str:
    """Mean and standard error."""
    return f"{float(values.mean()):.3g} ± {float(values.std() / len(values) ** 0.5):.2g}"


def place(remedy: Remedy) -> str:
    """Where conditioning is held."""
    return "start" if remedy.start else "end"


def said(page: Page, remedies: list[Remedy], found: Found) -> None:
    """Verdicts: what remedies do for conditioning, updates and accuracy, and what each is praised for besides."""

    def less(name: str, metric: str, sign: float = 1.0, log: bool = False) -> dict[str, Tensor]:
        """Plain descent's number less the remedy's, by condition."""
        change = (lambda v: v.log()) if log else (lambda v: v)
        return {
            kind: sign * (change(found[kind, PLAIN.name][metric]) - change(found[kind, name][metric])) for kind in KINDS
        }

    def inputs(metric: str, sign: float = 1.0, log: bool = False) -> dict[str, Tensor]:
        """Raw inputs' number less that of standardised ones, by method."""
        change = (lambda v: v.log()) if log else (lambda v: v)
        return {
            name: sign * (change(found[KINDS[0], name][metric]) - change(found[KINDS[1], name][metric]))
            for name in (PLAIN.name, *(r.name for r in remedies if r.name in ("Adam", "momentum 0.9")))
        }

    asked = [("standardised inputs", inputs("ln κ, start"), inputs("updates", log=True), inputs("accuracy", -1.0))]
    asked += [
        (r.name, less(r.name, f"ln κ, {place(r)}"), less(r.name, "updates", log=True), less(r.name, "accuracy", -1.0))
        for r in remedies
    ]
    kinds = ("smaller κ (difference of ln κ)", "fewer updates (ln of the ratio)", "higher accuracy (difference)")
    claims = [
        [decide(f"{name}: {kind}", each) for kind, each in zip(kinds, rest, strict=True)] for name, *rest in asked
    ]
    words = [[name, *(claim.verdict for claim in row)] for (name, *_), row in zip(asked, claims, strict=True)]
    page.facts("What held", ("remedy", "conditioning", "updates", "accuracy"), words)
    page.facts("What it rests on: conditioning", HEADER, table([row[0] for row in claims]))
    page.facts("What it rests on: updates", HEADER, table([row[1] for row in claims]))
    page.facts("What it rests on: accuracy", HEADER, table([row[2] for row in claims]))
    praised = [
        ("clipped gradients", "less loss than plain descent where both have ten times their rate (ln of the ratio)",
         "loss at ten times the rate", True),
        ("cosine schedule", "less loss at the end (ln of the ratio)", "loss", True),
        ("weight decay 0.01", "less variance of gradient norms (difference of ln)",
         "ln variance of gradient norms, end", False),
        ("dropout 0.1", "gradients in more directions (difference of the mean cosine)", "mean cosine, end", False),
        *((name, "gradients of more equal size over the layers (difference of ln's spread)",
           "spread of ln gradient norms over layers, start", False)
          for name in ("critical start", "ReLU units", "batch norm", "layer norm", "residual connections")),
    ]  # fmt: skip
    there = {r.name for r in remedies}
    page.facts("What each is praised for besides", HEADER, table(
        [decide(f"{name}: {text}", less(name, metric, log=log)) for name, text, metric, log in praised if name in there]
    ))  # fmt: skip


if __name__ == "__main__":
    run(build)
