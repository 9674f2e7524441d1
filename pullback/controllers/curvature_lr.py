"""``CurvatureLR``: a learning rate whose scale and warm-up the curvature sets, and the loss keeps in bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from pullback._checks import check_positive, input_error, unsupported
from pullback.controllers.group_rates import GroupRates
from pullback.controllers.loss_course import LossCourse
from pullback.controllers.top_curvature import TopCurvature
from pullback.diagnostics import stability_limit
from pullback.diagnostics.step_sizes import ADAM, number_of
from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.functional.losses import least_loss

PLAIN_TARGET = 5.0  # of gradient descent without momentum
TARGET = 1.0  # of momentum and Adam, whose bounds count what they average
BACK_OFF = 0.5
EARLY, LATE = 8, 2  # steps between measurements in the first half of the warm-up, and in the second
LARGEST = 4  # measurements that set the scale
KEPT = 0.9  # weight of the past in the running mean of gradient norms
REST = 10  # steps after a leap in which the rate stays
ROOM = 0.5  # of the bound, below which a rate that is held grows,
SLOWLY = 1.01  # by this a step
OVER = 3.0  # times a target beyond the bound, above which a rate that is held falls
RECENT = 3  # measurements of which the largest counts, as batches scatter
STATE = ("curvature", "num_measurements", "_rate", "_limit", "_steps", "_next", "_rest", "_measured", "_norm")


class CurvatureLR:
    """Finds a learning rate from the curvature, and holds it until the loss leaps.

    At the edge of stability the curvature follows the rate: what is measured there is the bound over the rate, whatever
    the rate is, and a rate steered by it falls for ever or chases noise. So the curvature sets the scale and the
    warm-up; then the rate is held and the weights adapt to it.

    The warm-up grows geometrically, in ``warmup_steps`` steps, from ``warmup`` times the target to the target, which is
    learning rate times curvature over the bound: that of ``diagnostics.stability_limit`` on a quadratic. What counts
    is the geometric mean of the four largest curvatures of the last half of the steps so far, since one alone is mostly
    noise; the rate grows by at most ``growth`` a step. A target
    above 1 is no contradiction: beyond the bound the weights swing along the sharpest direction towards flatter ones,
    which networks bear to several times it; below 1 the loss of a quadratic falls at every step.

    After the warm-up the rate changes for three reasons. It grows by a percent a step while it is below half of the
    bound (and below the target). It falls to the target where the curvature rises beyond three times a target above 1,
    or beyond the bound where the target is below. It is halved where the loss leaps, and then stays for ten steps, in
    the warm-up too. Curvature alone does not keep a network from the rare spike that costs it its units: a step of SGD
    whose gradient is longer than ``cap`` times the running mean of those before is shortened to that, for once. The
    rate the optimizer was made with is not used. Adam's first step is made at rate 0: it has no
    second moments before.

    A loss leaps where it is ``spike`` times as far above its smallest value as its running mean is, and further above
    that mean than noise brings it; or where the mean itself is ``spike`` times as far as it has been. The smallest
    value is 0 for losses that are known not to be negative (cross-entropy, squared error, a ``least_loss`` of your
    own); of any other it is taken to lie six mean changes from step to step below the running mean: a constant added to
    it is no matter.

    Call ``step`` after ``loss.backward()`` and **before** ``optimizer.step()``: no step is then taken at a rate that
    was not measured.

    Args:
        optimizer: SGD, Adam or AdamW over the trainable weights of ``model``. Groups keep the ratios of their rates; to
            one that is added later goes its own rate over the largest the others were made with.
        model: the model being trained; looked at in eval mode, and left as it was.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        target: learning rate times curvature over the bound at the end of the warm-up. None: 5 for
            gradient descent without momentum, else 1.
        every: steps between measurements after the warm-up.
        warmup: share of the target at the first step.
        warmup_steps: until the target is reached.
        growth: largest factor by which the rate grows a step of the warm-up.
        spike: times the running mean's height above the smallest loss, above which a loss halves the rate.
        cap: times the running mean of the gradient's norm, as which no gradient of SGD counts for more; infinite for
            plain steps. Adam, which divides by the gradient's size, has none.
        num_samples: of the batch, that curvature is measured on; None: a quarter, and 16 at least. Fewer see a larger
            curvature than the whole data.
        seed: of the first start vector.

    Attributes:
        curvature: the last measured, of the group that bears least at equal rates: the others count by their ratios.
        num_measurements: so far.

    Raises:
        InputError: an argument out of range, or a rate of 0 to begin with.
        UnsupportedError: another optimizer.

    Cost: four Hessian-vector products at the first measurement, which also checks model and loss on four samples; then
        two at each: every eighth step of the first half of the warm-up, every second of the other, every ``every``
        later. The norm of the gradients at each step.

    References: bounds, Cohen et al. (2021), arXiv:2103.00065, and (2022), arXiv:2207.14484; beyond them, Lewkowycz et
        al. (2020), arXiv:2003.02218; rates that chase the curvature, Roulet et al. (2024), arXiv:2407.06183; warm-up by
        curvature, Gilmer et al. (2021), arXiv:2110.04369.

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
        target: float | None = None,
        every: int = 100,
        warmup: float = 0.03,
        warmup_steps: int = 30,
        growth: float = 1.5,
        spike: float = 4.0,
        cap: float = 1.2,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        where = "CurvatureLR"
        if not isinstance(optimizer, SGD | ADAM):
            got = type(optimizer).__name__
            raise unsupported(where, "SGD, Adam or AdamW", got, "Use one of these, or torch.optim.lr_scheduler")
        plain = isinstance(optimizer, SGD) and not any(number_of(g["momentum"]) for g in optimizer.param_groups)
        target = (PLAIN_TARGET if plain else TARGET) if target is None else target
        positive: dict[str, float] = {"target": target, "every": every, "warmup": warmup}
        positive |= {"warmup_steps": warmup_steps} | ({} if num_samples is None else {"num_samples": num_samples})
        for name, value in positive.items():
            check_positive(where, name, value)
        for name, value in (("growth", growth), ("spike", spike), ("cap", cap)):
            if not value > 1:
                raise input_error(where, f"`{name}` above 1", repr(value), f"Pass a larger `{name}`")
        self._rates = GroupRates(optimizer, where)
        self.optimizer, self.model, self.loss_fn = optimizer, model, loss_fn
        self.target, self.every, self.warmup, self.warmup_steps = target, every, warmup, warmup_steps
        self.growth, self.spike, self.cap = growth, spike, cap
        self.curvature: float | None = None
        self.num_measurements = 0
        self._top = TopCurvature(model, loss_fn, num_samples, seed)
        self._course = LossCourse(least_loss(loss_fn), spike)
        self._rate, self._limit = 0.0, 0.0  # 0 until a curvature is known; of rate times curvature
        self._norm = 0.0  # running mean of the gradient's norm; 0 before the first
        self._steps, self._next, self._rest = 0, 0, 0  # taken; when the next measurement and the next change are due
        self._measured: list[tuple[int, float]] = []  # step and curvature, of the last half of the steps

    def step(self, x: Batch, y: Batch, loss: Tensor | float) -> None:
        """Set the learning rate for the coming step of the optimizer.

        Args:
            x: the batch's inputs, (B, ...).
            y: its targets, (B, ...).
            loss: of the batch, as the loop computed it.

        Raises:
            InputError: the loss is not finite; no positive curvature at the first measurement.
        """
        if self._course.leaps(float(loss.detach()) if isinstance(loss, Tensor) else float(loss)):
            self._rate *= BACK_OFF
            self._next, self._rest = self._steps, self._steps + REST
        if self._steps >= self._next or self._rates.a_group_was_added:
            self._measure(x, y)
        if self._measured and self._steps >= self._rest:
            self._rate = self._wanted()
        self._steps += 1
        self._rates.set(self._rate * self._shortened())

    def _wanted(self) -> float:
        """The rate by the schedule and the curvature."""
        if self._steps < self.warmup_steps:
            target = self.target * self.warmup ** (1 - self._steps / self.warmup_steps)
            rate = self._at(target, self._scale())
            return min(rate, self.growth * self._rate) if self._rate > 0 else rate
        recent = max(value for _, value in self._measured[-RECENT:])
        if self._rate < self._at(min(ROOM, self.target), recent):
            return SLOWLY * self._rate
        most = OVER * self.target if self.target > 1 else 1.0
        return min(self._rate, self._at(self.target, recent)) if self._rate > self._at(most, recent) else self._rate

    def _scale(self) -> float:
        """Geometric mean of the largest curvatures of the last half of the steps: one alone is mostly noise."""
        largest = sorted((value for _, value in self._measured), reverse=True)[:LARGEST]
        known = [value for value in largest if value > 0]
        return math.exp(sum(map(math.log, known)) / len(known)) if known else 0.0

    def _at(self, target: float, curvature: float) -> float:
        return target * self._limit / curvature if curvature > 0 else math.inf

    def _shortened(self) -> float:
        """Factor to the coming step where its gradient is longer than those before; 1 for Adam, which divides by it."""
        if not isinstance(self.optimizer, SGD) or self.cap == math.inf:
            return 1.0
        norm = self._rates.gradient_norm()
        if norm == 0 or not math.isfinite(norm):
            return 1.0
        self._norm = self._norm or norm
        factor = min(1.0, self.cap * self._norm / norm)
        self._norm = KEPT * self._norm + (1 - KEPT) * factor * norm
        return factor

    def _measure(self, x: Batch, y: Batch) -> None:
        half = self.warmup_steps // 2
        usual = EARLY if self._steps < half else LATE if self._steps < self.warmup_steps else self.every
        self._next = self._steps + min(usual, self.every)
        if not isinstance(self.optimizer, SGD) and not self.optimizer.state:
            self._next = self._steps + 1
            return
        with self._rates.at(1.0):  # so that the limit is the bound on rate times curvature
            limit = stability_limit(self.optimizer, [p for p in self.model.parameters() if p.requires_grad])
            if limit is None:  # all are frozen, and take no steps
                return
            self.curvature, self._limit = self._top.measure(self.optimizer, x, y), limit
        if self.curvature <= 0 and not self._measured:
            expected = "a positive curvature at the first measurement"
            raise input_error("CurvatureLR.step", expected, repr(self.curvature), "Check that the model has gradients")
        self.num_measurements += 1
        kept = [pair for pair in self._measured if 2 * pair[0] >= self._steps]
        self._measured = [*kept, (self._steps, self.curvature)]

    def get_last_lr(self) -> list[float]:
        """Learning rate of each group, as torch's schedulers give it."""
        return self._rates.last()

    def state_dict(self) -> dict[str, Any]:
        """What a later ``load_state_dict`` needs to go on as if nothing had happened."""
        kept = {name: getattr(self, name) for name in STATE}
        parts = {"rates": self._rates.state_dict(), "course": self._course.state_dict()}
        return kept | parts | {"vector": self._top.vector}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        for name in STATE:
            setattr(self, name, state[name])
        self._top.vector = state["vector"]
        self._rates.load_state_dict(state["rates"])
        self._course.load_state_dict(state["course"])
