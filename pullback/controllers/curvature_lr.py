"""``CurvatureLR``: a learning rate that follows the curvature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import check_positive, input_error, unsupported
from pullback.diagnostics import stability_limit
from pullback.diagnostics.preconditioned import precondition
from pullback.diagnostics.step_sizes import ADAM, number_of
from pullback.functional import LossFunction, num_samples, take, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.losses import least_loss
from pullback.functional.unwrap import full_precision
from pullback.operators import Hessian
from pullback.spectral import eigenvalues

TOLERANCE = 1e-1  # relative residual of the eigenvalue, whose own error is of the order of its square
MAX_MATVECS = 12
MEMORY = 0.9  # weight of the past in the running mean of the loss
BACK_OFF = 0.5
FIRST = 5  # changes of the loss before they say how it scatters
CHANGES = 6.0  # that the smallest loss is taken to lie below the mean: nearly seven standard deviations of noise
ROUNDING = 1e-6  # of a loss in float32: no leap


class CurvatureLR:
    """Keeps learning rate times measured curvature at a target, in units of what the optimizer can bear.

    A target above 1 is no contradiction: the bound is that of a quadratic. Beyond it the weights swing along the
    sharpest direction towards flatter ones, where the rate may grow again; at a target below 1 the curvature grows as
    training goes on, and the rate falls with it.

    The curvature is the largest eigenvalue of the Hessian as the optimizer sees it (``preconditioned_sharpness``), on
    samples of the batch at hand; the bound that of ``diagnostics.stability_limit``.
    The rate starts at ``warmup`` of the target and grows by at most ``growth`` a measurement; it falls at once where
    the curvature asks for it. A loss that leaps halves it and brings the next measurement forward. The rate the
    optimizer was made with is not used. Adam's first step is made at rate 0: it has no second moments before.

    A loss leaps where it is ``spike`` times as far above its smallest value as its running mean is. That value is 0 for
    losses that are known not to be negative (cross-entropy, squared error, a ``least_loss`` of your own); of any other
    it is taken to lie six mean changes from step to step below the running mean: a constant added to it is no matter.

    Call ``step`` after ``loss.backward()`` and **before** ``optimizer.step()``: no step is then taken at a rate that
    was not measured.

    Args:
        optimizer: SGD, Adam or AdamW over the trainable weights of ``model``. Groups keep the ratios of their rates; to
            one that is added later goes its own rate over the largest the others were made with.
        model: the model being trained; looked at in eval mode, and left as it was.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        target: learning rate times curvature over the bound.
        every: steps between measurements; fewer, from one up, where the curvature grows faster than ``growth``.
        warmup: share of the target at the first step.
        growth: largest factor by which the rate grows a measurement.
        spike: times the running mean's height above the smallest loss, above which a loss halves the rate.
        num_samples: of the batch, that curvature is measured on. Fewer see a larger curvature than the whole data.
        seed: of the first start vector.

    Attributes:
        curvature: the last measured, of the group that bears least at equal rates: the others count by their ratios.
        num_measurements: so far.

    Raises:
        InputError: an argument out of range, or a rate of 0 to begin with.
        UnsupportedError: another optimizer.

    Cost: up to thirteen Hessian-vector products of ``num_samples`` samples a measurement.

    References: bounds, Cohen et al. (2021), arXiv:2103.00065, and (2022), arXiv:2207.14484; the edge as a target,
        Roulet et al. (2024), arXiv:2407.06183; warm-up by curvature, Gilmer et al. (2021), arXiv:2110.04369.

    Example:
        >>> model, loss_fn = nn.Linear(1, 1, bias=False), nn.MSELoss()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
        >>> controller = CurvatureLR(optimizer, model, loss_fn, target=0.5, warmup=1.0)
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)
        >>> loss = loss_fn(model(x), y)
        >>> loss.backward()
        >>> controller.step(x, y, loss)  # Hessian 2 mean x^2 = 10, half of 2 / 10
        >>> [round(rate, 6) for rate in controller.get_last_lr()]
        [0.1]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        loss_fn: LossFunction,
        *,
        target: float = 1.5,
        every: int = 5,
        warmup: float = 0.1,
        growth: float = 1.5,
        spike: float = 2.0,
        num_samples: int = 256,
        seed: int = 0,
    ) -> None:
        where = "CurvatureLR"
        for name, value in (("target", target), ("every", every), ("warmup", warmup), ("num_samples", num_samples)):
            check_positive(where, name, value)
        for name, value in (("growth", growth), ("spike", spike)):
            if not value > 1:
                raise input_error(where, f"`{name}` above 1", repr(value), f"Pass a larger `{name}`")
        if not isinstance(optimizer, torch.optim.SGD | ADAM):
            got = type(optimizer).__name__
            raise unsupported(where, "SGD, Adam or AdamW", got, "Use one of these, or torch.optim.lr_scheduler")
        rates = [number_of(group["lr"]) for group in optimizer.param_groups]
        self._largest = max(rates) if all(rate >= 0 for rate in rates) else math.nan
        check_positive(where, "optimizer.param_groups[…]['lr']", self._largest)
        self._ratios = [rate / self._largest for rate in rates]
        self.optimizer, self.model, self.loss_fn = optimizer, model, loss_fn
        self.target, self.every, self.warmup, self.growth, self.spike = target, every, warmup, growth, spike
        self.num_samples, self.seed = num_samples, seed
        self.curvature: float | None = None
        self.num_measurements = 0
        self._rate = 0.0  # 0 until a curvature is known
        self._wait = 0  # steps until the next measurement
        self._interval = 1  # steps between this and the next
        self._least = least_loss(loss_fn)
        self._mean_loss: float | None = None
        self._last_loss: float | None = None
        self._change, self._num_changes = 0.0, 0  # running mean of |loss - last loss|, and of how many
        self._vector: Tensor | None = None  # the last eigenvector, where the next search starts

    def step(self, x: Batch, y: Batch, loss: Tensor | float) -> None:
        """Set the learning rate for the coming step of the optimizer.

        Args:
            x: the batch's inputs, (B, ...).
            y: its targets, (B, ...).
            loss: of the batch, as the loop computed it.

        Raises:
            InputError: the loss is not finite; no positive curvature at the first measurement.
        """
        self._watch(float(loss.detach()) if isinstance(loss, Tensor) else float(loss))
        if self._wait == 0:
            self._rate = self._measured_rate(x, y)
            self._wait = self._interval
        self._wait -= 1
        self._set(self._rate)

    def _watch(self, loss: float) -> None:
        """Halve the rate, and measure at once, where the loss leaps."""
        if not math.isfinite(loss):
            raise input_error("CurvatureLR.step", "a finite loss", repr(loss), "Go back to earlier weights")
        mean = loss if self._mean_loss is None else self._mean_loss
        if self._leaps(loss, mean):
            self._rate *= BACK_OFF
            self._wait, self._interval = 0, 1
        if self._last_loss is not None:
            self._num_changes += 1
            weight = max(1 - MEMORY, 1 / self._num_changes)
            self._change += weight * (abs(loss - self._last_loss) - self._change)
        self._last_loss = loss
        self._mean_loss = MEMORY * mean + (1 - MEMORY) * loss

    def _leaps(self, loss: float, mean: float) -> bool:
        """Whether a loss is ``spike`` times as far above the smallest one, known or guessed, as the mean."""
        least = self._least
        if least is None or least > mean:
            least = mean - CHANGES * self._change
            if self._num_changes < FIRST:
                return False
        return loss - least > self.spike * (mean - least) + ROUNDING * abs(mean)

    def _measured_rate(self, x: Batch, y: Batch) -> float:
        if not isinstance(self.optimizer, torch.optim.SGD) and not self.optimizer.state:
            return 0.0
        earlier, before = self.curvature, self.get_last_lr()
        self._set(1.0)  # so that the limit is the bound on rate times curvature
        try:
            bound = stability_limit(self.optimizer, [p for p in self.model.parameters() if p.requires_grad])
            if bound is None:  # all are frozen, and take no steps
                return self._rate
            with undisturbed(self.model, training=False), full_precision(self.model):
                count = slice(0, min(self.num_samples, num_samples(x)))
                self.curvature = self._sharpness((take(x, count), take(y, count)))
        finally:
            for group, rate in zip(self.optimizer.param_groups, before, strict=True):
                _put(group, rate)
        self.num_measurements += 1
        steady = earlier is not None and self.curvature <= self.growth * earlier
        self._interval = min(2 * self._interval, self.every) if steady else 1
        if self._rate > 0:
            rate = self.growth * self._rate
            return min(rate, self.target * bound / self.curvature) if self.curvature > 0 else rate
        if self.curvature <= 0:
            expected = "a positive curvature at the first measurement"
            raise input_error("CurvatureLR.step", expected, repr(self.curvature), "Check that the model has gradients")
        return self.warmup * self.target * bound / self.curvature

    def _sharpness(self, data: tuple[Batch, Batch]) -> float:
        """Largest curvature as the optimizer sees it."""
        how: dict[str, Any] = {"tol": TOLERANCE, "max_matvecs": MAX_MATVECS, "seed": self.seed}
        H = precondition(Hessian(self.model, self.loss_fn, data), self.model, self.optimizer)
        start = self._vector if self._vector is not None and len(self._vector) == H.shape[0] else None
        found = eigenvalues(H, start=start, **how)
        self._vector = found.vectors[:, 0]
        return float(found.values[0])

    def _set(self, rate: float) -> None:
        groups = self.optimizer.param_groups
        self._ratios += [float(group["lr"]) / self._largest for group in groups[len(self._ratios) :]]  # added since
        for group, ratio in zip(groups, self._ratios, strict=False):
            _put(group, rate * ratio)

    def get_last_lr(self) -> list[float]:
        """Learning rate of each group, as torch's schedulers give it."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What a later ``load_state_dict`` needs to go on as if nothing had happened."""
        return {
            "rate": self._rate,
            "curvature": self.curvature,
            "num_measurements": self.num_measurements,
            "vector": self._vector,
            "mean_loss": self._mean_loss,
            "last_loss": self._last_loss,
            "change": self._change,
            "num_changes": self._num_changes,
            "ratios": list(self._ratios),
            "largest": self._largest,
            "wait": self._wait,
            "interval": self._interval,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        self._rate, self.curvature, self.num_measurements = state["rate"], state["curvature"], state["num_measurements"]
        self._vector, self._mean_loss = state["vector"], state["mean_loss"]
        self._wait, self._interval = state["wait"], state["interval"]
        self._last_loss = state.get("last_loss")  # a state of an earlier version has none, nor the next
        self._change, self._num_changes = state.get("change", 0.0), state.get("num_changes", 0)
        self._ratios, self._largest = list(state.get("ratios", self._ratios)), state.get("largest", self._largest)


def _put(group: dict[str, Any], rate: float) -> None:
    """Set a group's rate; one that is a tensor stays that tensor, which captured graphs and compiled steps hold."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
