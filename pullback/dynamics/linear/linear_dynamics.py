"""``linear_dynamics``: outputs of a model that is linear in its parameters, at any time of its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pullback._checks import check_option, input_error
from pullback._results import Shown
from pullback.dynamics.linear.kernel_matrices import (
    Layout,
    as_matrix,
    cross_kernel,
    layout_of,
    modes_of,
    square_kernel,
    values_of,
)
from pullback.dynamics.linear.other_losses import descend
from pullback.dynamics.linear.responses import Schedule, responses, schedule_of
from pullback.functional import LossFunction


@dataclass(frozen=True)
class Dynamics(Shown):
    """Outputs of the linearised model while it trains.

    Attributes:
        train: on the training samples, (N, ...) like the targets; (T, N, ...) for T times.
        test: on the samples of ``cross``, (M, ...) or (T, M, ...); None without.
        times: of gradient flow, or numbers of steps.
        lr: of gradient descent; None for gradient flow.
        max_lr: the largest stable rate of gradient descent on the same problem (with its momentum). For other losses
            than the squared one it is that of the loss's curvature at the first outputs.
        error: of ``train`` and ``test``, from a second integration at a hundred times the tolerance; 0 for closed
            forms, which are exact up to rounding, and for steps of descent, which are made.
    """

    train: Tensor
    test: Tensor | None
    times: tuple[float, ...]
    lr: float | None
    max_lr: float
    error: float

    @property
    def stable(self) -> bool:
        """Whether the rate is below the largest stable one; gradient flow always is."""
        return self.lr is None or self.lr < self.max_lr

    @property
    def excess(self) -> float:
        """The rate in units of the largest stable one; 0 for gradient flow."""
        return 0.0 if self.lr is None else self.lr / self.max_lr

    def __str__(self) -> str:
        how = "gradient flow" if self.lr is None else f"gradient descent, rate {self.lr:g}"
        limit = f"largest stable rate {self.max_lr:.6g}"
        verdict = "" if self.stable else f"; NOT STABLE: {self.excess:.4g} times that"
        return f"{how}, {len(self.times)} times, {limit}{verdict}"


def linear_dynamics(
    kernel: Any,
    targets: Any,
    *,
    cross: Any = None,
    initial: Any = None,
    cross_initial: Any = None,
    lr: float | None = None,
    time: Any = float("inf"),
    loss: Literal["squared"] | LossFunction = "squared",
    momentum: float = 0.0,
) -> Dynamics:
    """Outputs of a model linear in its parameters after training, from its tangent kernel Theta, without the model.

    For "squared" the loss is the mean of (f - y)^2 / 2 over samples and outputs (half of ``nn.MSELoss``), n numbers
    in all. With f_0 the outputs at the start,

        f(t) = f_0 - Theta s(Theta, t) (f_0 - y),      f*(t) = f*_0 - Theta* s(Theta, t) (f_0 - y)
        gradient flow      s = (1 - exp(-lambda t / n)) / lambda
        gradient descent   s = (1 - (1 - lr lambda / n)^t) / lambda,   heavy ball: the power of a step's matrix

    Infinitely wide networks are such models, and so is ``pb.linearize(model)``. Of kernels with eigenvalues 0 the
    directions that belong to them are not learned.

    Args:
        kernel: between training samples: (N, N), the same for every output and 0 between two; or (N, N, C, C). A
            tensor, an array or a ``Kernel``, of which several outputs need contract="full".
        targets: (N, ...), or what ``loss`` takes.
        cross: kernel between other samples and the training samples, (M, N) or (M, N, C, C).
        initial: outputs at the start, like the targets; None for zeros. Labels need it with a kernel (N, N).
        cross_initial: outputs at the start on the other samples, (M, ...); None for zeros.
        lr: of gradient descent, ``torch.optim.SGD``'s; None for gradient flow.
        time: at which to answer, one or a list: of gradient flow, or numbers of steps; inf is the end (squared loss).
        loss: "squared", or a loss as everywhere (module or one loss per sample), averaged over samples; integrated.
        momentum: heavy ball's, ``torch.optim.SGD``'s. Gradient flow is then that of small rates, 1 / (1 - momentum)
            times as fast.

    Returns:
        Dynamics, in float64. A rate above the stable one is answered, and ``stable`` and ``excess`` say so.

    Raises:
        InputError: a kernel that is not symmetric, positive semi-definite and finite; shapes that do not fit; steps
            that are not whole; time=inf where nothing settles.

    Cost: an eigendecomposition, n^3 with coupled outputs and N^3 otherwise. Other losses: n^2 a step of descent, and
        n^2 for each of the integrator's.

    References: Lee et al. (2019), arXiv:1902.06720, equations 9 to 12; Jacot et al. (2018), arXiv:1806.07572.

    Example:
        >>> kernel, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 1.0])
        >>> found = linear_dynamics(kernel, y, time=[0, 2, float("inf")])
        >>> found.train  # 1 - exp(-lambda t / 2)
        tensor([[0.0000, 0.0000],
                [0.8647, 0.6321],
                [1.0000, 1.0000]], dtype=torch.float64)
        >>> found.max_lr
        2.0
    """
    where = "linear_dynamics"
    schedule = schedule_of(time, lr, momentum, where)
    theta = square_kernel(kernel, "kernel", where)
    other = None if cross is None else cross_kernel(cross, theta, "cross", where)
    if isinstance(loss, str):
        check_option(where, "loss", loss, ("squared",))
    targets = values_of(targets, "targets", where) if isinstance(loss, str) else torch.as_tensor(targets)
    shape = targets.shape if initial is None else torch.as_tensor(initial).shape
    if initial is None and not isinstance(loss, str) and theta.dim() == 4:  # classes are not shaped like outputs
        shape = torch.Size((theta.shape[0], theta.shape[2]))
    if initial is None and theta.dim() == 2 and not isinstance(loss, str) and not targets.is_floating_point():
        expected = "`initial` beside classes and a kernel (N, N), which do not say how many outputs there are"
        raise input_error(where, expected, "None", "Pass the outputs at the start, (N, C)")
    layout = layout_of(theta, shape, "targets" if initial is None else "initial", where)
    if isinstance(loss, str) and targets.shape != shape:
        values_of(targets, "targets", where, tuple(shape))
    start = _starts(initial, (layout.samples, *layout.outputs), "initial", where).to(theta.device)
    sets = [(as_matrix(theta), start)]
    if other is not None:
        first = _starts(cross_initial, (len(other), *layout.outputs), "cross_initial", where).to(theta.device)
        sets.append((as_matrix(other), first))
    modes = modes_of(theta, "kernel", where)
    loose: list[Tensor] = []
    if isinstance(loss, str):
        residual = modes.vectors.T @ layout.columns(start - targets.to(start))
        sums = [modes.vectors @ (s[:, None] * residual) for s in responses(modes, layout.count, schedule, where)]
        max_lr = schedule.stable_rate(modes.largest / layout.count)
    else:
        numbers = targets.is_floating_point()  # losses of numbers take one dtype in torch 2.6
        there = targets.to(start) if numbers else targets.to(start.device)
        sums, loose, max_lr = descend(modes, layout, start, there, loss, schedule, where)
    answers = [_answer(*each, sums, layout, schedule) for each in sets]
    again = [_answer(*each, loose, layout, schedule) for each in sets] if loose else answers
    error = max(float((a - b).abs().max()) for a, b in zip(answers, again, strict=True)) if loose else 0.0
    return Dynamics(answers[0], answers[1] if other is not None else None, schedule.times, lr, max_lr, error)


def _starts(values: Any, shape: tuple[int, ...], name: str, where: str) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64) if values is None else values_of(values, name, where, shape)


def _answer(kernel: Tensor, start: Tensor, sums: list[Tensor], layout: Layout, schedule: Schedule) -> Tensor:
    """Outputs at the start less the kernel times the gradients summed up on the way."""
    return schedule.shown([start - layout.values(kernel @ each) for each in sums])
