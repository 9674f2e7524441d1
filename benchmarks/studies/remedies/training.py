"""The loop of the README over a set-up, watched or not, and what came of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import pullback as pb
from benchmarks.studies.remedies.data import Data, prepare
from benchmarks.studies.remedies.networks import build
from benchmarks.studies.remedies.setups import Setup, task

NO_ANSWER = -1.0  # the skill of a model whose outputs are not finite, and the least there is
EVERY = 20  # steps from one look at the validation samples to the next
LEAST_SHARE = 1e-8  # of a variance
OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}


@dataclass
class Trained:
    """What the loop saw, and how good the model is in the end."""

    skill: float = NO_ANSWER
    losses: list[float] = field(default_factory=list)  # of step 1, 2, ...
    batches: list[Tensor] = field(default_factory=list)  # the training samples of step 1, 2, ...


def train(setup: Setup, seed: int, folder: Path | None = None) -> Trained:
    """Train, with a monitor at its defaults if there is a folder, and test.

    A training that nobody watches ends with the first loss that is not finite: its weights no longer are either.
    """
    data = prepare(setup)
    model = build(setup, data, seed)
    loss_fn = loss_of(setup, data)
    optimizer = OPTIMIZERS[setup.optimizer](trained(model, setup), lr=setup.rate, weight_decay=setup.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_factor, setup))
    found, best = Trained(), _Best()
    with nullcontext() if folder is None else pb.Monitor(model, loss_fn, folder, optimizer=optimizer) as monitor:
        for step, index in enumerate(batches(setup, data, seed), start=1):
            x, y = data.x[index], data.y[index]
            model.train()
            if setup.zero_grad:
                optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            if setup.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), setup.clip)
            optimizer.step()
            found.losses.append(float(loss.detach()))
            found.batches.append(index)
            if monitor is not None:
                monitor.step(x, y, loss=loss)
            elif not bool(loss.isfinite()):
                return found
            schedule.step()
            if (setup.early_stopping or setup.logs) and step % EVERY == 0:
                _validate(setup, model, data, monitor, best)
    if setup.early_stopping and best.weights is not None:
        model.load_state_dict(best.weights)
    found.skill = skill(setup, model, data, data.x_test, data.y_test)
    return found


class Adjusted(nn.Module):
    """The cross-entropy of scores to which the logarithm of each class's share of the samples is added.

    What is left for the scores to learn is how much likelier a class is than by its share: Menon et al. (2021).
    """

    def __init__(self, y: Tensor, classes: int, reduction: str) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(reduction=reduction)
        self.register_buffer("shares", (y.bincount(minlength=classes) / len(y)).log())

    def forward(self, scores: Tensor, y: Tensor) -> Tensor:
        return self.loss(scores + self.shares, y)


def loss_of(setup: Setup, data: Data) -> nn.Module:
    """What is trained on."""
    return Adjusted(data.y, data.outputs, setup.reduction) if setup.adjusted else plain_loss(setup)


def plain_loss(setup: Setup) -> nn.Module:
    loss = nn.MSELoss if task(setup) in ("values", "inputs") else nn.CrossEntropyLoss
    return loss(reduction=setup.reduction)


def trained(model: nn.Module, setup: Setup) -> list[nn.Parameter]:
    """The parameters the optimizer gets; what is frozen does not require gradients."""
    named = dict(model.named_parameters())
    last = list(named)[-2:]
    left_out = {
        "": [],
        "forgotten": [name for name, p in named.items() if p.dim() > 1],
        "frozen": [name for name in named if name not in last],
    }[setup.untrained]
    left_out = [name for name in left_out if name not in setup.trained]
    if setup.untrained == "frozen":
        for name in left_out:
            named[name].requires_grad_(False)
    return [p for name, p in named.items() if name not in left_out]


def batches(setup: Setup, data: Data, seed: int) -> Iterator[Tensor]:
    """The samples of every step, epoch by epoch."""
    generator = torch.Generator().manual_seed(seed)
    count, made = len(data.x), 0
    target = data.y.flatten(1)[:, 0] if data.y.dim() > 1 else data.y
    while True:
        order = torch.randperm(count, generator=generator) if setup.shuffled else target.argsort(stable=True)
        for index in order.split(setup.batch_size):
            if made == setup.steps:
                return
            if setup.normalisation == "batch" and len(index) == 1:
                continue  # of which there is no variance
            made += 1
            yield index


def skill(setup: Setup, model: nn.Module, data: Data, x: Tensor, y: Tensor) -> float:
    """1 is perfect, 0 what one constant answer reaches.

    Of classes the mean accuracy of each, above chance; of values and autoencoders the share of the variance that is
    explained, each output in units of its own scale; of text the share of the entropy of single characters.
    """
    model.eval()
    with torch.no_grad():
        outputs = model(x)
    if not bool(outputs.isfinite().all()):
        return NO_ANSWER
    what = task(setup)
    if what == "classes":
        right = (outputs.argmax(1) == y).double()
        accuracy = torch.stack([right[y == label].mean() for label in y.unique()]).mean()
        chance = 1.0 / data.outputs
        return float((accuracy - chance) / (1 - chance))
    if what == "tokens":
        if setup.probabilities:
            outputs = outputs.log()
        counts = data.y.flatten().bincount(minlength=data.outputs).double() + 1.0
        alone = nn.functional.nll_loss((counts / counts.sum()).log()[:, None].expand(-1, y.numel()).T, y.flatten())
        return max(NO_ANSWER, float(1 - nn.functional.cross_entropy(outputs.double(), y) / alone))
    left = ((outputs - y) / data.target_scale).double().square().mean()
    whole = ((y - y.mean(0)) / data.target_scale).double().square().mean()
    return max(NO_ANSWER, float(1 - left / whole.clamp_min(LEAST_SHARE)))


@dataclass
class _Best:
    skill: float = -float("inf")
    weights: dict[str, Tensor] | None = None


def _validate(setup: Setup, model: nn.Module, data: Data, monitor: pb.Monitor | None, best: _Best) -> None:
    """Log the loss of the validation samples, and keep the weights that did best on them."""
    reached = skill(setup, model, data, data.x_valid, data.y_valid)
    if setup.early_stopping and reached > best.skill:
        best.skill, best.weights = reached, copy.deepcopy(model.state_dict())
    if setup.logs and monitor is not None:
        with torch.no_grad():
            outputs = model(data.x_valid)
        logged = {"loss": float(plain_loss(setup)(outputs, data.y_valid))}
        if task(setup) == "classes":
            logged["accuracy"] = float((outputs.argmax(1) == data.y_valid).float().mean())
        monitor.log("test", logged)


def _factor(setup: Setup, step: int) -> float:
    """Of the rate, at the step from 0."""
    warm = min(1.0, (step + 1) / setup.warmup) if setup.warmup else 1.0
    if setup.ends == 1.0:
        return warm
    return warm * max(0.0, 1 - step / (setup.ends * setup.steps))
