"""Before 2.8 torch does not tell which hooks save tensors, hence what lies in a checkpoint: it is found without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pullback as pb
from pullback import reference
from pullback.functional import saved_tensors
from pullback.functional.saved_tensors import saved_by
from tests.compare import assert_same


class Checkpointed(nn.Module):
    """Layers inside a checkpoint, and behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        self.behind = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(checkpoint(self.inside, x, use_reentrant=False))


@pytest.mark.parametrize("told", [True, False])
def test_kernels_of_a_checkpointed_model(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    autograd = torch._C._autograd
    if not told:
        monkeypatch.setattr(saved_tensors, "_told", lambda: None)  # from this package alone: torch 2.15 asks for itself
    elif not hasattr(autograd, "_top_saved_tensors_default_hooks"):
        pytest.skip("this torch does not tell")
    before = autograd._push_saved_tensors_default_hooks, autograd._pop_saved_tensors_default_hooks
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    model, loss_fn = Checkpointed(), nn.CrossEntropyLoss()
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, reference.total_kernel(model, loss_fn, x, y), 1e-10)
    assert (autograd._push_saved_tensors_default_hooks, autograd._pop_saved_tensors_default_hooks) == before
    assert saved_by() is None


def test_they_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    autograd = torch._C._autograd
    monkeypatch.setattr(saved_tensors, "_told", lambda: None)
    before = autograd._push_saved_tensors_default_hooks, autograd._pop_saved_tensors_default_hooks

    class Broken(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pb.backward_kernel(Broken(), nn.CrossEntropyLoss(), torch.randn(2, 3).double(), torch.zeros(2).long())
    assert (autograd._push_saved_tensors_default_hooks, autograd._pop_saved_tensors_default_hooks) == before
    assert saved_by() is None
