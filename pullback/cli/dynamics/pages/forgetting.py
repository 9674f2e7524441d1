"""``pullback dynamics forgetting``: what a second task costs the first, and elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pullback import dynamics
from pullback._checks import check_option, check_rate
from pullback.charts.chart import PALETTE, Chart
from pullback.charts.plots import Curve, curves
from pullback.cli.dynamics.pages.shared import digits, numbers, page_of, tanh_network
from pullback.report.theory.page import TheoryPage

LOSS = nn.CrossEntropyLoss()
FORMS = ("diagonal", "full", "kronecker")
TRAINING, FISHER, BATCH, LR = 1000, 100, 64, 0.01
Task = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs and classes for training, and for testing


def forgetting_page(
    forms: str, strengths: str, steps: int, hidden: int, seeds: int, advance: Callable[[], None]
) -> TheoryPage:
    """Digits, then digits with their pixels in another order; accuracy on both, by strength and form of F."""
    tried, chosen = sorted(numbers(strengths, "strengths")), [each.strip() for each in forms.split(",")]
    for strength in tried:
        check_rate("dynamics forgetting", "strengths", strength)
    for form in chosen:
        check_option("dynamics forgetting", "forms", form, FORMS)
    losses = []
    for seed in range(seeds):
        losses.append(_one_seed(seed, chosen, tried, (steps, hidden)))
        advance()
    values, each = (torch.tensor(part, dtype=torch.float64) for part in zip(*losses, strict=True))
    free, kept = values[:, 0], values[:, 1:].unflatten(1, (len(chosen), len(tried)))  # values: (seeds, 1 + pairs, 2)
    charts = [_chart(task, chosen, tried, (free, kept, each)) for task in (0, 1)]
    charts.append(_trade(chosen, (free, kept, each)))
    best, places = kept.mean(3).mean(0).max(1)
    keys = [
        ("first task alone", float(each[:, 0].mean()), "accuracy on its test samples"),
        ("after the second, no penalty", float(free[:, 0].mean()), "accuracy on the first"),
    ]
    for form, value, place in zip(chosen, best.tolist(), places.tolist(), strict=True):
        keys.append((f"{form}, both tasks", value, f"mean accuracy at strength {tried[place]:g}"))
    facts = ("permuted digits", f"{hidden} tanh units", f"{steps} steps of Adam a task", f"{seeds} seeds")
    return page_of("Forgetting", facts, keys, "strength", [], charts)


def _one_seed(
    seed: int, forms: list[str], strengths: list[float], size: tuple[int, int]
) -> tuple[list[list[float]], list[float]]:
    """Accuracies on both tasks after both, without a penalty and with each; and on each task alone."""
    (steps, hidden), first, second = size, _task(None), _task(seed)
    model, other = (tanh_network((64, hidden, 10), s) for s in (seed, 1000 + seed))
    _train(model, first, steps, seed)
    _train(other, second, steps, seed)
    alone = [_accuracy(model, first), _accuracy(other, second)]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    samples = first[0][:FISHER], first[1][:FISHER]
    penalties: list[Any] = [dynamics.ElasticPenalty(model, LOSS, samples, fisher=form) for form in forms]
    both = []
    for penalty, strength in [(None, 0.0), *((p, s) for p in penalties for s in strengths)]:
        model.load_state_dict(start)
        if penalty:
            penalty.strength = strength
        _train(model, second, steps, seed + 1, penalty)
        both.append([_accuracy(model, task) for task in (first, second)])
    return both, alone


def _task(seed: int | None) -> Task:
    """The digits, with their pixels in an order that ``seed`` draws."""
    x, y = digits(TRAINING)
    x_test, y_test = digits(None, test=True)
    order = torch.arange(64) if seed is None else torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    return x[:, order], y, x_test[:, order], y_test


def _train(model: nn.Module, task: Task, steps: int, seed: int, penalty: Any = None) -> None:
    x, y, *_ = task
    optimizer, draw = torch.optim.Adam(model.parameters(), LR), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(x), (BATCH,), generator=draw)
        optimizer.zero_grad()
        loss = LOSS(model(x[chosen]), y[chosen])
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()


def _accuracy(model: nn.Module, task: Task) -> float:
    with torch.no_grad():
        return float((model(task[2]).argmax(1) == task[3]).double().mean())


def _chart(task: int, forms: list[str], strengths: list[float], values: tuple[Tensor, Tensor, Tensor]) -> Chart:
    """Accuracy on one task after both; ``values``: without a penalty, with each, and each task alone."""
    free, kept, alone = (each[..., task] for each in values)
    lines, ends, name = [], [strengths[0], strengths[-1]], ("first", "second")[task]
    for k, form in enumerate(forms):
        errors = kept[:, k].std(0) / len(kept) ** 0.5
        lines.append(Curve(form, strengths, kept[:, k].mean(0).tolist(), "line", PALETTE[k], errors.tolist()))
    lines.append(Curve("no penalty", ends, [float(free.mean())] * 2, "dash"))
    lines.append(Curve("this task alone", ends, [float(alone.mean())] * 2, "dash", PALETTE[4]))
    reading = "Share of its test samples told right after both tasks; bars are standard errors over seeds."
    return curves(f"{name}-task", f"The {name} task after both", reading, lines, x="strength", y="accuracy", log_x=True)


def _trade(forms: list[str], values: tuple[Tensor, Tensor, Tensor]) -> Chart:
    """What one task pays for the other."""
    lines, (free, kept, alone) = [], (each.mean(0) for each in values)
    for k, form in enumerate(forms):
        a, b = torch.cat([free[None], kept[k]]).T.tolist()
        lines.append(Curve(form, a, b, "line", PALETTE[k]))
    lines.append(Curve("each alone", [float(alone[0])], [float(alone[1])], "points", PALETTE[4]))
    reading = "Each curve begins without a penalty, on the left; better is up and to the right."
    return curves("trade", "Both tasks after both", reading, lines, x="accuracy on the first", y="on the second")
