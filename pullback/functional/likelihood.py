"""Losses that are the negative log-likelihood of a distribution of targets: its draws and its information."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pullback._checks import unsupported
from pullback.functional.batch import Batch
from pullback.functional.losses import LossFunction

Per = Literal["sample", "token"]


@dataclass(frozen=True)
class Likelihood:
    """A distribution of targets given outputs z, term by term: a term is one label, bit, count or number.

    A sample's loss is the sum of c times its terms' negative log-likelihoods (c = 1 / its number of terms under
    ``reduction="mean"``). Its slope s in z has E[s s^T] = c^2 I(z) when targets are drawn from the model, I the
    information of one term; the loss has the second derivative c I(z) where z is the natural parameter.
    The normal distribution has the variance that makes the loss itself the log-likelihood, 1 / (2 c), so for it
    E[s s^T] = 2 c, the second derivative, whatever the reduction.

    Args:
        kind: name of the distribution.
        information: (z, t) -> I(z) t, shaped like z; t may have further leading axes.
        root: (z, e) -> I(z)^(1/2) e, so that standard normal e give the covariance I(z).
        draw: (z, c, generator) -> targets.
        classes: axis 1 of z holds classes, and a term is one position.
    """

    kind: Literal["softmax", "classes", "bits", "normal", "counts"]
    information: Callable[[Tensor, Tensor], Tensor]
    root: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[Tensor, Tensor, torch.Generator], Tensor]

    @property
    def classes(self) -> bool:
        """Whether axis 1 of the outputs holds classes."""
        return self.kind in ("softmax", "classes")

    @property
    def natural(self) -> bool:
        """Whether the outputs are natural parameters, so that Fisher and Gauss-Newton agree up to scale."""
        return self.kind != "classes"

    def factors(self, loss_fn: LossFunction, z: Tensor, y: Batch, per: Per = "sample") -> Tensor:
        """The factor c of every term, broadcast against z; zero for positions at ``ignore_index``."""
        shape = (len(z), 1, *z.shape[2:]) if self.classes else z.shape
        counts = torch.ones(shape, dtype=z.dtype, device=z.device)
        if self.classes and not y.is_floating_point():
            counts = (y != loss_fn.ignore_index).to(z.dtype).unsqueeze(1)  # type: ignore[union-attr]
        if per == "token" or loss_fn.reduction != "mean":  # type: ignore[union-attr]
            return counts
        terms = counts.reshape(len(z), -1).sum(1).clamp(min=1)  # a sample without a label that counts has none
        return counts / terms.view(-1, *[1] * (z.dim() - 1))

    def expected(self, z: Tensor, c: Tensor, t: Tensor) -> Tensor:
        """E[s s^T] t, with targets drawn from the model."""
        return self.information(z, t) * (c if self.kind == "normal" else c.square())

    def second(self, z: Tensor, c: Tensor, t: Tensor) -> Tensor:
        """Second derivative of the loss in natural outputs, times t."""
        return self.information(z, t) * c

    def second_root(self, z: Tensor, c: Tensor, e: Tensor) -> Tensor:
        """A root of the second derivative in natural outputs, times e."""
        return self.root(z, e) * c.sqrt()

    def curvature_root(self, loss_fn: LossFunction, z: Tensor, y: Batch, *, expected: bool) -> Tensor:
        """S (N, C, C), S_i S_i^T the second derivative of a loss in its outputs z (N, ...), or ``expected`` E[s s^T].

        In closed form: exact also where 1 - p of a class that is all but certain is below rounding.
        """
        C = z[0].numel()
        units = torch.eye(C, dtype=z.dtype, device=z.device).view(C, 1, *z.shape[1:]).expand(C, *z.shape)
        c = self.factors(loss_fn, z, y)
        scaled = self.root(z, units) * (c if expected and self.kind != "normal" else c.sqrt())
        return scaled.reshape(C, len(z), -1).movedim(0, 2)


def likelihood_of(loss_fn: LossFunction) -> Likelihood | None:
    """The distribution a loss belongs to; None if it is none of those known."""
    kind = type(loss_fn)
    plain = getattr(loss_fn, "weight", None) is None and getattr(loss_fn, "reduction", "none") in ("mean", "sum")
    if kind is nn.CrossEntropyLoss and plain and loss_fn.label_smoothing == 0:  # type: ignore[union-attr]
        return _SOFTMAX
    if kind is nn.NLLLoss and plain:
        return _CLASSES
    if kind is nn.BCEWithLogitsLoss and plain and loss_fn.pos_weight is None:  # type: ignore[union-attr]
        return _BITS
    if kind is nn.PoissonNLLLoss and plain and loss_fn.log_input:  # type: ignore[union-attr]
        return _COUNTS
    return _NORMAL if kind is nn.MSELoss and plain else None


def known_likelihood(loss_fn: LossFunction, where: str) -> Likelihood:
    """``likelihood_of``, or an error that names the loss."""
    likelihood = likelihood_of(loss_fn)
    if likelihood is None:
        name = ("the class " if isinstance(loss_fn, type) else "") + getattr(
            loss_fn, "__name__", type(loss_fn).__name__
        )
        extras = [e for e in ("weight", "pos_weight") if getattr(loss_fn, e, None) is not None]
        extras += ["label_smoothing"] if getattr(loss_fn, "label_smoothing", 0) else []
        extras += ["reduction='none'"] if getattr(loss_fn, "reduction", None) == "none" else []
        raise unsupported(
            where,
            "a loss that is a negative log-likelihood: CrossEntropyLoss, NLLLoss, BCEWithLogitsLoss, MSELoss or "
            "PoissonNLLLoss(log_input=True), reduction 'mean' or 'sum'",
            name + (f" with {', '.join(extras)}" if extras else ""),
            "Use one of those without weights, or the empirical Fisher, or the Gauss-Newton matrix",
        )
    return likelihood


def sample_targets(loss_fn: LossFunction, outputs: Tensor, targets: Batch, generator: torch.Generator) -> Tensor:
    """Targets drawn from the model's own prediction, one for every term of the loss.

    Cross-entropy draws classes from the softmax (one-hot where ``targets`` are probabilities), binary cross-entropy
    bits, squared error from a normal distribution around the outputs whose variance makes the loss its negative
    log-likelihood. Positions at ``ignore_index`` stay ignored.

    Raises:
        UnsupportedError: the loss is not the negative log-likelihood of a known distribution.
    """
    family = known_likelihood(loss_fn, "sample_targets")
    drawn = family.draw(outputs, family.factors(loss_fn, outputs, targets), generator)
    if not family.classes:
        return drawn
    if targets.is_floating_point():  # probabilities, shaped like the outputs
        return nn.functional.one_hot(drawn, outputs.shape[1]).movedim(-1, 1).to(targets)
    ignored = loss_fn.ignore_index  # type: ignore[union-attr]
    return drawn.masked_fill(targets == ignored, ignored)  # type: ignore[arg-type]


def _of_probabilities(z: Tensor, t: Tensor) -> Tensor:
    """(diag(p) - p p^T) t along the class axis, that of z (N, C, ...), with t relative to the likeliest class.

    The matrix does not see a constant in t; without it nothing cancels where p of one class is 1 but for rounding.
    """
    axis = 1 - z.dim()  # counted from the end: t may have further leading axes
    p, is_top = z.softmax(axis), _likeliest(z)
    relative = (t - t.masked_fill(~is_top, 0.0).sum(axis, keepdim=True)).masked_fill(is_top, 0.0)
    return p * (relative - (p * relative).sum(axis, keepdim=True))


def _root_of_probabilities(z: Tensor, e: Tensor) -> Tensor:
    """(diag(sqrt p) - p sqrt(p)^T) e, whose square is diag(p) - p p^T because p sums to one."""
    axis = 1 - z.dim()
    p, is_top = z.softmax(axis), _likeliest(z)
    half = p.sqrt() * e
    others = half.masked_fill(is_top, 0.0).sum(axis, keepdim=True)
    rest = p.masked_fill(is_top, 0.0).sum(axis, keepdim=True)  # 1 - p of the likeliest class
    total = half.sum(axis, keepdim=True)
    return torch.where(is_top, half * rest - p * others, half - p * total)


def _likeliest(z: Tensor) -> Tensor:
    """Whether a class is the likeliest, the first of equal ones."""
    axis = 1 - z.dim()
    classes = torch.arange(z.shape[axis], device=z.device).view(-1, *[1] * (z.dim() - 2))
    return classes == z.argmax(axis, keepdim=True)


def _draw_classes(p: Tensor, generator: torch.Generator) -> Tensor:
    """One class for every (sample, position), from p (N, C, ...)."""
    last = p.movedim(1, -1)
    drawn = torch.multinomial(last.reshape(-1, last.shape[-1]), 1, generator=generator)
    return drawn.view(last.shape[:-1])


def _draw_normal(z: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    return z + noise * (0.5 / c).sqrt()


_NORMAL = Likelihood("normal", lambda z, t: 2 * t, lambda z, e: 2**0.5 * e, _draw_normal)
_SOFTMAX = Likelihood(
    "softmax",
    _of_probabilities,
    _root_of_probabilities,
    lambda z, c, generator: _draw_classes(z.softmax(1), generator),
)
_CLASSES = Likelihood(  # outputs are log-probabilities: one entry of them is the log-likelihood
    "classes",
    lambda z, t: z.exp() * t,
    lambda z, e: (0.5 * z).exp() * e,
    lambda z, c, generator: _draw_classes(z.exp(), generator),
)
_BITS = Likelihood(
    "bits",
    lambda z, t: z.sigmoid() * (-z).sigmoid() * t,
    lambda z, e: (z.sigmoid() * (-z).sigmoid()).sqrt() * e,
    lambda z, c, generator: torch.bernoulli(z.sigmoid(), generator=generator),
)
_COUNTS = Likelihood(
    "counts",
    lambda z, t: z.exp() * t,
    lambda z, e: (0.5 * z).exp() * e,
    lambda z, c, generator: torch.poisson(z.exp(), generator=generator),
)


def check_normalised(outputs: Any, where: str) -> None:
    """Refuse log-probabilities that do not sum to one: NLLLoss is no likelihood of anything then."""
    if not torch.allclose(outputs.detach().exp().sum(1), outputs.new_ones(()), atol=1e-3):
        raise unsupported(
            where,
            "log-probabilities (N, C, ...) as outputs for NLLLoss",
            "outputs whose exponentials do not sum to 1",
            "End the model with a log_softmax over axis 1, or use CrossEntropyLoss on class scores",
        )
