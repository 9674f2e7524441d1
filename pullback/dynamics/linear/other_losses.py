"""Losses without a closed form: gradients in the outputs, summed up on the way by steps or by an integrator."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from pullback._checks import input_error
from pullback.dynamics.linear.kernel_matrices import Layout, Modes
from pullback.dynamics.linear.responses import Schedule
from pullback.functional import LossFunction, output_hessian, per_sample_loss
from pullback.spectral import eigenvalues

_TIGHT, _LOOSE = 1e-10, 1e-8  # relative tolerances of the integrator; the second run measures the first one's error


def descend(
    modes: Modes,
    layout: Layout,
    start: Tensor,
    targets: Tensor,
    loss: LossFunction,
    schedule: Schedule,
    where: str,
) -> tuple[list[Tensor], list[Tensor], float]:
    """Gradients in the outputs, summed up until each time, as columns; the same less exactly; the stable rate.

    Outputs are f_0 - Theta s, so that s is all there is to follow, whatever the number of other samples.
    """
    if math.inf in schedule.times:
        raise input_error(where, "finite times for this loss", "inf", "Pass times, or loss='squared'")
    kernel = (modes.vectors * modes.values) @ modes.vectors.T
    beginning = layout.columns(start)

    def slope(sums: Tensor) -> Tensor:
        outputs = layout.values(beginning - kernel @ sums)
        return layout.columns(_gradient(loss, outputs, targets, where))

    slope(torch.zeros_like(beginning))  # refuses losses and targets that do not fit before any work
    limit = schedule.stable_rate(_curvature(modes, layout, start, targets, loss, where))
    if schedule.lr is not None:
        return _steps(slope, beginning, schedule), [], limit
    tight, loose = (_integrated(slope, beginning, schedule, tolerance, where) for tolerance in (_TIGHT, _LOOSE))
    return tight, loose, limit


def _gradient(loss: LossFunction, outputs: Tensor, targets: Tensor, where: str) -> Tensor:
    """Gradient of the mean loss in the outputs."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = outputs.clone().requires_grad_()
        mean = per_sample_loss(loss, leaf, targets, where).mean()
        (slope,) = torch.autograd.grad(mean, leaf)
    if not bool(torch.isfinite(slope).all()):
        raise input_error(where, "a finite gradient of the loss", "NaN or infinity", "Pass other outputs as `initial`")
    return slope


class _Curved:
    """Theta^(1/2) H Theta^(1/2) as an operator, H the loss's curvature in the outputs."""

    def __init__(self, modes: Modes, layout: Layout, curvature: Tensor) -> None:
        self._root = modes.vectors * modes.values.sqrt()
        self._layout, self._curvature = layout, curvature  # (N, C, C)
        self.shape = (layout.count, layout.count)
        self.dtype, self.device = torch.float64, curvature.device

    def __matmul__(self, block: Tensor) -> Tensor:
        columns = block.reshape(len(self._root), -1)  # (N C, K), or (N, C K) where outputs are not coupled
        outputs = (self._root @ columns).reshape(self._layout.samples, self._curvature.shape[1], -1)
        back = (self._curvature @ outputs).reshape(columns.shape)
        return (self._root.T @ back).reshape(block.shape)

    @property
    def T(self) -> _Curved:
        return self


def _curvature(modes: Modes, layout: Layout, start: Tensor, targets: Tensor, loss: LossFunction, where: str) -> float:
    """Largest eigenvalue of the mean loss's Hessian in the parameters of the linear model, at the start."""
    hessian = output_hessian(loss, start, targets, where) / layout.samples
    return float(eigenvalues(_Curved(modes, layout, hessian), 1, tol=1e-8, repeated=False).values[0])


def _steps(slope: Callable[[Tensor], Tensor], beginning: Tensor, schedule: Schedule) -> list[Tensor]:
    """Heavy ball, step by step."""
    assert schedule.lr is not None
    sums, kept, at_steps = torch.zeros_like(beginning), torch.zeros_like(beginning), {}
    last, asked = int(max(schedule.times)), set(schedule.times)
    for step in range(last + 1):
        if step in asked:
            at_steps[step] = sums
        if step < last:
            kept = schedule.momentum * kept + slope(sums)
            sums = sums + schedule.lr * kept
    return [at_steps[int(time)] for time in schedule.times]


def _integrated(
    slope: Callable[[Tensor], Tensor], beginning: Tensor, schedule: Schedule, tolerance: float, where: str
) -> list[Tensor]:
    """Gradient flow at all times, by an integrator that takes stiff and other stretches alike."""
    speed = 1 / (1 - schedule.momentum)

    def rate(_: float, flat: np.ndarray) -> np.ndarray:
        sums = torch.from_numpy(flat).to(beginning.device).reshape(beginning.shape)
        return speed * slope(sums).reshape(-1).cpu().numpy()

    times = np.array(schedule.times)
    order, zero = np.unique(times), np.zeros(beginning.numel())
    if order[-1] == 0:
        return [torch.zeros_like(beginning) for _ in times]
    # sums grow from 0: what they are exact to is set by how far they can come
    scale = float(np.abs(rate(0.0, zero)).max()) * order[-1]
    solution = solve_ivp(
        rate, (0.0, order[-1]), zero, method="LSODA", t_eval=order, rtol=tolerance, atol=tolerance * max(scale, 1e-30)
    )
    if not solution.success:
        raise input_error(
            where, "a flow that can be integrated", str(solution.message).rstrip("."), "Pass earlier times"
        )
    places = np.searchsorted(order, times)
    sums = torch.from_numpy(solution.y.T.copy()).to(beginning.device)
    return [sums[place].reshape(beginning.shape) for place in places]
