"""Optimizers as notes write them, against their reference trajectories (S0-34, S1-43, S1-80 to S1-82, S3-13, S3-14)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback import dynamics
from pullback.dynamics import textbook

F64 = torch.float64
KNOWN = json.loads((Path(__file__).parents[1] / "data" / "dynamics.json").read_text())["quadratics"]
RMSPROP = KNOWN["rmsprop_gamma0.1_alpha0.01_eps1e-8"]
ADAGRAD = KNOWN["adagrad_alpha0.1"]
ADAM = KNOWN["adam_lr0.01_b0.9_0.999_eps1e-8"]
CASES: list[tuple[str, Any, dict[str, list[float]]]] = [
    *(
        (f"{kind.__name__} {eps:g} {mode}", lambda p, k=kind, e=eps, m=mode, s=s: k(p, eps=e, eps_mode=m, **s), rows)
        for kind, s, eps, mode, rows in (
            (textbook.RMSprop, {"lr": 0.01}, 1e-8, "inside", RMSPROP["eps_inside"]),
            (textbook.RMSprop, {"lr": 0.01}, 1e-8, "outside", RMSPROP["eps_outside"]),
            (textbook.RMSprop, {"lr": 0.01}, 1e-2, "inside", RMSPROP["eps1e-2_inside"]),
            (textbook.RMSprop, {"lr": 0.01}, 1e-2, "outside", RMSPROP["eps1e-2_outside"]),
            (textbook.Adagrad, {"lr": 0.1}, 1e-8, "inside", ADAGRAD["eps_inside"]),
            (textbook.Adagrad, {"lr": 0.1}, 1e-8, "outside", ADAGRAD["eps_outside"]),
            (textbook.Adam, {"lr": 0.01}, 1e-8, "inside", ADAM["seed1_eps_inside"]),
            (textbook.Adam, {"lr": 0.01}, 1e-8, "outside", ADAM["kingma_ba_eps_outside"]),
        )
    ),
    ("torch RMSprop", lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9), RMSPROP["eps_outside"]),
    ("torch Adam", lambda p: torch.optim.Adam(p, lr=0.01), ADAM["kingma_ba_eps_outside"]),
    ("torch Adagrad", lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-8), ADAGRAD["eps_outside"]),
]


@pytest.mark.parametrize(("name", "make", "rows"), CASES, ids=[case[0] for case in CASES])
def test_trajectories_of_the_notes(name: str, make: Any, rows: dict[str, list[float]]) -> None:
    found = dynamics.simulate(make, "quadratic", [1.0, 1.0], 100)
    for step, expected in rows.items():
        torch.testing.assert_close(found.x[int(step)], torch.tensor(expected, dtype=F64), rtol=0, atol=1e-10)


def test_where_the_notes_end() -> None:
    """S1-80 to S1-82: after 100 steps from (1, 1); S1-81 is Adagrad, whose coordinates move alike too."""
    ends = {
        "S1-80": (lambda p: textbook.RMSprop(p, lr=0.01), [0.0875865] * 2),
        "S1-81": (lambda p: textbook.Adagrad(p, lr=0.1), [0.0273869] * 2),
        "S1-82": (lambda p: textbook.Adam(p, lr=0.01, eps_mode="outside"), [0.22444604, 0.22444605]),
    }
    found = dynamics.simulate_all({item: make for item, (make, _) in ends.items()}, "quadratic", [1.0, 1.0], 100)
    for item, (_, expected) in ends.items():
        places = 8 if item == "S1-82" else 7
        assert [round(v, places) for v in found[item].x[-1].tolist()] == expected, item
    assert [round(1 - v, 9) for v in found["S1-82"].x[1].tolist()] == [0.01] * 2


def test_rmsprop_corrects_for_curvature_along_coordinates() -> None:
    """S3-14: the two coordinates move alike, though one curves 100 times as much; what parts them is eps."""
    found = dynamics.simulate(lambda p: textbook.RMSprop(p, lr=0.01, gamma=0.1), "quadratic", [1.0, 1.0], 100).x
    exact = dynamics.simulate(lambda p: textbook.RMSprop(p, lr=0.01, gamma=0.1, eps=0), "quadratic", [1.0, 1.0], 100).x
    torch.testing.assert_close(exact[:, 0], exact[:, 1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1, 0], found[1, 1], rtol=0, atol=1e-8)
    torch.testing.assert_close(found[:, 0], found[:, 1], rtol=0, atol=2e-8)


def test_first_steps() -> None:
    """S1-43, S1-80 to S1-82: lr for Adagrad and Adam, lr over the root of gamma for RMSprop, whatever the slope."""
    rate, slopes = 0.1, torch.tensor([3.0, -0.2], dtype=F64)
    makers: dict[str, Any] = {
        "adagrad": lambda p: textbook.Adagrad(p, lr=rate, eps=0),
        "adam": lambda p: textbook.Adam(p, lr=rate, eps=0),
        "rmsprop": lambda p: textbook.RMSprop(p, lr=rate, gamma=0.04, eps=0),
    }
    found = dynamics.simulate_all(makers, lambda x: (slopes * x).sum(-1), [0.0, 0.0], 1)
    for name, size in (("adagrad", rate), ("adam", rate), ("rmsprop", rate / 0.2)):
        torch.testing.assert_close(found[name].x[1], -size * slopes.sign(), rtol=1e-12, atol=0)


def test_momentum_and_its_terminal_velocity() -> None:
    """S3-13: -lr g / (1 - mu); torch's is the same while the rate stays, and not where it changes."""
    line = lambda x: x.sum(-1)
    found = dynamics.simulate(lambda p: textbook.Momentum(p, lr=0.01, momentum=0.9), line, [0.0], 200).x[:, 0]
    known = KNOWN["heavy_ball"]["terminal_velocity_const_grad1_alpha0.01_mu0.9"]
    assert float(found[10] - found[9]) == pytest.approx(known["after_10"], abs=1e-10)
    assert float(found[200] - found[199]) == pytest.approx(known["after_200"], abs=1e-10)
    by_torch = dynamics.simulate(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), line, [0.0], 200).x[:, 0]
    torch.testing.assert_close(by_torch, found, rtol=1e-12, atol=1e-14)
    after = {}
    for kind in (textbook.Momentum, torch.optim.SGD):

        def make(p: list[Tensor], kind: Any = kind) -> Any:
            optimizer = kind(p, lr=0.01, momentum=0.9)
            return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 100, 0.0)

        path = dynamics.simulate(make, line, [0.0], 102).x[:, 0]
        after[kind] = float(path[101] - path[100])
    assert after[torch.optim.SGD] == 0.0
    assert after[textbook.Momentum] == pytest.approx(0.9 * -0.1, rel=1e-4)


def test_weight_decay_multiplies() -> None:
    """S0-34: where the loss has no slope, a step leaves 1 - lr wd of the weight, added to the loss or decoupled."""
    flat = lambda x: 0 * x.sum(-1)
    makers: dict[str, Any] = {
        "added": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2),
        "decoupled": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2),
    }
    for found in dynamics.simulate_all(makers, flat, [2.0, -1.0], 3).values():
        expected = found.x[0] * torch.tensor(0.98, dtype=F64) ** torch.arange(4)[:, None]
        torch.testing.assert_close(found.x, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [textbook.Momentum, textbook.RMSprop, textbook.Adagrad, textbook.Adam])
def test_they_are_optimizers(kind: Any) -> None:
    """Groups with rates of their own, a parameter without gradient, state that resumes bit by bit, a closure."""

    def fresh() -> tuple[list[Tensor], Any]:
        p = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True), torch.ones(1, requires_grad=True)]
        return p, kind([{"params": p[:1]}, {"params": p[1:], "lr": 0.01}], lr=0.1)

    def step(p: list[Tensor], optimizer: Any) -> Any:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (p[0] ** 2).sum() + (p[1] ** 4).sum()
            loss.backward()
            return loss

        return optimizer.step(closure)

    p, optimizer = fresh()
    losses = [step(p, optimizer).item() for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert torch.equal(p[2], torch.ones(1))
    assert ((1 - p[0][0]) / (1 - p[1][0])).item() > 3
    q, other = fresh()
    other.load_state_dict(optimizer.state_dict())
    for to, of in zip(q, p, strict=True):
        to.data.copy_(of.data)
    for _ in range(2):
        step(p, optimizer), step(q, other)
    assert all(torch.equal(a, b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: textbook.Adam(p, lr=0.0), "textbook.Adam: expected `lr` above 0, got 0.0"),
        (lambda p: textbook.Adam(p, lr=math.nan), "`lr` above 0, got nan"),
        (lambda p: textbook.Adam(p, eps=-1.0), "`eps` of at least 0, got -1.0"),
        (lambda p: textbook.Adam(p, eps_mode="under"), "`eps_mode` to be one of 'inside', 'outside', got 'under'"),
        (lambda p: textbook.Adam(p, beta1=1.0), r"`beta1` in \[0, 1\), got 1.0"),
        (lambda p: textbook.Adam(p, beta2=-0.1), r"`beta2` in \[0, 1\), got -0.1"),
        (lambda p: textbook.RMSprop(p, lr=0.1, gamma=0.0), r"`gamma` in \(0, 1\], got 0.0"),
        (lambda p: textbook.Momentum(p, lr=0.1, momentum=1.0), r"`momentum` in \[0, 1\), got 1.0"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        make([torch.ones(2, requires_grad=True)])
