"""``pullback dynamics``: how optimizers move where it is known, theory as lines and simulation as points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pullback.cli.dynamics.networks import Force, Out, Seeds, Steps, edge, forgetting, parity, second_order
from pullback.cli.shared import busy, check_counts, free_path

app = typer.Typer(
    help="Follow optimizers on quadratics, landscapes, saddles and small networks, beside what theory says.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Rate = Annotated[float, typer.Option(help="Learning rate; 0: the best one.")]


@app.command()
def quadratic(
    curvatures: Annotated[str, typer.Option(help="Eigenvalues, by commas; the first two are drawn.")] = "100,1",
    method: Annotated[str, typer.Option(help="gradient_descent, heavy_ball or nesterov.")] = "gradient_descent",
    lr: Rate = 0.0,
    momentum: Annotated[float, typer.Option(help="Of heavy_ball and nesterov, with --lr.")] = 0.9,
    noise: Annotated[float, typer.Option(help="Standard deviation of each gradient's noise.")] = 0.0,
    steps: Steps = 100,
    seeds: Seeds = 200,
    out: Out = None,
    force: Force = False,
) -> None:
    """A quadratic: exact trajectory, loss and noise beside torch's optimizer."""
    from pullback.cli.dynamics.pages.quadratic import quadratic_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "quadratic", force=force)
    check_counts("dynamics", seeds=seeds, steps=steps)
    with busy(f"{seeds} runs"):
        page = quadratic_page(curvatures, method, (lr, momentum), noise, steps, seeds)
    show(page, path)


@app.command()
def landscape(
    name: Annotated[str, typer.Argument(help="rosenbrock, beale, ravine, … (a wrong one lists all).")] = "rosenbrock",
    optimizers: Annotated[str, typer.Option(help="By commas, of SGD, momentum, Nesterov, RMSprop, Adagrad, Adam, "
                                                 "AdamW, LBFGS; each may have its rate behind a colon.")]
    = "SGD:0.001,momentum:0.001,RMSprop:0.01,Adam:0.05,LBFGS:1",
    steps: Steps = 300,
    record: Annotated[Path | None, typer.Option(help="Folder for a run of each optimizer, for report and compare.")]
    = None,
    out: Out = None,
    force: Force = False,
) -> None:  # fmt: skip
    """Torch's optimizers, unchanged, from one start on one landscape."""
    from pullback.cli.dynamics.pages.landscape import landscape_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "landscape", force=force)
    check_counts("dynamics", steps=steps)
    with busy("trajectories"):
        page = landscape_page(name, optimizers, steps, record)
    show(page, path)


@app.command()
def saddle(
    curvature: Annotated[float, typer.Option(help="Of the direction that leads down, below 0.")] = -1.0,
    lr: Annotated[float, typer.Option(help="Learning rate of those that have one.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="Of heavy_ball and nesterov.")] = 0.9,
    damping: Annotated[float, typer.Option(help="Of damped Newton.")] = 2.0,
    points: Annotated[int, typer.Option(help="Starts, each a tenth as far away as the one before.")] = 6,
    out: Out = None,
    force: Force = False,
) -> None:
    """Steps to leave a saddle against how near the start is; what Newton does there."""
    from pullback.cli.dynamics.pages.saddle import saddle_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "saddle", force=force)
    check_counts("dynamics", points=points)
    with busy("trajectories"):
        page = saddle_page(curvature, lr, momentum, damping, points)
    show(page, path)


@app.command()
def batch(
    curvatures: Annotated[str, typer.Option(help="Eigenvalues, by commas.")] = "1,0.3,0.05",
    noise: Annotated[float, typer.Option(help="Variance of the gradients of single samples.")] = 0.5,
    target: Annotated[float, typer.Option(help="Excess loss to reach.")] = 0.01,
    points: Annotated[int, typer.Option(help="Batch sizes, each four times the one before.")] = 6,
    seeds: Seeds = 500,
    out: Out = None,
    force: Force = False,
) -> None:
    """Updates to a target and Adam's step, against the batch size."""
    from pullback.cli.dynamics.pages.batch_size import batch_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "batch", force=force)
    check_counts("dynamics", points=points, seeds=seeds)
    with busy(f"{points * seeds} runs"):
        page = batch_page(curvatures, noise, target, points, seeds)
    show(page, path)


@app.command()
def hessians(
    size: Annotated[int, typer.Option(help="Rows of each random Hessian.")] = 200,
    seeds: Annotated[int, typer.Option(help="Hessians drawn at each energy, at least 2.")] = 5,
    points: Annotated[int, typer.Option(help="Energies.")] = 13,
    out: Out = None,
    force: Force = False,
) -> None:
    """Random Hessians: the semicircle, and the index against the energy."""
    from pullback.cli.dynamics.pages.hessians import hessians_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "hessians", force=force)
    check_counts("dynamics", size=size, points=points, seeds=seeds)
    with busy(f"{points * seeds} Hessians"):
        page = hessians_page(size, seeds, points)
    show(page, path)


@app.command()
def scale(
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.1,
    decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    steps: Steps = 2000,
    out: Out = None,
    force: Force = False,
) -> None:
    """Weights whose length the loss does not see: their growth and effective rate."""
    from pullback.cli.dynamics.pages.scale import scale_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "scale", force=force)
    check_counts("dynamics", steps=steps)
    with busy("a trajectory"):
        page = scale_page(lr, decay, steps)
    show(page, path)


@app.command()
def morse(
    name: Annotated[str, typer.Argument(help="double_well, himmelblau, … of two coordinates.")] = "himmelblau",
    point: Annotated[int, typer.Option(help="Which critical point, from 1, lowest first; 0: the first saddle.")] = 0,
    reach: Annotated[float, typer.Option(help="How far from it coordinates are drawn.")] = 0.3,
    out: Out = None,
    force: Force = False,
) -> None:
    """Critical points with their Morse index, and coordinates in which one is a sum of squares."""
    from pullback.cli.dynamics.pages.morse import morse_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "morse", force=force)
    with busy("critical points"):
        page = morse_page(name, point, reach)
    show(page, path)


@app.command()
def proximal(
    name: Annotated[str, typer.Argument(help="rosenbrock, beale, ravine, … (a wrong one lists all).")] = "rosenbrock",
    distance: Annotated[str, typer.Option(help="euclidean, cosh or logistic (KL of Bernoulli variables).")] = "cosh",
    weight: Annotated[float, typer.Option(help="Of the distance, the smallest of those drawn.")] = 200.0,
    points: Annotated[int, typer.Option(help="Weights, each four times the one before.")] = 6,
    out: Out = None,
    force: Force = False,
) -> None:
    """The step that a distance asks for, and how far expansions are from it: natural, mirror, Newton."""
    from pullback.cli.dynamics.pages.proximal import proximal_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "proximal", force=force)
    check_counts("dynamics", points=points)
    with busy("steps"):
        page = proximal_page(name, distance, weight, points)
    show(page, path)


@app.command()
def outputs(
    lr: Annotated[float, typer.Option(help="Learning rate in outputs.")] = 0.1,
    parameter_lr: Annotated[float, typer.Option(help="Of descent in parameters.")] = 0.001,
    steps: Steps = 60,
    out: Out = None,
    force: Force = False,
) -> None:
    """Rosenbrock's function by descent in its outputs, pulled back, and by Gauss-Newton."""
    from pullback.cli.dynamics.pages.outputs import outputs_page
    from pullback.cli.dynamics.pages.shared import show

    path = free_path(out, "dynamics", "outputs", force=force)
    check_counts("dynamics", steps=steps)
    with busy("trajectories"):
        page = outputs_page(lr, parameter_lr, steps)
    show(page, path)


for command in (second_order, edge, parity, forgetting):
    app.command()(command)
