"""A small plain model for wrappers, and a check that a call left it, its gradients and all random state alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOSS = nn.MSELoss(reduction="sum")
LAYERS = ["first", "norm", "middle", "batch", "head"]


class Middle(nn.Linear):
    """A layer with a forward method of its own, which can be compiled by itself (torch skips its own layers)."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(super().forward(h))


class Plain(nn.Module):
    """Linear layers over positions, a layer norm, and a batch norm whose statistics are buffers.

    Args:
        reentrant: how the middle is checkpointed; None not at all.
    """

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.middle, self.batch, self.head = Middle(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        nn.init.normal_(self.batch.running_mean)
        nn.init.uniform_(self.batch.running_var, 0.5, 2.0)
        self.reentrant = reentrant

    def body(self, h: Tensor) -> Tensor:
        h = self.middle(self.norm(h))
        return torch.tanh(self.batch(h.flatten(0, 1))).view_as(h)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = self.body(h) if self.reentrant is None else checkpoint(self.body, h, use_reentrant=self.reentrant)
        return self.head(h)


def plain(reentrant: bool | None = None, dtype: torch.dtype = torch.float64) -> Plain:
    """The same weights at every call, in eval mode."""
    torch.manual_seed(3)
    return Plain(reentrant).to(dtype).eval()


def data(n: int = 6, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs (N, 4, 5) and targets (N, 4, 3)."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 4, size, generator=generator, dtype=torch.float64) for size in (5, 3))
    return x.to(dtype), y.to(dtype)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Weights, gradients, buffers, modes, hooks and random state are the same after the block as before it."""
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 0.25)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = _state(model)
    yield
    assert {**dict(model.named_parameters()), **dict(model.named_buffers())}.keys() == tensors.keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor is tensors[name], f"{name} was replaced"
        assert torch.equal(tensor, copies[name]), f"{name} was written to"
    for name, p in model.named_parameters():
        assert p.grad is gradients[name], f"gradient of {name} was replaced"
        assert p.grad is None or bool((p.grad == 0.25).all()), f"gradient of {name} was written to"
        assert p.requires_grad == flags[name], f"requires_grad of {name} was changed"
    assert _state(model) == before


def _state(model: nn.Module) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "random state": torch.get_rng_state().tolist(),
        "autograd": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
    }
