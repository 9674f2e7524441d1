"""Tokens that become one: by their records, and in runs into which it was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.advisor import Change
from pullback.measure import AttentionSpec
from tests.advisor.runs import Line, found, severities
from tests.thinned import thinned

NAME = "rank-collapse"
T, D, H, C = 8, 16, 2, 4


def seen(step: int, *residuals: float, start: float = 0.9, entropy: float = 0.9) -> Line:
    behind = {f"block.{place}": residual for place, residual in enumerate(residuals)}
    alike = dict.fromkeys(behind, entropy)
    cosines = {name: 1 - value for name, value in behind.items()}
    return step, "attention", {"relative_residual": behind, "cosine": cosines, "entropy": alike, "start": start}


def test_the_first_layer_whose_tokens_are_one() -> None:
    finding = found(NAME, seen(1, 0.8, 0.5, 0.01, 0.001), seen(8, 0.8, 0.5, 0.02, 0.002))
    assert finding is not None
    assert (finding.layer, finding.steps) == ("block.2", (1, 8))
    assert finding.evidence == {
        "relative residual": 0.02, "mean cosine": 0.98, "relative entropy": 0.9, "layers": 2,
    }  # fmt: skip
    assert finding.summary.startswith("Attention makes the tokens of a sequence one")
    assert "in half of the measurements" in finding.threshold
    assert severities(NAME, seen(1, 0.8, 0.01)) == ("info", "warning")


@pytest.mark.parametrize(("records", "change"), [
    ([seen(1, 0.8, 0.5, 0.01)], Change("residual")),  # at once: nothing is kept
    ([seen(1, 0.01)], Change("residual")),  # in the first layer
    ([seen(1, 0.5, 0.3, 0.18, 0.099)], Change("initialisation", "critical")),  # bit by bit: too deep for its branches
    ([seen(1, 0.5, 0.01, entropy=0.05)], Change("initialisation", "xavier")),  # of rows that look at one token
    ([seen(1, 0.8, 0.7, entropy=0.05)], Change("initialisation", "xavier")),
    ([seen(1, 0.8, 0.7), seen(8, 0.5, 0.01)], Change("learning_rate", 0.1)),  # not from the start
    ([seen(1, 0.8, 0.7), seen(8, 0.8, 0.7, entropy=0.01)], Change("learning_rate", 0.1)),
])  # fmt: skip
def test_the_cure_is_that_of_the_cause(records: list[Line], change: Change) -> None:
    finding = found(NAME, *records)
    assert finding is not None
    assert finding.change == change


@pytest.mark.parametrize("records", [
    [seen(1, 0.9, 0.7, 0.5)],
    [seen(1, 0.9, 0.7), seen(8, 0.9, 0.7), seen(64, 0.9, 0.01)],  # one of three
    [seen(1, 0.05, 0.01, start=0.05)],  # one before the first layer
    [(1, "attention", {"relative_residual": "broken", "entropy": None})],
])  # fmt: skip
def test_nothing_is_said_of_others(records: list[Line]) -> None:
    assert found(NAME, *records) is None


def test_samples_that_point_one_way_are_still_told() -> None:
    alike: Line = (1, "activations", {"effective_rank": {"a": 1.01}})
    finding = found(NAME, seen(1, 0.9, 0.7), alike)
    assert finding is not None
    assert finding.layer == "a"
    assert found(NAME, seen(1, 0.9, 0.01), alike).layer == "block.1"  # type: ignore[union-attr]


class Classifier(nn.Module):
    """Tokens, positions, a body, and classes of the mean token."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(12, D), nn.Parameter(torch.randn(T, D) / 2)
        self.body, self.head = body, nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.tokens(x) + self.places).mean(1))
        return found


def encoder(layers: int, *, pre: bool, scale: float = 1.0) -> nn.Module:
    layer = nn.TransformerEncoderLayer(D, H, 32, dropout=0.0, batch_first=True, norm_first=pre)
    body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    with torch.no_grad():
        for each in body.layers:
            each.self_attn.in_proj_weight[: 2 * D] *= scale
    return body


def trained(body: Callable[[], nn.Module], run: Path, rate: float, seed: int = 0, steps: int = 8) -> list[pb.Finding]:
    """Findings of a few steps of SGD; attention is measured at the first and the eighth."""
    torch.manual_seed(seed)
    model, loss_fn = Classifier(body()), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(1)
    with pb.Monitor(model, loss_fn, run, optimizer=optimizer, every=1, probes=["attention"], budget=None) as m:
        for _ in range(steps):
            x = torch.randint(0, 12, (16, T), generator=generator)
            y = (x[:, 0] + x[:, 3]) % C
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            m.step(x, y, loss=loss)
    return [finding for finding in pb.diagnose(run) if finding.name == NAME]


PLANTED: dict[str, tuple[Callable[[], nn.Module], float, Any, set[str]]] = {
    "no skips": (
        lambda: AttentionSpec(4, width=D, heads=H, tokens=T).build(0, torch.float32), 0.01,
        Change("residual"), {"body.1", "body.2"},
    ),
    "deep and normalised after, at a large rate": (
        lambda: encoder(6, pre=False), 1.0, Change("learning_rate", 0.1), {f"body.layers.{k}" for k in range(1, 6)},
    ),
    "large queries and keys": (
        lambda: encoder(2, pre=True, scale=30.0), 0.01, Change("initialisation", "xavier"), {"body.layers.0"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_collapses_are_found(name: str, tmp_path: Path) -> None:
    """With the layer, and the cure that takes out what was planted."""
    body, rate, change, layers = PLANTED[name]
    (finding,) = trained(body, tmp_path / "run", rate)
    assert finding.change == change
    assert finding.layer in layers


HEALTHY: dict[str, Callable[[int], nn.Module]] = {
    "normalised before": lambda _: encoder(4, pre=True),
    "normalised after, shallow": lambda _: encoder(2, pre=False),
    "pure with skips": lambda seed: AttentionSpec(4, width=D, heads=H, tokens=T, skip=True).build(seed, torch.float32),
}


@pytest.mark.parametrize(("name", "seed"), thinned(list(HEALTHY), range(3)))
def test_healthy_runs_have_no_finding(name: str, seed: int, tmp_path: Path) -> None:
    assert trained(lambda: HEALTHY[name](seed), tmp_path / "run", 0.01, seed) == []
