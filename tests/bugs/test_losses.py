"""Losses and data that were let through wrongly, or failed inside torch instead of with a sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.functional import per_sample_loss, token_readout
from tests.compare import assert_same


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _x(n: int = 4) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64)


@pytest.mark.parametrize("ignored", [-100, 255, 1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_labels_under_class_weights(ignored: int, reduction: str) -> None:
    """The number of the ignored class was looked up in the table of class weights."""
    z = torch.randn(3, 4, 5, dtype=torch.float64)
    y = torch.randint(4, (3, 5)).where(torch.arange(5) > 0, ignored)
    loss = nn.CrossEntropyLoss(torch.rand(4).double(), ignore_index=ignored, label_smoothing=0.1, reduction=reduction)
    assert_same(per_sample_loss(loss, z, y), torch.stack([loss(z[i : i + 1], y[i : i + 1]) for i in range(3)]))


class Tokens(nn.Module):
    """Scores of the next token, classes second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids)).transpose(1, 2)


def test_ignored_tokens_under_class_weights() -> None:
    model, loss = Tokens().double(), nn.CrossEntropyLoss(torch.rand(5).double(), ignore_index=255)
    x, y = torch.randint(5, (3, 2)), torch.tensor([[1, 255], [2, 3], [255, 4]])
    rows = []
    for i in range(3):
        for t in range(2):
            scores = model(x[i : i + 1])[:, :, t]
            value = loss(scores, y[i : i + 1, t]) if y[i, t] != 255 else scores.sum() * 0
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]))
    G = torch.stack(rows)
    assert_same(pb.backward_kernel(model, loss, x, y, per="token").total, G @ G.T)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss, nn.BCELoss])
def test_a_weight_for_each_sample(loss: type[nn.Module]) -> None:
    """It was spread over every sample's outputs; the kernel was wrong without a word."""
    x, y = _x(), torch.rand(4, 3).double()
    model = nn.Sequential(_model(), nn.Sigmoid())
    text = rf"a `weight` of {loss.__name__} that broadcasts to one sample's outputs \(1, 3\), got \(4, 1\)"
    with pytest.raises(pb.InputError, match=text):
        pb.backward_kernel(model, loss(weight=torch.rand(4, 1).double()), x, y)
    weighted = loss(weight=torch.rand(3).double())  # one for each output is the same for all samples
    found = pb.backward_kernel(model, weighted, x, y).total
    assert_same(found, pb.reference.total_kernel(model, weighted, x, y))


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss()])
def test_targets_that_would_broadcast(loss: nn.Module) -> None:
    with pytest.raises(pb.InputError, match=r"targets of the outputs' shape \(4, 3\), got \(4,\)"):
        pb.backward_kernel(_model(), loss, _x(), torch.randn(4).double())


def test_labels_of_log_probabilities_out_of_range() -> None:
    model = nn.Sequential(_model(), nn.LogSoftmax(1))
    with pytest.raises(pb.InputError, match="labels from 0 to 2, got 3 for sample 1"):
        pb.backward_kernel(model, nn.NLLLoss(), _x(), torch.tensor([0, 3, 1, 2]))
    loss, y = nn.NLLLoss(torch.rand(3).double(), ignore_index=7, reduction="sum"), torch.tensor([0, 7, 1, 2])
    x = _x()
    assert_same(pb.backward_kernel(model, loss, x, y).total, pb.reference.total_kernel(model, loss, x, y))


class Several(nn.Module):
    """Returns more than one tensor."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.body, self.kind = _model(), kind

    def forward(self, x: Tensor) -> object:
        return {"scores": self.body(x), "x": x} if self.kind is dict else (self.body(x), x)


@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.HuberLoss()])
def test_losses_of_torch_need_one_tensor(kind: type, loss: nn.Module) -> None:
    y = torch.arange(4) % 3 if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(4, 3).double()
    with pytest.raises(
        pb.InputError, match=f"one tensor, or have `logits`, for {type(loss).__name__}, got {kind.__name__}"
    ):
        pb.backward_kernel(Several(kind), loss, _x(), y)


@pytest.mark.parametrize(("x", "y", "name", "got"), [("numpy", "", "x", "ndarray"), ("", "list", "y", "list")])
def test_data_that_are_no_tensors(x: str, y: str, name: str, got: str) -> None:
    data, labels = _x(), torch.arange(4) % 3
    with pytest.raises(pb.InputError, match=rf"`{name}` as a tensor \(N, ...\), .* got {got}"):
        pb.backward_kernel(
            _model(), nn.CrossEntropyLoss(), data.numpy() if x else data, labels.tolist() if y else labels
        )


def test_outputs_whose_sum_overflows_are_finite() -> None:
    """Half-precision outputs were added up before they were tested."""
    model = nn.Linear(2, 40, bias=False).half()
    with torch.no_grad():
        model.weight.fill_(2000.0)
    found = pb.tangent_kernel(model, torch.ones(2, 2).half(), contract="trace")
    assert found.total.tolist() == [[80.0, 80.0], [80.0, 80.0]]  # 40 outputs of two ones each


@pytest.mark.parametrize(
    ("loss_fn", "targets", "text"),
    [
        (nn.CrossEntropyLoss(weight=torch.ones(5)), "labels", r"a `weight` of CrossEntropyLoss .* \(3,\), got \(5,\)"),
        (nn.NLLLoss(weight=torch.ones(2)), "labels", r"a `weight` of NLLLoss .* \(3,\), got \(2,\)"),
        (nn.MultiMarginLoss(weight=torch.ones(4)), "labels", r"a `weight` of MultiMarginLoss .* got \(4,\)"),
        (nn.CrossEntropyLoss(weight=torch.ones(5)), "probabilities", r"a `weight` of CrossEntropyLoss"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(7)), "probabilities", r"a `pos_weight` .* \(1, 3\), got \(7,\)"),
        (nn.MultiLabelSoftMarginLoss(weight=torch.ones(2)), "probabilities", r"a `weight` of MultiLabelSoftMarginLoss"),
        (nn.CrossEntropyLoss(), "too many", r"targets of the outputs' shape \(6, 3\), got \(6, 4\)"),
    ],
)
def test_weights_and_targets_of_another_number_of_classes(loss_fn: nn.Module, targets: str, text: str) -> None:
    """Some were accepted: the table of weights is only ever read at the labels."""
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    y = torch.arange(6) % 3 if targets == "labels" else torch.rand(6, 3 + (targets == "too many"))
    for call in (pb.backward_kernel, lambda m, loss, a, b: pb.Hessian(m, loss, (a, b))):
        with pytest.raises(pb.InputError, match=text):
            call(model, loss_fn, x, y)


@pytest.mark.parametrize("weight", [torch.ones(5), torch.ones(2)])
def test_weights_of_a_plain_callable_are_checked_as_torch_does(weight: Tensor) -> None:
    """Also where its cross-entropy is computed in another way, for second derivatives."""
    for function in (F.cross_entropy, F.multi_margin_loss):

        def loss(z: Tensor, t: Tensor, function: Any = function) -> Tensor:
            return function(z, t, weight=weight, reduction="none")

        with pytest.raises(RuntimeError, match="weight"):
            pb.Hessian(nn.Linear(4, 3), loss, (torch.randn(6, 4), torch.arange(6) % 3))


ONE_EACH = {
    "squared": (nn.MSELoss(), lambda n: torch.randn(n).double()),
    "binary": (nn.BCEWithLogitsLoss(reduction="sum"), lambda n: torch.rand(n).double()),
    "counts": (nn.PoissonNLLLoss(), lambda n: torch.randint(4, (n,)).double()),
}


@pytest.mark.parametrize("name", ONE_EACH)
def test_outputs_without_an_axis_have_curvature_in_closed_form(name: str) -> None:
    """(N,) beside targets (N,): spectra, Levenberg-Marquardt and the natural gradient looked for a third axis."""
    loss, targets = ONE_EACH[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)).double()
    x, y = _x(6), targets(6)
    A = pb.reference.dense_gauss_newton(model, loss, x, y)
    for matrix in ("gauss_newton", "true_fisher"):
        values = pb.curvature_spectrum(model, loss, (x, y), matrix, method="gram").values
        assert_same(values, torch.linalg.eigvalsh(A).flip(0)[: len(values)], 1e-9)
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    gradient = pb.reference.gradient_matrix(model, loss, x, y).mean(0)
    expected = weights - torch.linalg.solve(A + 0.5 * torch.eye(len(A)), gradient)
    for method in (pb.dynamics.LevenbergMarquardt, pb.dynamics.NaturalGradient):
        moved = copy.deepcopy(model)
        method(moved, loss, damping=0.5, form="kernel").step(x, y)
        assert_same(nn.utils.parameters_to_vector(moved.parameters()).detach(), expected, 1e-9)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_labels_of_any_whole_numbers(dtype: torch.dtype) -> None:
    model, loss, x, y = _model(), nn.CrossEntropyLoss(), _x(), torch.tensor([0, 2, 1, 1])
    assert_same(pb.backward_kernel(model, loss, x, y.to(dtype)).total, pb.backward_kernel(model, loss, x, y).total)
    z = torch.randn(2, 3, 4)
    for readout in (per_sample_loss, lambda *given: token_readout(given[0]).values(*given[1:], "here")):
        labels = torch.randint(3, (2, 4))
        assert_same(readout(loss, z, labels.to(dtype)), readout(loss, z, labels))


def test_samples_without_a_label_have_no_information() -> None:
    """Their factor was one over no terms, and all products of the Fisher matrix were NaN."""
    model, loss, x, y = _model(), nn.CrossEntropyLoss(), _x(), torch.tensor([0, -100, 2, 1])
    kept = y >= 0
    expected = 0.75 * pb.reference.dense_fisher(model, loss, x[kept], y[kept])
    assert_same(pb.Fisher(model, loss, (x, y)).to_dense(), expected)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _model()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x)}


def test_a_loss_of_all_that_a_model_returns() -> None:
    """Kernels hand it over; where the second derivative in the logits is asked for, they are all there is."""
    model, x, y = Named(), _x(), torch.tensor([0, 2, 1, 1])
    loss = lambda found, labels: F.cross_entropy(found["logits"], labels, reduction="none")
    known = pb.backward_kernel(model.inner, nn.CrossEntropyLoss(), x, y).total
    assert_same(pb.backward_kernel(model, loss, x, y).total, known)
    with pytest.raises(pb.UnsupportedError, match="a loss that takes one tensor, the model's `logits`, got IndexError"):
        pb.self_influence(model, loss, (x, y), damping=0.1)
