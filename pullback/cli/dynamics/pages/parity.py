"""``pullback dynamics parity``: how little gradients tell of which parity is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pullback import dynamics
from pullback._checks import check_count, check_option
from pullback.charts.plots import Curve, curves
from pullback.cli.dynamics.pages.shared import F64, chart, page_of
from pullback.functional import ModelView
from pullback.report.theory.charts import Line
from pullback.report.theory.page import TheoryPage

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
MOST, EVERY, BATCH, TEST = 12, 10, 64, 2000


def parity_page(digits: int, activation: str, draws: int, steps: int, seed: int) -> TheoryPage:
    """The variance over targets against their digits, by size, and two trainings."""
    where = "dynamics parity"
    check_option(where, "activation", activation, tuple(ACTIVATIONS))
    check_count(where, "digits", digits, 3, MOST)
    counts = list(range(2, digits + 1))
    known, drawn = [], []
    for d in counts:
        model, w = _flat(_network(d, 8, activation, seed).double())
        known.append(dynamics.parity_variance(model, w, d))
        drawn.append(dynamics.sampled_parity_variance(model, w, d, draws, seed=seed))
    law = Line("variance of the gradient over targets", counts, [each.variance for each in known], counts,
               [each.variance for each in drawn], [each.stderr for each in drawn])  # fmt: skip
    whole = dynamics.sampled_parity_variance(model, w, digits, 2**digits)
    sizes = list(range(digits + 1))
    by_size = Line("distance from the mean, by size", sizes, whole.by_size.tolist(), sizes, drawn[-1].by_size.tolist(),
                   drawn[-1].by_size_stderr.tolist())  # fmt: skip
    charts = [
        chart(law, "variance", "Line: over all 2^d parities, E|g|² / 2^d less the mean's share. Points: some, drawn.",
              x="digits d", y="variance", log="y"),
        chart(by_size, "sizes", "|F - mean F|² over all parities of a size, and drawn: few are seen, many hardly.",
              x="digits the parity is of", y="squared distance", log="y"),
    ]  # fmt: skip
    trained = {task: _accuracies(task, digits, activation, steps, seed) for task in ("parity", "majority")}
    marks = list(range(0, steps + 1, EVERY))
    reading = (
        f"New samples told right, of the parity and the majority of {_size(digits)} of the digits; guessing is 0.5."
    )
    ways = [Curve(task, marks, each, "line") for task, each in trained.items()]
    charts.append(curves("training", "Accuracy along training", reading, ways, x="step", y="accuracy"))
    keys = [
        (f"variance, {digits} digits", known[-1].variance, "of the gradient over all targets"),
        ("its bound", known[-1].bound, "E|g|² over the number of targets"),
        *((f"accuracy, {task}", each[-1], f"after {steps} steps") for task, each in trained.items()),
    ]
    facts = (f"up to {digits} digits", activation, f"{draws} targets of each size")
    return page_of("Parities", facts, keys, "digits", [law, by_size], charts)


def _size(digits: int) -> int:
    """Half of the digits, an odd number, so that there is a majority."""
    return digits // 2 | 1


def _network(digits: int, hidden: int, activation: str, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(digits, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, 1)).eval()


def _flat(model: nn.Module) -> tuple[Any, Tensor]:
    """A function of weights (P,) and digits 0 and 1, and the weights."""
    view = ModelView.of(model)
    return lambda w, x: view((2 * x - 1)[None], view.unflatten(w)).sum(), view.flatten(view.parameters).detach()


def _accuracies(task: str, digits: int, activation: str, steps: int, seed: int) -> list[float]:
    """Of Adam on hinge losses of new samples, every ten steps."""
    draw, model = torch.Generator().manual_seed(seed), _network(digits, 10 * digits, activation, seed).to(F64)
    chosen = torch.randperm(digits, generator=draw)[: _size(digits)]
    optimizer, accuracies = torch.optim.Adam(model.parameters(), 0.003), []
    for step in range(steps + 1):
        x = 2.0 * torch.randint(2, (TEST if step % EVERY == 0 else BATCH, digits), generator=draw).to(F64) - 1
        y = x[:, chosen].prod(1) if task == "parity" else x[:, chosen].sum(1).sign()
        if step % EVERY == 0:
            with torch.no_grad():
                accuracies.append(float(((model(x)[:, 0] > 0) == (y > 0)).double().mean()))
        optimizer.zero_grad()
        (1 - y[:BATCH] * model(x[:BATCH])[:, 0]).clamp(min=0).mean().backward()
        optimizer.step()
    return accuracies
