"""``pullback dynamics hessians``: the semicircle, and the index against the energy."""

from __future__ import annotations

import math

import torch
from torch import nn

from pullback import dynamics
from pullback.charts.plots import Curve, curves
from pullback.cli.dynamics.pages.shared import F64, chart, page_of, tanh_network
from pullback.report.dynamics.charts import FOUND
from pullback.report.theory.charts import Line
from pullback.report.theory.page import TheoryPage

THRESHOLD = -2 * math.sqrt(2 / 3)  # the energy below which a spin glass of three spins has only minima
MARKS, SAMPLES, SIZES = (0, 3, 10, 20, 40, 100, 300), 100, (8, 5, 5, 4)  # of the network that is trained


def hessians_page(size: int, seeds: int, points: int) -> TheoryPage:
    """The semicircle, and the index of a spin glass against its energy."""
    values = torch.linalg.eigvalsh(dynamics.random_hessians(size, seeds)).flatten()
    edges = torch.linspace(-2.4, 2.4, 49, dtype=F64)
    middle = (edges[1:] + edges[:-1]) / 2
    heights = torch.histogram(values, edges)[0] / len(values) / (edges[1] - edges[0])
    drawn = [
        Curve(FOUND, middle.tolist(), heights.tolist(), "bars"),
        Curve("semicircle", middle.tolist(), dynamics.semicircle(middle).tolist(), "plain"),
    ]
    reading = "Eigenvalues of symmetric matrices with independent normal entries, half of them below zero."
    charts = [curves("semicircle", "Eigenvalues of random Hessians", reading, drawn, x="eigenvalue", y="density")]
    energies = torch.linspace(-1.8, 1.0, points, dtype=F64).tolist()
    shares, errors, known = [], [], []
    for place, energy in enumerate(energies):
        centre, radius = dynamics.spin_glass_spectrum(energy)
        known.append(float(dynamics.negative_share(centre, radius)))
        drawn_here = dynamics.random_hessians(size, seeds, shift=2 * centre / radius, seed=place + 1)
        share = (torch.linalg.eigvalsh(drawn_here) < 0).double().mean(1)
        shares.append(float(share.mean()))
        errors.append(float(share.std()) / math.sqrt(seeds))
    line = Line("index over dimension", energies, known, energies, shares, errors)
    reading = (
        "Share of directions that lead down at a critical point: none below a threshold, so only minima are there."
    )
    charts.append(chart(line, "index", reading, x="energy a dimension", y="share of negative eigenvalues"))
    trained = _along_training(seeds)
    reading = (
        "A tanh network in training, from right to left. Line: a spin glass, did its energy run linearly with the loss "
        "from the threshold, at loss 0, to 0 at the start; a network is no random function."
    )
    charts.append(chart(trained, "training", reading, x="loss", y="share of negative eigenvalues"))
    keys = [
        ("threshold", THRESHOLD, "energy below which critical points are minima"),
        *((f"P(minimum), {n} dimensions", dynamics.all_positive_probability(n), "around zero") for n in (2, 3, 10)),
    ]
    return page_of(
        "Random Hessians", (f"{seeds} of {size} rows a point",), keys, "energy or loss", [line, trained], charts
    )


def _along_training(seeds: int) -> Line:
    """Share of negative eigenvalues against the loss, means over seeds; labels are those of another such network."""
    loss_fn, courses = nn.CrossEntropyLoss(), []
    for seed in range(seeds):
        x = torch.randn(SAMPLES, SIZES[0], generator=torch.Generator().manual_seed(seed), dtype=F64)
        y = tanh_network(SIZES, 1000 + seed)(x).detach().argsort(0).argsort(0).argmax(1)  # classes of about one size
        model = tanh_network(SIZES, seed)
        world = dynamics.network_landscape(model, loss_fn, x, y)
        optimizer, course = torch.optim.Adam(model.parameters(), 0.03), []
        for step in range(MARKS[-1] + 1):
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            if step in MARKS:
                values = torch.linalg.eigvalsh(
                    world.hessian(nn.utils.parameters_to_vector(model.parameters()).detach())
                )
                course.append([loss.item(), float((values < -1e-10 * values[-1]).double().mean())])
            loss.backward()
            optimizer.step()
        courses.append(course)
    found = torch.tensor(courses, dtype=F64)
    losses, shares = found.mean(0).T.tolist()
    energies = [THRESHOLD * (1 - loss / losses[0]) for loss in losses]
    known = [float(dynamics.negative_share(*dynamics.spin_glass_spectrum(min(energy, 0.0)))) for energy in energies]
    errors = (found[..., 1].std(0) / math.sqrt(seeds)).tolist()
    return Line("index over dimension, a network in training", losses, known, losses, shares, errors)
