"""Whatever a loop calls its loss with: probes measure each sample's own loss, or it is said once what to change."""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.functional.batch import Batch, take
from pullback.functional.model_view import called
from tests.thinned import thinned

N, T, C = 6, 3, 4
PROBES = ("loss", "gradients", "kernel", "samples", "activations", "sharpness", "tangent")


class Net(nn.Module):
    """Two layers over vectors, behind whatever a loop hands over."""

    def __init__(self, outputs: int = C, form: str = "") -> None:
        super().__init__()
        self.first, self.last, self.form = nn.Linear(5, 6), nn.Linear(6, outputs), form

    def forward(self, x: Any, y: Any = None) -> Any:
        z = self.last(torch.tanh(self.first(x["x"] if self.form == "one dict" else x)))
        loss = None if y is None else F.cross_entropy(z, y)
        return {"": z, "dict": {"logits": z, "loss": loss}, "tuple": (z, loss), "one dict": z}[self.form]


class Batched(Net):
    def forward(self, batch: Any) -> Any:  # type: ignore[override]
        return super().forward(batch["x"])


class Tokens(nn.Module):
    """Scores of every position, (N, T, C), or with positions as rows, (N T, C)."""

    def __init__(self, *, rows: bool) -> None:
        super().__init__()
        self.table, self.last, self.rows = nn.Embedding(C, 5), nn.Linear(5, C), rows

    def forward(self, x: Tensor) -> Tensor:
        z = self.last(torch.tanh(self.table(x)))
        return z.flatten(0, 1) if self.rows else z


class Losses(Net):
    """A model that returns its samples' losses, or their mean."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        each = F.cross_entropy(self.last(torch.tanh(self.first(x))), y, reduction="none")
        return each.mean() if self.form == "mean" else each


class Mean(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class Scaled(nn.Module):
    """A loss of the loop's own with a buffer, that writes to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.seen += len(targets)
        return F.cross_entropy(outputs.mul_(2.0), targets) / 3


X, LABELS = torch.randn(N, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(N) % C
NUMBERS = torch.linspace(-1, 2, N, dtype=torch.float64).unsqueeze(1)
IDS = torch.randint(C, (N, T), generator=torch.Generator().manual_seed(2))
NEXT = IDS.roll(1, 0)
BINARY = (LABELS > 1).long()
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
PADDED = NEXT.clone()
PADDED[::2, 1:] = -100
BROKEN = X.clone()
BROKEN[2, 1] = torch.nan


def ce(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y)


def tokens(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.reshape(-1, C), y.reshape(-1))


def bce(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z.reshape(-1), y.reshape(-1).double())


def squared(z: Tensor, y: Tensor) -> Tensor:
    return (z.reshape(-1) - y.reshape(-1)).square().mean()


net, one, ids, rows = Net, partial(Net, 1), partial(Tokens, rows=False), partial(Tokens, rows=True)

# name: model, the loop's loss, what it hands over, the loss of one sample by hand, how the loop's is made of it
TAKEN: dict[str, tuple[Callable[[], nn.Module], Any, Any, Any, Callable[[Tensor, Tensor], Tensor], str]] = {
    "function": (net, F.cross_entropy, X, LABELS, ce, "mean"),
    "partial": (net, partial(F.cross_entropy, label_smoothing=0.1), X, LABELS,
                lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), "mean"),
    "lambda": (net, lambda z, y: F.cross_entropy(z, y), X, LABELS, ce, "mean"),
    "module": (net, Mean(), X, LABELS, ce, "mean"),
    "module that writes": (net, Scaled(), X, LABELS, lambda z, y: F.cross_entropy(2 * z, y) / 3, "mean"),
    "log softmax": (net, lambda z, y: F.nll_loss(z.log_softmax(1), y), X, LABELS, ce, "mean"),
    "picked": (net, lambda z, y: -z.log_softmax(1)[torch.arange(len(y)), y].mean(), X, LABELS, ce, "mean"),
    "each": (net, partial(F.cross_entropy, reduction="none"), X, LABELS, ce, "mean"),
    "sum module": (net, nn.CrossEntropyLoss(reduction="sum"), X, LABELS, ce, "sum"),
    "sum function": (net, partial(F.cross_entropy, reduction="sum"), X, LABELS, ce, "sum"),
    "sum": (net, lambda z, y: F.cross_entropy(z, y, reduction="sum") / 10, X, LABELS,
            lambda z, y: F.cross_entropy(z, y) / 10, "sum"),
    "class weights": (net, lambda z, y: F.cross_entropy(z, y, weight=WEIGHT), X, LABELS, ce, "weighted mean"),
    "column of labels": (net, F.cross_entropy, X, LABELS.unsqueeze(1), ce, "mean"),
    "mse": (one, F.mse_loss, X, NUMBERS, squared, "mean"),
    "half mse": (one, lambda z, y: 0.5 * (z - y).square().sum() / len(y), X, NUMBERS,
                 lambda z, y: squared(z, y) / 2, "mean"),
    "sum of squares": (one, nn.MSELoss(reduction="sum"), X, NUMBERS, squared, "sum"),
    "huber": (one, F.huber_loss, X, NUMBERS, lambda z, y: F.huber_loss(z.view(-1), y), "mean"),
    "bce": (one, F.binary_cross_entropy_with_logits, X, BINARY.double().unsqueeze(1), bce, "mean"),
    "bce of labels": (one, nn.BCEWithLogitsLoss(), X, BINARY, bce, "mean"),
    "bce of a column": (one, F.binary_cross_entropy_with_logits, X, BINARY.unsqueeze(1), bce, "mean"),
    "bce squeezed": (one, lambda z, y: F.binary_cross_entropy_with_logits(z.squeeze(1), y.double()), X, BINARY, bce,
                     "mean"),
    "tokens by a lambda": (ids, lambda z, y: F.cross_entropy(z.view(-1, C), y.view(-1)), IDS, NEXT, tokens, "mean"),
    "tokens": (ids, nn.CrossEntropyLoss(), IDS, NEXT, tokens, "mean"),
    "tokens, flat targets": (ids, F.cross_entropy, IDS, NEXT.view(-1), tokens, "mean"),
    "tokens, sum": (ids, nn.CrossEntropyLoss(reduction="sum"), IDS, NEXT, lambda z, y: T * tokens(z, y), "sum"),
    "rows": (rows, nn.CrossEntropyLoss(), IDS, NEXT, tokens, "mean"),
    "rows, flat targets": (rows, F.cross_entropy, IDS, NEXT.view(-1), tokens, "mean"),
    "rows by a lambda": (rows, lambda z, y: F.cross_entropy(z, y.view(-1)), IDS, NEXT, tokens, "mean"),
    "padded": (ids, lambda z, y: F.cross_entropy(z.view(-1, C), y.view(-1)), IDS, PADDED, tokens, "weighted mean"),
    "one dict": (Batched, F.cross_entropy, {"x": X, "y": LABELS}, LABELS, ce, "mean"),
    "one dict of its names": (partial(Net, form="one dict"), F.cross_entropy, {"x": X, "z": LABELS}, LABELS, ce,
                              "mean"),
    "user dict": (Batched, F.cross_entropy, UserDict({"x": X}), LABELS, ce, "mean"),
    "keywords": (net, F.cross_entropy, UserDict({"x": X}), LABELS, ce, "mean"),
    "own, by key": (partial(Net, form="dict"), lambda z, y: z["loss"], {"x": X, "y": LABELS}, None, ce, "mean"),
    "own": (partial(Net, form="dict"), None, {"x": X, "y": LABELS}, None, ce, "mean"),
    "own, with labels": (partial(Net, form="dict"), lambda z, y: z["loss"], {"x": X, "y": LABELS}, LABELS, ce, "mean"),
    "own, of a tuple": (partial(Net, form="tuple"), lambda z, y: z[1], (X, LABELS), LABELS, ce, "mean"),
    "losses": (Losses, lambda z, y: z, (X, LABELS), None, lambda z, y: z.squeeze(0), "mean"),
    "mean of losses": (Losses, lambda z, y: z.mean(), (X, LABELS), None, lambda z, y: z.squeeze(0), "mean"),
    "arrays": (net, F.cross_entropy, X.numpy(), LABELS.numpy(), ce, "mean"),
    "arrays of other numbers": (net, nn.CrossEntropyLoss(), X.numpy(), LABELS.numpy().astype("int32"), ce, "mean"),
    "labels as floats": (net, F.cross_entropy, X.numpy(), LABELS.numpy().astype("float64"), ce, "mean"),
    "labels in a list": (net, F.cross_entropy, X, LABELS.tolist(), ce, "mean"),
    "arrays of binary labels": (one, nn.BCEWithLogitsLoss(), X.numpy(), BINARY.bool().numpy(), bce, "mean"),
}  # fmt: skip


def watched(
    folder: Path, model: nn.Module, loss_fn: Any, x: Batch, y: Batch, **options: Any
) -> tuple[pb.Run, list[str]]:
    """The record of one measurement, and what was said."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"probes": PROBES, "every": 1, "budget": None} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pb.Monitor(model, loss_fn, folder, optimizer=optimizer, **settings) as monitor:
            monitor.step(x, y)
    return pb.load_run(folder), [str(each.message) for each in caught]


def by_hand(model: nn.Module, x: Batch, y: Batch, loss: Callable[[Any, Any], Tensor]) -> tuple[Tensor, Tensor]:
    """Losses (N,) and gradients (N, P), one sample after the other."""
    x = {key: torch.as_tensor(value) for key, value in x.items()} if hasattr(x, "items") else x
    x = torch.as_tensor(x) if isinstance(x, np.ndarray) else x
    x = (x,) if isinstance(model, Batched) or getattr(model, "form", "") == "one dict" else x
    y = torch.as_tensor(y).view(N, -1).squeeze(1) if y is not None else None
    y = y.long() if y is not None and isinstance(loss, type(ce)) and loss is ce else y
    losses, gradients = [], []
    for i in range(N):
        outputs = called(model, take(x, [i]))
        outputs = outputs["logits"] if isinstance(outputs, dict) else outputs
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        labels = LABELS[[i]] if y is None else y[[i]]
        losses.append(loss(outputs, labels))
        slopes = torch.autograd.grad(losses[-1], list(model.parameters()))
        gradients.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(losses).detach(), torch.stack(gradients)


@pytest.mark.parametrize("name", thinned(tuple(TAKEN)))
def test_each_sample_s_own_loss_is_measured(name: str, tmp_path: Path) -> None:
    make, loss_fn, x, y, each, reduction = TAKEN[name]
    torch.manual_seed(0)
    model = make().double()
    losses, G = by_hand(model, x, y, each)
    kept = [p.clone() for p in model.parameters()]
    probes = [probe for probe in PROBES if not (name == "own, of a tuple" and probe == "tangent")]
    run, said = watched(tmp_path / "run", model, loss_fn, x, y, probes=probes)
    assert not said
    assert [record for record in run.records if record.error] == []
    (form,) = run.of("loss_form")
    assert form.values == {"reduction": reduction, "batch_size": N}
    values = {probe: next(iter(run.of(probe))).values for probe in ("loss", "gradients", "samples", "kernel")}
    assert values["loss"]["loss"] == pytest.approx(float(losses.mean()), rel=1e-9)
    assert values["samples"]["losses"] == pytest.approx(losses.tolist(), rel=1e-9)
    assert values["samples"]["kernel_norm"] == pytest.approx(G.norm(dim=1).tolist(), rel=1e-9)
    assert values["gradients"]["mean_gradient_norm"] == pytest.approx(float(G.mean(0).norm()), rel=1e-9)
    top = torch.linalg.eigvalsh(G @ G.T / N)[-1]
    assert values["kernel"]["eigenvalues"][0] == pytest.approx(float(top), rel=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))
    assert not model._forward_hooks


MIXES = lambda z, y: F.cross_entropy(z - z.mean(0), y)

flat = lambda: nn.Sequential(Net(1), nn.Flatten(0))

REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, Any, Any, str]] = {
    "mixed": (net, MIXES, X, LABELS, "the mean or the sum of its samples' own.*reduction='none'"),
    "drawn": (net, lambda z, y: F.cross_entropy(z + torch.randn_like(z), y), X, LABELS, "reduction='none'"),
    "positions kept": (net, lambda z, y: z.square(), X, LABELS, r"one loss per sample, shape \(6,\), got \(6, 4\)"),
    "spread": (one, nn.MSELoss(), X, NUMBERS[:, 0], r"got \(6,\): .* to \(6, 6\).*`y.view\(-1, 1\)`"),
    "spread, function": (one, F.mse_loss, X, NUMBERS[:, 0], r"Use `y.view\(-1, 1\)`"),
    "spread, by hand": (one, lambda z, y: (z - y).square().mean(), X, NUMBERS[:, 0], r"Use `y.view\(-1, 1\)`"),
    "spread, the other way": (flat, F.l1_loss, X, NUMBERS, r"Use `y.view\(-1\)`"),
    "spread, equal targets": (one, F.mse_loss, X, torch.ones(N, dtype=torch.float64), r"Use `y.view\(-1, 1\)`"),
    "labels out of range": (net, F.cross_entropy, X, LABELS + 1, "labels from 0 to 3, got 4"),
    "labels out of range of a lambda": (net, lambda z, y: F.cross_entropy(z, y), X, LABELS + 1, "IndexError"),
    "too few targets": (net, F.cross_entropy, X, LABELS[:4], "same length, got 6 and 4 samples"),
    "one target": (net, F.cross_entropy, X, torch.tensor(1), "same length, got 6 and 0 samples"),
    "no targets": (net, F.cross_entropy, X, None, "targets that `step` is given"),
    "other inputs": (net, F.cross_entropy, (X, X, X), LABELS, "inputs that the model takes, got TypeError"),
    "a loss alone": (partial(Losses, form="mean"), None, (X, LABELS), None, "a loss alone. Return the outputs too"),
    "a loss of nothing": (net, lambda z, y: 1.0, X, LABELS, "a loss that is a tensor, got float"),
    "not finite": (net, F.cross_entropy, BROKEN, LABELS, "finite numbers in `x`, got NaN or infinity in sample 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_said_once(name: str, tmp_path: Path) -> None:
    """In one warning that names the probes and the remedy; what needs no loss is measured."""
    make, loss_fn, x, y, match = REFUSED[name]
    torch.manual_seed(0)
    model = make().double()
    with pytest.warns(UserWarning, match=match) as caught:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings: dict[str, Any] = {"probes": ("loss", "noise", "inputs", "updates"), "every": 1, "budget": None}
        with pb.Monitor(model, loss_fn, tmp_path / "run", optimizer=optimizer, **settings) as monitor:
            for _ in range(2):
                monitor.step(x, y)
    (text,) = [str(each.message) for each in caught if "Monitor" in str(each.message)]
    assert text.startswith("Monitor: not measured: loss, noise")
    run = pb.load_run(tmp_path / "run")
    errors = [record for record in run.records if record.error]
    assert {record.probe for record in errors} >= {"loss", "noise"}
    assert [record.step for record in errors if record.probe == "loss"] == [1, 2]
    assert not list(run.of("loss"))
    assert list(run.of("updates"))
    spread = [record.values for record in run.of("targets_broadcast")]
    assert bool(spread) == name.startswith("spread")


@pytest.mark.parametrize(
    ("loss_fn", "match"),
    [
        ("mse", "`loss_fn` as a loss that can be called, got 'mse'"),
        (nn.MSELoss, r"got the class MSELoss. Pass MSELoss\(\)"),
        (nn.CosineEmbeddingLoss(), r"a `loss_fn` of \(outputs, targets\), got CosineEmbeddingLoss"),
        (lambda z: z, r"a `loss_fn` of \(outputs, targets\)"),
    ],
)
def test_what_is_no_loss_is_refused_without_data(loss_fn: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match=match):
        pb.Monitor(Net(), loss_fn, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_sum_is_descended_as_many_times_as_it_has_samples(optimizer: Any, tmp_path: Path) -> None:
    """Curvature against the limit, the norm that decay holds, and the step of `shift` are those of the sum."""
    found = {}
    for reduction in ("mean", "sum"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, eps=1e-12), nn.Tanh(), nn.Linear(6, C)).double()
        made = optimizer(model.parameters(), lr=0.01, weight_decay=0.1)
        loss_fn = nn.CrossEntropyLoss(reduction=reduction)
        loss_fn(model(X), LABELS).backward()
        made.step()
        probes = ("sharpness", "effective_lr", "shift", "noise")
        with pb.Monitor(
            model, loss_fn, tmp_path / reduction, optimizer=made, every=1, budget=None, probes=probes
        ) as monitor:
            monitor.step(X, LABELS)
        run = pb.load_run(tmp_path / reduction)
        assert not [record.error for record in run.records if record.error]
        found[reduction] = {probe: next(iter(run.of(probe))).values for probe in probes}, model
        H = pb.Hessian(model, nn.CrossEntropyLoss(), (X, LABELS)).to_dense()
        top = float(torch.linalg.eigvalsh(H)[-1]) * (N if reduction == "sum" else 1)
        sharpness = found[reduction][0]["sharpness"]
        assert sharpness["hessian"] == pytest.approx(top, rel=sharpness["hessian_residual"])
        assert sharpness["limit"] == pytest.approx(200)
        if optimizer is torch.optim.SGD:
            continue
        own = pb.diagnostics.preconditioned_sharpness(model, nn.CrossEntropyLoss(), (X, LABELS), made).values[0]
        expected = float(own) * (N if reduction == "sum" else 1)
        assert sharpness["preconditioned"] == pytest.approx(expected, rel=sharpness["preconditioned_residual"])
    if optimizer is torch.optim.SGD:
        (values, model) = found["sum"]
        x, y = X, LABELS
        each = lambda z, y: N * F.cross_entropy(z, y, reduction="none")
        shift = pb.measure.internal_covariate_shift(model, each, x, y, 0.01)
        change = dict(zip(shift.layers, (shift.shift / shift.norm).tolist(), strict=True))
        assert values["shift"]["change"] == pytest.approx(change, rel=1e-9)
        layer = next(iter(values["effective_lr"]["equilibrium"]))
        w = dict(model.named_parameters())
        group = [p for name, p in w.items() if name.startswith(f"{layer}.")]
        g = torch.autograd.grad(F.cross_entropy(model(X), LABELS, reduction="sum"), group)
        norm = torch.cat([p.flatten() for p in group]).norm().item()
        slope = torch.cat([s.flatten() for s in g]).norm().item()
        expected = pb.diagnostics.equilibrium_norm(0.01, 0.1, slope * norm)
        assert values["effective_lr"]["equilibrium"][layer] == pytest.approx(expected, rel=1e-9)


def test_batches_that_change(tmp_path: Path) -> None:
    """Of one sample a mean is a sum; what a larger batch shows is recorded then, and once. Forms may change."""
    torch.manual_seed(0)
    model = Tokens(rows=False).double()
    loss_fn = lambda z, y: F.cross_entropy(z.view(-1, C), y.view(-1), reduction="sum")
    settings: dict[str, Any] = {"probes": ("loss", "noise"), "every": 1, "budget": None}
    with pb.Monitor(model, loss_fn, tmp_path / "run", **settings) as monitor:
        monitor.step(IDS[:1], NEXT[:1])
        monitor.step(IDS, NEXT)
        monitor.step(IDS[:, :2], NEXT[:, :2].reshape(-1))
        monitor.step(IDS[:4], NEXT[:4])
    run = pb.load_run(tmp_path / "run")
    assert [(r.step, r.values["reduction"]) for r in run.of("loss_form")] == [(2, "sum")]
    expected = [
        (T * tokens(model(IDS[:1]), NEXT[:1])).item(),
        (T * tokens(model(IDS), NEXT)).item(),
        (2 * tokens(model(IDS[:, :2]), NEXT[:, :2])).item(),
        (T * tokens(model(IDS[:4]), NEXT[:4])).item(),
    ]
    assert run.series("loss", "loss")[1] == pytest.approx(expected, rel=1e-9)


class Large(nn.Module):
    """Activations of 1e20, and a finite loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.relu(self.middle(h * 1e20)) * 1e-20)


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), lambda z, y: F.cross_entropy(z, y)])
def test_activations_whose_squares_overflow(loss_fn: Any, tmp_path: Path) -> None:
    """The kernel says in which layer; what needs no squares is measured all the same."""
    torch.manual_seed(0)
    model = Large()
    run, said = watched(tmp_path / "run", model, loss_fn, X.float(), LABELS)
    failed = {record.probe: record.error for record in run.records if record.error}
    assert set(failed) == {"kernel", "samples", "tangent"}
    assert all("above 3.4e+38 in `middle`" in error for error in failed.values())
    assert len(said) == 1
    assert "`middle`" in said[0]
    loss = F.cross_entropy(model(X.float()), LABELS)
    (values,) = run.of("loss")
    assert values.values["loss"] == pytest.approx(loss.item(), rel=1e-5)
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    expected = float(torch.cat([s.flatten().double() for s in slopes]).norm())
    (values,) = run.of("gradients")
    assert values.values["mean_gradient_norm"] == pytest.approx(expected, rel=1e-5)
    assert list(run.of("activations"))
    for call in (
        lambda: pb.backward_kernel(model, nn.CrossEntropyLoss(), X.float(), LABELS),
        lambda: pb.tangent_kernel(model, X.float()),
        lambda: pb.tangent_kernel(model, X.float(), contract="diagonal"),
    ):
        with pytest.raises(pb.UnsupportedError, match="can hold, got some above 3.4e\\+38 in `middle`"):
            call()


@dataclass(frozen=True)
class Returned:
    """Outputs as many packages have them: a record, which is no dict."""

    loss: Tensor | None
    logits: Tensor


class ReturnsRecord(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Returned:
        z = self.layer(x)
        return Returned(None if labels is None else F.cross_entropy(z, labels), z)


@pytest.mark.parametrize("own", [True, False])
def test_outputs_that_are_a_dataclass(own: bool, tmp_path: Path) -> None:
    """The model's own loss, or one of its scores; each sample's, as the kernels have it too."""
    torch.manual_seed(0)
    model, x, y = ReturnsRecord(), torch.randn(12, 5), torch.arange(12) % 3
    loss_fn: Any = None if own else lambda outputs, targets: F.cross_entropy(outputs.logits, targets)
    with pb.Monitor(model, loss_fn, tmp_path / "run", probes=["loss", "kernel"], budget=None, every=1) as monitor:
        monitor.step({"x": x, "labels": y} if own else x, y, loss=1.0)
    run = pb.load_run(tmp_path / "run")
    assert not [record for record in run.records if record.error]
    assert run.series("loss", "loss")[1] == pytest.approx([F.cross_entropy(model.layer(x), y).item()])
    plain = pb.backward_kernel(model.layer, nn.CrossEntropyLoss(), x, y)
    each = lambda outputs, targets: F.cross_entropy(outputs.logits, targets, reduction="none")
    torch.testing.assert_close(pb.backward_kernel(model, each, x, y).total, plain.total)
