"""Whether large batches end in sharp minima, and whether these tell tests worse (Keskar et al. 2017).

Claims of arXiv:1609.04836: with large batches training ends in sharp minima, with small ones in flat ones, and the gap
between training and test is larger there. Two things are mixed with it, and separated here. At equal epochs large
batches make fewer updates (arXiv:1705.08741): both equal epochs and equal updates are looked at. And where batch norm
makes a layer's scale free, sharpness can be anything for one and the same function (arXiv:1703.04933): networks with
batch norm and without are, and the sharpness is also taken times the squared length of the weights, which does not
change with that scale.

    sharpness = largest eigenvalue of the Hessian of the training loss,    gap = test loss - training loss

The paper trains large networks; here they have one hidden layer of ReLU units, and the data are digits that ship with
scikit-learn, a tenth of them with a wrong label. All batch sizes have the same rate of SGD. Each claim is held to the
slope of what it is about over the logarithm of the batch size, one slope a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from kit.charts import Curve, curves
from kit.claims import HEADER, decide, table
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback.charts.chart import PALETTE

LOSS = nn.CrossEntropyLoss()
SAMPLES, HIDDEN, RATE, WRONG = 512, 24, 0.1, 0.1
METRICS = (
    "sharpness",
    "sharpness times |w|²",
    "gap of the loss",
    "gap of the accuracy",
    "test accuracy",
    "training loss",
)
SETTINGS = tuple((norm, equal) for norm in (False, True) for equal in ("epochs", "updates"))


class Task:
    """Training samples (N, 64), some labels wrong, and test samples."""

    def __init__(self, seed: int, samples: int) -> None:
        data = pb.functional.load_digits(seed)
        make = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(data.x_train), generator=make)[:samples]
        self.x, self.y = data.x_train[chosen].flatten(1), data.y_train[chosen].clone()
        wrong = torch.rand(samples, generator=make) < WRONG
        self.y[wrong] = torch.randint(10, (int(wrong.sum()),), generator=make)
        self.x_test, self.y_test = data.x_test.flatten(1), data.y_test


def network(norm: bool, seed: int) -> nn.Module:
    """One hidden layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = [nn.BatchNorm1d(HIDDEN)] if norm else []
        return nn.Sequential(nn.Linear(64, HIDDEN), *middle, nn.ReLU(), nn.Linear(HIDDEN, 10))


def build(page: Page) -> None:
    """Fill the page."""
    seeds, epochs, batches = page.pick(small=(2, 2, (16, 128)), full=(5, 20, (16, 64, 256)))
    samples = page.pick(small=128, full=SAMPLES)
    page.set(seed=0, seeds=seeds, epochs=epochs, batch_sizes=batches, samples=samples, hidden=HIDDEN, rate=RATE)
    sharpness(page)
    found = torch.stack([one_seed(seed, epochs, batches, samples) for seed in range(seeds)])
    more = float((found[:, :, 0, 5] - found[:, ::2, -1, 5].repeat_interleave(2, 1)).max())
    page.at_most("training loss of the smallest batches over that of the largest at equal epochs, largest of all", 0.0,
                 more, source="fewer updates, less far: the confounder")  # fmt: skip
    shown(page, batches, found)
    if len(batches) > 2:
        verdicts(page, batches, found)


def sharpness(page: Page) -> None:
    """By Lanczos, and by the eigenvalues of autograd's Hessian."""
    model, task = network(True, 0).double(), Task(0, 64)
    x, y = task.x.double(), task.y
    with pb.frozen_batch_norm(model.eval(), x):
        weights = {name: p.detach() for name, p in model.named_parameters() if name.startswith("3")}
        loss = lambda w: LOSS(torch.func.functional_call(model, w, x), y)
        blocks = torch.func.jacrev(torch.func.jacrev(loss))(weights)
        whole = torch.cat([
            torch.cat([block.reshape(weights[a].numel(), -1) for block in row.values()], 1) for a, row in blocks.items()
        ])  # fmt: skip
        here = pb.eigenvalues(pb.Hessian(model, LOSS, (x, y), params=["3"]), 1, tol=1e-8).values[0]
    known = torch.linalg.eigvalsh(whole)[-1]
    page.row("sharpness in the output layer, with batch norm", float(known.detach()), float(here), 1e-8, relative=True,
             computed=True, source="autograd's Hessian")  # fmt: skip


def one_seed(seed: int, epochs: int, batches: tuple[int, ...], samples: int) -> Tensor:
    """What was measured, (settings, batch sizes, metrics)."""
    task = Task(seed, samples)
    most = epochs * samples // batches[0]
    rows = []
    for norm, equal in SETTINGS:
        updates = [most if equal == "updates" else epochs * samples // batch for batch in batches]
        rows.append([measured(trained(norm, seed, task, b, u), task) for b, u in zip(batches, updates, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def trained(norm: bool, seed: int, task: Task, batch: int, updates: int) -> nn.Module:
    """SGD over shuffled epochs, in train mode."""
    model, make = network(norm, seed).train(), torch.Generator().manual_seed(seed)
    optimizer, order = torch.optim.SGD(model.parameters(), RATE), torch.empty(0, dtype=torch.long)
    for _ in range(updates):
        if len(order) < batch:
            order = torch.randperm(len(task.x), generator=make)
        chosen, order = order[:batch], order[batch:]
        optimizer.zero_grad()
        LOSS(model(task.x[chosen]), task.y[chosen]).backward()
        optimizer.step()
    return model.eval()


def measured(model: nn.Module, task: Task) -> list[float]:
    """All metrics; batch norm with the statistics of all training samples."""
    with ExitStack() as stack, torch.no_grad():
        if any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
            stack.enter_context(pb.frozen_batch_norm(model, task.x))
        with torch.enable_grad():
            top = float(pb.eigenvalues(pb.Hessian(model, LOSS, (task.x, task.y)), 1, tol=1e-3).values[0])
        here, there = model(task.x), model(task.x_test)
        loss, test_loss = float(LOSS(here, task.y)), float(LOSS(there, task.y_test))
        right = float((here.argmax(1) == task.y).double().mean())
        test_right = float((there.argmax(1) == task.y_test).double().mean())
    length = sum(float(p.detach().square().sum()) for p in model.parameters())
    return [top, top * length, test_loss - loss, right - test_right, test_right, loss]


def named(norm: bool, equal: str) -> str:
    """A setting in words."""
    return f"equal {equal}, {'batch norm' if norm else 'no norm'}"


def shown(page: Page, batches: tuple[int, ...], found: Tensor) -> None:
    """Means over seeds as figures and as a table."""
    mean, error = found.mean(0), found.std(0) / len(found) ** 0.5
    for metric, name in ((0, "sharpness"), (2, "gap of the loss")):
        lines = [
            Curve(named(*each), batches, mean[k, :, metric].tolist(), "line", PALETTE[k], error[k, :, metric].tolist())
            for k, each in enumerate(SETTINGS)
        ]
        reading = "Means and standard errors over seeds, where training ended."
        page.draw(curves(name.split()[0], f"{name.capitalize()} by batch size", reading, lines, x="batch size", y=name,
                         log_x=True))  # fmt: skip
    rows = [
        [
            named(*each),
            batch,
            *(f"{float(m):.3g} ± {float(e):.2g}" for m, e in zip(mean[k, j], error[k, j], strict=True)),
        ]
        for k, each in enumerate(SETTINGS)
        for j, batch in enumerate(batches)
    ]
    page.facts("Where training ended, mean ± standard error over seeds", ("setting", "batch size", *METRICS), rows)


def verdicts(page: Page, batches: tuple[int, ...], found: Tensor) -> None:
    """Slopes over a doubling of the batch size, by setting."""
    twos = torch.tensor(batches, dtype=torch.float64).log2()
    twos = (twos - twos.mean()) / (twos - twos.mean()).square().sum()

    def slopes(metric: int, change: Callable[[Tensor], Tensor] = lambda v: v) -> dict[str, Tensor]:
        return {named(*each): change(found[:, k, :, metric]) @ twos for k, each in enumerate(SETTINGS)}

    claims = [
        decide("larger batches end in sharper minima (ln of the sharpness per doubling)", slopes(0, torch.log)),
        decide("so they do by the sharpness times |w|² (ln per doubling)", slopes(1, torch.log)),
        decide("larger batches have larger gaps of the loss (per doubling)", slopes(2)),
        decide("larger batches have larger gaps of the accuracy (per doubling)", slopes(3)),
        decide("larger batches tell tests worse (accuracy lost per doubling)", slopes(4, torch.neg)),
        decide("sharper ends have larger gaps of the loss (correlation over batch sizes)",
               {named(*each): torch.stack([
                   torch.corrcoef(torch.stack([one[k, :, 0].log(), one[k, :, 2]]))[0, 1] for one in found
               ]) for k, each in enumerate(SETTINGS)}),
        decide("at equal epochs larger batches end at a larger loss (ln of the loss per doubling)",
               {name: v for name, v in slopes(5, torch.log).items() if "epochs" in name}),
    ]  # fmt: skip
    page.facts("Claims, decided over seeds", HEADER, table(claims))


if __name__ == "__main__":
    run(build)
