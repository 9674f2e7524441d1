"""Losses whose smallest value nobody has said: what goes wrong is named, what goes well or stands is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.advisor import verdict
from pullback.advisor.training_losses import constant_loss
from tests.advisor.runs import a_run, found

ANCHORS = 2.0 * torch.eye(4)[:3]  # of the classes


def smoothed(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, label_smoothing=0.1)


def density(outputs: Tensor, y: Tensor) -> Tensor:
    """Of a normal distribution, less a constant: below 0 from the start."""
    scale = F.softplus(outputs[:, 1]) + 1e-3
    return (scale.log() + ((y - outputs[:, 0]) / scale).square() / 2).mean() - 5


def huber(outputs: Tensor, y: Tensor) -> Tensor:
    return F.huber_loss(outputs[:, 0], y.float())


def triplet(outputs: Tensor, y: Tensor) -> Tensor:
    distances = torch.cdist(outputs, ANCHORS)
    nearest = (distances + 1e6 * F.one_hot(y, 3)).min(1)[0]
    return F.relu(distances.gather(1, y[:, None])[:, 0] - nearest + 1).mean()


def contrastive(outputs: Tensor, y: Tensor) -> Tensor:
    distances, same = torch.cdist(outputs, ANCHORS), F.one_hot(y, 3)
    return (same * distances.square() + (1 - same) * F.relu(2 - distances).square()).sum(1).mean()


def trained(folder: Path, loss_fn: Callable[[Tensor, Tensor], Tensor], rate: float, batch: int) -> list[float]:
    """Three clouds of points and a small network that momentum trains; the losses of its loop."""
    torch.manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randn(120, 6) + F.one_hot(y, 6)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    shown = []
    with pb.Monitor(model, loss_fn, folder, optimizer=optimizer, probes=("loss", "updates")) as monitor:
        for _ in range(60):
            chosen = torch.randint(0, 120, (batch,))
            optimizer.zero_grad()
            loss = loss_fn(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            monitor.step(x[chosen], y[chosen], loss=loss)
            shown.append(float(loss))
    return shown


@pytest.mark.parametrize("loss_fn", [smoothed, density, huber, triplet, contrastive])
def test_what_goes_wrong_is_named_and_what_goes_well_or_stands_is_not(loss_fn, tmp_path: Path) -> None:
    told = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, rate, batch in (("wrong", 20.0, 24), ("well", 0.01, 24), ("stands", 1e-6, 24), ("few", 1e-4, 2)):
            shown = trained(tmp_path / name, loss_fn, rate, batch)
            run = pb.load_run(tmp_path / name)
            assert "least_loss" not in run.meta
            told[name] = "divergence" in [each.name for each in pb.diagnose(run)]
            assert verdict(run).startswith("Diverges" if told[name] else ("Reached", "Ends", "Learns nothing"))
            assert not (verdict(run).startswith("Reached") and sorted(shown[-6:])[2] > shown[0])
    fell = loss_fn is triplet  # a bounded gradient: its loss comes back however high the rate
    assert told == {"wrong": not fell, "well": False, "stands": False, "few": False}


@pytest.mark.parametrize("shift", [-40.0, 0.0, 1000.0])
@pytest.mark.parametrize("scale", [1.0, 2.0**-10])
def test_neither_a_constant_nor_a_unit_changes_what_is_said(shift: float, scale: float) -> None:
    def diverges(values: list[float], size: float = 0.01) -> bool:
        updates = (1, "updates", {"median": size})
        moved = [shift + scale * value for value in values]
        return found("divergence", updates, least=None, loss=moved) is not None

    noise = [1.0, *[6.0, 17.0, 29.0] * 20]
    assert diverges(noise, 2.0)  # of steps twice as long as the weights
    assert not diverges(noise)  # a first batch may be an easy one
    assert diverges([1.0 - 0.01 * k for k in range(40)] + [4.0] * 10)  # ten times what it fell
    assert not diverges([1.0 - 0.01 * k for k in range(80)] + [4.0] * 10)
    assert not diverges([1.0 + 0.1 * k for k in range(60)], 2.0)  # evenly, as a weight that grows by plan


def test_an_easy_first_batch_is_no_divergence_where_one_answer_s_loss_is_not_known() -> None:
    noise = [0.1, *[0.2, 0.9, 0.4] * 20]
    assert found("divergence", (1, "updates", {"median": 0.01}), loss=noise) is None
    assert found("divergence", (1, "updates", {"median": 0.5}), loss=noise) is not None
    assert found("divergence", (1, "updates", {"median": 0.01}), loss=[0.1, *[0.5, 0.51] * 20]) is not None


def test_of_one_sample_s_target_no_answer_for_all_is_known() -> None:
    """Its variance is 0, which is no loss that one answer reaches."""
    few = [(1, "loss", {"loss": 1e-3, "form": "squared", "constant_loss": 0.0}), (1, "updates", {"median": 0.01})]
    for samples, known in ((1, False), (2, True)):
        run = a_run((1, "kernel", {"num_samples": samples}), *few, loss=[1e-3, *[0.2, 0.9, 0.4] * 20])
        assert (constant_loss(run) is not None) is known
    assert found("divergence", (1, "kernel", {"num_samples": 1}), *few, loss=[1e-3, *[0.2, 0.9, 0.4] * 20]) is None


def test_a_verdict_names_the_step_from_which_it_rose() -> None:
    """The first at which it stands there: not the lowest one before, and not the end of a window about it."""
    noisy = [2.0, 1.5, 2.2, 1.8, 2.1, *[900.0] * 40]
    assert verdict(a_run(loss=noisy)).startswith("Diverges from step 6: ")
    run = a_run((1, "updates", {"median": 0.5}), least=None, loss=[1.0, 0.9, 0.8, *[30.0] * 40])
    assert verdict(run).startswith("Diverges from step 4: ")
