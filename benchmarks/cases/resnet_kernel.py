"""ResNet-18 on images of 32x32: large convolutions with many and with few positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import targets as to_reach
from benchmarks.methods import kernels, models
from benchmarks.methods.problem import Call, Problem

TITLE = (
    "ResNet-18 for 32x32x3 (3x3 stem, no pooling, batch norm in eval mode), cross-entropy, N = 256, float32: "
    "total backward kernel"
)
OURS = "pullback.backward_kernel"
PEERS = ("torch.func vmap(grad)", "opacus GradSampleModule", "NNGeometry GramMatrix")


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model = models.ResNet18()
    models.settle_batch_norm(model, torch.randn(64, 3, 32, 32))
    n = max(2, round(256 * scale))
    return Problem(model, torch.randn(n, 3, 32, 32), torch.randint(10, (n,)))


class FrozenNorm(nn.Module):
    """Batch norm in eval mode as a layer of its own: opacus records in train mode only, and refuses batch norm."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("mean", norm.running_mean)
        self.register_buffer("variance", norm.running_var)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, training=False, eps=self.eps)


def frozen_norm_gradients(layer: FrozenNorm, inputs: list[Tensor], outputs: Tensor) -> dict[nn.Parameter, Tensor]:
    """Per-sample gradients of a ``FrozenNorm``, in the form opacus asks of a layer it does not know."""
    normalised = F.batch_norm(inputs[0], layer.mean, layer.variance, training=False, eps=layer.eps)
    return {layer.weight: (outputs * normalised).sum((2, 3)), layer.bias: outputs.sum((2, 3))}


def opacus(problem: Problem) -> Call:
    from opacus.grad_sample import register_grad_sampler

    register_grad_sampler(FrozenNorm)(frozen_norm_gradients)
    for module in list(problem.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FrozenNorm(child))
    return kernels.opacus(problem, strict=False)


METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS: kernels.pullback,
    "ordinary gradient": kernels.gradient,
    **{f"{PEERS[0]}[chunks of {c}]": kernels.vmap_grad(c) for c in (8, 32)},
    PEERS[1]: opacus,
    PEERS[2]: kernels.nngeometry,
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [to_reach.faster(rows, OURS, PEERS, 3)]
