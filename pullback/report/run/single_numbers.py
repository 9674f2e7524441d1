"""The charts of single numbers over training: loss, gradients, the kernel, agreement, sharpness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pullback.charts.chart import Cell, Chart, Table
from pullback.charts.numbers import finite
from pullback.charts.text import as_dict, clean
from pullback.report.run.courses import HELD_OUT, MEASURED, TEST
from pullback.report.run.line_charts import Spec, describe, line_chart, table_of
from pullback.report.run.line_figure import Line, Metric, Panel, draw_lines, scales_of
from pullback.report.run.series import NamedRun, last_record, read_lists, read_series

MOST_EIGENVALUES = 12
MOST_SPECTRA = 6  # runs; of more the largest eigenvalue alone is drawn

ACCURACY = Spec(
    "accuracy",
    "Accuracy on training samples and on the test set",
    "The distance between the two curves is the generalisation gap.",
    (
        Metric("loss", "accuracy", "measured samples", colour=MEASURED),
        Metric("epoch", "test_accuracy", "test set", colour=TEST),
        Metric("test", "accuracy", "held out", colour=HELD_OUT),
    ),
    (Panel("share classified correctly", percent=True),),
)
GRADIENTS = Spec(
    "gradients",
    "Norm of the mean gradient and of single-sample gradients",
    "The mean gradient can never be longer than the root mean square of the single ones; the wider the "
    "distance between the curves, the more the samples cancel each other.",
    (
        Metric("gradients", "rms_gradient_norm", "root mean square over samples"),
        Metric("gradients", "mean_gradient_norm", "mean gradient"),
    ),
    (Panel("gradient norm (loss / parameter)", "auto"),),
)
MOMENTS = Spec(
    "moments",
    "First and second spectral moment of the gradient kernel",
    "M1 = tr(K) / (N·P) and M2 = |K|²_F / (N²·P) are the means of λ and λ² over all P directions of "
    "parameter space; M1 follows the size of the gradients, M2 also how much they share directions.",
    (Metric("kernel", "M1", "M1"), Metric("kernel", "M2", "M2", panel=1)),
    (Panel("M1 (mean of λ)", "log"), Panel("M2 (mean of λ²)", "log")),
)
CONDITIONING = Spec(
    "conditioning",
    "Conditioning M2/M1² and effective rank of the gradients",
    "Two views of one quantity, since their product is the number of parameters P: conditioning is at least "
    "P / rank (all gradients orthogonal and of equal length) and at most P (all parallel), effective rank "
    "lies between 1 and the number of samples N.",
    (
        Metric("kernel", "conditioning", "M2/M1²"),
        Metric("kernel", "effective_rank", "effective rank", panel=1),
    ),
    (Panel("M2/M1²", "auto"), Panel("effective rank", "auto")),
)
ALIGNMENT = Spec(
    "alignment",
    "Agreement and conflict between the gradients of samples",
    "A mean cosine near 1 means that all samples ask for the same step, one near 0 that they are unrelated; "
    "a pair is in conflict when a small step for one sample raises the loss of the other.",
    (
        Metric("alignment", "mean_cosine", "mean cosine"),
        Metric("alignment", "conflict_fraction", "pairs in conflict", panel=1),
    ),
    (Panel("mean cosine"), Panel("pairs in conflict", percent=True)),
)
NOISE = Spec(
    "noise",
    "Noise scale of the gradient against the batch size",
    "The noise scale is the batch size at which the noise of a step is as large as its signal: batches far below it "
    "gain from being larger, those far above it hardly do. It is left out where no signal shows above the noise.",
    (
        Metric("noise", "noise_scale", "noise scale"),
        Metric("noise", "batch_size", "batch size", reference=True),
        Metric("noise", "signal_to_noise", "signal-to-noise of one sample", panel=1),
    ),
    (Panel("samples", "auto"), Panel("|G|² / tr Σ", "auto")),
)
SHARPNESS = Spec(
    "sharpness",
    "Sharpness of the loss against the limit of the learning rate",
    "Gradient descent is stable along a direction as long as the curvature there stays below 2 / learning rate.",
    (
        Metric("sharpness", "hessian", "Hessian"),
        Metric("sharpness", "gauss_newton", "Gauss-Newton"),
        Metric("sharpness", "limit", "limit", reference=True),
        Metric("sharpness", "preconditioned", "preconditioned Hessian", panel=1),
        Metric("sharpness", "preconditioned_limit", "its limit", panel=1, reference=True),
    ),
    (Panel("largest eigenvalue", "auto"), Panel("preconditioned", "auto")),
)
WITHIN = Spec(
    "classes",
    "Agreement within classes and between them",
    "The mean cosine of the gradients of two samples of one class, and of two classes: what lies far apart is a "
    "class that learns at the cost of others.",
    (Metric("classes", "within", "within a class"), Metric("classes", "between", "between classes")),
    (Panel("mean cosine"),),
)
INPUTS = Spec(
    "inputs",
    "Scale of the inputs",
    "Features far from zero, or on scales far apart, bend the loss more one way than another; a sample far from all "
    "others, in units of the median distance, outweighs them.",
    (
        Metric("inputs", "largest_abs", "largest number"),
        Metric("inputs", "largest_mean_over_std", "largest |mean| / std of a feature"),
        Metric("inputs", "std_ratio", "largest std / smallest"),
        Metric("inputs", "furthest_sample", "furthest sample"),
    ),
    (Panel("inputs", "auto"),),
)
NUMBERS = Spec(
    "targets",
    "Targets",
    "Targets far from zero mean and unit scale are a long way for the outputs to travel first.",
    (Metric("targets", "mean", "mean"), Metric("targets", "std", "standard deviation")),
    (Panel("targets"),),
)
TANGENT = Spec(
    "tangent",
    "How far the tangent kernel and the weights have moved",
    "A kernel that hardly moves while the loss falls makes training that of a linear model; one that stays "
    "well-conditioned keeps every direction learning, whether or not it moves.",
    (
        Metric("tangent", "drift", "kernel, |K - K₀| / |K₀|"),
        Metric("tangent", "distance", "weights, |w - w₀|"),
        Metric("tangent", "condition", "condition number of K", panel=1),
        Metric("tangent", "pl", "|dL/dw|² / 2L", panel=2),
    ),
    (Panel("moved", "auto"), Panel("condition", "auto"), Panel("≥ PL*", "auto")),
)


def tangent_chart(runs: Sequence[NamedRun]) -> Chart | None:
    """What moved, and whether the weights are within the ball that gradient descent keeps to."""
    chart = line_chart(TANGENT, runs)
    if chart is None:
        return None
    return replace(chart, summary=(*chart.summary, *(said for named in runs for said in _ball(named, len(runs) > 1))))


def _ball(named: NamedRun, several: bool) -> list[str]:
    """Distance travelled against R = 2 sqrt(2 beta L0) / mu, of the constants seen so far; nothing where one is not."""
    found = {name: finite(read_series(named.run, "tangent", name)[1]) for name in ("distance", "loss", "pl")}
    beta = float(finite(read_series(named.run, "sharpness", "hessian")[1]).max(initial=0.0))
    if not all(map(len, found.values())) or not beta > 0 or not found["pl"].min() > 0 or not found["loss"][0] > 0:
        return []
    least, distance = float(found["pl"].min()), float(found["distance"].max())
    radius = 2 * math.sqrt(2 * beta * float(found["loss"][0])) / least
    where = "inside" if distance <= radius else "outside"
    name = f"{named.name}: " if several else ""
    return [
        f"{name}the weights moved by {distance:.3g} at most, {where} the ball of radius R = 2 √(2 β L₀) / μ = "
        f"{radius:.3g}, with β = {beta:.3g} the largest curvature and μ = {least:.3g} the least "
        f"|dL/dw|² / 2L measured."
    ]


def alignment_chart(runs: Sequence[NamedRun]) -> Chart | None:
    """Mean cosine and share of conflicting pairs, with the most opposed pairs as a second table."""
    chart = line_chart(ALIGNMENT, runs)
    if chart is None:
        return None
    chart.figure["layout"]["height"] += 80  # as tall as the map of cosines beside it
    tables = [table for named in runs if (table := worst_pairs(named, len(runs) > 1)) is not None]
    return replace(chart, tables=(*chart.tables, *tables))


def worst_pairs(named: NamedRun, several: bool) -> Table | None:
    """The most opposed pairs of samples at the last step that has any."""
    found = last_record(named.run, "alignment", "worst_pairs", list)
    if found is None:
        return None
    step, listed = found.step, found.values["worst_pairs"]
    rows: list[list[Cell]] = [list(pair) for pair in listed if isinstance(pair, list) and len(pair) == 3]
    of_run = f" in {named.name}" if several else ""
    return Table(f"Most opposed pairs of samples{of_run} at step {step:,}", ("Sample", "Sample", "Cosine"), rows)


def sharpness_chart(runs: Sequence[NamedRun]) -> Chart | None:
    """Sharpness against its limit; says when the optimizer is one that 2/lr does not hold for."""
    chart = line_chart(SHARPNESS, runs)
    if chart is None:
        return None
    others = sorted({name for named in runs if (name := optimizer_of(named)) and name != "SGD"})
    if not others:
        note = " Momentum m makes that limit 2 (1 + m) / learning rate, as drawn; weight decay shifts it."
    else:
        note = (
            f" Here {', '.join(others)} made the steps: 2/lr is the limit of plain gradient descent, while "
            f"an adaptive "
            "method such as Adam is limited by the largest eigenvalue of the preconditioned Hessian."
        )
    return replace(chart, reading=chart.reading + note)


def optimizer_of(named: NamedRun) -> str:
    """Class name of the optimizer, from the probe or from the run's own description; empty if unknown."""
    stored = last_record(named.run, "sharpness", "optimizer", str)
    described = as_dict(named.run.meta.get("optimizer")).get("class")
    return clean(stored.values["optimizer"] if stored else described if isinstance(described, str) else "")


def spectrum_chart(runs: Sequence[NamedRun]) -> Chart | None:
    """The largest eigenvalues of the kernel over time, thinner with their rank."""
    several = len(runs) > 1
    lines = []
    for index, named in enumerate(runs):
        most = MOST_EIGENVALUES if len(runs) <= MOST_SPECTRA else 1
        steps, values = read_lists(named.run, "kernel", "eigenvalues", most)
        count = values.shape[1] if len(steps) else 0
        for rank in range(count):
            metric = Metric("kernel", "eigenvalues", f"λ{rank + 1}")
            width = 2.2 - 1.4 * rank / max(count - 1, 1)  # of a colour that faded too little would be left to see
            lines.append(
                Line(
                    index, named.name, 0, metric, steps, values[:, rank], width=width, legend=rank == 0, look=named.look
                )
            )
    if not lines:
        return None
    panel = Panel("eigenvalue of K/N", "log")
    figure = draw_lines(lines, (panel,), several)
    figure["data"] = figure["data"][: len(lines)]  # without a key to dash patterns
    for drawn, line in zip(figure["data"], lines, strict=True):
        drawn["line"] |= {"dash": "solid"}
        drawn["hovertemplate"] = f"{line.metric.label} = %{{y:.4~g}} at step %{{x:,}}"
    figure["layout"] |= {"showlegend": several, "hovermode": "closest", "height": 400}
    scale = scales_of(lines, (panel,))[0]
    ends = [line for line in lines if line.legend or line.metric.label == f"λ{MOST_EIGENVALUES}"]
    title = f"The {max(int(line.metric.label[1:]) for line in lines)} largest eigenvalues of the gradient kernel"
    return Chart(
        "spectrum",
        title.replace("The 1 largest eigenvalues", "The largest eigenvalue"),
        "Lines grow thinner from the largest eigenvalue of K/N to the smallest drawn; one line far above the rest "
        "means that a single direction of parameter space carries most of the gradient.",
        tuple(describe(line, several, panel, scale) for line in ends),
        figure,
        (replace(table_of(title, lines, several), drawn=True),),
    )
