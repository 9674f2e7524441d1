"""Weights whose scale does not matter, because a normalisation follows: which they are, and how fast they learn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_option, check_positive, input_error
from pullback._results import Shown
from pullback._rng import make_generator
from pullback.functional import ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch, tensors

FACTOR = 4.0
UNMOVED = (
    1e-2  # change of the outputs under ``FACTOR``, relative to that under a random change of the weights' own size
)
POWER = {"sgd": 2, "adam": 1}  # lr / |w|^power is what a step turns the weights by, at a fixed tangential gradient


def scale_invariance(model: nn.Module, x: Batch, *, seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Which weights of every layer can be multiplied by any number without changing the outputs.

    Measured: outputs with the weights times 4, beside those with a random change of the weights' own size. Batch norm
    uses the batch's statistics, as in training; all else is in eval mode. The epsilon of normalisations breaks the
    invariance a little, by epsilon over the variance, which a hundredth of the random change allows for.

    Args:
        model: any module.
        x: inputs (N, ...).
        seed: of the random change, from a generator of its own.

    Returns:
        layer -> names of its invariant parameters, empty if there are none: a matrix alone (before batch norm, or the
        direction of weight norm) or with its biases (before layer norm). Layers without a matrix are left out.

    Raises:
        InputError: bad data; see ``ModelView``.

    Cost: 2 to 6 forward passes a layer.

    References: Ioffe and Szegedy (2015), arXiv:1502.03167; van Laarhoven (2017), arXiv:1706.05350.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
        >>> scale_invariance(model, torch.randn(8, 3))
        {'0': ('0.weight', '0.bias'), '3': ()}
    """
    check_batch("scale_invariance", x)
    view = ModelView.of(model, None, "scale_invariance")
    values = {name: p.detach() for name, p in view.parameters.items()}
    groups_of: dict[str, tuple[str, ...]] = {}
    with undisturbed(view.model, training=False), torch.no_grad():
        for module in view.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        base = _outputs(view, x, values)
        for layer, names in view.layers.items():
            matrices = [(name,) for name in names if values[name].dim() >= 2]
            groups = [*matrices, *([names] if len(names) > 1 else [])] if matrices else []
            if groups:
                groups_of[layer] = next(
                    (group for group in groups if _is_invariant(view, x, values, group, base, seed)), ()
                )
    return groups_of


def _is_invariant(
    view: ModelView, x: Batch, values: dict[str, Tensor], group: tuple[str, ...], base: Tensor, seed: int
) -> bool:
    scaled = _outputs(view, x, values | {name: FACTOR * values[name] for name in group})
    generator = make_generator(seed)
    moved = dict(values)
    for name in group:
        drawn = torch.randn(values[name].shape, generator=generator, device=generator.device).to(values[name])
        moved[name] = values[name] + drawn * (values[name].norm() / drawn.norm())
    change = float((_outputs(view, x, moved) - base).norm())
    return change > 0 and float((scaled - base).norm()) < UNMOVED * change


def _outputs(view: ModelView, x: Batch, values: dict[str, Tensor]) -> Tensor:
    out = view(x, values)
    out = out.logits if hasattr(out, "logits") else out
    return torch.cat([leaf.reshape(-1).double() for leaf in tensors(out) if leaf.is_floating_point()])


@dataclass(frozen=True)
class ScaleSchedule(Shown):
    """Course of a scale-invariant weight vector over K steps.

    Attributes:
        square_norm: |w_k|^2, (K + 1,), float64.
        effective_rate: lr / |w_k|^2 for "sgd", lr / |w_k| for "adam", (K + 1,): what the direction w / |w| learns with.
    """

    square_norm: Tensor
    effective_rate: Tensor


def scale_schedule(
    lr: float, g: float, steps: int, *, weight_decay: float = 0.0, start: float = 1.0, optimizer: str = "sgd"
) -> ScaleSchedule:
    """Norm and effective learning rate of scale-invariant weights, step by step: a rate that decays by itself.

    Gradients are orthogonal to w, so that a step of length s makes |w|^2 into (1 - lr weight_decay)^2 |w|^2 + s^2.
    Gradient descent: s = lr g / |w|, as the gradient is g / |w|; without decay |w_k|^2 is about
    sqrt(|w_0|^4 + 2 lr^2 g^2 k). Adam, whose steps forget the gradient's size: s = lr g.

    Args:
        lr: learning rate.
        g: norm of the gradient at |w| = 1 ("sgd"), or of a step over lr ("adam", near sqrt(P)); taken for constant.
        steps: K.
        weight_decay: of every step, as in w <- (1 - lr weight_decay) w - s.
        start: |w_0|.
        optimizer: "sgd" (without momentum) or "adam" (AdamW where decay is decoupled).

    Raises:
        InputError: an unknown optimiser, a rate, ``g`` or ``start`` that is not positive, ``weight_decay`` below 0.

    References: van Laarhoven (2017), arXiv:1706.05350; Arora, Li and Lyu (2019), arXiv:1812.03981.

    Example:
        >>> found = scale_schedule(0.1, 1.0, 10_000)
        >>> abs(float(found.square_norm[-1]) / (1 + 2 * 0.01 * 10_000) ** 0.5 - 1) < 1e-4
        True
    """
    _check("scale_schedule", lr, g, weight_decay, optimizer)
    check_positive("scale_schedule", "start", start)
    squares = [start**2]
    for _ in range(steps):
        step = (lr * g) ** 2 / (squares[-1] if optimizer == "sgd" else 1)
        squares.append((1 - lr * weight_decay) ** 2 * squares[-1] + step)
    square_norm = torch.tensor(squares, dtype=torch.float64, device="cpu")
    return ScaleSchedule(square_norm, lr / square_norm ** (POWER[optimizer] / 2))


def equilibrium_norm(lr: float, weight_decay: float, g: float, *, optimizer: str = "sgd") -> float:
    """The norm |w| at which weight decay and the growth of scale-invariant weights cancel.

    "sgd": |w|^4 = lr^2 g^2 / (1 - (1 - lr weight_decay)^2), "adam": |w|^2 is that.

    Args:
        lr: learning rate.
        weight_decay: above 0, with lr times it below 2.
        g: as of ``scale_schedule``.
        optimizer: "sgd" or "adam".

    Raises:
        InputError: as ``scale_schedule``; no decay, or one that diverges.

    References: van Laarhoven (2017), arXiv:1706.05350; Li, Lyu and Arora (2020), arXiv:2010.02916.

    Example:
        >>> round(equilibrium_norm(0.1, 0.01, 1.0) ** 2, 5)
        2.23663
    """
    where = "equilibrium_norm"
    _check(where, lr, g, weight_decay, optimizer)
    if not 0 < lr * weight_decay < 2:
        got = f"{lr * weight_decay:g}"
        raise input_error(where, "lr times weight_decay between 0 and 2", got, "Without decay use scale_schedule")
    fourth = (lr * g) ** 2 / (1 - (1 - lr * weight_decay) ** 2)
    return fourth ** (0.25 if optimizer == "sgd" else 0.5)


def _check(where: str, lr: float, g: float, weight_decay: float, optimizer: str) -> None:
    check_option(where, "optimizer", optimizer, tuple(POWER))
    check_positive(where, "lr", lr)
    check_positive(where, "g", g)
    if not 0 <= weight_decay < math.inf:
        raise input_error(where, "`weight_decay` of at least 0", repr(weight_decay), "Pass 0 for none")
