"""One training, steered or not: the networks and data of the planted faults, with plain gradient descent."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

import pullback as pb
from benchmarks.studies.pathologies.setups import ARCHITECTURES, Setup
from pullback._rng import make_generator

CASES = {"mlp": 300, "conv": 200, "transformer": 200}  # steps
BATCH = {"mlp": 256, "conv": 256, "transformer": 64}


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        loss: mean over the training set at the end; infinite where it diverged.
        accuracy: on the held-out samples.
        samples: gradients of single samples computed in steps.
        measurements: of the controller.
        seconds: processor time in all, and of the controller alone.
    """

    loss: float
    accuracy: float
    samples: int
    measurements: int
    seconds: float
    controller_seconds: float


PERTURBATION = 1e-6  # of the starting weights, relative


def descend(case: str, seed: int, lr: float, *, curvature: bool = False, perturbed: bool = False) -> Outcome:
    """Gradient descent from rate ``lr``, which ``CurvatureLR`` takes over if ``curvature``."""
    training = Descent(case, seed, lr, curvature=curvature, perturbed=perturbed)
    while training.step():
        pass
    return training.outcome()


def paired(case: str, seed: int, lr: float) -> Outcome:
    """The same steered training, beside one at the rate ``lr`` step by step: both times are of one process at one time.

    ``controller_seconds`` of the outcome are those of the constant rate.
    """
    constant, steered = (Descent(case, seed, lr, curvature=curvature) for curvature in (False, True))
    while constant.step() & steered.step():
        pass
    return replace(steered.outcome(), controller_seconds=constant.seconds)


class Descent:
    """A training that is made step by step."""

    def __init__(self, case: str, seed: int, lr: float, *, curvature: bool = False, perturbed: bool = False) -> None:
        torch.manual_seed(seed)
        self.case, self.setup = case, ARCHITECTURES[case](seed)
        if perturbed:
            generator = make_generator(seed + 1000)
            with torch.no_grad():
                for p in self.setup.model.parameters():
                    p.mul_(1 + PERTURBATION * torch.randn(p.shape, generator=generator))
        self.optimizer = torch.optim.SGD(self.setup.model.parameters(), lr)
        how = self.optimizer, self.setup.model, self.setup.loss_fn
        self.controller = pb.CurvatureLR(*how) if curvature else None
        self.generator, self.left = make_generator(seed), CASES[case]
        self.seconds = self.steering = 0.0

    def step(self) -> bool:
        """One step; False where none is left, or the loss is not finite."""
        if self.left == 0:
            return False
        start = time.process_time()
        setup = self.setup
        index = torch.randperm(len(setup.x), generator=self.generator)[: BATCH[self.case]]
        x, y = setup.x[index], setup.y[index]
        setup.model.train()
        self.optimizer.zero_grad()
        loss = setup.loss_fn(setup.model(x), y)
        loss.backward()
        finite = bool(loss.isfinite())
        if finite and self.controller is not None:
            before = time.process_time()
            self.controller.step(x, y, loss)
            self.steering += time.process_time() - before
        if finite:
            self.optimizer.step()
        self.left = self.left - 1 if finite else 0
        self.seconds += time.process_time() - start
        return finite

    def outcome(self) -> Outcome:
        """What it came to."""
        measurements = self.controller.num_measurements if self.controller is not None else 0
        samples = CASES[self.case] * BATCH[self.case]
        return Outcome(*finished(self.setup), samples, measurements, self.seconds, self.steering)


def finished(setup: Setup) -> tuple[float, float]:
    """Loss on the training set, and accuracy on held-out samples."""
    setup.model.eval()
    with torch.no_grad():
        loss = float(setup.loss_fn(setup.model(setup.x), setup.y))
        right = (setup.model(setup.x_test).argmax(-1) == setup.y_test).float().mean()
    return loss if math.isfinite(loss) else math.inf, float(right)


def call(kind: str, case: str, seed: int, value: float) -> dict[str, Any]:
    """A training by name, as a record."""
    made = {
        "constant": lambda: descend(case, seed, value),
        "curvature": lambda: descend(case, seed, 1.0, curvature=True),
        "perturbed": lambda: descend(case, seed, 1.0, curvature=True, perturbed=True),
        "paired": lambda: paired(case, seed, value),
    }[kind]()
    return {"kind": kind, "case": case, "seed": seed, "value": value} | vars(made)
