"""Plans of every case, with stated rates, are those in ``tests/data/plans.txt``, which reviews see change.

``test_counts`` and ``test_plan_scale`` hold counts of single layers to what is counted by hand or by torch; here is
that no other number moves by itself. Who changes a count or a choice on purpose writes the file anew:
``python -m tests.kernels.plan.test_kept_plans``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.diagnostics.curvature_spectrum.routes import Sizes, routes
from pullback.functional import ModelView
from pullback.functional.readout import loss_readout, output_readout
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rules import LOOKUPS, REISSUED, RULES
from pullback.kernels.plan.make import PlanOptions, make_plan
from pullback.kernels.plan.rates import Rates
from tests.cases import CASES, Case, build

FILE = Path(__file__).parents[2] / "data" / "plans.txt"
RATES = Rates(gemm=1e11, bmm=5e10, stream=2e9)
WORDS = ("form", "flops", "held_bytes", "kept_bytes", "rows_bytes", "gradient_bytes", "tile_bytes")
BY_TORCH = {
    "peak_bytes",
    "backward_flops",
    "check_flops",
    "capture_seconds",
}  # in part what a version of torch saves or counts


def rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def lines_of(case: Case) -> list[str]:
    """A line a layer and contraction: of 300 samples with themselves, and with 40 others."""
    torch.manual_seed(0)
    model, loss_fn, x, y = build(case, 3)
    view, found = ModelView.of(model), []
    for contract, n1, n2 in (("loss", 300, None), ("full", 300, 40), ("trace", 300, None)):
        of_loss = contract == "loss"
        readout = loss_readout(loss_fn) if of_loss else output_readout()
        captured = capture_factors(view, readout, x, y if of_loss else None, "test")
        kind: Any = "full" if of_loss else contract
        plan = make_plan(captured, n1, n2, "test", PlanOptions(contract=kind, rates=RATES))
        for layer in plan.layers:
            told = [str(rounded(getattr(layer, word))) for word in WORDS]
            found.append(f"{case.name} {contract} {'+'.join(layer.parameters)} {' '.join(told)} {layer.seconds:.5g}")
        found.append(f"{case.name} {contract} {plan.shape} {plan.block_bytes} {plan.piece_bytes} {plan.output_bytes}")
        if of_loss:
            found += [f"{case.name} route {line}" for line in route_lines(captured.factors, view.num_params)]
    return found


def route_lines(factors: Sequence[Factor], num_params: int) -> list[str]:
    """Of a curvature's spectrum: seconds and bytes of every way, cheapest first."""
    found = []
    for k, vectors, smallest in ((None, True, False), (3, True, False), (3, False, False), (2, True, True)):
        for samples in (2, 500):
            sizes = Sizes(samples, 3, num_params, k, vectors, smallest, 8)
            for each in routes(factors, sizes, RATES):
                kind = " ".join(str(rounded(value)) for value in vars(each).values())
                found.append(f"{k} {vectors} {smallest} {samples}: {kind}")
    return found


def scale_lines() -> list[str]:
    """Every number of a kernel on one and on several workers."""
    torch.manual_seed(0)
    models = {
        "mlp": (nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3)), (20,)),
        "conv": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)), (3, 8, 8)),
        "tokens": (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Flatten(), nn.Linear(35, 2)), (7, 6)),
    }
    found = []
    for name, (model, shape) in models.items():
        data = torch.randn(2, *shape), torch.tensor([0, 1])
        for workers, samples, tile in ((1, 400, 100), (3, 1000, 96), (2, 7000, 2048), (5, 300_000, 64)):
            given: dict[str, Any] = {"num_samples": samples, "workers": workers, "tile": tile, "rates": RATES}
            scale = pb.plan_store(model, nn.CrossEntropyLoss(), *data, **given)
            numbers = {word: rounded(value) for word, value in asdict(scale).items() if word not in BY_TORCH}
            found.append(f"scale {name} " + " ".join(f"{word}={value}" for word, value in numbers.items()))
    return found


def rule_lines() -> list[str]:
    """Which functions have a rule, are issued anew or look up rows."""
    found = [f"rule {name_of(function)} {rule.name} {rule.parameters}" for function, rule in RULES.items()]
    tables: dict[str, Any] = {"reissued": REISSUED, "lookup": LOOKUPS}
    return sorted(found) + sorted(f"rule {name_of(f)} {kind}" for kind, table in tables.items() for f in table)


def name_of(function: Any) -> str:
    kind = type(function).__name__
    return f"{kind} {getattr(function, '__name__', '')}"


def held(prefix: str) -> list[str]:
    return [line for line in FILE.read_text().splitlines() if line.startswith(prefix + " ")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_is_the_one_that_is_kept(case: Case) -> None:
    assert lines_of(case) == held(case.name)


def test_what_has_a_rule() -> None:
    assert set(held("rule")) <= set(rule_lines())  # other tests may have registered their own


def test_what_many_samples_cost() -> None:
    assert scale_lines() == held("scale")


if __name__ == "__main__":
    FILE.write_text(
        "\n".join([*(line for case in CASES for line in lines_of(case)), *rule_lines(), *scale_lines()]) + "\n"
    )
