"""One forward and one backward pass that record, for every use of a parameter, its inputs and output gradients.

Uses are seen where functions of torch are called, keyed by the parameters among their arguments, not where
modules are: attention projections, tied heads and functional layers have no module of their own. In a recorded
call a detached alias stands in for the parameter. After the backward pass a parameter that still has a gradient of
its own was used somewhere no rule looked: that is how ``coverage`` proves that nothing was missed. The aliases'
gradients are the ordinary gradient of the summed loss, which checks the recorded factors by another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from pullback._checks import unsupported
from pullback.functional import LossFunction, ModelView, num_samples, per_sample_loss
from pullback.functional.batch import Batch
from pullback.functional.losses import check_finite
from pullback.functional.model_view import layer_of
from pullback.kernels.rules import RULES, Rule
from pullback.kernels.rules.registry import Arguments


@dataclass
class Use:
    """A recorded call: a rule, its arguments, and the gradient that reached its output."""

    rule: Rule
    arguments: Arguments
    names: dict[str, str]  # argument -> parameter
    edge: GradientEdge
    output_shape: torch.Size
    output_gradient: Tensor | None = None


@dataclass
class Capture:
    """What one forward and one backward pass over ``num_samples`` samples left behind.

    Args:
        uses: in the order of the forward pass.
        ordinary: gradient of the summed loss, parameter -> shape, over recorded and other uses together.
        escaped: parameters with a use no rule saw.
        losses: (N,).
        outputs: what the model returned, detached.
    """

    num_samples: int
    uses: list[Use]
    ordinary: dict[str, Tensor]
    escaped: frozenset[str]
    losses: Tensor
    outputs: Any


def capture(view: ModelView, loss_fn: LossFunction, x: Batch, y: Batch, where: str) -> Capture:
    """Run the model and the loss once forwards and once backwards, recording every use of ``view``'s parameters."""
    recorder = _Recorder(view, where)
    with torch.enable_grad():
        with recorder:
            outputs = view(x)
        losses = per_sample_loss(loss_fn, outputs, y, where)
        check_finite(losses, where)
        uses, aliases = recorder.uses, recorder.aliases
        own = list(view.parameters.values())
        if not losses.requires_grad:
            raise unsupported(
                where,
                "a loss that depends on the parameters",
                "one that does not",
                "Check for detach() or no_grad",
            )
        wanted: Any = [use.edge for use in uses] + [alias for _, alias in aliases] + own
        gradients = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
    for use, gradient in zip(uses, gradients, strict=False):
        use.output_gradient = gradient
    ordinary = {name: torch.zeros_like(p) for name, p in view.parameters.items()}
    for (name, _), gradient in zip(aliases, gradients[len(uses) :], strict=False):
        if gradient is not None:
            ordinary[name] += gradient
    escaped = set()
    for name, gradient in zip(view.parameters, gradients[len(uses) + len(aliases) :], strict=True):
        if gradient is not None:
            escaped.add(name)
            ordinary[name] += gradient
    detached = torch.utils._pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, outputs)
    return Capture(num_samples(x), uses, ordinary, frozenset(escaped), losses.detach(), detached)


class _Recorder(TorchFunctionMode):
    """Sees every function of torch the forward pass calls."""

    def __init__(self, view: ModelView, where: str) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in view.parameters.items()}
        self.buffers = {id(b): layer_of(name) for name, b in view.model.named_buffers()}
        self.where = where
        self.uses: list[Use] = []
        self.aliases: list[tuple[str, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _REFUSED:
            self._refuse(func, args, kwargs)
        rule = RULES.get(func)
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        arguments = rule.bind(args, kwargs)
        names = {k: self.names[id(v)] for k in rule.parameters if id(v := arguments.get(k)) in self.names}
        if not names or not rule.accepts(arguments):
            return func(*args, **kwargs)
        aliases = {argument: arguments[argument].detach().requires_grad_() for argument in names}
        output = func(**(arguments | aliases))
        if not output.requires_grad:
            return output
        recorded = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        self.uses.append(Use(rule, recorded, names, get_gradient_edge(output), output.shape))
        self.aliases += [(names[argument], alias) for argument, alias in aliases.items()]
        return output

    def _refuse(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Batch statistics couple the samples and dropout has no gradient to speak of: both are train mode."""
        signature, is_active, what = _REFUSED[func]
        arguments = dict(zip(signature, args, strict=False)) | kwargs
        if is_active(arguments):
            known = (
                self.names.get(id(arguments.get("weight"))),
                self.buffers.get(id(arguments.get("running_mean"))),
            )
            layer = layer_of(known[0]) if known[0] else known[1]
            raise unsupported(
                self.where,
                "a model in which each sample's gradient is its own",
                f"{what} in train mode" + (f" in layer `{layer}`" if layer else ""),
                "Call model.eval() first",
            )


_DROPOUT = (("input", "p", "training"), lambda a: a.get("training", True) and a.get("p", 0.5) > 0, "dropout")
_REFUSED: dict[Callable[..., Any], tuple[tuple[str, ...], Callable[[Arguments], bool], str]] = {
    F.batch_norm: (
        ("input", "running_mean", "running_var", "weight", "bias", "training"),
        lambda a: bool(a.get("training", False)),
        "batch norm",
    ),
    F.scaled_dot_product_attention: (
        ("query", "key", "value", "attn_mask", "dropout_p"),
        lambda a: a.get("dropout_p", 0.0) > 0,
        "attention dropout",
    ),
    F.multi_head_attention_forward: (
        (
            *[
                "query",
                "key",
                "value",
                "embed_dim",
                "num_heads",
                "in_proj_weight",
                "in_proj_bias",
                "bias_k",
                "bias_v",
                "add_zero_attn",
            ],
            "dropout_p",
        ),
        lambda a: bool(a.get("training", True)) and a.get("dropout_p", 0.0) > 0,
        "attention dropout",
    ),
}
_REFUSED |= dict.fromkeys(
    (
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        torch.dropout,
    ),
    _DROPOUT,
)


def refuse_recurrent_dropout(model: nn.Module, where: str) -> None:
    """Recurrent layers apply their dropout inside one fused call, so it is looked up on the module."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.training and module.dropout > 0:
            raise unsupported(
                where,
                "a model in which each sample's gradient is its own",
                f"dropout in train mode in layer `{name}`",
                "Call model.eval() first",
            )
