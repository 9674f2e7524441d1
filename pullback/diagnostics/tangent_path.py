"""The tangent kernel along training: how far it and the weights move, against the ball they should stay in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import input_error, unsupported
from pullback._results import Shown
from pullback.diagnostics.drift import kernel_drift
from pullback.functional import LossFunction, ModelView, check_batch, loss_readout, undisturbed
from pullback.functional.batch import Batch, copied
from pullback.functional.own_losses import check_depends
from pullback.functional.target_checks import logits_of
from pullback.kernels import tangent_kernel
from pullback.operators import Hessian
from pullback.spectral import eigenvalues
from pullback.theory import path_radius


@dataclass(frozen=True)
class PathPoint(Shown):
    """One set of weights of a path.

    Attributes:
        step: as it was given.
        loss: L, the mean of the samples' losses.
        drift: |K - K_0|_F / |K_0|_F, K the tangent kernel of all samples and outputs, (N C, N C).
        distance: |w - w_0|.
        smallest: smallest eigenvalue of K; nothing below 0 but rounding.
        largest: its largest.
        mu: the PL* constant here, smallest |dL/dz|^2 / (2 L), z the outputs: |dL/dw|^2 / 2 is at least mu L. Of half
            the squared error summed over outputs it is smallest / N, whatever the errors.
        ratio: |dL/dw|^2 / (2 L) itself, which ``mu`` bounds from below.
        beta: largest eigenvalue of the Hessian of L; nan unless asked for.
    """

    step: int
    loss: float
    drift: float
    distance: float
    smallest: float
    largest: float
    mu: float
    ratio: float
    beta: float

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue of K; inf where the smallest is none."""
        return self.largest / self.smallest if self.smallest > 0 else math.inf


class TangentPath:
    """Follows the tangent kernel of fixed samples through a training, from the weights it is made with.

    The model is looked at and left as it is: ``path = TangentPath(model, loss_fn, x, y)`` before the first step,
    ``path.observe(step)`` as often as wanted, whatever the optimizer.

    Args:
        model: any module; looked at in eval mode.
        loss_fn: a loss with a ``reduction``, or a callable returning one loss per sample; the mean is taken.
        x: inputs (N, ...).
        y: targets.
        curvature: also take the largest eigenvalue of the loss's Hessian at every point, without which there is no
            ``radius``.

    Attributes:
        points: one for each observation; the first is that of the start, as step 0.

    Raises:
        InputError: bad data, targets that do not fit the outputs; on use, other parameters being trained than at the
            start. See ``tangent_kernel``.

    Cost: an observation is a full tangent kernel, a forward and a backward pass, and the eigenvalues of an (N C, N C)
        matrix; with ``curvature`` ten to forty Hessian-vector products. A copy of the weights is kept, and one kernel.

    References: Liu, Zhu and Belkin (2020), arXiv:2010.01092; see ``theory.path_radius``.

    Example:
        >>> model = nn.Linear(1, 1, bias=False).double()
        >>> _ = nn.init.zeros_(model.weight)
        >>> half = lambda z, y: (z - y).square().sum(1) / 2
        >>> path = TangentPath(model, half, torch.ones(1, 1).double(), 3 * torch.ones(1, 1).double(), curvature=True)
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> path.observe(1).distance, round(path.radius, 6), path.inside
        (3.0, 6.0, True)
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch, *, curvature: bool = False) -> None:
        check_batch("TangentPath", x, y)
        self.model, self.loss_fn, self.curvature = model, loss_fn, curvature
        self.x, self.y = copied(x), copied(y)
        self._view = ModelView.of(model, where="TangentPath")
        self._start = {name: p.detach().clone() for name, p in self._view.parameters.items()}
        self._kernel: Tensor | None = None
        self.points: list[PathPoint] = []
        self.observe(0)

    def observe(self, step: int) -> PathPoint:
        """Measure the model as it is now, and keep the point."""
        now = ModelView.of(self.model, where="TangentPath").parameters
        if {n: p.shape for n, p in now.items()} != {n: p.shape for n, p in self._start.items()}:
            got = "others than at the start"
            raise input_error("TangentPath", "the same trained parameters", got, "Start a path after the change")
        moved = sum(float((now[name].detach() - start).double().square().sum()) for name, start in self._start.items())
        with undisturbed(self.model, training=False):
            loss, pull = self._loss()
            found = tangent_kernel(self.model, self.x, contract="full").total.double()
            curved = self._curvature() if self.curvature else math.nan
        kernel = found.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # (N C, N C)
        if self._kernel is None:
            self._kernel = kernel
        spectrum = torch.linalg.eigvalsh(kernel)
        smallest, largest = max(float(spectrum[0]), 0.0), float(spectrum[-1])
        slope = pull.double().flatten()
        point = PathPoint(
            step=step,
            loss=loss,
            drift=kernel_drift(self._kernel, kernel).drift,
            distance=math.sqrt(moved),
            smallest=smallest,
            largest=largest,
            mu=smallest * float(slope @ slope) / (2 * loss) if loss > 0 else math.nan,
            ratio=float(slope @ kernel @ slope) / (2 * loss) if loss > 0 else math.nan,
            beta=curved,
        )
        self.points.append(point)
        return point

    @property
    def delta_k(self) -> float:
        """Largest drift of the kernel so far: the maximum over the observed points."""
        return max(point.drift for point in self.points)

    @property
    def distance(self) -> float:
        """Largest distance from the start so far."""
        return max(point.distance for point in self.points)

    @property
    def mu(self) -> float:
        """Smallest PL* constant so far."""
        return min((point.mu for point in self.points if not math.isnan(point.mu)), default=math.nan)

    @property
    def beta(self) -> float:
        """Largest curvature of the loss so far; nan unless asked for."""
        return max(point.beta for point in self.points)

    @property
    def radius(self) -> float:
        """R = 2 sqrt(2 beta L_0) / mu of the constants seen so far: inf where one is 0, nan without ``curvature``."""
        if not self.mu > 0 or not self.beta > 0:
            return math.nan if math.isnan(self.beta) or math.isnan(self.mu) else math.inf
        return path_radius(self.beta, self.mu, self.points[0].loss)

    @property
    def inside(self) -> bool:
        """Whether all points so far lie in the ball of ``radius`` around the start; False where that is not known."""
        return self.distance <= self.radius

    def __str__(self) -> str:
        last = self.points[-1]
        ball = "" if math.isnan(self.radius) else (
            f"; R = {self.radius:.4g}: {'inside' if self.inside else 'outside'}"
        )  # fmt: skip
        return (
            f"{len(self.points)} points to step {last.step}: loss {self.points[0].loss:.4g} to {last.loss:.4g}\n"
            f"kernel moved by {self.delta_k:.4g}, condition {self.points[0].condition:.4g} to {last.condition:.4g}, "
            f"PL* constant {self.mu:.4g}\nweights moved by {self.distance:.4g}{ball}"
        )

    def _loss(self) -> tuple[float, Tensor]:
        """The mean loss and its derivative in the outputs, (N, C)."""
        with torch.no_grad():
            outputs = logits_of(self._view(self.x))
        if not isinstance(outputs, Tensor):
            got, remedy = type(outputs).__name__, "Wrap it to return one tensor"
            raise unsupported("TangentPath", "a model that returns one tensor, or has `logits`", got, remedy)
        with torch.enable_grad():
            z = outputs.detach().requires_grad_()
            losses = loss_readout(self.loss_fn)(z, self.y, "TangentPath")
            check_depends(losses, "TangentPath")
            (slope,) = torch.autograd.grad(losses.mean(), z)
        return float(losses.detach().double().mean()), slope.reshape(len(slope), -1)

    def _curvature(self) -> float:
        pairs = eigenvalues(Hessian(self.model, self.loss_fn, (self.x, self.y)), tol=1e-3)
        return float(pairs.values[0])


def follow(path: TangentPath, train_step: Callable[[], object], steps: int, every: int = 1) -> TangentPath:
    """Make ``steps`` steps of training, observing after every ``every`` of them and the last.

    Args:
        path: made before the first step.
        train_step: makes one step.
        steps: how many.
        every: steps between two observations.

    Returns:
        The path itself.
    """
    done = path.points[-1].step
    for step in range(1, steps + 1):
        train_step()
        if step % every == 0 or step == steps:
            path.observe(done + step)
    return path
