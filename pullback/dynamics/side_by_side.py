"""``train_side_by_side``: a network and its Taylor model, trained alike, and how far they come apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import check_count, input_error
from pullback._results import Shown
from pullback.functional import LossFunction, check_batch, per_sample_loss
from pullback.functional.batch import Batch, copied
from pullback.functional.model_view import called
from pullback.functional.own_losses import check_depends
from pullback.functional.target_checks import logits_of
from pullback.modules import taylor_expand
from pullback.modules.linearized import copy_of

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class SideBySide(Shown):
    """A training of a network beside that of its Taylor model, at T recorded steps.

    Attributes:
        steps: how many were made before each record, the first 0.
        network: outputs on the samples, (T, N, ...).
        expansion: the same of the Taylor model.
        losses: mean loss of the network, (T,).
        expansion_losses: of the Taylor model.
        test_network: outputs on the test samples, (T, M, ...); None without.
        test_expansion: the same of the Taylor model.
        moved: |w - w0| of the network, (T,).
        expansion_moved: of the Taylor model.
        trained: the two modules at the end, network and Taylor model.
    """

    steps: tuple[int, ...]
    network: Tensor
    expansion: Tensor
    losses: Tensor
    expansion_losses: Tensor
    test_network: Tensor | None
    test_expansion: Tensor | None
    moved: Tensor
    expansion_moved: Tensor
    trained: tuple[nn.Module, nn.Module]

    @property
    def distance(self) -> Tensor:
        """Root mean square of |f - f_taylor| over samples and outputs, (T,)."""
        return _root_mean_square(self.network - self.expansion)

    @property
    def test_distance(self) -> Tensor:
        """The same on the test samples.

        Raises:
            InputError: the training was without.
        """
        if self.test_network is None or self.test_expansion is None:
            raise input_error("test_distance", "test samples", "none", "Pass x_test= to train_side_by_side")
        return _root_mean_square(self.test_network - self.test_expansion)

    @property
    def relative_distance(self) -> Tensor:
        """``distance`` over how far the Taylor model's outputs have come, (T,); 0 at the start."""
        come = _root_mean_square(self.expansion - self.expansion[:1])
        return torch.where(come > 0, self.distance / come, 0.0)


def train_side_by_side(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    make_optimizer: MakeOptimizer,
    *,
    steps: int,
    every: int = 1,
    x_test: Batch | None = None,
    order: int = 1,
) -> SideBySide:
    """Train a copy of a network and its Taylor model by the same optimiser on the same samples, all at each step.

    Args:
        model: in eval mode; it is copied, not changed.
        loss_fn: as everywhere; its mean over samples is descended.
        x: inputs, (N, ...).
        y: targets.
        make_optimizer: parameters -> a ``torch.optim.Optimizer``; called once for each of the two.
        steps: to make.
        every: steps from record to record; the last step is recorded in any case.
        x_test: further inputs, (M, ...), at which both are recorded.
        order: of the Taylor model; 1 is ``pb.linearize(model)``, whose training by gradient descent
            ``pb.linear_dynamics`` gives in closed form.

    Returns:
        SideBySide.

    Raises:
        InputError: a model that returns no tensor; counts below 1; as ``per_sample_loss`` and ``taylor_expand``.

    Cost: ``steps`` times (2 + 2 * 2^order) or so forward passes and half as many backward passes.

    References: Lee et al. (2019), arXiv:1902.06720, figures 1 to 3.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 256), nn.Tanh(), nn.Linear(256, 1)).eval()
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> found = train_side_by_side(
        ...     model, nn.MSELoss(), x, y, lambda p: torch.optim.SGD(p, 0.02), steps=50, every=25
        ... )
        >>> found.steps, bool(found.relative_distance[-1] < 0.1)
        ((0, 25, 50), True)
    """
    where = "train_side_by_side"
    steps, every = (check_count(where, *pair, 1) for pair in (("steps", steps), ("every", every)))
    check_batch(where, x, y)
    expansion = taylor_expand(model, order)
    runs = [_Run(copy_of(model), loss_fn, make_optimizer), _Run(expansion, loss_fn, make_optimizer)]
    places = sorted({*range(0, steps, every), steps})
    for step in range(steps + 1):
        for run in runs:
            loss = run.loss(x, y, where)
            if step in places:
                run.record(loss, x_test)
            if step < steps:
                run.step(loss)
    one, other = runs
    return SideBySide(
        tuple(places), torch.stack(one.outputs), torch.stack(other.outputs), torch.stack(one.losses),
        torch.stack(other.losses), None if x_test is None else torch.stack(one.test),
        None if x_test is None else torch.stack(other.test), torch.stack(one.moved), torch.stack(other.moved),
        (one.module, other.module),
    )  # fmt: skip


class _Run:
    """One of the two trainings, and what was recorded of it."""

    def __init__(self, module: nn.Module, loss_fn: LossFunction, make_optimizer: MakeOptimizer) -> None:
        self.module, self._loss_fn = module, loss_fn
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._parameters]
        self._optimizer = make_optimizer(self._parameters)
        self.outputs, self.losses, self.moved, self.test = (
            list[Tensor](),
            list[Tensor](),
            list[Tensor](),
            list[Tensor](),
        )

    def loss(self, x: Batch, y: Batch, where: str) -> Tensor:
        """The mean loss, with its graph; outputs are kept for ``record``."""
        with torch.inference_mode(False), torch.enable_grad():
            self._seen: Any = logits_of(called(self.module, copied(x)))
            losses = per_sample_loss(self._loss_fn, self._seen, y, where)
            check_depends(losses, where)
            return losses.mean()

    def record(self, loss: Tensor, x_test: Batch | None) -> None:
        """Note the state as it is."""
        self.outputs.append(self._seen.detach())
        self.losses.append(loss.detach())
        change = [(p.detach() - start).square().sum() for p, start in zip(self._parameters, self._start, strict=True)]
        self.moved.append(torch.stack(change).sum().sqrt())
        if x_test is not None:
            with torch.no_grad():
                self.test.append(logits_of(called(self.module, copied(x_test))))

    def step(self, loss: Tensor) -> None:
        """One step of the optimiser."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def _root_mean_square(values: Tensor) -> Tensor:
    return values.flatten(1).square().mean(1).sqrt()
