"""What a second task does to the first, and elastic weight consolidation (Kirkpatrick et al. 2017, figure 2).

Claims of arXiv:1612.00796: a network that has learned task A forgets it on task B; a penalty on how far weights move,

    L_B(w) + (λ / 2) (w - w_A)^T F (w - w_A),    F the Fisher matrix of A at w_A,

keeps A, at a price for B that is smaller than with F = 1, as the Fisher matrix tells what A depends on. The paper takes
F's diagonal; arXiv:1805.07810 says that Kronecker factors of its blocks keep more, and the whole matrix is what both
stand for. Tasks are the digits that ship with scikit-learn, as they are and with their pixels permuted, the network is
small enough for the whole matrix, and λ is looked at over decades for each form. "Forgetting" is what B costs A, in
accuracy on test samples. A form's best λ is the one with the largest mean accuracy over both tasks.
Kronecker factors are those of the package curvlinops, which the full size needs.
"""

from __future__ import annotations

import torch
from kit.charts import Curve, curves
from kit.claims import HEADER, decide, table
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import dynamics
from pullback.charts.chart import PALETTE

LOSS = nn.CrossEntropyLoss()
FORMS = ("equal weights", "diagonal", "full", "kronecker")
HIDDEN, FISHER = 12, 300  # units, and samples the Fisher matrix is of
NEAR = 0.02


class Task:
    """Digits with their pixels in some order: (N, 64) and classes, for training and for testing."""

    def __init__(self, seed: int, permuted: bool) -> None:
        data = pb.functional.load_digits(0)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed)) if permuted else torch.arange(64)
        self.x, self.x_test = (each.flatten(1)[:, order].double() for each in (data.x_train, data.x_test))
        self.y, self.y_test = data.y_train, data.y_test

    def accuracy(self, model: nn.Module) -> float:
        """Share of test samples told right."""
        with torch.no_grad():
            return float((model(self.x_test).argmax(1) == self.y_test).double().mean())


class Equal:
    """The penalty with F = f 1, f the mean of the Fisher matrix's diagonal: as large, and without a preference."""

    def __init__(self, model: nn.Module, diagonal: Tensor) -> None:
        self.weights, self.strength, self.height = list(model.parameters()), 0.0, float(diagonal.mean())
        self.anchor = [p.detach().clone() for p in self.weights]

    def __call__(self) -> Tensor:
        """At the model's weights, a number."""
        moved = sum(((p - a).square().sum() for p, a in zip(self.weights, self.anchor, strict=True)), torch.zeros(()))
        return self.strength / 2 * self.height * moved


def build(page: Page) -> None:
    """Fill the page."""
    seeds, steps = page.pick(small=(2, 60), full=(5, 200))
    strengths = page.pick(small=[1.0, 100.0], full=[0.1, 1.0, 10.0, 100.0, 1000.0])
    page.set(seed=0, seeds=seeds, steps=steps, batch=64, hidden=HIDDEN, strengths=strengths, fisher_samples=FISHER)
    matrices(page)
    forms = page.pick(small=FORMS[:3], full=FORMS)
    runs = [consolidated(seed, steps, strengths, forms) for seed in range(seeds)]
    found = torch.stack([each for each, _ in runs])  # (seeds, 1 + forms * strengths, 2 tasks)
    alone = torch.tensor([each for _, each in runs], dtype=torch.float64)
    free, kept = found[:, 0], found[:, 1:].unflatten(1, (len(forms), len(strengths)))
    held(page, alone, free, kept)
    drawn(page, strengths, alone, free, kept)
    verdicts(page, strengths, alone, free, kept)


def network(seed: int) -> nn.Module:
    """One hidden layer of tanh units."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10)).double().eval()


def matrices(page: Page) -> None:
    """Penalties against the Fisher matrix that autograd makes, one sample and class at a time."""
    model, task = network(0), Task(0, False)
    x, y = task.x[:20], task.y[:20]
    rows = []
    for sample in x:
        scores = model(sample[None]).log_softmax(1)[0]
        for score in scores:
            slopes = torch.autograd.grad(score, list(model.parameters()), retain_graph=True)
            rows.append(score.detach().exp().sqrt() * torch.cat([s.flatten() for s in slopes]))
    fisher = torch.stack(rows).T @ torch.stack(rows) / len(x)
    penalties = {form: dynamics.ElasticPenalty(model, LOSS, (x, y), 3.0, fisher=form) for form in ("diagonal", "full")}
    move = torch.randn(len(fisher), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        start = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(start + move, model.parameters())
    for form, known in (("diagonal", fisher.diag() @ move.square()), ("full", move @ fisher @ move)):
        here = float(penalties[form]().detach())
        page.row(f"penalty, {form}", 1.5 * float(known), here, 1e-10, relative=True, computed=True,
                 source="rows by autograd")  # fmt: skip


def trained(model: nn.Module, task: Task, steps: int, seed: int, penalty: object = None) -> None:
    """Adam, batches of 64."""
    optimizer, make = torch.optim.Adam(model.parameters(), 0.01), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(task.x), (64,), generator=make)
        optimizer.zero_grad()
        loss = LOSS(model(task.x[chosen]), task.y[chosen])
        (loss + penalty() if callable(penalty) else loss).backward()
        optimizer.step()


def consolidated(
    seed: int, steps: int, strengths: list[float], forms: tuple[str, ...]
) -> tuple[Tensor, tuple[float, float]]:
    """Accuracies after both tasks, (1 + forms * strengths, 2), without a penalty first; then each task's alone."""
    first, second = Task(seed, False), Task(seed, True)
    model, other = network(seed), network(1000 + seed)
    trained(model, first, steps, seed)
    trained(other, second, steps, seed)
    alone = first.accuracy(model), second.accuracy(other)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    samples = first.x[:FISHER], first.y[:FISHER]
    penalties = {form: dynamics.ElasticPenalty(model, LOSS, samples, fisher=form) for form in forms[1:]}
    diagonal = torch.cat([each.flatten() for each in (penalties["diagonal"].diagonal or {}).values()])
    both = []
    tried = [(each, strength) for each in (Equal(model, diagonal), *penalties.values()) for strength in strengths]
    for penalty, strength in [(None, 0.0), *tried]:
        model.load_state_dict(start)
        if penalty:
            penalty.strength = strength
        trained(model, second, steps, seed + 1, penalty)
        both.append([first.accuracy(model), second.accuracy(model)])
    return torch.tensor(both, dtype=torch.float64), alone


def held(page: Page, alone: Tensor, free: Tensor, kept: Tensor) -> None:
    """What every seed shows."""
    lost = float((alone[:, 0] - free[:, 0]).min())
    page.at_least("accuracy on A that B costs without a penalty, least of all seeds", 0.1, lost, source="figure 2A")
    gained = float((kept[:, 1:, -1, 0] - free[:, None, 0]).min())
    page.at_least(
        "accuracy on A gained by the largest λ, least of all seeds and forms of F", 0.0, gained, source="figure 2A"
    )


def drawn(page: Page, strengths: list[float], alone: Tensor, free: Tensor, kept: Tensor) -> None:
    """Accuracies against λ, and as a table."""
    names = FORMS[: kept.shape[1]]
    for task, name in enumerate("AB"):
        error = lambda values: (values.std(0) / len(values) ** 0.5).tolist()
        lines = [
            Curve(form, strengths, kept[:, k, :, task].mean(0).tolist(), "line", PALETTE[k], error(kept[:, k, :, task]))
            for k, form in enumerate(names)
        ]
        ends = [strengths[0], strengths[-1]]
        lines.append(Curve("no penalty", ends, [float(free[:, task].mean())] * 2, "dash"))
        lines.append(Curve("alone", ends, [float(alone[:, task].mean())] * 2, "dash", PALETTE[5]))
        reading = "Share of test samples told right after both tasks; bars are standard errors over seeds."
        page.draw(curves(f"task-{name.lower()}", f"Task {name} after both, by λ", reading, lines, x="λ",
                         y=f"accuracy on {name}", log_x=True))  # fmt: skip
    rows = [["no penalty", 0.0, *cells(free)]]
    rows += [[form, s, *cells(kept[:, k, j])] for k, form in enumerate(names) for j, s in enumerate(strengths)]
    rows.append(["each task alone", 0.0, *cells(alone)])
    page.facts(
        "Accuracy after both tasks, mean ± standard error over seeds", ("F", "λ", "on A", "on B", "mean of both"), rows
    )


def cells(values: Tensor) -> list[str]:
    """Of (seeds, 2): A, B and their mean."""
    columns = torch.cat([values, values.mean(1, keepdim=True)], 1)
    mean, error = columns.mean(0).tolist(), (columns.std(0) / len(columns) ** 0.5).tolist()
    return [f"{m:.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True)]


def verdicts(page: Page, strengths: list[float], alone: Tensor, free: Tensor, kept: Tensor) -> None:
    """Claims by form of F; a seed takes the λ that is best on the others, so that none picks its own."""
    both, plain = kept.mean(3), free.mean(1)  # (seeds, forms, strengths), (seeds,)
    others = both.sum(0, keepdim=True) - both
    best = dict(zip(FORMS, both.gather(2, others.argmax(2, keepdim=True))[..., 0].T, strict=False))
    a, b = ({form: per_ten(strengths, kept[:, k, :, task]) for k, form in enumerate(best)} for task in (0, 1))
    near = {form: values - alone.mean(1) + NEAR for form, values in best.items()}
    better = {form: values - best["equal weights"] for form, values in best.items() if form != "equal weights"}
    claims = [
        decide("B costs A accuracy", {"no penalty": alone[:, 0] - free[:, 0]}),
        decide("forgetting falls with λ (accuracy on A gained per tenfold λ)", a),
        decide("B pays for it (accuracy on B lost per tenfold λ)", {form: -values for form, values in b.items()}),
        decide("both together are better than without", {form: values - plain for form, values in best.items()}),
        decide(f"both are as good as each alone, to {NEAR:g} (the difference plus that)", near),
        decide("the Fisher matrix is better than equal weights", better),
    ]
    pairs = (("full", "diagonal"), ("kronecker", "diagonal"), ("full", "kronecker"))
    claims += [
        decide(f"{one} is better than {other}", {"mean accuracy": best[one] - best[other]})
        for one, other in pairs
        if one in best and other in best
    ]
    page.facts("Claims, decided over seeds; forms of F at their best λ from the fourth on", HEADER, table(claims))


def per_ten(strengths: list[float], values: Tensor) -> Tensor:
    """Least-squares slope of (seeds, strengths) in log10 λ, (seeds,)."""
    tens = torch.tensor(strengths, dtype=torch.float64).log10()
    tens = tens - tens.mean()
    return values @ tens / tens.square().sum()


if __name__ == "__main__":
    run(build)
