"""How many directions bend down, against the loss, while a network is trained (after Dauphin et al. 2014, figure 1).

Claims of arXiv:1406.2572 and, for random functions, of Bray and Dean (2007, cond-mat/0611023): the share of negative
eigenvalues at a critical point, its index over P, grows with its height, as the eigenvalues are a semicircle that moves
to the left. A network in training is at no critical point; its Hessian is

    H = A + R,    A the Gauss-Newton matrix, without negative eigenvalues, R residuals times second derivatives,

and R is what can bend down: it grows with the residuals, and so with the loss (arXiv:1611.05013 takes R for a
semicircle whose radius is proportional to the root of the loss). Three predictions of the share are held to it: the
semicircle with the mean and variance of H itself; one of R's size about 0, added freely to A's eigenvalues; and the
spherical spin glass, with energies that run linearly with the loss from the threshold, at loss 0, to 0, at the start.

Here it is 200 of the digits that ship with scikit-learn, of 4 x 4 pixels, a tanh network of two hidden layers and
cross-entropy; all eigenvalues are computed. Eigenvalues within rounding of 0 count as zeros.
"""

from __future__ import annotations

import math

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
SAMPLES, THRESHOLD = 200, -2 * math.sqrt(2 / 3)  # the energy below which a spin glass of three spins has only minima
NAMES = ("share", "moments", "residual", "spin glass")


def problem(seed: int, hidden: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A tanh network, images (N, 16) and classes."""
    data = pb.functional.load_digits(0)
    images = data.x_train[:SAMPLES].double().reshape(SAMPLES, 1, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(16, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 10))
        model = nn.Sequential(*layers).double().eval()
    return model, nn.functional.avg_pool2d(images, 2).flatten(1), data.y_train[:SAMPLES]


def build(page: Page) -> None:
    """Fill the page."""
    widths, seeds, marks = page.pick(small=((5,), 2, (0, 30)), full=((5, 10), 5, (0, 3, 10, 20, 40, 80, 160, 320, 640)))
    page.set(seed=0, widths=widths, seeds=seeds, samples=SAMPLES, optimizer="Adam 0.01, all samples", steps=marks)
    counted(page)
    found = {width: torch.stack([along(seed, width, marks) for seed in range(seeds)]) for width in widths}
    lowest = min(float(courses[:, 0, 1].min() - courses[:, -1, 1].min()) for courses in found.values())
    page.at_least("share of negative eigenvalues, start less the least end", 0.0, lowest, source="figure 1")
    shown(page, found, marks)
    if len(marks) > 3:
        verdicts(page, found)


def matrices(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Hessian and Gauss-Newton matrix, (P, P) each."""
    both = (pb.Hessian(model, LOSS, (x, y)), pb.GaussNewton(model, LOSS, (x, y)))
    hessian, gauss_newton = (op @ torch.eye(op.shape[0], dtype=torch.float64) for op in both)
    return (hessian + hessian.T) / 2, (gauss_newton + gauss_newton.T) / 2


def counted(page: Page) -> None:
    """The index, by the library and by eigenvalues of the Hessian that autograd makes."""
    model, x, y = problem(0, 3)
    loss = dynamics.network_landscape(model, LOSS, x, y)
    values = torch.linalg.eigvalsh(torch.func.jacrev(torch.func.jacrev(loss))(loss.start))
    known = int((values < -1e-12 * values.abs().max()).sum())
    page.row("index at the start, 3 hidden units", known, pb.morse_index(pb.Hessian(model, LOSS, (x, y))).index, 0,
             computed=True, source="eigenvalues of autograd's Hessian")  # fmt: skip
    hessian = matrices(model, x, y)[0]
    page.row("its least eigenvalue", float(values[0]), float(torch.linalg.eigvalsh(hessian)[0]), 1e-8, relative=True,
             computed=True, source="autograd's Hessian")  # fmt: skip


def along(seed: int, hidden: int, marks: tuple[int, ...]) -> Tensor:
    """Loss, share and its predictions at the marks of one training, (marks, 5)."""
    model, x, y = problem(seed, hidden)
    optimizer, rows = torch.optim.Adam(model.parameters(), 0.01), []
    for step in range(marks[-1] + 1):
        if step in marks:
            rows.append(measured(model, x, y))
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    found = torch.tensor(rows, dtype=torch.float64)
    energies = THRESHOLD * (1 - found[:, :1] / found[0, 0])
    glass = [float(dynamics.negative_share(*dynamics.spin_glass_spectrum(float(e)))) for e in energies]
    return torch.cat([found, torch.tensor(glass, dtype=torch.float64)[:, None]], 1)


def measured(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Loss, share of negative eigenvalues, and what two semicircles say of it."""
    hessian, gauss_newton = matrices(model, x, y)
    count = len(hessian)
    residual = hessian - gauss_newton
    with torch.no_grad():
        loss = float(LOSS(model(x), y))
    spread = 2 * float(torch.linalg.eigvalsh(hessian).std())
    moments = float(dynamics.negative_share(float(hessian.trace()) / count, spread))
    radius = 2 * float(residual.square().sum() / count) ** 0.5
    draw = torch.Generator().manual_seed(0)  # a semicircle of that radius, added to A
    noise = torch.randn(count, count, generator=draw, dtype=torch.float64)
    wigner = (noise + noise.T) * radius / (2 * (2 * count) ** 0.5)
    free = float((torch.linalg.eigvalsh(gauss_newton + wigner) < 0).double().mean())
    return [loss, pb.morse_index(hessian, tol=1e-10).index / count, moments, free]


def shown(page: Page, found: dict[int, Tensor], marks: tuple[int, ...]) -> None:
    """Shares against the loss, and as a table."""
    rows: list[list[float | str]] = []
    for width, courses in found.items():
        mean, error = courses.mean(0), courses.std(0) / len(courses) ** 0.5
        rows += [
            [width, step, *(f"{float(m):.3g} ± {float(e):.2g}" for m, e in zip(mean[k], error[k], strict=True))]
            for k, step in enumerate(marks)
        ]
        x = mean[:, 0].tolist()
        lines = [Curve("network", x, mean[:, 1].tolist(), "points", PALETTE[0], error[:, 1].tolist())]
        for k, name in enumerate(
            ("semicircle of H's mean and variance", "A and a semicircle of R's size", "spin glass")
        ):
            lines.append(Curve(name, x, mean[:, 2 + k].tolist(), "plain", PALETTE[k + 1]))
        reading = "Means over seeds, at the steps of the table; training runs from right to left."
        page.draw(curves(f"index-{width}", f"Share of negative eigenvalues against the loss, {width} units a layer",
                         reading, lines, x="loss", y="share"))  # fmt: skip
    header = ("width", "step", "loss", "share below 0", "semicircle of H", "A and semicircle of R", "spin glass")
    page.facts("Along training, mean ± standard error over seeds", header, rows)


def verdicts(page: Page, found: dict[int, Tensor]) -> None:
    """Claims by width."""
    of = lambda make: {f"{w} units": torch.stack([make(each) for each in courses]) for w, courses in found.items()}
    error = lambda column: lambda course: (course[:, column] - course[:, 1]).abs().mean()
    late = lambda course: course[course[:, 0] < course[0, 0] / 2]
    claims = [
        decide("the share grows with the loss along training (rank correlation)",
               of(lambda c: ranks(c[:, 0], c[:, 1]))),
        decide("and so it does once half of the loss is gone (rank correlation)",
               of(lambda c: ranks(late(c)[:, 0], late(c)[:, 1]))),
        decide("a tenth of all directions bend down at the start and not at the end",
               of(lambda c: c[0, 1] - c[-1, 1] - 0.1)),
        decide("the end is no minimum: some directions bend down (share)", of(lambda c: c[-1, 1])),
        decide("the semicircle of H predicts the share to 0.1 (0.1 less the mean distance)",
               of(lambda c: 0.1 - error(2)(c))),
        decide("A and a semicircle of R's size predict it to 0.1", of(lambda c: 0.1 - error(3)(c))),
        decide("the spin glass predicts it to 0.1", of(lambda c: 0.1 - error(4)(c))),
        decide("A and a semicircle of R are nearer than the semicircle of H",
               of(lambda c: error(2)(c) - error(3)(c))),
    ]  # fmt: skip
    page.facts("Claims, decided over seeds", HEADER, table(claims))


def ranks(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's correlation."""
    a, b = (each.argsort().argsort().double() for each in (x, y))
    return torch.corrcoef(torch.stack([a, b]))[0, 1] if len(a) > 2 else torch.tensor(math.nan, dtype=torch.float64)


if __name__ == "__main__":
    run(build)
