"""Every second-order optimizer as it is made for a test; a new one is a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pullback.dynamics import DampedNewton, HessianFree, LevenbergMarquardt, NaturalGradient, Newton, SaddleFreeNewton

Make = Callable[..., Any]


def _with(kind: type, **settings: Any) -> Make:
    return lambda model, loss_fn, **more: kind(model, loss_fn, **(settings | more))


METHODS: dict[str, Make] = {
    "newton": _with(Newton, damping=0.1, indefinite="damp"),
    "newton products": _with(Newton, damping=0.1, indefinite="damp", dense_limit=0),
    "saddle-free lanczos": _with(SaddleFreeNewton, damping=0.1, dense_limit=0, rank=3),
    "damped newton": _with(DampedNewton, damping=0.1),
    "damped newton products": _with(DampedNewton, damping=0.1, dense_limit=0),
    "saddle-free": _with(SaddleFreeNewton, damping=0.1),
    "hessian-free": _with(HessianFree, damping=0.1),
    "hessian-free hessian": _with(HessianFree, damping=0.1, curvature="hessian"),
    "levenberg-marquardt": _with(LevenbergMarquardt, damping=0.1, form="parameters"),
    "levenberg-marquardt kernel": _with(LevenbergMarquardt, damping=0.1, form="kernel"),
    "levenberg-marquardt products": _with(LevenbergMarquardt, damping=0.1, form="parameters", dense_limit=0),
    **{
        f"natural {fisher} {form}": _with(NaturalGradient, damping=0.1, fisher=fisher, form=form)
        for fisher in ("true", "sampled", "empirical")
        for form in ("parameters", "kernel")
    },
    "natural products": _with(NaturalGradient, damping=0.1, form="parameters", dense_limit=0),
}


class Spare(nn.Module):
    """A network with a parameter the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.spare = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x).tanh())
