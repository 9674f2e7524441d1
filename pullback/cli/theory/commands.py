"""``pullback theory``: what theory predicts of a random network, beside networks that are drawn and measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pullback.cli.shared import busy, check_counts, free_path
from pullback.cli.theory.shared import distribution, estimates, finish, numbers

app = typer.Typer(
    help="Predict what a wide random network does, draw such networks, and measure them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Activation = Annotated[str, typer.Option(help="tanh, erf, relu, hard_tanh, gelu, … (a wrong one lists all).")]
SigmaW = Annotated[float, typer.Option(help="Standard deviation of the weights times sqrt(fan_in).")]
SigmaB = Annotated[float, typer.Option(help="Standard deviation of the biases.")]
Depth = Annotated[int, typer.Option(help="Layers.")]
Width = Annotated[int, typer.Option(help="Units of a layer of the networks drawn.")]
Seeds = Annotated[int, typer.Option(help="Networks drawn, at least 2.")]
Seed = Annotated[int, typer.Option(help="Of the first network.")]
Weights = Annotated[str, typer.Option(help="gaussian or orthogonal.")]
Out = Annotated[Path | None, typer.Option(help="The page to write [runs/theory/ and the command's name].")]
Force = Annotated[bool, typer.Option("--force", help="Replace a page that is already there.")]


@app.command()
def phase(
    activation: Activation = "tanh",
    sigma_w: SigmaW = 1.3,
    sigma_b: SigmaB = 0.3,
    depth: Depth = 30,
    width: Width = 200,
    seeds: Seeds = 10,
    seed: Seed = 0,
    points: Annotated[int, typer.Option(help="Values of sigma_w at which networks are measured.")] = 9,
    out: Out = None,
    force: Force = False,
) -> None:
    """The phase diagram, and networks along one row of it."""
    from pullback.cli.theory.phase import phase_lines
    from pullback.measure import NetworkSpec

    path = free_path(out, "theory", "phase", force=force)
    check_counts("theory", points=points, seeds=seeds, depth=depth)
    spec = NetworkSpec(activation, sigma_w, sigma_b, depth=depth, width=width)
    with busy("the phase diagram") as say:
        lines, charts = phase_lines(spec, points, seeds, seed, say)
    finish(path, "Phase diagram", spec, seeds, "σ_w", lines, charts)


@app.command()
def depth(
    activation: Activation = "tanh",
    sigma_w: SigmaW = 1.3,
    sigma_b: SigmaB = 0.3,
    depth: Depth = 40,
    width: Width = 300,
    seeds: Seeds = 20,
    seed: Seed = 0,
    c0: Annotated[float, typer.Option(help="Correlation of the two inputs.")] = 0.5,
    out: Out = None,
    force: Force = False,
) -> None:
    """Lengths, correlations and gradients against depth."""
    from pullback import theory
    from pullback.measure import NetworkSpec, signal_propagation
    from pullback.report.theory.charts import Line, depth_charts

    path = free_path(out, "theory", "depth", force=force)
    check_counts("theory", seeds=seeds)
    spec = NetworkSpec(activation, sigma_w, sigma_b, depth=depth, width=width)
    known = theory.signal_profile(spec.theory(), depth, c0=c0)
    with busy(f"{seeds} networks"):
        measured = signal_propagation(spec, c0=c0, seeds=seeds, seed=seed)
    lines = [
        Line.by_layer("length", known.q.tolist(), *numbers(measured.q)),
        Line.by_layer("correlation", known.c.tolist(), *numbers(measured.c)),
        Line.by_layer("gradients", known.gradients.tolist(), *numbers(measured.gradients)),
    ]
    finish(path, "Signals against depth", spec, seeds, "layer", lines, depth_charts(*lines))


@app.command()
def spectrum(
    activation: Activation = "tanh",
    sigma_w: SigmaW = 1.3,
    sigma_b: SigmaB = 0.3,
    depth: Depth = 8,
    width: Width = 300,
    seeds: Seeds = 10,
    seed: Seed = 0,
    weights: Weights = "gaussian",
    out: Out = None,
    force: Force = False,
) -> None:
    """Singular values of the Jacobian of all layers."""
    from pullback.measure import NetworkSpec, jacobian_spectrum
    from pullback.report.theory.charts import Line, spectrum_charts

    path = free_path(out, "theory", "spectrum", force=force)
    check_counts("theory", seeds=seeds)
    spec = NetworkSpec(activation, sigma_w, sigma_b, depth=depth, width=width, weights=weights)
    depths, measured = list(range(1, depth + 1)), sorted({*(2**k for k in range(20) if 2**k < depth), depth})
    known = [spec.theory().jacobian_moments(layers, weights) for layers in depths]
    spectra = []
    with busy("networks") as say:
        for layers in measured:
            say(f"networks of {layers} layers")
            spectra.append(jacobian_spectrum(replace(spec, depth=layers), seeds=seeds, seed=seed))
    mean = Line("mean of s²", depths, [m.mean for m in known], measured, *estimates([f.mean for f in spectra]))
    variance = Line(
        "variance of s² / mean²", depths, [m.relative_variance for m in known],
        measured, *estimates([f.relative_variance for f in spectra]),
    )  # fmt: skip
    charts = spectrum_charts(*distribution(spec, spectra[-1].squares.flatten().tolist()), mean, variance)
    finish(path, "Spectrum of the Jacobian", spec, seeds, "layers", [mean, variance], charts)


@app.command()
def curve(
    activation: Activation = "tanh",
    sigma_w: SigmaW = 2.5,
    sigma_b: SigmaB = 0.3,
    depth: Depth = 8,
    width: Width = 300,
    seeds: Seeds = 10,
    seed: Seed = 0,
    points: Annotated[int, typer.Option(help="Points on the circle.")] = 64,
    out: Out = None,
    force: Force = False,
) -> None:
    """How layers stretch and bend a circle."""
    from pullback.measure import NetworkSpec, curve_metrics
    from pullback.report.theory.charts import Line, circle_charts

    path = free_path(out, "theory", "curve", force=force)
    check_counts("theory", seeds=seeds)
    spec = NetworkSpec(activation, sigma_w, sigma_b, depth=depth, width=width)
    known = spec.theory().curve_metrics(depth)
    with busy(f"{seeds} networks"):
        measured = curve_metrics(spec, points=points, seeds=seeds, seed=seed)
    pairs = (
        ("Euclidean metric", known.euclidean, measured.euclidean),
        ("curvature", known.curvature, measured.curvature),
        ("Gauss metric", known.gauss, measured.gauss),
        ("length", known.euclidean_length, measured.euclidean_length),
        ("Gauss length", known.gauss_length, measured.gauss_length),
    )
    lines = [Line.by_layer(name, predicted[1:].tolist(), *numbers(profile)) for name, predicted, profile in pairs]
    finish(path, "A circle through the layers", spec, seeds, "layer", lines, circle_charts(lines))


@app.command()
def training(
    activation: Activation = "erf",
    depth: Depth = 2,
    width: Width = 300,
    seeds: Seeds = 20,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(help="Steps of gradient descent, at half of the largest stable rate.")] = 40,
    out: Out = None,
    force: Force = False,
) -> None:
    """Training: loss and outputs of wide networks by formula, and of networks that are trained."""
    from pullback.cli.theory.shared import training_lines
    from pullback.measure import NetworkSpec
    from pullback.report.theory.charts import training_charts

    path = free_path(out, "theory", "training", force=force)
    check_counts("theory", seeds=seeds, steps=steps)
    spec = NetworkSpec(activation, 1.0, 0.0, depth=depth, width=width)
    with busy(f"{seeds} networks"):
        lines = training_lines(spec, seeds, seed, steps)
    finish(path, "Training of wide networks", spec, seeds, "step", lines, training_charts(*lines))


@app.command()
def linearity(
    activation: Activation = "tanh",
    output: Annotated[str, typer.Option(help="linear, softmax, swish or tanh.")] = "linear",
    hidden: Annotated[int, typer.Option(help="Hidden layers.")] = 1,
    bottleneck: Annotated[int, typer.Option(help="Width of the middle one; 0: as wide as the others.")] = 0,
    narrowest: Annotated[int, typer.Option(help="Width of the narrowest networks.")] = 32,
    points: Annotated[int, typer.Option(help="Widths, each twice the one before.")] = 4,
    seeds: Seeds = 5,
    out: Out = None,
    force: Force = False,
) -> None:
    """The Hessian and the tangent kernel of an output against the width."""
    import torch

    from pullback import measure, modules
    from pullback.cli.theory.linearity import linearity_page, lines_of
    from pullback.report.theory.page import theory_text, write_theory_page

    path = free_path(out, "theory", "linearity", force=force)
    check_counts("theory", points=points, seeds=seeds, narrowest=narrowest)
    narrow = bottleneck or None
    model = modules.WideNetwork(4, [narrowest] * hidden, activation, output, narrow, dtype=torch.float64)
    widths = [narrowest * 2**place for place in range(points)]
    x = torch.ones(1, 4, dtype=torch.float64)
    with busy(f"{points * seeds} networks"):
        measured = measure.linearity(model, x, widths, seeds, tol=1e-2)
    kind = f"{activation}", f"{output} output", f"{hidden} hidden", *([f"bottleneck of {narrow}"] if narrow else [])
    page = linearity_page((*kind, f"{seeds} networks a width"), measured, lines_of(model, measured))
    typer.echo(theory_text(page))
    typer.echo(f"Page: {write_theory_page(page, path)}")


@app.command()
def attention(
    depth: Depth = 8,
    width: Annotated[int, typer.Option(help="Entries of a token.")] = 64,
    heads: Annotated[int, typer.Option(help="Heads, which divide the width.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens of an input.")] = 16,
    seeds: Seeds = 10,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
) -> None:
    """How attention makes tokens one: residuals against depth, by architecture."""
    from pullback.cli.theory.attention import attention_page, measured
    from pullback.measure import AttentionSpec
    from pullback.report.theory.page import theory_text, write_theory_page

    path = free_path(out, "theory", "attention", force=force)
    check_counts("theory", seeds=seeds)
    spec = AttentionSpec(depth, width=width, heads=heads, tokens=tokens)
    with busy("networks") as say:
        page = attention_page(spec, measured(spec, seeds, seed, say), seeds)
    typer.echo(theory_text(page))
    typer.echo(f"Page: {write_theory_page(page, path)}")
