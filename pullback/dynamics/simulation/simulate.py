"""``simulate``: torch's optimizers, as they are, on functions where one can watch them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count, input_error
from pullback._rng import make_generator
from pullback.dynamics.landscapes import Landscape, as_landscape
from pullback.dynamics.quadratic.values import values
from pullback.dynamics.simulation.noise_and_clipping import Clip, Noise, check_clip, clipped
from pullback.dynamics.simulation.optimizer_run import MakeOptimizer, Run, losses
from pullback.dynamics.simulation.trajectories import Trajectories

Change = Callable[[list[Tensor]], None]  # of gradients, in place


def simulate(
    make_optimizer: MakeOptimizer,
    landscape: Any,
    x0: Any,
    steps: int,
    seeds: int | Sequence[int] = 1,
    *,
    noise_covariance: Any = None,
    clip: Clip | None = None,
) -> Trajectories:
    """Follow an optimizer over a landscape; with one start, bit by bit what a plain loop does.

    Several starts and seeds are stacked and moved by one optimizer where its steps treat every number by itself, as
    those of SGD, RMSprop, Adagrad, Adam, AdamW and their kin do; others (LBFGS, a class of one's own) run one after
    another. Optimizers that need a closure are given one.

    Args:
        make_optimizer: parameters -> ``torch.optim.Optimizer``, or a pair of it and a schedule, which is stepped after
            each step.
        landscape: a name, see ``dynamics.landscape``; a ``Landscape``; a ``Quadratic``; a function (..., d) -> (...).
        x0: starts, (d,) or (..., d); None for the landscape's own; or a function of a ``torch.Generator`` that draws
            one (d,) for each seed.
        steps: how many.
        seeds: how many realisations of noise and drawn start, or their seeds.
        noise_covariance: of Gaussian noise added to each gradient: one variance for all coordinates, (d,) or (d, d).
        clip: gradients (..., d) -> (..., d), applied after the noise: ``dynamics.clip_norm``, ``dynamics.clip_value``.

    Returns:
        Trajectories: of a start (d,) and one seed, x (steps + 1, d) and loss (steps + 1,).

    Raises:
        InputError: an unknown landscape; a start that is not finite, or missing; settings the optimizer refuses, a rate
            that is not positive; a function that does not answer each point by itself.

    Cost: a step of all is one evaluation of the landscape, and its backward pass, at all points.

    Example:
        >>> found = simulate(lambda p: torch.optim.SGD(p, lr=0.02), "quadratic", [1.0, 1.0], 2)
        >>> found.x[-1]
        tensor([1.0000, 0.9604], dtype=torch.float64)
    """
    options = {"noise_covariance": noise_covariance, "clip": clip, "where": "simulate"}
    return _simulated({"": make_optimizer}, landscape, x0, steps, seeds, **options)[""]


def simulate_all(
    make_optimizers: Mapping[str, MakeOptimizer],
    landscape: Any,
    x0: Any,
    steps: int,
    seeds: int | Sequence[int] = 1,
    *,
    noise_covariance: Any = None,
    clip: Clip | None = None,
) -> dict[str, Trajectories]:
    """``simulate`` for several optimizers or settings in one pass, with the same starts and the same noise.

    Args:
        make_optimizers: by name, as ``simulate`` takes them.
        landscape: as for ``simulate``, and so are the others.
        x0: starts.
        steps: how many.
        seeds: how many, or which.
        noise_covariance: of the gradients' noise.
        clip: of gradients.

    Returns:
        Trajectories by name.

    Raises:
        InputError: as ``simulate``.

    Cost: as ``simulate``; all optimizers whose steps are elementwise share each evaluation.

    Example:
        >>> rates = {f"{lr:g}": (lambda p, lr=lr: torch.optim.SGD(p, lr=lr)) for lr in (0.01, 0.019, 0.021)}
        >>> found = simulate_all(rates, "quadratic", None, 50)
        >>> {name: round(float(each.loss[-1]), 3) for name, each in found.items()}
        {'0.01': 0.183, '0.019': 0.075, '0.021': 689030.677}
    """
    options = {"noise_covariance": noise_covariance, "clip": clip, "where": "simulate_all"}
    return _simulated(make_optimizers, landscape, x0, steps, seeds, **options)


def _simulated(makers: Any, landscape: Any, x0: Any, steps: int, seeds: Any, **options: Any) -> dict[str, Trajectories]:
    where, clip, covariance = options["where"], options["clip"], options["noise_covariance"]
    world, chosen = as_landscape(landscape, where), _seeds(seeds, where)
    steps = check_count(where, "steps", steps, 0)
    if not isinstance(makers, Mapping):
        got = type(makers).__name__
        raise input_error(where, "`make_optimizers`: makers by name", got, "Pass a dict of them")
    check_clip(clip, where)
    start = _starts(world, x0, chosen, where)
    made = {name: Run(maker, start, where) for name, maker in makers.items()}
    with torch.enable_grad():
        together = [run for run in made.values() if run.elementwise and not run.by_closure]
        if together:
            _advance(together, world, steps, _changed(Noise(covariance, chosen, start, where), clip), where)
        trajectories = {}
        for name, run in made.items():
            if run in together:
                trajectories[name] = _record([run], start.shape, world)
                continue
            rows = start.reshape(-1, start.shape[-1])
            each = len(rows) // len(chosen)
            apart = [Run(makers[name], row, where) for row in rows]
            for place, one in enumerate(apart):
                noise = Noise(covariance, chosen[place // each : place // each + 1], start, where)
                _advance_alone(one, world, steps, _changed(noise, clip), where)
            trajectories[name] = _record(apart, start.shape, world)
    return trajectories


def _changed(noise: Noise, clip: Clip | None) -> Change:
    """What an optimizer is shown in place of a gradient; noise is drawn once for all that are stacked in front."""

    def change(gradients: list[Tensor]) -> None:
        drawn = noise.draw(gradients[0].shape)
        for g in gradients:
            if drawn is not None:
                g.add_(drawn)
            if clip is not None:
                g.copy_(clipped(clip, g))

    return change


def _advance(runs: list[Run], world: Landscape, steps: int, change: Change, where: str) -> None:
    """All of these together: one evaluation a step."""
    for step in range(steps + 1):
        at = [run.parameter for run in runs]
        for run in runs:
            run.optimizer.zero_grad()
        loss = losses(world, at[0] if len(at) == 1 else torch.stack(at), where)
        loss.sum().backward()
        for run, value in zip(runs, [loss] if len(at) == 1 else loss, strict=True):
            run.note(value)
        if step == steps:
            break
        change([run.gradient for run in runs])
        for run in runs:
            run.step()
    for run in runs:
        run.evaluations = [steps]


def _advance_alone(run: Run, world: Landscape, steps: int, change: Change, where: str) -> None:
    """One optimizer at one point (d,); it may evaluate the function as often as it likes."""
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        run.optimizer.zero_grad()
        loss = losses(world, run.parameter, where)
        loss.backward()
        if len(run.loss) < len(run.x):  # the first evaluation of a step is at its place
            run.note(loss)
        change([run.gradient])
        return loss

    for _ in range(steps):
        if run.by_closure:
            run.step(closure)
        else:
            closure()
            run.step()
    run.evaluations = [calls]
    run.optimizer.zero_grad()
    last = losses(world, run.parameter, where)
    last.backward()
    run.note(last)


def _record(runs: list[Run], shape: torch.Size, world: Landscape) -> Trajectories:
    """Trajectories of one optimizer: of one run over all points, or of one run each."""
    inner = shape[:-1]
    x = torch.stack([torch.stack(run.x, -2) for run in runs]).reshape(*inner, -1, shape[-1])
    loss, norm = (
        torch.stack([torch.stack(getattr(run, name), -1) for run in runs]).reshape(*inner, -1)
        for name in ("loss", "gradient_norm")
    )
    counts = torch.tensor([count for run in runs for count in run.evaluations])
    counts = counts[0].expand(inner) if len(counts) == 1 else counts.reshape(inner)
    return Trajectories(x, loss, norm, counts, world.name, runs[0].settings)


def _seeds(seeds: Any, where: str) -> list[int]:
    """The seeds themselves."""
    several = isinstance(seeds, Sequence) and not isinstance(seeds, str)
    if several and len(seeds) and all(isinstance(each, int) for each in seeds):
        return list(seeds)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise input_error(where, "`seeds` of at least 1, or a list of them", repr(seeds), "Pass how many")
    return list(range(seeds))


def _starts(world: Landscape, x0: Any, seeds: list[int], where: str) -> Tensor:
    """(seeds, ..., d), or (..., d) of a single seed."""
    if callable(x0):
        drawn = [_start(world, x0(make_generator(seed)), where) for seed in seeds]
        return drawn[0] if len(seeds) == 1 else torch.stack(drawn)
    if x0 is None and not len(world.start):
        raise input_error(where, "`x0`", "none, and a function that has no start of its own", "Pass a start (d,)")
    start = _start(world, world.start if x0 is None else x0, where)
    return start if len(seeds) == 1 else start.expand(len(seeds), *start.shape).clone()


def _start(world: Landscape, x0: Any, where: str) -> Tensor:
    """One start or several, (..., d), each of as many coordinates as the landscape has."""
    start, known = values(x0, "x0", where), len(world.start)
    if start.dim() == 0 or not start.numel() or (known and start.shape[-1] != known):
        expected = f"`x0` with {known or 'all'} coordinates last"
        raise input_error(where, expected, f"shape {tuple(start.shape)}", "Pass one number a coordinate")
    return start.clone()
