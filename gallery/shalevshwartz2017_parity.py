"""Gradients that do not say which parity is to be learned (Shalev-Shwartz et al. 2017, section 2).

Claims of arXiv:1703.07950: of d random digits a target is the parity of some, (-1)^(v·x) for v in {0, 1}^d. The 2^d
targets are orthogonal, so that the gradient F_v of the loss at any weights w of any model depends on v little,

    Var = mean over v of |F_v - mean F|²  ≤  E|g|² / 2^d,    g(x) the gradient of the model's output at x

(theorem 1; linear or squared loss), and what goes by gradients is lost once that is below their noise: the more digits,
the longer networks need, until they learn nothing.

Here the left side is found for networks as they are drawn, all targets one by one where d is small, else from the
gradients of drawn targets, as many of each size (a parity's size is how many digits it is of); the right side is exact,
by Parseval's identity. Then networks with one hidden layer of 10 d ReLU units are trained by Adam on hinge losses of
fresh samples, once on the parity of all that are in a random half of the digits, and once on the majority of the same
digits, which the same network can represent as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from kit.charts import Curve, curves
from kit.claims import HEADER, decide, table
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

from pullback import dynamics
from pullback.charts.chart import PALETTE
from pullback.functional import ModelView

NAMES = ("tanh", "ReLU", "deep tanh")
BATCH, TEST, LEARNED, CHANCE = 128, 4096, 0.95, 0.55  # samples; accuracies that count as learned, and as guessing
Model = Callable[[Tensor, Tensor], Tensor]


def build(page: Page) -> None:
    """Fill the page."""
    digits, draws, seeds = page.pick(small=((4, 6, 8), 10, 2), full=((4, 6, 8, 10, 12), 40, 5))
    page.set(seed=0, digits=digits, draws_of_each_size=draws, seeds=seeds, hidden=8)
    one_by_one(page)
    spread(page, digits, draws, seeds)
    sizes, steps = page.pick(small=((4, 16), 200), full=((4, 8, 12, 20, 30), 2000))
    page.set(trained_digits=sizes, steps=steps, batch=BATCH, optimizer="Adam 0.003", test_samples=TEST)
    training(page, sizes, steps, seeds)


def network(kind: str, d: int, seed: int) -> nn.Module:
    """A small network on d digits of -1 and 1, as torch draws it."""
    act: Callable[[], nn.Module] = nn.ReLU if kind == "ReLU" else nn.Tanh
    middle = [nn.Linear(8, 8), act()] if kind.startswith("deep") else []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 8), act(), *middle, nn.Linear(8, 1)).double().eval()


def flat(model: nn.Module) -> tuple[Model, Tensor]:
    """The model as a function of all its weights in one vector and of digits 0 and 1, and those weights."""
    view = ModelView.of(model)
    return lambda w, x: view((2 * x - 1)[None], view.unflatten(w)).sum(), view.flatten(view.parameters).detach()


def one_by_one(page: Page) -> None:
    """All targets of six digits, each gradient of its own squared loss by autograd."""
    d = 6
    inputs = torch.tensor(list(product([0.0, 1.0], repeat=d)), dtype=torch.float64)
    for kind in NAMES:
        model, each = network(kind, d, 0), []
        for v in inputs:
            loss = (model(2 * inputs - 1)[:, 0] - (1 - 2 * ((inputs @ v) % 2))).square().mean() / 2
            each.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        gradients = torch.stack(each)
        known = float((gradients - gradients.mean(0)).square().sum(1).mean())
        here = dynamics.parity_variance(*flat(model), d)
        page.row(f"variance over all {2**d} targets, {kind}, times 2^{d}", known * 2**d, here.variance * 2**d, 1e-10,
                 relative=True, computed=True, source="squared losses by autograd, one target at a time")  # fmt: skip
        page.at_most(f"the same over its bound, {kind}", 1.0, known / here.bound, source="theorem 1")


def spread(page: Page, digits: tuple[int, ...], draws: int, seeds: int) -> None:
    """Variance against d: by drawn targets, by all, and its law."""
    lines, rows, slopes = [], [], {}
    for place, kind in enumerate(NAMES):
        cells = [[both(kind, d, seed, draws) for d in digits] for seed in range(seeds)]
        found = torch.tensor(cells, dtype=torch.float64)  # (seeds, digits, 4)
        bound, exact, value, _ = found.mean(0).T
        stderr = found[..., 3].square().sum(0).sqrt() / seeds
        colour = PALETTE[place]
        lines.append(Curve(f"{kind}: E|g|² / 2^d", digits, bound.tolist(), "plain", colour))
        lines.append(Curve(f"{kind}, drawn targets", digits, value.tolist(), "points", colour, stderr.tolist(), False))
        for k, d in enumerate(digits):
            rows.append([kind, d, float(bound[k]), float(exact[k]), f"{float(value[k]):.3g} ± {float(stderr[k]):.2g}"])
        page.measured(f"variance, {kind}, {digits[-1]} digits, drawn targets", exact[-1], value[-1], stderr[-1],
                      at_most=0.5, source="Parseval's identity")  # fmt: skip
        slopes[kind] = halving(digits, found[..., 1])
    reading = (
        "Means over networks as drawn. Points are gradients of drawn targets, lines the law; each digit halves it."
    )
    page.draw(curves("variance", "What gradients tell of the target, against its digits", reading, lines, x="digits d",
                     y="variance of the gradient", log_y=True))  # fmt: skip
    header = ("network", "d", "E|g|² / 2^d", "variance, all targets", "variance, drawn targets")
    page.facts("Variance of the gradient over targets, means over networks", header, rows)
    by_size(page, digits[-1], draws)
    claims = [
        decide("each digit divides the variance by 1.5 or more (log2 of the factor less that of 1.5)",
               {kind: -each - math.log2(1.5) for kind, each in slopes.items()}),
        decide("each digit divides it by 2 or more, whatever E|g|² does (log2 of the factor less 1)",
               {kind: -each - 1 for kind, each in slopes.items()}),
    ]  # fmt: skip
    page.facts("The law, decided over networks", HEADER, table(claims))


def both(kind: str, d: int, seed: int, draws: int) -> list[float]:
    """Bound, variance, estimate, standard error."""
    model, w = flat(network(kind, d, seed))
    known = dynamics.parity_variance(model, w, d)
    drawn = dynamics.sampled_parity_variance(model, w, d, draws, seed=seed)
    return [known.bound, known.variance, drawn.variance, drawn.stderr]


def halving(digits: tuple[int, ...], variances: Tensor) -> Tensor:
    """Slope of log2 of the variance over d, (seeds,)."""
    d = torch.tensor(digits, dtype=torch.float64)
    d = d - d.mean()
    return variances.log2() @ d / d.square().sum()


def by_size(page: Page, d: int, draws: int) -> None:
    """Which parities the gradients know of."""
    lines = []
    for place, kind in enumerate(NAMES):
        found = dynamics.sampled_parity_variance(*flat(network(kind, d, 0)), d, draws)
        errors = found.by_size_stderr.tolist()
        lines.append(Curve(kind, list(range(d + 1)), found.by_size.tolist(), "points", PALETTE[place], errors))
    reading = (
        "Squared distance of the gradient from its mean: of a parity of many digits a smooth network sees nothing."
    )
    page.draw(curves("sizes", f"By the size of the parity, {d} digits", reading, lines, x="digits the parity is of",
                     y="|F - mean F|²", log_y=True))  # fmt: skip


def training(page: Page, sizes: tuple[int, ...], steps: int, seeds: int) -> None:
    """Accuracy along training, on parities and on majorities of the same digits."""
    marks = sorted({round(steps * k / 20) for k in range(21)})
    found = {
        (task, d): torch.tensor([accuracies(task, d, seed, marks) for seed in range(seeds)], dtype=torch.float64)
        for d in sizes
        for task in ("parity", "majority")
    }
    lines = []
    for place, d in enumerate(sizes):
        mean, error = (f(found["parity", d]) for f in (lambda v: v.mean(0), lambda v: v.std(0) / seeds**0.5))
        lines.append(Curve(f"parity, d = {d}", marks, mean.tolist(), "line", PALETTE[place % 7], error.tolist()))
    largest = found["majority", sizes[-1]].mean(0).tolist()
    lines.append(Curve(f"majority, d = {sizes[-1]}", marks, largest, "dash"))
    reading = "Share of new samples told right, mean and standard error over seeds; guessing is 0.5."
    page.draw(curves("training", "Accuracy along training", reading, lines, x="step", y="accuracy"))
    rows = [[d, *(cell(found[task, d]) for task in ("parity", "majority"))] for d in sizes]
    page.facts("Accuracy at the end, mean ± standard error over seeds", ("d", "parity", "majority"), rows)
    last = {key: each[:, -1] for key, each in found.items()}
    page.at_least(f"accuracy on the majority, d = {sizes[-1]}, least of all seeds", 0.8,
                  float(last["majority", sizes[-1]].min()), source="section 2")  # fmt: skip
    page.at_most(f"accuracy on the parity, d = {sizes[-1]}, largest of all seeds", CHANCE,
                 float(last["parity", sizes[-1]].max()), source="section 2")  # fmt: skip
    of = lambda make: {f"d = {d}": make(last["parity", d], last["majority", d]) for d in sizes}
    claims = [
        decide(f"the majority is learned (accuracy less {LEARNED})", of(lambda _, m: m - LEARNED)),
        decide(f"the parity is learned (accuracy less {LEARNED})", of(lambda p, _: p - LEARNED)),
        decide(f"the parity stays at guessing ({CHANCE} less accuracy)", of(lambda p, _: CHANCE - p)),
        decide("the majority is learned better than the parity (difference)", of(lambda p, m: m - p)),
    ]
    page.facts("Claims about training, decided over seeds", HEADER, table(claims))


def cell(values: Tensor) -> str:
    """Of the last mark."""
    last = values[:, -1]
    return f"{float(last.mean()):.3f} ± {float(last.std() / len(last) ** 0.5):.3f}"


def accuracies(task: str, d: int, seed: int, marks: list[int]) -> list[float]:
    """On new samples at the marks of one training; both tasks of a seed begin alike."""
    draw = torch.Generator().manual_seed(1000 * d + seed)
    size = d // 2 | 1  # odd, so that there is a majority
    chosen = torch.randperm(d, generator=draw)[:size]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(d, 10 * d), nn.ReLU(), nn.Linear(10 * d, 1))
    optimizer, found = torch.optim.Adam(model.parameters(), 0.003), []

    def samples(count: int) -> tuple[Tensor, Tensor]:
        x = 2.0 * torch.randint(2, (count, d), generator=draw) - 1
        return x, (x[:, chosen].prod(1) if task == "parity" else x[:, chosen].sum(1).sign())

    x_test, y_test = samples(TEST)
    for step in range(marks[-1] + 1):
        if step in marks:
            with torch.no_grad():
                found.append(float(((model(x_test)[:, 0] > 0) == (y_test > 0)).float().mean()))
        x, y = samples(BATCH)
        optimizer.zero_grad()
        (1 - y * model(x)[:, 0]).clamp(min=0).mean().backward()
        optimizer.step()
    return found


if __name__ == "__main__":
    run(build)
