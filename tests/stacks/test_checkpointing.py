"""Activation checkpointing: exact without re-entry, refused with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pullback as pb
from pullback import reference
from tests.compare import assert_same
from tests.stacks.plain import LAYERS, LOSS, Plain, data, plain, unchanged


class Whole(nn.Module):
    """Everything between input and output is checkpointed."""

    def __init__(self, body: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


def test_without_reentry() -> None:
    """Recomputed activations: the same kernel, and every parameter by the rule it has anyway."""
    model, (x, y) = plain(reentrant=False), data()
    with unchanged(model):
        kernel = pb.backward_kernel(model, LOSS, x, y)
    stored = pb.backward_kernel(plain(), LOSS, x, y)
    assert_same(kernel.total, stored.total, 1e-14)
    assert list(kernel.layers) == LAYERS
    assert [(a.rule, a.form) for a in kernel.plan.layers] == [(a.rule, a.form) for a in stored.plan.layers]
    whole = pb.backward_kernel(Whole(plain(), reentrant=False), LOSS, x, y)
    assert_same(whole.total, stored.total, 1e-14)


def test_a_parameter_of_no_rule_inside() -> None:
    """The fallback meets the checkpoint too."""

    class Odd(Plain):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__(reentrant)
            self.power = nn.Parameter(torch.rand(8))

        def body(self, h: Tensor) -> Tensor:
            return super().body(torch.sin(h) ** 2) ** 2 * torch.special.erf(self.power).outer(self.power)[0]

    models = []
    for reentrant in (None, False):
        torch.manual_seed(0)
        models.append(Odd(reentrant).double().eval())
    x, y = data()
    stored, recomputed = (pb.backward_kernel(model, LOSS, x, y) for model in models)
    assert_same(recomputed.total, stored.total)
    assert_same(stored.total, reference.total_kernel(models[0], LOSS, x, y))


def test_with_reentry() -> None:
    """Refused with the reason and the way out, and nothing is left behind."""
    model, (x, y) = plain(reentrant=True), data()
    with (
        unchanged(model),
        pytest.raises(
            pb.UnsupportedError,
            match=r"backward_kernel: expected activation checkpointing with use_reentrant=False, "
            r"got use_reentrant=True, whose backward pass .*\. Pass use_reentrant=False to torch\.utils\.checkpoint",
        ),
    ):
        pb.backward_kernel(model, LOSS, x, y)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # torch's own remark on this use
def test_with_reentry_around_the_whole_model() -> None:
    """There no gradient flows at all, in training neither."""
    model, (x, y) = Whole(plain(), reentrant=True), data()
    with pytest.raises(pb.UnsupportedError, match="a loss that depends on the parameters.*use_reentrant=True"):
        pb.backward_kernel(model, LOSS, x, y)


def test_a_hugging_face_model_that_checkpoints() -> None:
    """In train mode, where transformers checkpoints; this model has no dropout."""
    pytest.importorskip("transformers")
    from tests.stacks.models import stack

    model, loss_fn, x, y = stack("llama-sdpa").build(4)
    expected = pb.backward_kernel(model, loss_fn, x, y)
    model.train()
    name = "activation_checkpointing_enable"  # so called since transformers 5
    getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    with unchanged(model):
        kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, expected.total)
    assert list(kernel.layers) == list(expected.layers)
