"""``pullback demo``: train the network of the training note on real data, watch it, and write the report."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from pullback.functional import Dataset

BATCH_SIZE = 512
DEFAULT_STEPS = 3000  # enough for the digits; fewer epochs are made of larger data sets
MOST_LINES = 50  # in a pipe: of more epochs every so many are told


def command(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="digits, cifar10, or an .npz file with arrays x and y.")] = "digits",
    data_root: Annotated[Path, typer.Option(help="Folder of CIFAR-10's binary files.")] = Path("data"),
    epochs: Annotated[int | None, typer.Option(help="Passes over the data [as many as make 3000 steps].")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    optimizer: Annotated[str, typer.Option(help="adam, sgd, momentum, rmsprop or adagrad.")] = "adam",
    activation: Annotated[str, typer.Option(help="relu, tanh, gelu, … (a wrong one lists all).")] = "relu",
    init: Annotated[str, typer.Option(help="default, he, xavier, gaussian or orthogonal.")] = "default",
    width: Annotated[int, typer.Option(help="Units of a hidden layer.")] = 128,
    depth: Annotated[int, typer.Option(help="Hidden layers.")] = 5,
    normalisation: Annotated[str, typer.Option(help="none, batch or layer.")] = "none",
    dropout: Annotated[float, typer.Option(help="Share of hidden units dropped in training.")] = 0.0,
    residual: Annotated[bool, typer.Option("--residual", help="Skip connections around hidden layers.")] = False,
    controller: Annotated[
        str, typer.Option(help="none, or curvature: the learning rate follows what is stable.")
    ] = "none",
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the order of samples.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace a run that is already there.")] = False,
    on_exists: Annotated[
        str, typer.Option(help="refuse, or number: where a run is there, write to OUT-2, OUT-3 and so on.")
    ] = "refuse",
) -> None:
    """Train a small network, measure its gradients' geometry on the way, and write a report."""
    import torch

    import pullback as pb
    from pullback._checks import check_option, check_positive
    from pullback.cli.ending import next_command, numbers_of, verdict_of
    from pullback.cli.training import Epochs, make_controller, make_optimizer, train
    from pullback.modules import MLP

    for name, number in (
        ("--width", width),
        ("--depth", depth),
        ("--epochs", 1 if epochs is None else epochs),
    ):
        check_positive("demo", name, number)
    check_option("demo", "--on-exists", on_exists, ("refuse", "number"))
    replaced = force and (out / "run.json").is_file()
    if not replaced and on_exists == "refuse":
        _check_room(out)
    dataset = _load(data, data_root, seed)
    torch.manual_seed(seed)
    model = MLP(
        [dataset.num_features, *[width] * depth, dataset.num_classes],
        activation,
        normalisation=normalisation,
        dropout=dropout,
        residual=residual,
        init=init,
        seed=seed,
    )
    loss_fn = torch.nn.CrossEntropyLoss()
    chosen = make_optimizer(optimizer, model, lr)
    steering = make_controller(controller, chosen, model, loss_fn)
    epochs = epochs or max(1, round(DEFAULT_STEPS / dataset.num_batches(BATCH_SIZE)))
    if replaced:
        shutil.rmtree(out)
    about = {"data": f"{dataset.name}, {len(dataset.x_train)} training and {len(dataset.x_test)} test samples"}
    with (
        pb.Monitor(model, loss_fn, out, optimizer=chosen, about=about, on_exists=on_exists) as monitor,
        _progress(epochs) as advance,
    ):
        passes = Epochs(epochs, BATCH_SIZE, seed)
        for epoch, mean in train(model, loss_fn, dataset, chosen, passes, monitor=monitor, controller=steering):
            advance(epoch, mean)
    fine = math.isfinite(mean)
    _tell_of_the_model(model, loss_fn, dataset, fine)
    run = pb.load_run(monitor.run_dir)
    findings = pb.diagnose(run)
    path = pb.write_report(run, monitor.run_dir / "report.html")
    told = [*numbers_of(run), f"Watching took {monitor.seconds:.2f} s.", *verdict_of(run, findings)]
    for line in (*told, f"Report: {path}", f"Next: {next_command(context, monitor.run_dir, findings)}"):
        typer.echo(line)
    if not fine:
        typer.echo("demo: expected a finite training loss, got NaN or infinity. Lower --lr.", err=True)
        raise typer.Exit(1)


def _tell_of_the_model(model: torch.nn.Module, loss_fn: torch.nn.Module, dataset: Dataset, fine: bool) -> None:
    import pullback as pb
    from pullback.cli.training import evaluate

    typer.echo("Finished Training" if fine else "Training diverged")
    typer.echo(f"Accuracy on test set: {100 * evaluate(model, loss_fn, dataset)[1]:.2f}%")
    for index, jacobian in enumerate(pb.layer_jacobians(model, dataset.x_test[:1]) if fine else []):
        shape = "x".join(map(str, jacobian.shape[1:]))
        typer.echo(f"Jacobian between Layer {index} and Layer {index + 1}: {shape}")


def _load(data: str, root: Path, seed: int) -> Dataset:
    from pullback._checks import input_error
    from pullback.functional import load_cifar10, load_digits, load_npz

    if data == "digits":
        return load_digits(seed)
    if data == "cifar10":
        return load_cifar10(root)
    if data.endswith(".npz"):
        return load_npz(data, seed)
    raise input_error("demo", "`--data` to be digits, cifar10 or a file ending in .npz", repr(data), "Choose one")


def _check_room(out: Path) -> None:
    """Refuse a folder that is taken, before data are read and a model is made."""
    from pullback.runs.folder import check_free

    check_free(out, "Pass --force to replace a run, --on-exists number to write beside it, or another --out")


class _progress:
    """One bar with the loss on a terminal; elsewhere lines, the loss of every epoch, or of some where they are many."""

    def __init__(self, epochs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from pullback.charts.numbers import evenly

        self.epochs = epochs
        self.told = {place + 1 for place in evenly(epochs, MOST_LINES)}
        console = Console()
        self.terminal = console.is_terminal
        columns = (
            "{task.description}",
            BarColumn(20),
            MofNCompleteColumn(),
            "epochs",
            TextColumn("{task.fields[loss]}"),
        )
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not self.terminal)
        self.task = self.bar.add_task("Training", total=epochs, loss="")

    def __enter__(self) -> _progress:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def __call__(self, epoch: int, loss: float) -> None:
        if not self.terminal and (epoch in self.told or not math.isfinite(loss)):
            typer.echo(f"Epoch [{epoch}/{self.epochs}], Loss: {_digits(loss)}")
        self.bar.update(self.task, advance=1, loss=f"loss {_digits(loss)}")


def _digits(loss: float) -> str:
    """Four places, or as many digits where these would not tell the loss of a model that has learnt from nothing."""
    return f"{loss:#.4g}" if abs(loss) < 0.1 else f"{loss:.4f}"
