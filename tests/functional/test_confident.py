"""Curvature of predictions that are all but certain, by every route, against sums over pairs of classes in float64.

diag(p) - p p^T = sum over a < b of p_a p_b (e_a - e_b)(e_a - e_b)^T: no term cancels another, so that float64 has all
digits at any margin. A route is allowed 100 roundings of its own dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.functional import output_hessian
from tests.compare import assert_same
from tests.thinned import thinned

N, C = 6, 4
MARGINS = (5.0, 16.0, 20.0, 40.0, 60.0)
DTYPES = (torch.float32, torch.float64)


class Shift(nn.Module):
    """Scores plus a parameter for each; then log-probabilities, if asked for."""

    def __init__(self, shape: tuple[int, ...], log: bool = False) -> None:
        super().__init__()
        self.b, self.log = nn.Parameter(torch.zeros(shape)), log

    def forward(self, z: Tensor) -> Tensor:
        return (z + self.b).log_softmax(1) if self.log else z + self.b


def scores(margin: float, *shape: int) -> Tensor:
    make = torch.Generator().manual_seed(int(margin))
    z = torch.randn(N, *shape, generator=make).double()
    z[:, 0] += margin
    return z


def of_classes(z: Tensor) -> Tensor:
    """diag(p) - p p^T of scores (..., C), by pairs."""
    p = z.double().softmax(-1)
    pairs = p.unsqueeze(-1) * p.unsqueeze(-2)
    pairs = pairs - torch.diag_embed(pairs.diagonal(dim1=-2, dim2=-1))
    return torch.diag_embed(pairs.sum(-1)) - pairs


def of_bits(z: Tensor) -> Tensor:
    z = z.double()
    return torch.diag_embed(z.sigmoid() * (-z).sigmoid())


LABELS = torch.tensor([0, 0, 1, 2, 0, 3])
SOFT = torch.tensor([0.75, 0.125, 0.0625, 0.0625]).double().expand(N, C)
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 3.0]).double()
BITS = (LABELS.unsqueeze(1) == torch.arange(C)).double()


def _gathered(z: Tensor, y: Tensor) -> Tensor:
    return -torch.log_softmax(z, 1).gather(1, y.unsqueeze(1)).squeeze(1)


def _by_sums(z: Tensor, y: Tensor) -> Tensor:
    return z.logsumexp(1) - z.gather(1, y.unsqueeze(1)).squeeze(1)


ONE = torch.ones(N).double()
LOSSES: dict[str, tuple[Callable[..., Tensor], Tensor, Callable[[Tensor], Tensor], Tensor]] = {
    "cross entropy": (nn.CrossEntropyLoss(), LABELS, of_classes, ONE),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), LABELS, of_classes, ONE),
    "weights, sum": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), LABELS, of_classes, WEIGHT[LABELS]),
    "weights, mean": (nn.CrossEntropyLoss(weight=WEIGHT), LABELS, of_classes, ONE),
    "probabilities": (nn.CrossEntropyLoss(), SOFT, of_classes, ONE),
    "callable": (lambda z, y: F.cross_entropy(z, y, reduction="none"), LABELS, of_classes, ONE),
    "log_softmax": (_gathered, LABELS, of_classes, ONE),
    "logsumexp": (_by_sums, LABELS, of_classes, ONE),
    "divergence": (lambda z, y: F.kl_div(z.log_softmax(1), y, reduction="none").sum(1), SOFT, of_classes, ONE),
    "bits": (nn.BCEWithLogitsLoss(reduction="sum"), BITS, of_bits, ONE),
    "bits, mean": (nn.BCEWithLogitsLoss(), BITS, of_bits, ONE / C),
    "multi-label": (nn.MultiLabelSoftMarginLoss(), BITS, of_bits, ONE / C),
    "margins": (lambda z, y: F.soft_margin_loss(z, 2 * y - 1, reduction="none").sum(1), BITS, of_bits, ONE),
    "counts": (nn.PoissonNLLLoss(reduction="sum"), BITS, lambda z: torch.diag_embed(z.double().exp()), ONE),
}


def in_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() else t


@pytest.mark.parametrize(("name", "margin", "dtype"), thinned(tuple(LOSSES), MARGINS, DTYPES))
def test_gauss_newton(name: str, margin: float, dtype: torch.dtype) -> None:
    loss_fn, y, bend, factors = LOSSES[name]
    z = scores(margin, C).to(dtype)
    if isinstance(loss_fn, nn.Module):
        loss_fn = loss_fn.to(dtype)
    each = factors.view(-1, 1, 1) * bend(z)
    y, tolerance, v = in_dtype(y, dtype), 100 * torch.finfo(dtype).eps, torch.randn(C).to(dtype)
    assert_same(output_hessian(loss_fn, z, y).double(), each, tolerance)
    for maker in (pb.GaussNewton, pb.Hessian):  # the model is linear in its parameters
        op = maker(Shift((C,)).to(dtype), loss_fn, (z, y))
        assert_same(op.to_dense().double(), each.mean(0), tolerance)
        assert_same((op @ v).double(), each.mean(0) @ v.double(), tolerance, scale=float(each.mean(0).abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", MARGINS)
def test_true_fisher(margin: float, dtype: torch.dtype) -> None:
    z, tolerance = scores(margin, C).to(dtype), 100 * torch.finfo(dtype).eps
    for log, loss_fn, y, dense in (
        (False, nn.CrossEntropyLoss(), LABELS, of_classes(z).mean(0)),
        (True, nn.NLLLoss(), LABELS, of_classes(z).mean(0)),
        (False, nn.BCEWithLogitsLoss(reduction="sum"), BITS.to(dtype), of_bits(z).mean(0)),
    ):
        fisher = pb.Fisher(Shift((C,), log).to(dtype), loss_fn, (z, y))
        assert_same(fisher.to_dense().double(), dense, tolerance)


@pytest.mark.parametrize("margin", MARGINS)
def test_positions(margin: float) -> None:
    """Sequences (N, C, T) with positions that do not count."""
    T = 3
    z, y = scores(margin, C, T).float(), LABELS.unsqueeze(1).repeat(1, T)
    y[:, 1] = -100
    each = of_classes(z.movedim(1, -1))  # (N, T, C, C)
    each[:, 1] = 0
    dense = torch.einsum("ntab,ts->natbs", each / 2, torch.eye(T).double()).mean(0).reshape(C * T, C * T)
    model, loss_fn, tolerance = Shift((C, T)), nn.CrossEntropyLoss(), 100 * torch.finfo(z.dtype).eps
    assert_same(pb.GaussNewton(model, loss_fn, (z, y)).to_dense().double(), dense, tolerance)
    assert_same(pb.Fisher(model, loss_fn, (z, y)).to_dense().double(), dense / 2, tolerance)


@pytest.mark.parametrize("matrix", ["gauss_newton", "true_fisher", "empirical_fisher"])
@pytest.mark.parametrize("margin", MARGINS)
def test_spectra_by_both_routes(margin: float, matrix: str) -> None:
    z = scores(margin, C).float()
    p = z.double().softmax(1)
    slopes = p - F.one_hot(torch.zeros_like(LABELS), C)
    slopes[:, 0] = -p[:, 1:].sum(1)
    dense = slopes.T @ slopes / N if matrix == "empirical_fisher" else of_classes(z).mean(0)
    expected = torch.linalg.eigvalsh(dense).flip(0)[:2]
    for method in ("gram", "lanczos", "auto"):
        found = pb.curvature_spectrum(Shift((C,)), nn.CrossEntropyLoss(), (z, 0 * LABELS), matrix, k=2, method=method)
        assert found.converged
        if float(expected[0]) < torch.finfo(z.dtype).tiny:  # squares of slopes of e^-60
            assert len(found.values) == 0
            continue
        assert_same(found.values.double(), expected, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_root_and_its_square(dtype: torch.dtype) -> None:
    """The mean of z z^T over drawn z is the matrix: five standard errors of a mean of normal products."""
    z, count = scores(20.0, C).to(dtype), 4000
    op = pb.GaussNewton(Shift((C,)).to(dtype), nn.CrossEntropyLoss(), (z, LABELS))
    drawn = op.sample(count).double()
    dense = of_classes(z).mean(0)
    error = ((dense.diagonal().outer(dense.diagonal()) + dense**2) / count).sqrt()
    assert bool(((drawn @ drawn.T / count - dense).abs() <= 5 * error).all())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_values_are_those_of_torch(dtype: torch.dtype) -> None:
    """Losses and log-probabilities, also where scores are equal, infinite, masked or of an unusual layout."""
    from pullback.functional.differentiable import elementary

    z = torch.randn(N, C).to(dtype)
    z[0], z[1, 2], z[2] = 0.0, -torch.inf, torch.tensor([50.0, 50.0, -50.0, 0.0])
    y, weight = LABELS.clone(), WEIGHT.to(dtype)
    y[4] = -100
    calls: list[Callable[[], Tensor]] = [
        lambda: z.log_softmax(1),
        lambda: F.log_softmax(z, dim=-1, dtype=torch.float64),
        lambda: z.logsumexp(1),
        lambda: torch.logsumexp(z, (0, 1), keepdim=True),
        lambda: torch.logsumexp(torch.full_like(z, -torch.inf), 1),
        lambda: torch.log_softmax(z[3], 0),
        lambda: F.softplus(z, beta=2.0),
        lambda: F.logsigmoid(z[3]),
        lambda: F.cross_entropy(z[3:], y[3:], weight=weight, label_smoothing=0.1),
        lambda: F.cross_entropy(z, y, reduction="sum"),
        lambda: F.cross_entropy(z[3:], SOFT[3:].to(dtype), weight=weight, label_smoothing=0.1),
        lambda: F.cross_entropy(z[3], y[3]),
        lambda: F.cross_entropy(z[3:].unsqueeze(2), y[3:].unsqueeze(1), reduction="none"),
        lambda: F.binary_cross_entropy_with_logits(z[3:], BITS[3:].to(dtype), weight=weight, pos_weight=weight),
        lambda: F.multilabel_soft_margin_loss(z[3:], BITS[3:].to(dtype), weight=weight),
        lambda: F.soft_margin_loss(z[3:], 2 * BITS[3:].to(dtype) - 1),
    ]
    for call in calls:
        with elementary():
            found = call()
        assert found.dtype == call().dtype
        torch.testing.assert_close(found, call())
    with elementary():
        assert bool(torch.log_softmax(torch.tensor([torch.inf, 0.0]), 0).isnan().all())
