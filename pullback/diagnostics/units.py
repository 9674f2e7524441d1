"""What the units behind each layer do: switched off, saturated, or all saying the same."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pullback._results import Shown
from pullback._text import percent
from pullback.functional import ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch, tensors
from pullback.functional.plain_calls import own_calls

DEAD = 1e-3  # |phi'| below which a unit passes no gradient on
SATURATED = 0.05  # share of the largest |phi'|
FUNCTIONS = (
    "celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "relu", "relu6",
    "rrelu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "tanhshrink",
)  # fmt: skip
KNOWN: dict[Any, str] = {
    **{getattr(F, name): name for name in FUNCTIONS},
    **{getattr(home, name): name for home in (torch, Tensor) for name in ("erf", "relu", "sigmoid", "tanh")},
    **{getattr(torch, f"{name}_"): name for name in ("relu", "sigmoid", "tanh")},
    **{getattr(Tensor, f"{name}_"): name for name in ("erf", "relu", "sigmoid", "tanh")},
}
_PLAIN = (int, float, str, type(None), torch.dtype, torch.device)  # as nearly all arguments are that are no tensors
Weights = nn.Linear | nn.modules.conv._ConvNd


@dataclass(frozen=True)
class UnitActivity(Shown):
    """Units of L calls of activations, in the order they run.

    A unit is a channel behind a convolution, else an entry of the last axis.
    Each call is named after the layer with weights its input comes from, of several the one that ran last, or by the
    activation where there is none. Further calls behind the same layer count on: "fc", "fc (2)", "fc (3)". What is said
    of samples is said of (sample, position) pairs where there are positions.

    Attributes:
        layers: names, each once.
        kinds: names of the activations.
        widths: number of units.
        dead: (width,) a layer: whether |phi'| < 1e-3 on every sample; no gradient passes, and none can wake the unit.
        saturated: share of (unit, sample) pairs with |phi'| below a twentieth of its largest value, (L,). For ReLU that
            is the share of units that are off.
        effective_rank: tr(M)^2 / |M|_F^2 of M = h^T h, h the activations, (L,): from 1, one direction for all samples,
            to the smaller of units and samples. nan where all activations are 0.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    dead: tuple[Tensor, ...]
    saturated: Tensor
    effective_rank: Tensor

    @property
    def dead_share(self) -> Tensor:
        """Share of dead units, (L,)."""
        return torch.tensor([float(each.double().mean()) for each in self.dead], dtype=torch.float64, device="cpu")

    def __str__(self) -> str:
        rows = zip(self.layers, self.kinds, self.dead_share, self.saturated, self.effective_rank, strict=True)
        return "\n".join(
            f"{layer} ({kind}): {percent(float(dead))} dead, {percent(float(full))} saturated, "
            f"effective rank {float(rank):.3g}"
            for layer, kind, dead, full, rank in rows
        )


def unit_activity(model: nn.Module, x: Batch) -> UnitActivity:
    """Dead and saturated units and the effective rank of the activations, in eval mode.

    Activations are seen as calls of torch, so that modules and functions count alike. Those a model is made of other
    calls for (``torch.clamp``) are not seen.

    Args:
        model: any module.
        x: inputs (N, ...).

    Returns:
        UnitActivity, with L = 0 for a model that calls none.

    Raises:
        InputError: bad data; see ``ModelView``.

    Cost: a forward pass, a backward pass through each activation alone, and a product of size M w min(M, w) a layer,
        M the samples times positions and w the units. No activation is kept.

    References: Glorot and Bengio (2010) for saturation; Lu et al. (2019), arXiv:1903.06733 for dead units; effective
        rank as of Daneshmand et al. (2020), arXiv:2003.01652.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = model[0].weight.fill_(1), model[0].bias.copy_(torch.tensor([0.0, -9.0]))
        >>> print(unit_activity(model, torch.tensor([[1.0], [2.0]])))
        0 (relu): 50% dead, 50% saturated, effective rank 1
    """
    where = "unit_activity"
    check_batch(where, x)
    view = ModelView.of(model, None, where)
    watcher = _Watcher(x)
    homes = [(name, m) for name, m in view.model.named_modules() if isinstance(m, Weights)]
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: watcher.passed(name, module, out))
        for name, module in homes
    ]
    try:
        with undisturbed(view.model, training=False), torch.no_grad(), watcher:
            view(x)
    finally:
        for hook in hooks:
            hook.remove()
    rows = list(watcher.rows.values())
    return UnitActivity(
        layers=tuple(watcher.rows),
        kinds=tuple(kind for kind, *_ in rows),
        widths=tuple(len(dead) for _, dead, *_ in rows),
        dead=tuple(dead for _, dead, *_ in rows),
        saturated=torch.tensor([saturated for *_, saturated, _ in rows], dtype=torch.float64, device="cpu"),
        effective_rank=torch.tensor([rank for *_, rank in rows], dtype=torch.float64, device="cpu"),
    )


@dataclass(frozen=True)
class _Origin:
    """The layer with weights a tensor comes from: when it ran, its name, and the axis of its units."""

    place: int
    name: str
    axis: int


class _Watcher(TorchFunctionMode):
    """Sees every activation that is called, and summarises it before the next one runs.

    What comes from which layer is handed on from call to call, since branches run one after the other and join late.
    """

    def __init__(self, x: Batch) -> None:
        super().__init__()
        self.rows: dict[str, tuple[str, Tensor, float, float]] = {}
        self._steepest: dict[Any, Tensor] = {}  # of each kind that was called
        self._last = _Origin(0, "", -1)  # stands for what comes from no call that is seen (custom functions)
        self._origins: MutableMapping[Tensor, _Origin] = WeakTensorKeyDictionary()
        self._origins.update((leaf, self._last) for leaf in tensors(x))

    def passed(self, name: str, module: nn.Module, out: Any) -> None:
        """A layer with weights has run."""
        self._last = _Origin(self._last.place + 1, name, -1 if isinstance(module, nn.Linear) else 1)
        if isinstance(out, Tensor):
            self._origins[out] = self._last

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        origin = self._origin_of((*args, *kwargs.values()))
        kind = KNOWN.get(func)
        if kind is None:
            result = func(*args, **kwargs)
        else:
            given = args[0] if args else kwargs["input"]
            u = given.detach().clone()  # the call may write over it
            result = func(*args, **kwargs)
            options = {name: value for name, value in kwargs.items() if name != "input"}

            def phi(v: Tensor) -> Tensor:  # the same call on other numbers; it may write over its argument
                return func(v.clone(), *args[1:], **options)

            source = self._last if origin is None else origin
            with own_calls():
                key = (func, repr((args[1:], options)), u.dtype, u.device)
                if key not in self._steepest:
                    self._steepest[key] = _steepest(phi, u)
                summary = _summary(phi, u, result.detach(), source.axis, self._steepest[key])
            self.rows[self._named(source.name or kind)] = (kind, *summary)
        if origin is not None:
            for leaf in _leaves(result):
                self._origins[leaf] = origin
        return result

    def _origin_of(self, given: Any) -> _Origin | None:
        """Of the arguments the one whose layer ran last."""
        latest: _Origin | None = None
        for leaf in _leaves(given):
            known = self._origins.get(leaf)
            if known is not None and (latest is None or known.place > latest.place):
                latest = known
        return latest

    def _named(self, name: str) -> str:
        """A name of its own for every call."""
        count = 1
        while (own := name if count == 1 else f"{name} ({count})") in self.rows:
            count += 1
        return own


def _leaves(value: Any) -> list[Tensor]:
    """The tensors in what a call was given or returned."""
    if isinstance(value, Tensor):
        return [value]
    if type(value) is not tuple:
        return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    found: list[Tensor] = []
    for each in value:
        if isinstance(each, Tensor):
            found.append(each)
        elif not isinstance(each, _PLAIN):  # a tree to walk, which takes long
            found += _leaves(each)
    return found


def _steepest(phi: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """The largest slope of an activation, in the dtype and on the device of its input."""
    return _slope(phi, torch.linspace(-8, 8, 4001, dtype=u.dtype, device=u.device)).abs().max()


def _summary(
    phi: Callable[[Tensor], Tensor], u: Tensor, h: Tensor, axis: int, largest: Tensor
) -> tuple[Tensor, float, float]:
    """Which units are dead, the share that is saturated, the effective rank."""
    axis = axis if h.dim() > 2 else -1
    slope, out = (t.movedim(axis, -1).reshape(-1, t.shape[axis]) for t in (_slope(phi, u).abs(), h))
    dead = slope.amax(0) < DEAD
    saturated = float((slope < SATURATED * largest).double().mean())
    out = out.double() if out.dtype == torch.float64 else out.float()
    M = out.T @ out if out.shape[0] > out.shape[1] else out @ out.T
    return dead, saturated, float(M.trace() ** 2 / M.square().sum())


def _slope(phi: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    with torch.enable_grad():
        at = u.detach().requires_grad_()
        return torch.autograd.grad(phi(at).sum(), at)[0]
