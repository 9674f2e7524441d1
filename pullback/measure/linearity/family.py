"""How nearly networks are linear in their weights: Hessians of their outputs and what makes them, over widths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import check_count, check_positive, input_error
from pullback._results import Estimate
from pullback._statistics import mean_and_stderr
from pullback.functional import check_batch
from pullback.functional.batch import Batch
from pullback.measure.linearity.one_network import of_model, vectors_held
from pullback.measure.linearity.result import Linearity
from pullback.measure.linearity.slopes import Slope
from pullback.measure.linearity.tensor_norms import NormBounds
from pullback.modules import WideNetwork

WHERE = "linearity"
BETWEEN = -0.25  # of the slopes -1/2 of networks that become linear and 0 of those that do not

Family = Callable[[int, int], nn.Module]  # of a width and a seed


def linearity(
    model_or_family: nn.Module | Family,
    inputs: Batch,
    widths: Sequence[int] | None = None,
    seeds: int = 1,
    *,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    memory_limit: int | None = None,
) -> Linearity:
    """Size of the Hessian of a network's outputs, and the quantities that make it small in wide networks.

    A network is as linear in its weights within a ball of radius R as R |H| is small, and then its tangent kernel
    cannot change by more than ``theory.kernel_change_bound``. No Hessian is formed.

    Args:
        model_or_family: any module in eval mode; or, with ``widths``, a ``WideNetwork``, of which others are drawn, or
            ``family(width, seed) -> module``.
        inputs: (N, ...), or a dict or tuple of such; every one is measured by itself, so a few will do.
        widths: of the family's networks, at least one.
        seeds: draws at each width, with seeds 0, 1, …; 2 or more for standard errors.
        tol: residual of a Hessian's eigenvalue to reach, relative to it.
        max_matvecs: products allowed for a Hessian; None means 300.
        memory_limit: bytes for the search of an eigenvalue; None means what this machine has.

    Returns:
        Linearity.

    Raises:
        InputError: bad inputs; a module with ``widths`` that cannot be drawn at others, a family without; networks
            whose weights, and vectors of their size, do not fit the memory.
        UnsupportedError: a function with a kink (ReLU: its second derivative is zero almost everywhere); batch norm or
            dropout in train mode, a model that mixes samples.

    Cost: N C Hessians, each a graph of one gradient and 20 to 100 products, for each about two gradients of one sample;
        a chain's second derivatives by products with its weight matrices; a full tangent kernel.

    References: Liu, Zhu and Belkin (2020), arXiv:2010.01092.

    Example:
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> found = linearity(WideNetwork(1, [400], dtype=torch.float64), x)
        >>> float(found.hessian_norm.value) < 4 / 27**0.5 / 20, float(found.q_inf.value)  # beta / sqrt(m), 1 / sqrt(m)
        (True, 0.05)
    """
    check_positive(WHERE, "tol", tol)
    check_batch(WHERE, inputs)
    check_count(WHERE, "seeds", seeds, 1)

    def one(model: nn.Module) -> Linearity:
        return of_model(model, inputs, tol, max_matvecs, memory_limit)

    if widths is None:
        if not isinstance(model_or_family, nn.Module):
            got = f"no `widths` for a {type(model_or_family).__name__}"
            raise input_error(WHERE, "an nn.Module, or `widths` for a family", got, "Pass widths=[…]")
        if seeds > 1:
            raise input_error(WHERE, "`widths` for several `seeds`", "None", "Pass the widths to draw networks at")
        return one(model_or_family)
    make, sizes = _family(model_or_family), _ascending(widths)
    vectors_held(make(sizes[-1], 0), memory_limit)  # what would not fit is refused before the work
    draws = tuple(tuple(one(make(width, seed)) for seed in range(seeds)) for width in sizes)
    return _over_draws(sizes, draws)


def linearity_table(measured: Mapping[str, Linearity]) -> str:
    """The overview of kinds of networks: how each quantity goes with the width, and whether they become linear.

    A network becomes linear ("yes") where the confidence interval of the slope of log |H| lies below -1/4, half-way
    between those of a network that does (-1/2) and one that does not (0); "no" where it lies above; else "undecided".

    Args:
        measured: names of kinds to what ``linearity`` found over two widths or more.

    Returns:
        A table in Markdown, with a line for each kind; exponents of the width m with 95 percent confidence intervals.

    Raises:
        InputError: a measurement of a single network or width, which has no slopes.
    """
    columns = {"max df/da, hidden": "q_inf_hidden", "with output neuron": "q_inf", "(2,2,1) norm": "tensor_221",
               "Q_221": "q_221", "Hessian norm": "hessian_norm"}  # fmt: skip
    lines = [["exponent of m in", *columns, "becomes linear?"], ["---"] * (len(columns) + 2)]
    for name, each in measured.items():
        lines.append([name, *(str(each.slopes.get(key, "-")) for key in columns.values()), verdict(each)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(result: Linearity) -> str:
    """Whether networks of a kind become linear with their width: "yes", "no" or "undecided", as in the table.

    Raises:
        InputError: a single network or width.
    """
    if "hessian_norm" not in result.slopes:
        got = f"{len(result.widths)} of them"
        raise input_error("linearity_table", "a measurement over two widths or more", got, "Pass widths=[64, 128, …]")
    slope = result.slopes["hessian_norm"]
    if slope.high < BETWEEN:
        return "yes"
    return "no" if slope.low > BETWEEN else "undecided"


def _family(given: nn.Module | Family) -> Family:
    """A width and a seed to a network; a function of the width alone draws from torch's own generator."""
    if isinstance(given, WideNetwork):
        return given.resized
    if isinstance(given, nn.Module) or not callable(given):
        got = f"a {type(given).__name__}"
        raise input_error(WHERE, "a WideNetwork or family(width, seed) with `widths`", got, "Pass a function")
    function: Any = given
    try:
        inspect.signature(function).bind(1, 0)
    except TypeError:
        pass
    else:
        return function

    def seeded(width: int, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            torch.manual_seed(seed)
            return function(width)

    return seeded


def _ascending(widths: Sequence[int]) -> tuple[int, ...]:
    """Widths in order."""
    sizes = tuple(sorted(set(widths)))
    if not sizes or sizes[0] < 1:
        raise input_error(WHERE, "one or more positive `widths`", f"{list(widths)}", "Pass widths=[64, 128, …]")
    return sizes


def _over_draws(widths: tuple[int, ...], draws: tuple[tuple[Linearity, ...], ...]) -> Linearity:
    """Means over the draws at each width, and slopes of single draws."""
    if len({each.layers for row in draws for each in row}) > 1:
        raise input_error(WHERE, "the same layers at every width", "others", "Let the family change widths alone")

    def stacked(get: Callable[[Linearity], Tensor | float | None]) -> Tensor | None:
        rows = [[get(each) for each in row] for row in draws]
        if any(value is None for row in rows for value in row):
            return None
        return torch.stack([torch.stack([torch.as_tensor(value) for value in row]) for row in rows])  # (W, S, …)

    def mean(get: Callable[[Linearity], Tensor | float | None]) -> Tensor | None:
        found = stacked(get)
        return None if found is None else found.mean(1)

    def estimate(name: str) -> Estimate:
        values = stacked(lambda one: getattr(one, name).value)
        errors = stacked(lambda one: getattr(one, name).stderr)
        assert values is not None
        assert errors is not None
        count = sum(getattr(one, name).num_matvecs for row in draws for one in row)
        if values.shape[1] == 1:
            return Estimate(values[:, 0], errors[:, 0], count)
        return Estimate(values.mean(1), mean_and_stderr(values.movedim(1, 0))[1], count)

    lower, upper = mean(lambda one: _q_221(one, "lower")), mean(lambda one: _q_221(one, "upper"))
    first = draws[0][0]
    return Linearity(
        hessian_norm=estimate("hessian_norm"),
        converged=_known(stacked(lambda one: one.converged)).all(1),
        q_inf=estimate("q_inf"),
        q_2=estimate("q_2"),
        q_221=None if lower is None or upper is None else NormBounds(lower, upper),
        bound=mean(lambda one: one.bound),
        kernel_norm=estimate("kernel_norm"),
        kernel_trace=estimate("kernel_trace"),
        kernel_diagonal=_known(mean(lambda one: one.kernel_diagonal)),
        diagonal_limit=mean(lambda one: one.diagonal_limit),
        layers=first.layers,
        layer_inf=_known(mean(lambda one: one.layer_inf)),
        layer_2=_known(mean(lambda one: one.layer_2)),
        hidden=first.hidden,
        tensor_221=mean(lambda one: one.tensor_221),
        widths=widths,
        draws=draws,
        slopes=_slopes(widths, draws) if len(widths) > 1 else {},
    )


def _q_221(one: Linearity, side: str) -> Tensor | None:
    return None if one.q_221 is None else torch.as_tensor(getattr(one.q_221, side))


def _known(value: Tensor | None) -> Tensor:
    assert value is not None  # every network has it
    return value


def _slopes(widths: tuple[int, ...], draws: tuple[tuple[Linearity, ...], ...]) -> dict[str, Slope]:
    """Of every quantity that is positive everywhere, averaged over inputs and outputs."""
    m = torch.tensor(widths, dtype=torch.float64)
    quantities: dict[str, Callable[[Linearity], Tensor | float | None]] = {
        "hessian_norm": lambda one: one.hessian_norm.value,
        "q_inf": lambda one: one.q_inf.value,
        "q_inf_hidden": lambda one: one.q_inf_hidden if one.hidden else None,
        "q_2": lambda one: one.q_2.value,
        "q_221": lambda one: _q_221(one, "lower"),
        "tensor_221": lambda one: None if one.tensor_221 is None else one.tensor_221[1:].amax(0),  # not of the inputs
        "bound": lambda one: one.bound,
        "kernel_norm": lambda one: one.kernel_norm.value,
        "kernel_trace": lambda one: one.kernel_trace.value,
    }
    slopes: dict[str, Slope] = {}
    for name, get in quantities.items():
        rows = [[get(one) for one in row] for row in draws]
        if any(value is None for row in rows for value in row):
            continue
        values = torch.tensor(
            [[float(torch.as_tensor(value, dtype=torch.float64).mean()) for value in row] for row in rows]
        )
        if bool((values > 0).all()) and bool(torch.isfinite(values).all()):
            slopes[name] = Slope.of(m, values)
            if name == "hessian_norm" and widths[0] > 1:
                slopes["hessian_norm / sqrt(log m)"] = Slope.of(m, values / m.log().sqrt().unsqueeze(1))
    return slopes
