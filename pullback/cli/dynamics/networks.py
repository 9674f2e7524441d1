"""The commands of ``pullback dynamics`` that train networks, and the options all of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pullback.cli.shared import bar, busy, check_counts, free_path

Out = Annotated[Path | None, typer.Option(help="The page to write [runs/dynamics/ and the command's name].")]
Force = Annotated[bool, typer.Option("--force", help="Replace a page that is already there.")]
Steps = Annotated[int, typer.Option(help="Steps of each optimizer.")]
Seeds = Annotated[int, typer.Option(help="Runs with noise of their own, at least 2.")]
Seed = Annotated[int, typer.Option(help="Of weights and samples.")]


def second_order(
    methods: Annotated[str, typer.Option(help="By commas, of Newton, damped Newton, saddle-free Newton, Hessian-free, "
                                              "Gauss-Newton, natural gradient, natural gradient (kernel), SGD, Adam; "
                                              "or all.")] = "all",
    steps: Annotated[int, typer.Option(help="Of each second-order method; SGD and Adam take 60 times as many.")] = 8,
    samples: Annotated[int, typer.Option(help="Digits, all of them at each step.")] = 60,
    hidden: Annotated[int, typer.Option(help="Units of the hidden layer.")] = 4,
    lr: Annotated[float, typer.Option(help="Rate of second-order methods; SGD has 0.3, Adam 0.03 of it.")] = 1.0,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
) -> None:  # fmt: skip
    """Newton, Gauss-Newton and natural gradients beside SGD and Adam: loss against steps and work."""
    from pullback.cli.dynamics.pages.second_order import chosen_methods, second_order_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "second-order", force=force)
    check_counts("dynamics", steps=steps, samples=samples)
    check_counts("dynamics", 1, hidden=hidden)
    chosen = chosen_methods(methods)
    with bar("Training", len(chosen), "methods") as advance:
        page = second_order_page(chosen, steps, (samples, hidden), lr, seed, advance)
    show(page, path)


def parity(
    digits: Annotated[int, typer.Option(help="Most digits, 3 to 12.")] = 10,
    activation: Annotated[str, typer.Option(help="tanh, relu, gelu or silu.")] = "tanh",
    draws: Annotated[int, typer.Option(help="Parities drawn of each size, at least 2.")] = 20,
    steps: Annotated[int, typer.Option(help="Of the two trainings.")] = 300,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
) -> None:
    """How little gradients tell of which parity is asked for, and what training makes of it."""
    from pullback.cli.dynamics.pages.parity import parity_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "parity", force=force)
    check_counts("dynamics", draws=draws)
    check_counts("dynamics", 10, steps=steps)
    with busy("gradients of parities"):
        page = parity_page(digits, activation, draws, steps, seed)
    show(page, path)


def forgetting(
    forms: Annotated[str, typer.Option(help="Of the Fisher matrix, by commas: diagonal, full, kronecker.")]
    = "diagonal,full",
    strengths: Annotated[str, typer.Option(help="Of the penalty, by commas.")] = "1,10,100,1000",
    steps: Annotated[int, typer.Option(help="Of each task.")] = 80,
    hidden: Annotated[int, typer.Option(help="Units of the hidden layer.")] = 10,
    seeds: Annotated[int, typer.Option(help="Trainings, at least 2.")] = 3,
    out: Out = None,
    force: Force = False,
) -> None:  # fmt: skip
    """What a second task costs the first, and elastic weight consolidation, on permuted digits."""
    from pullback.cli.dynamics.pages.forgetting import forgetting_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "forgetting", force=force)
    check_counts("dynamics", seeds=seeds)
    check_counts("dynamics", 1, steps=steps, hidden=hidden)
    with bar("Training", seeds, "seeds") as advance:
        page = forgetting_page(forms, strengths, steps, hidden, seeds, advance)
    show(page, path)


def edge(
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.15,
    momentum: Annotated[float, typer.Option(help="In [0, 1).")] = 0.0,
    steps: Annotated[int, typer.Option(help="Of full-batch descent.")] = 400,
    every: Annotated[int, typer.Option(help="Steps from one look at the sharpness to the next.")] = 20,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
) -> None:
    """The edge of stability: sharpness of a network against what the rate allows."""
    from pullback.cli.dynamics.pages.edge import edge_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "edge", force=force)
    check_counts("dynamics", 1, every=every)
    check_counts("dynamics", 2 * every, steps=steps)
    with bar("Training", steps // every + 1, "sharpnesses") as advance:
        page = edge_page(lr, momentum, (steps, every), seed, advance)
    show(page, path)
