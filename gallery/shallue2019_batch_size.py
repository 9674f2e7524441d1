"""What a larger batch buys: updates to a target, and the time an update takes (Shallue et al. 2019, figure 1).

Claims of arXiv:1811.03600 and arXiv:1812.06162: doubling the batch halves the updates to a target while gradients are
mostly noise (slope -1 of ln updates over ln batch size), and saves nothing once they are not (slope 0); in between they
bend where the batch size is that of the noise scale. The time an update takes is flat while it is overhead (slope 0)
and grows with the samples after that (slope 1), so that the time to a target is least in the middle.

    updates = least · (1 + B* / B),    B* the batch size at which they are twice the least

is fitted to the updates, one fit a seed, and beside it stands the noise scale B_noise = tr Σ / |G|² of per-sample
gradients where half of the updates are done. Digits that ship with scikit-learn and a ReLU network; each batch size has
the best of its rates, by runs that do not count.

Seconds are processor seconds of one thread, measured in rounds that go through all batch sizes one after another in
one process, each batch size beside the smallest in the same round. They are this machine's: they are shown, and no row
is held to them.
"""

from __future__ import annotations

import math
import time

import torch
from kit.charts import Curve, curves
from kit.claims import HEADER, decide, table
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb

LOSS = nn.CrossEntropyLoss()
HIDDEN, TARGET, TUNED = 64, 0.15, 100


def network(seed: int) -> nn.Module:
    """One hidden layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)).eval()


def digits() -> tuple[Tensor, Tensor]:
    """Images as vectors, and classes."""
    data = pb.functional.load_digits(0)
    return data.x_train.flatten(1), data.y_train


def build(page: Page) -> None:
    """Fill the page."""
    seeds, most, batches = page.pick(small=(2, 300, (8, 512)), full=(5, 8000, (1, 8, 64, 512, 1400)))
    rates = page.pick(small=(0.3,), full=(0.01, 0.03, 0.1, 0.3, 1.0))
    page.set(seed=0, seeds=seeds, batch_sizes=batches, rates=rates, target=TARGET, hidden=HIDDEN)
    noise(page)
    best = [
        min(rates, key=lambda lr, b=b: to_target(TUNED, b, lr, most)) if len(rates) > 1 else rates[0] for b in batches
    ]
    updates = torch.tensor(
        [[to_target(seed, b, lr, most) for b, lr in zip(batches, best, strict=True)] for seed in range(seeds)],
        dtype=torch.float64,
    )
    fewer = float((updates[:, 0] - updates[:, -1]).min())
    page.at_least(
        "updates of the smallest batch less those of the largest, least of all seeds", 1, fewer, source="figure 1"
    )
    sizes = page.pick(small=batches, full=(*batches, 4096, 16384))
    seconds = timed(sizes, page.pick(small=3, full=20), page.pick(small=5, full=10))
    fits = [fitted(batches, each) for each in updates]
    shown(page, (batches, best, sizes), updates, seconds, fits)
    if len(batches) > 3:
        scales = [noise_scale(seed, best[2], int(updates[seed, 2]) // 2, batches[2]) for seed in range(seeds)]
        verdicts(page, (batches, sizes), updates, seconds, torch.tensor([fits, scales], dtype=torch.float64))


def noise(page: Page) -> None:
    """The noise scale by the kernel, and by gradients one after another."""
    model, (x, y) = network(0).double(), digits()
    x, y = x[:40].double(), y[:40]
    rows = []
    for sample, label in zip(x, y, strict=True):
        slopes = torch.autograd.grad(LOSS(model(sample[None]), label[None]), list(model.parameters()))
        rows.append(torch.cat([s.flatten() for s in slopes]))
    gradients = torch.stack(rows)
    variance = float(gradients.var(0).sum())
    known = variance / (float(gradients.mean(0).square().sum()) - variance / len(rows))
    found = pb.gradient_noise(pb.backward_kernel(model, LOSS, x, y))
    page.row("noise scale of 40 gradients", known, float(found.variance / found.square_mean), 1e-8, relative=True,
             computed=True, source="gradients one by one")  # fmt: skip


def to_target(seed: int, batch: int, lr: float, most: int) -> float:
    """Updates until the loss of all training samples is below the target, looked at every few; ``most`` if never."""
    (x, y), model, make = digits(), network(seed), torch.Generator().manual_seed(seed)
    every = max(1, min(20, 64 // batch))
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for step in range(most):
        if step % every == 0:
            with torch.no_grad():
                loss = float(LOSS(model(x), y))
            if loss < TARGET:
                return step
            if not loss < 100:
                return most
        chosen = torch.randint(len(x), (batch,), generator=make)
        update(model, optimizer, x[chosen], y[chosen])
    return most


def update(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One step of descent."""
    optimizer.zero_grad()
    LOSS(model(x), y).backward()
    optimizer.step()


def noise_scale(seed: int, lr: float, steps: int, batch: int) -> float:
    """Where so many steps lead."""
    (x, y), model, make = digits(), network(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=make)
        update(model, optimizer, x[chosen], y[chosen])
    found = pb.gradient_noise(pb.backward_kernel(model, LOSS, x[:400], y[:400]))
    return float(found.variance / found.square_mean)


def timed(sizes: tuple[int, ...], rounds: int, repeats: int) -> Tensor:
    """Processor seconds an update takes, (rounds, sizes); sizes follow one another, samples come again."""
    (x, y), model = digits(), network(0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    many = -(-max(sizes) // len(x))
    x, y = x.repeat(many, 1), y.repeat(many)
    parts = [(x[:b], y[:b]) for b in sizes]
    for part in parts:  # not counted: what the first call of a size prepares
        update(model, optimizer, *part)
    found = torch.zeros(rounds, len(sizes), dtype=torch.float64)
    for place in range(rounds):
        for k, part in enumerate(parts):
            start = time.process_time()
            for _ in range(repeats):
                update(model, optimizer, *part)
            found[place, k] = (time.process_time() - start) / repeats
    return found


def fitted(batches: tuple[int, ...], updates: Tensor) -> float:
    """B* of updates = least (1 + B* / B), by least squares of logarithms over a grid of B*."""
    sizes = torch.tensor(batches, dtype=torch.float64)
    grid = torch.logspace(-1, 4, 501, dtype=torch.float64)
    rest = updates.log() - (1 + grid[:, None] / sizes).log()
    return float(grid[rest.var(1).argmin()])


def slope(batches: tuple[int, ...], values: Tensor, ends: tuple[int, int]) -> Tensor:
    """Of ln values (rows, sizes) over ln batch size between two sizes, (rows,)."""
    a, b = ends
    return (values[:, b].log() - values[:, a].log()) / math.log(batches[b] / batches[a])


def shown(
    page: Page,
    ways: tuple[tuple[int, ...], list[float], tuple[int, ...]],
    updates: Tensor,
    seconds: Tensor,
    fits: list[float],
) -> None:
    """Updates, seconds and their product by batch size."""
    batches, best, sizes = ways
    mean, error = updates.mean(0), updates.std(0) / len(updates) ** 0.5
    least = (updates.log() - (1 + torch.tensor(fits)[:, None] / torch.tensor(batches)).log()).mean(1).exp()
    fit = torch.stack(
        [a * (1 + s / torch.tensor(batches, dtype=torch.float64)) for a, s in zip(least, fits, strict=True)]
    )
    middle = seconds.median(0).values
    reading = "Means and standard errors over seeds, and the fit's mean."
    lines = [Curve("updates", batches, mean.tolist(), "points", stderr=error.tolist()),
             Curve("least (1 + B*/B)", batches, fit.mean(0).tolist(), "dash")]  # fmt: skip
    page.draw(curves("updates", f"Updates to a loss of {TARGET}", reading, lines, x="batch size", y="updates",
                     log_x=True,
                     log_y=True))  # fmt: skip
    reading = "Processor seconds of this machine; medians over rounds. The product is the time to the target."
    lines = [Curve("of one update", sizes, middle.tolist(), "line"),
             Curve("to the target", batches, (middle[: len(mean)] * mean).tolist(), "line")]  # fmt: skip
    page.draw(
        curves("seconds", "Seconds by batch size", reading, lines, x="batch size", y="seconds", log_x=True, log_y=True)
    )
    rows = [
        [
            b,
            lr,
            f"{float(m):.4g} ± {float(e):.2g}",
            float(m) * b,
            float(f"{1e6 * float(s):.3g}"),
            float(f"{float(s * m):.3g}"),
        ]
        for b, lr, m, e, s in zip(batches, best, mean, error, middle[: len(mean)], strict=True)
    ]
    header = (
        "batch size",
        "rate",
        "updates, mean ± standard error",
        "samples",
        "µs an update",
        "seconds to the target",
    )
    page.facts("By batch size", header, rows)


def verdicts(
    page: Page, ways: tuple[tuple[int, ...], tuple[int, ...]], updates: Tensor, seconds: Tensor, scales: Tensor
) -> None:
    """Slopes at both ends, over seeds for updates and over rounds for seconds."""
    (batches, sizes), last, end = ways, len(ways[0]) - 1, len(ways[1]) - 1
    few, many = slope(batches, updates, (0, 1)), slope(batches, updates, (last - 1, last))
    quick, slow = slope(sizes, seconds, (0, 2)), slope(sizes, seconds, (end - 1, end))
    pairs = (("ln updates, smallest sizes", few), ("ln updates, largest sizes", many),
             ("ln seconds, smallest sizes", quick), ("ln seconds, largest sizes", slow),
             ("B*, fitted", scales[0]), ("B_noise, halfway", scales[1]))  # fmt: skip
    page.facts("Slopes over ln batch size, and scales", ("quantity", "mean", "standard error"), [
        [name, float(f"{float(v.mean()):.3g}"), float(f"{float(v.std() / len(v) ** 0.5):.2g}")] for name, v in pairs
    ])  # fmt: skip
    times = updates * seconds.median(0).values[: last + 1]
    best = int(times.mean(0).argmin())
    claims = [
        decide("updates fall with the batch size (slope below 0)",
               {"smallest sizes": -few, "largest sizes": -many}),
        decide("they fall in proportion (0.15 less the distance of the slope from -1)",
               {"smallest sizes": 0.15 - (few + 1).abs(), "largest sizes": 0.15 - (many + 1).abs()}),
        decide("they bend: the largest sizes save less (difference of slopes)", {"all sizes": many - few}),
        decide("the time of an update is flat (0.25 less its slope)",
               {"smallest sizes": 0.25 - quick, "largest sizes": 0.25 - slow}),
        decide("the time of an update grows in proportion (0.25 less the distance of its slope from 1)",
               {"smallest sizes": 0.25 - (quick - 1).abs(), "largest sizes": 0.25 - (slow - 1).abs()}),
        decide("the time to the target is least in between (ln of the ratio to the ends)",
               {"smallest": (times[:, 0] / times[:, best]).log(), "largest": (times[:, -1] / times[:, best]).log()}),
        decide("the fitted B* is the noise scale within a factor of 3 (ln 3 less the distance of logarithms)",
               {"halfway": math.log(3) - (scales[0] / scales[1]).log().abs()}),
    ]  # fmt: skip
    page.facts("Claims, decided over seeds (times over rounds)", HEADER, table(claims))


if __name__ == "__main__":
    run(build)
