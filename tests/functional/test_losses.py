"""Losses sample by sample. S0-02."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback.functional import output_hessian, per_sample_loss, sample_targets, take
from tests.compare import assert_same


def one_by_one(loss_fn: Any, outputs: Tensor, targets: Any) -> Tensor:
    """The definition: each sample as a batch of one."""
    return torch.stack([loss_fn(take(outputs, [i]), take(targets, [i])) for i in range(len(outputs))])


LOSSES = [
    (nn.CrossEntropyLoss(), "class"),
    (nn.CrossEntropyLoss(reduction="sum"), "class"),
    (nn.CrossEntropyLoss(label_smoothing=0.2), "class"),
    (nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)), "class"),
    (
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), reduction="sum"),
        "class",
    ),
    (nn.CrossEntropyLoss(), "probabilities"),
    (nn.BCEWithLogitsLoss(), "unit"),
    (nn.BCEWithLogitsLoss(reduction="sum", pos_weight=torch.tensor([2.0], dtype=torch.float64)), "unit"),
    (nn.BCEWithLogitsLoss(weight=torch.tensor([2.0], dtype=torch.float64)), "unit"),
    (nn.MSELoss(), "real"),
    (nn.MSELoss(reduction="sum"), "real"),
    (nn.L1Loss(), "real"),
    (nn.HuberLoss(delta=0.5, reduction="sum"), "real"),
    (nn.KLDivLoss(reduction="batchmean"), "probabilities"),
]


def targets_of(kind: str, outputs: Tensor) -> Tensor:
    n, c = len(outputs), outputs.shape[1]
    return {
        "class": lambda: torch.randint(c, (n, *outputs.shape[2:])),
        "probabilities": lambda: torch.rand_like(outputs).softmax(1),
        "unit": lambda: torch.rand_like(outputs),
        "real": lambda: torch.randn_like(outputs),
    }[kind]()


@pytest.mark.parametrize(("loss_fn", "kind"), LOSSES, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
@given(st.integers(1, 5), st.sampled_from([(), (4,), (2, 3)]))
def test_each_sample_as_a_batch_of_one(loss_fn: nn.Module, kind: str, n: int, positions: tuple[int, ...]) -> None:
    outputs = torch.randn(n, 3, *positions, dtype=torch.float64)
    targets = targets_of(kind, outputs)
    found = per_sample_loss(loss_fn, outputs, targets)
    assert_same(found, one_by_one(loss_fn, outputs, targets), 1e-12)
    if loss_fn.reduction == "mean" and getattr(loss_fn, "weight", None) is None:
        assert float(found.mean()) == pytest.approx(float(loss_fn(outputs, targets)), rel=1e-12)
    if loss_fn.reduction == "sum":
        assert float(found.sum()) == pytest.approx(float(loss_fn(outputs, targets)), rel=1e-12)


def test_ignored_positions_do_not_count() -> None:
    outputs, targets = torch.randn(3, 4, 5, dtype=torch.float64), torch.randint(4, (3, 5))
    targets[0, 1:] = -100
    targets[1, ::2] = -100
    for reduction in ("mean", "sum"):
        loss_fn = nn.CrossEntropyLoss(reduction=reduction)
        assert_same(per_sample_loss(loss_fn, outputs, targets), one_by_one(loss_fn, outputs, targets), 1e-12)


def test_a_loss_vmap_cannot_batch() -> None:
    class Stubborn(nn.Module):
        reduction = "mean"

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return (z - y).abs().mean() if float(z.sum()) > -1e9 else z.sum()

    outputs, targets = torch.randn(3, 2), torch.randn(3, 2)
    assert_same(per_sample_loss(Stubborn(), outputs, targets), (outputs - targets).abs().mean(1))


def test_logits_of_an_output_object() -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert_same(per_sample_loss(nn.CrossEntropyLoss(), Output(z), y), F.cross_entropy(z, y, reduction="none"))


def test_errors() -> None:
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(pb.InputError, match="labels from 0 to 3, got 9 for sample 1"):
        per_sample_loss(nn.CrossEntropyLoss(), z, torch.tensor([0, 9, 1]))
    with pytest.raises(pb.InputError, match=r"labels of shape \(3,\) for outputs \(3, 4\), got \(3, 1\)"):
        per_sample_loss(nn.CrossEntropyLoss(), z, y.unsqueeze(1))
    with pytest.raises(pb.InputError, match=r"targets of the outputs' shape \(3, 4\), got \(3,\)"):
        per_sample_loss(nn.MSELoss(), z, torch.randn(3))
    with pytest.raises(pb.InputError, match=r"one loss per sample, shape \(3,\).* got shape \(3, 4\)"):
        per_sample_loss(lambda a, b: a, z, y)
    with pytest.raises(pb.InputError, match=r"one loss per sample, shape \(3,\).* got float"):
        per_sample_loss(lambda a, b: 1.0, z, y)
    with pytest.raises(pb.InputError, match=r"`reduction` 'mean' or 'sum' .* got 'none' with shape \(3, 4\)"):
        per_sample_loss(nn.MSELoss(reduction="none"), z, z)
    with pytest.raises(pb.InputError, match="`reduction` 'mean' or 'sum'"):
        per_sample_loss(nn.L1Loss(reduction="none"), z, z)
    assert per_sample_loss(nn.CrossEntropyLoss(reduction="none"), z, y).shape == (3,)


@pytest.mark.parametrize(("loss_fn", "kind"), LOSSES, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
@given(st.integers(1, 4), st.integers(2, 3))
def test_output_hessian(loss_fn: nn.Module, kind: str, n: int, c: int) -> None:
    """Closed forms and the general route against two derivatives of the definition."""
    outputs = torch.randn(n, 3 if getattr(loss_fn, "weight", None) is not None else c, dtype=torch.float64)
    targets = targets_of(kind, outputs)
    found = output_hessian(loss_fn, outputs, targets)
    for i in range(n):
        single = torch.autograd.functional.hessian(
            lambda z, i=i: loss_fn(z.unsqueeze(0), take(targets, [i])), outputs[i]
        )
        assert_same(found[i], single, scale=1.0)


@pytest.mark.parametrize(
    ("loss_fn", "kind"),
    [
        (nn.CrossEntropyLoss(), "class"),
        (nn.BCEWithLogitsLoss(), "unit"),
        (nn.MSELoss(), "real"),
        (nn.MSELoss(reduction="sum"), "real"),
    ],
)
def test_sampled_targets_have_the_output_hessian_as_their_mean(loss_fn: nn.Module, kind: str) -> None:
    """Mean of the outer product of loss gradients over drawn targets is the output Hessian (Fisher = Gauss-Newton)."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, 3, dtype=torch.float64)
    many = z.expand(40_000, 3).clone().requires_grad_()
    targets = sample_targets(
        loss_fn, many.detach(), targets_of(kind, z).expand(40_000, *targets_of(kind, z).shape[1:]), generator
    )
    slopes = torch.autograd.grad(per_sample_loss(loss_fn, many, targets).sum(), many)[0]
    expected = output_hessian(loss_fn, z, targets[:1])[0]
    # BCE's mean divides each gradient by C: the outer product then carries 1/C^2 where the Hessian has 1/C
    scale = 3.0 if isinstance(loss_fn, nn.BCEWithLogitsLoss) else 1.0
    products = slopes.unsqueeze(2) * slopes.unsqueeze(1) * scale
    error = (products.mean(0) - expected).abs()
    assert (error <= 4.5 * products.std(0) / 200 + 1e-12).all()


def test_no_distribution_for_other_losses() -> None:
    z = torch.randn(2, 3)
    with pytest.raises(pb.UnsupportedError, match="negative log-likelihood: CrossEntropyLoss.* got L1Loss"):
        sample_targets(nn.L1Loss(), z, z, torch.Generator())
