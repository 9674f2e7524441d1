"""How a batch's loss is read: of which losses of samples it is made, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pullback as pb
from pullback.monitor.adapters import base_class
from pullback.monitor.readings import read
from tests.compare import assert_same

Z = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 2, 1, 0])
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
EACH = F.cross_entropy(Z, Y, reduction="none")

LOSSES: dict[str, tuple[Callable[..., Any], str]] = {
    "mean": (lambda z, y: F.cross_entropy(z, y), "mean"),
    "sum": (lambda z, y: F.cross_entropy(z, y, reduction="sum"), "sum"),
    "one each": (lambda z, y: F.cross_entropy(z, y, reduction="none"), "mean"),
    "weights of classes": (lambda z, y: F.cross_entropy(z, y, weight=WEIGHT), "weighted mean"),
    "shifted": (lambda z, y: F.cross_entropy(z, y) - 3.0, "mean"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_is_made_of(name: str) -> None:
    loss, expected = LOSSES[name]
    each, form = read(loss, Z, Y, (False, False))
    assert form == expected
    own = EACH - 3.0 if name == "shifted" else EACH
    if name != "one each":
        assert_same(each(Z, Y), own)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: F.cross_entropy(z, y) ** 2,
        lambda z, y: F.cross_entropy(z, y) + 1e-3 * z.var(0, correction=0).sum(),
    ],
    ids=["square", "between samples"],
)
def test_what_is_made_of_no_losses_of_samples(loss: Callable[..., Any]) -> None:
    with pytest.raises(pb.InputError, match="a loss of the batch that is the mean or the sum of its samples' own"):
        read(loss, Z, Y, (False, False))


def test_losses_of_another_shape() -> None:
    with pytest.raises(pb.InputError, match=r"a scalar or one loss per sample, shape \(6,\), got \(6, 3\)"):
        read(lambda z, y: z.square(), Z, Y, (False, False))
    with pytest.raises(pb.InputError, match="finite"):
        read(lambda z, y: (z.square().sum(1) * torch.inf).mean(), Z, Y, (False, False))


def test_a_loss_that_is_known_stays_what_it_is() -> None:
    """torch's own loss with outputs and targets it takes; called by the loop itself it is read."""
    known = nn.CrossEntropyLoss()
    assert read(known, Z, Y, (False, False)) == (known, "mean")
    target = F.one_hot(Y, 3).double()
    for loss in (nn.MSELoss(), nn.MSELoss(reduction="sum")):
        found, form = read(loss, Z, target, (False, False))
        assert (found is loss, form) == (True, loss.reduction)


def test_samples_without_a_label_that_counts_have_no_loss() -> None:
    """Alone their mean is 0 / 0; the package's own loss has 0 for them, as kernels do."""
    known, y = nn.CrossEntropyLoss(ignore_index=1), torch.tensor([0, 1, 2, 2, 1, 0])
    found, form = read(known, Z, y, (False, False))
    assert (found is known, form) == (True, "weighted mean")
    with pytest.raises(pb.InputError, match="of which sample 1 alone has nan, as one without a label that counts has"):
        read(lambda z, y: F.cross_entropy(z, y, ignore_index=1), Z, y, (False, False))
    nothing = torch.ones_like(y)
    with pytest.raises(pb.InputError, match="a finite loss for every sample, got nan for sample 0"):
        read(known, Z, nothing, (False, False))


def test_targets_that_would_be_spread() -> None:
    """(N, 1) against (N,): every output against every target."""
    z, y = Z[:, :1], Z[:, 1]
    with pytest.raises(pb.InputError, match=r"targets of the outputs' shape, \(6, 1\), got \(6,\)"):
        read(lambda z, y: ((z - y) ** 2).mean(), z, y, (False, False))
    read(lambda z, y: ((z.squeeze(1) - y) ** 2).mean(), z, y, (False, False))
    read(lambda z, y: ((z - y) ** 2).mean(), z[:1], y[:1], (False, False))  # one sample spreads nothing


def test_a_package_that_lacks_one_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is told as it is; only where the package itself is not there the next one is tried."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lacks_one.py").write_text("import no_such_package_of_anyone\n")
    (tmp_path / "there.py").write_text("class Callback:\n    pass\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_anyone"):
        base_class(("lacks_one", "there"), "Callback", "some")
    assert base_class(("not_there.inside", "there"), "Callback", "some").__name__ == "Callback"
    with pytest.raises(
        pb.InputError, match=r"pullback.monitor\[some\]: expected the package not_there or nor_here, got"
    ):
        base_class(("not_there.inside", "nor_here"), "Callback", "some")
