"""Activation checkpointing: exact without re-entry, refused with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pullback as pb
from pullback import measure, reference
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


class Odd(Plain):
    """A parameter in a function no rule knows, inside the checkpoint: distances to trained centres."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__(reentrant)
        self.centres = nn.Parameter(torch.randn(8, 8))

    def body(self, h: Tensor) -> Tensor:
        return super().body(torch.cdist(h, self.centres))


class Attending(Plain):
    """Attention and a recurrent layer, which elsewhere are run as linear layers while they are recorded."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__(reentrant)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 4, batch_first=True, bidirectional=True)

    def body(self, h: Tensor) -> Tensor:
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return super().body(self.recurrent(h)[0])


class Normalised(Plain):
    """A weight computed from parameters inside the checkpoint."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__(reentrant)
        nn.utils.parametrizations.weight_norm(self.middle)


@pytest.mark.parametrize(
    ("kind", "fallen"),
    [(Odd, ["centres"]), (Attending, ["attention", "recurrent"]), (Normalised, [])],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_whatever_is_inside(kind: type[Plain], fallen: list[str]) -> None:
    """The recomputation does what the recorded forward pass did; what it would do otherwise is not recorded."""
    models = []
    for reentrant in (None, False):
        torch.manual_seed(0)
        models.append(kind(reentrant).double().eval())
    x, y = data()
    with unchanged(models[1]):
        recomputed = pb.backward_kernel(models[1], LOSS, x, y)
    total = reference.total_kernel(models[0], LOSS, x, y)
    assert_same(recomputed.total, total)
    assert_same(pb.backward_kernel(models[0], LOSS, x, y).total, total)
    parameters = [name for a in recomputed.plan.layers if "fallback" in a.rule for name in a.parameters]
    assert list(dict.fromkeys(name.partition(".")[0] for name in parameters)) == fallen


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
    with pytest.raises(
        pb.UnsupportedError, match="depend on the parameters, got none.*or checkpointing with use_reentrant=True"
    ):
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


def at_other_weights(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """What is computed with tensors in place of the model's own, and differentiated after they are gone."""
    smooth = measure.smoothness(model, LOSS, x, y, [0.5, 5.0])
    shift = measure.internal_covariate_shift(model, LOSS, x, y, 0.5)
    landscape = pb.dynamics.network_landscape(model, LOSS, x, y)
    slope = torch.autograd.functional.jacobian(landscape, landscape.start + 0.1)
    beside = pb.train_side_by_side(model, LOSS, x, y, lambda p: torch.optim.SGD(p, 0.1), steps=2)
    signals = measure.signal_propagation(model, x)
    return [smooth.gradient_changes, shift.shift, slope, beside.expansion, signals.gradients.value]


def test_checkpoints_compute_nothing_anew_at_weights_that_are_gone() -> None:
    """Gradients at other weights were those of a forward pass there and a backward pass here, or torch's error."""
    x, y = data()
    stored, found = (at_other_weights(plain(reentrant=reentrant), x, y) for reentrant in (None, False))
    for one, other in zip(found, stored, strict=True):
        assert_same(one, other, 1e-12)
    assert torch.utils.checkpoint._checkpoint_hook.__name__ == "_checkpoint_hook"
