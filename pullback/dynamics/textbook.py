"""Optimizers as books and lecture notes write them, where torch's differ; for comparison, not for training.

=========  =================================================  ==================================================
           here                                               ``torch.optim``
=========  =================================================  ==================================================
Momentum   p <- mu p - lr g; x <- x + p                       buffer <- mu buffer + g; x <- x - lr buffer
RMSprop    s <- (1 - gamma) s + gamma g^2                     alpha = 1 - gamma
           x <- x - lr g / sqrt(s + eps)                      lr g / (sqrt(s) + eps)
Adagrad    s <- s + g^2, the same division                    outside the root, eps 1e-10
Adam       m, s corrected by 1 - beta^t, the same division    outside the root
=========  =================================================  ==================================================

Inside the root, eps = 1e-8 acts where s vanishes as 1e-4 outside it. With a rate that changes, the two momenta differ:
here steps already in p keep the rate they were made with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from pullback._checks import as_number, check_option, check_rate, input_error

__all__ = ["Adagrad", "Adam", "Momentum", "RMSprop"]
EpsMode = Literal["inside", "outside"]


class _Textbook(torch.optim.Optimizer):
    """A method whose step on one parameter is ``_moved``."""

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        where = f"textbook.{type(self).__name__}"
        check_rate(where, "lr", settings["lr"])
        if "eps" in settings:
            check_option(where, "eps_mode", settings["eps_mode"], ("inside", "outside"))
            if not as_number(settings["eps"]) >= 0:
                raise input_error(where, "`eps` of at least 0", repr(settings["eps"]), "Pass a small number, or 0")
        for name in ("momentum", "gamma", "beta1", "beta2"):
            low = settings.get(name, 0.5)
            number = as_number(low)
            if not (0 < number <= 1 if name == "gamma" else 0 <= number < 1):
                reach = "(0, 1]" if name == "gamma" else "[0, 1)"
                raise input_error(where, f"`{name}` in {reach}", repr(low), "Pass a number in that range")
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` evaluates the loss anew and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(self._moved(p.grad, self.state[p], group))
        return loss

    def _moved(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """By how much a parameter is moved."""
        raise NotImplementedError


def _divided(g: Tensor, s: Tensor, group: dict[str, Any]) -> Tensor:
    """-lr g over the root of s."""
    inside = group["eps_mode"] == "inside"
    root = (s + group["eps"]).sqrt() if inside else s.sqrt() + group["eps"]
    return -group["lr"] * g / root


class Momentum(_Textbook):
    """p <- momentum p - lr g; x <- x + p. At a constant slope p becomes -lr g / (1 - momentum).

    Args:
        params: as for any optimizer.
        lr: learning rate.
        momentum: in [0, 1).

    Raises:
        InputError: settings out of range.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, lr=lr, momentum=momentum)

    def _moved(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        state["p"] = group["momentum"] * state.get("p", torch.zeros_like(g)) - group["lr"] * g
        return state["p"]


class RMSprop(_Textbook):
    """s <- (1 - gamma) s + gamma g^2 from 0; x <- x - lr g / sqrt(s + eps). The first step is lr / sqrt(gamma).

    Args:
        params: as for any optimizer.
        lr: learning rate.
        gamma: share of the new square; 1 - alpha of torch.
        eps: added to s, or to its root.
        eps_mode: "inside" the root or "outside".

    Raises:
        InputError: settings out of range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, gamma: float = 0.1, eps: float = 1e-8, eps_mode: EpsMode = "inside"
    ) -> None:
        super().__init__(params, lr=lr, gamma=gamma, eps=eps, eps_mode=eps_mode)

    def _moved(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        kept = (1 - group["gamma"]) * state.get("s", torch.zeros_like(g))
        state["s"] = kept + group["gamma"] * g.square()
        return _divided(g, state["s"], group)


class Adagrad(_Textbook):
    """s <- s + g^2 from 0; x <- x - lr g / sqrt(s + eps). The first step is lr in every coordinate.

    Args:
        params: as for any optimizer.
        lr: learning rate.
        eps: added to s, or to its root.
        eps_mode: "inside" the root or "outside".

    Raises:
        InputError: settings out of range.
    """

    def __init__(self, params: Iterable[Any], lr: float, eps: float = 1e-8, eps_mode: EpsMode = "inside") -> None:
        super().__init__(params, lr=lr, eps=eps, eps_mode=eps_mode)

    def _moved(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        state["s"] = state.get("s", torch.zeros_like(g)) + g.square()
        return _divided(g, state["s"], group)


class Adam(_Textbook):
    """Averages m of g and s of g^2, both over 1 - beta^t; x <- x - lr m / sqrt(s + eps). Steps are counted from 1.

    Args:
        params: as for any optimizer.
        lr: learning rate.
        beta1: kept of m, in [0, 1).
        beta2: kept of s, in [0, 1).
        eps: added to s, or to its root.
        eps_mode: "inside" the root or "outside", as Kingma & Ba (2015) and torch have it.

    Raises:
        InputError: settings out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        eps_mode: EpsMode = "inside",
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, eps_mode=eps_mode)

    def _moved(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        b1, b2, zero = group["beta1"], group["beta2"], torch.zeros_like(g)
        state["step"] = t = state.get("step", 0) + 1
        state["m"] = b1 * state.get("m", zero) + (1 - b1) * g
        state["s"] = b2 * state.get("s", zero) + (1 - b2) * g.square()
        return _divided(state["m"] / (1 - b1**t), state["s"] / (1 - b2**t), group)
