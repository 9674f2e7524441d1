"""How long an optimiser's steps are, group by group, against what each group bears."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._results import Shown

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]  # several hold parameters of their own each
ADAM = torch.optim.Adam | torch.optim.AdamW


@dataclass(frozen=True)
class StepGroup(Shown):
    """A parameter group, as far as it holds trainable parameters.

    Attributes:
        optimizer: the one it belongs to.
        options: the group as the optimiser keeps it.
        params: its parameters that require a gradient.
        rate: the learning rate; nan where the group has none that is a number (``lr=None``).
        bound: what rate times curvature may reach, of the Hessian or for Adam of the preconditioned one; nan where it
            is not known.
    """

    optimizer: torch.optim.Optimizer
    options: dict[str, Any]
    params: tuple[Tensor, ...]
    rate: float
    bound: float

    @property
    def limit(self) -> float:
        """Curvature that the group alone bears; infinite at a rate of 0, nan where it is not known."""
        return self.bound / self.rate if self.rate > 0 else (math.inf if self.rate == 0 else math.nan)

    def number(self, name: str) -> float:
        """An option that is a number; 0 where the optimiser has none of that name."""
        return number_of(self.options.get(name, 0.0))

    @property
    def momentum(self) -> float:
        """What is kept of the direction from step to step: ``momentum``, or the first of ``betas``; else 0."""
        betas = self.options.get("betas")
        return number_of(betas[0]) if isinstance(betas, tuple | list) and betas else self.number("momentum")

    @property
    def is_plain(self) -> bool:
        """Whether it is gradient descent without momentum."""
        return isinstance(self.optimizer, torch.optim.SGD) and self.number("momentum") == 0


def optimizers_of(optimizer: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
    """One or several as a tuple."""
    return (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)


def step_groups(optimizer: Optimizers, params: Iterable[Tensor] | None = None) -> list[StepGroup]:
    """The groups that hold trainable parameters, or some of ``params``, the one with the lowest limit first.

    In an order that does not depend on that of the groups: what is said of all of them must not either.
    """
    wanted = None if params is None else {id(p) for p in params}
    groups = [group for each in optimizers_of(optimizer) for group in _groups(each, wanted)]
    return sorted(groups, key=_order)


def stability_limit(optimizer: Optimizers, params: Iterable[Tensor] | None = None) -> float | None:
    """Curvature above which steps on a quadratic diverge; None where it is not known.

    Plain gradient descent: 2 / lr; with momentum m: 2 (1 + m) / lr; Nesterov's: 2 (1 + m) / ((1 + 2 m) lr); dampening
    d multiplies lr by 1 - d. All are of the Hessian. Adam: 2 (1 + beta1) / ((1 - beta1) lr), of the preconditioned one,
    see ``preconditioned_sharpness``. Weight decay and noise shift them.

    Of several groups it is the lowest limit of one, and the curvature to compare with is that of
    ``preconditioned_sharpness``, in which every other group counts by how much more it bears; the Hessian's own is
    never lower. Groups without trainable parameters, and those at a rate of 0, do not count.

    Args:
        optimizer: one, or several that hold parameters of one model.
        params: count only the groups that hold some of these.

    References: Cohen et al. (2021), arXiv:2103.00065, appendix B; Cohen et al. (2022), arXiv:2207.14484.

    Example:
        >>> w = [torch.zeros(1, requires_grad=True)]
        >>> [round(stability_limit(o), 6) for o in (torch.optim.SGD(w, 0.1, momentum=0.9), torch.optim.Adam(w, 0.1))]
        [38.0, 380.0]
    """
    limits = [group.limit for group in step_groups(optimizer, params)]
    known = bool(limits) and not any(map(math.isnan, limits)) and min(limits) < math.inf
    return min(limits) if known else None


def _groups(optimizer: torch.optim.Optimizer, wanted: set[int] | None) -> Iterator[StepGroup]:
    for options in optimizer.param_groups:
        params = tuple(p for p in options["params"] if (p.requires_grad if wanted is None else id(p) in wanted))
        if params:
            yield StepGroup(optimizer, options, params, number_of(options.get("lr")), _bound(optimizer, options))


def _order(group: StepGroup) -> tuple[float, ...]:
    """Lowest limit, then longest steps, then whatever else may differ."""
    known = [group.limit, -group.rate, -group.number("momentum"), -group.number("weight_decay")]
    return tuple(math.inf if math.isnan(each) else each for each in known)


def _bound(optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> float:
    if options.get("maximize", False):
        return math.nan  # uphill, where no curvature is too large or every negative one is
    if isinstance(optimizer, ADAM):
        beta = number_of(options["betas"][0])
        return 2 * (1 + beta) / (1 - beta)
    if isinstance(optimizer, torch.optim.SGD):
        m, longer = number_of(options["momentum"]), 1 - number_of(options["dampening"])
        return 2 * (1 + m) / ((1 + 2 * m) if options["nesterov"] else (longer if m else 1))
    return math.nan


def number_of(value: Any) -> float:
    """A number, a tensor that holds one, or nan."""
    try:
        return float(value)
    except Exception:  # None, or an object of the user's
        return math.nan
