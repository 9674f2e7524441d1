"""Samples that depend on each other, or on chance, are refused by every operator, whatever their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional.agreement import sample_weights
from pullback.operators.most_dependent import most_dependent
from tests.cases import CASES, build
from tests.compare import assert_same
from tests.coupled import COUPLED, COUPLED_BY_LOSS, build_coupled
from tests.thinned import thinned

OPERATORS: dict[str, Callable[..., Any]] = {
    "Hessian": pb.Hessian,
    "GaussNewton": pb.GaussNewton,
    "Fisher": pb.Fisher,
    "sampled": lambda *a: pb.Fisher(*a, kind="sampled"),
    "empirical": lambda *a: pb.Fisher(*a, kind="empirical"),
}
OWN = "a model and loss that treat every sample on its own"


@pytest.mark.parametrize("name", thinned(list(COUPLED)))
def test_coupled_samples_are_refused(name: str) -> None:
    """By every operator, as a pair and as a later batch of a list; by calls made of operators as well."""
    model, loss_fn, x, y = build_coupled(name)
    for kind, make in OPERATORS.items():
        if kind in ("Fisher", "sampled") and name in COUPLED_BY_LOSS:
            continue  # no distribution
        with pytest.raises(pb.UnsupportedError, match=OWN):
            make(model, loss_fn, (x, y))
    with pytest.raises(pb.UnsupportedError, match=OWN):
        pb.Hessian(model, loss_fn, [(x[:1], y[:1]), (x[1:], y[1:])])
    with pytest.raises(pb.UnsupportedError, match=OWN):
        pb.MixedDerivative(model, loss_fn, (x, y))
    with pytest.raises(pb.UnsupportedError, match=OWN):
        pb.sharpness(model, loss_fn, (x, y))
    if name not in COUPLED_BY_LOSS:
        with pytest.raises(pb.UnsupportedError, match=OWN):
            pb.Jacobian(model, x)
        if x.is_floating_point():
            with pytest.raises(pb.UnsupportedError, match=OWN):
                pb.Jacobian(model, x, wrt="input")


def test_the_first_batch_alone_is_fine() -> None:
    """What is refused above is refused for its coupling: one sample at a time the same model is answered."""
    for name in ("cumsum", "middle_reversed", "LSTM"):
        model, loss_fn, x, y = build_coupled(name)
        H = pb.Hessian(model, loss_fn, [(x[i : i + 1], y[i : i + 1]) for i in range(3)]).to_dense()
        each = [reference.dense_hessian(model, loss_fn, x[i : i + 1], y[i : i + 1]) for i in range(3)]
        assert_same(H, torch.stack(each).mean(0))


def test_any_two_samples() -> None:
    """Whichever two samples change places, and however many there are."""
    for n in (4, 5, 9):
        for i in range(n):
            for j in range(i):
                place = torch.arange(n)
                place[[i, j]] = place[[j, i]]

                class Swapped(nn.Module):
                    def __init__(self, place: Tensor = place) -> None:
                        super().__init__()
                        self.linear, self.place = nn.Linear(2, 2).double(), place

                    def forward(self, x: Tensor) -> Tensor:
                        h = self.linear(x)
                        return h[self.place] if len(h) == len(self.place) else h

                x = torch.randn(n, 2, dtype=torch.float64)
                with pytest.raises(pb.UnsupportedError, match="another output for sample"):
                    pb.Jacobian(Swapped(), x)


@pytest.mark.parametrize("detached", [False, True], ids=["values", "gradients alone"])
def test_one_sample_that_depends_on_another(detached: bool) -> None:
    """Whichever it is and on which, in its value or in its gradient alone; the other one is as it is alone."""
    for n, pairs in ((3, range(9)), (8, (5, 20, 47, 61))):
        for i, j in (divmod(pair, n) for pair in pairs):

            class Leaking(nn.Module):
                def __init__(self, n: int = n, i: int = i, j: int = j) -> None:
                    super().__init__()
                    self.linear, self.places = nn.Linear(2, 2).double(), (n, i, j)

                def forward(self, x: Tensor) -> Tensor:
                    h, (n, i, j) = torch.tanh(self.linear(x)), self.places
                    if len(h) != n or i == j:
                        return h
                    added = h[j] - h[j].detach() if detached else 0.1 * h[j]
                    return h.index_add(0, torch.tensor([i]), added.unsqueeze(0))

            x, y = torch.randn(n, 2, dtype=torch.float64), torch.arange(n) % 2
            if i == j:
                pb.Hessian(Leaking(), nn.CrossEntropyLoss(), (x, y))
                continue
            for make in (pb.Hessian, lambda m, _, data: pb.Jacobian(m, data[0])):
                with pytest.raises(pb.UnsupportedError, match=OWN):
                    make(Leaking(), nn.CrossEntropyLoss(), (x, y))


def test_where_dependence_is_looked_for() -> None:
    h = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    own = h.square().sum(1)
    assert most_dependent(own, [h], torch.float64) == 3  # nothing found: the middle one
    for source, to in ((4, 6), (0, 2), (6, 5), (3, 1)):
        leaking = own.index_add(0, torch.tensor([to]), 1e-3 * own[source : source + 1])
        assert most_dependent(leaking, [h], torch.float64) == to
    assert most_dependent(own.detach(), [h], torch.float64) == 3
    for n in (2, 3, 8, 100):
        weights = sample_weights(n, own)
        assert len(weights.unique()) == n
        assert bool(((weights.abs() >= 1) & (weights.abs() < 2)).all())


def test_every_case_is_answered_in_float32() -> None:
    """No model of independent samples is refused for its rounding."""
    for case in CASES:
        model, loss_fn, x, y = build(case, 5, torch.float32)
        for make in (pb.Hessian, pb.GaussNewton):
            op = make(model, loss_fn, (x, y))
            size = sum(p.numel() for p in model.parameters() if p.requires_grad)
            assert op.shape == (size, size)
            assert bool((op @ torch.ones(size)).isfinite().all()), case.name


class Between(nn.Module):
    """A regression whose losses are about ``scale`` squared."""

    def __init__(self, scale: float, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer, self.middle = nn.Linear(4, 8), nn.Linear(8, 1), middle
        with torch.no_grad():
            self.outer.weight.mul_(scale)
            self.outer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.middle(torch.tanh(self.inner(x))))


@pytest.mark.parametrize("scale", [3e-3, 1e-8, 1e6])
@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
def test_losses_of_any_size(make: Callable[..., Any], scale: float) -> None:
    """Float32: what is random or coupled is refused for losses of 1e-16 as of 1e12, and what is not is answered."""
    x, y, loss_fn = torch.randn(16, 4), scale * torch.randn(16, 1), nn.MSELoss()
    for middle, words in (
        (lambda h: F.dropout(h, 0.5), "the second time"),
        (lambda h: h + 0.1 * torch.randn_like(h), "the second time"),
        (lambda h: h - h.mean(0), OWN),
    ):
        with pytest.raises(pb.UnsupportedError, match=words):
            make(Between(scale, middle), loss_fn, (x, y))
    make(Between(scale, lambda h: h), loss_fn, (x, y))


@pytest.mark.parametrize("noise", [1e-6, 1e-14])
def test_how_much_noise_is_seen(noise: float) -> None:
    """In float64 relative changes of 1e-6; those of the dtype's own rounding are none."""
    model = Between(1.0, lambda h: h * (1 + noise * torch.randn_like(h))).double()
    data = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    if noise < 1e-8:
        pb.Hessian(model, nn.MSELoss(), data)
        return
    with pytest.raises(pb.UnsupportedError, match="the second time"):
        pb.Hessian(model, nn.MSELoss(), data)


def test_confident_predictions_are_no_noise() -> None:
    """Losses that are differences of large numbers are known no better than their rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    with torch.no_grad():
        model[2].weight.mul_(60)
    x = torch.randn(32, 4)
    y = model(x).argmax(1)
    for make in (pb.Hessian, pb.GaussNewton, lambda *a: pb.Fisher(*a, kind="empirical")):
        op = make(model, nn.CrossEntropyLoss(), (x, y))
        assert bool((op @ torch.ones(op.shape[1])).isfinite().all())


def test_masked_outputs() -> None:
    """Infinite scores of classes that are not allowed are no disagreement."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).masked_fill(torch.tensor([False, False, True]), -torch.inf)

    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 2
    assert torch.isfinite(pb.GaussNewton(Masked(), nn.CrossEntropyLoss(), (x, y)) @ torch.ones(15).double()).all()


def test_a_loss_that_is_infinite_later() -> None:
    """Losses of every batch are looked at, not those of the first alone."""
    model = nn.Linear(3, 1).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    y = torch.zeros(8, dtype=torch.float64)
    y[6] = 1
    for make in (pb.Hessian, pb.GaussNewton, lambda *a: pb.Fisher(*a, kind="empirical")):
        for bad in ("inf", "nan"):
            loss_fn = lambda z, t, bad=bad: z[:, 0] ** 2 + torch.where(t > 0, float(bad), 0.0)
            make(model, loss_fn, [(x[:4], y[:4])])
            with pytest.raises(pb.InputError, match=f"a finite loss for every sample, got {bad} for sample 2"):
                make(model, loss_fn, [(x[:4], y[:4]), (x[4:], y[4:])])


def test_batch_norm_without_running_statistics() -> None:
    """``eval()`` does not help there, and is not advised; the advice given does."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)).eval()
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    for call in (lambda: pb.Hessian(model, nn.CrossEntropyLoss(), (x, y)), lambda: pb.Jacobian(model, x)):
        with pytest.raises(pb.UnsupportedError, match=r"in layer `1`\. Use pb\.frozen_batch_norm") as caught:
            call()
        assert "eval()" not in str(caught.value)
        with pb.frozen_batch_norm(model, x):
            call()


def test_layer_jacobians_compare_samples() -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(0)

    model = nn.Sequential(nn.Linear(3, 4), Mixing(), nn.Linear(4, 2)).double()
    with pytest.raises(pb.UnsupportedError, match=OWN):
        pb.layer_jacobians(model, torch.randn(4, 3, dtype=torch.float64))


def test_inputs_that_cannot_be_differentiated() -> None:
    """A layer that writes to its input by ``out=``: samples are compared in the parameters alone."""

    class Scaled(nn.Module):
        def __init__(self, coupled: bool) -> None:
            super().__init__()
            self.linear, self.coupled = nn.Linear(3, 2).double(), coupled

        def forward(self, x: Tensor) -> Tensor:
            torch.mul(x, 0.25, out=x)
            h = self.linear(x)
            return h - h.mean(0) if self.coupled else h

    x, y, loss_fn = torch.randn(4, 3, dtype=torch.float64), torch.arange(4) % 2, nn.CrossEntropyLoss()
    model = Scaled(False)
    plain = nn.Sequential(model.linear)
    assert_same(pb.Hessian(model, loss_fn, (x, y)).to_dense(), reference.dense_hessian(plain, loss_fn, x / 4, y))
    for make in (pb.Hessian, lambda m, _, data: pb.Jacobian(m, data[0])):
        with pytest.raises(pb.UnsupportedError, match=OWN):
            make(Scaled(True), loss_fn, (x, y))
