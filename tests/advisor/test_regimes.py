"""Findings on plateaus and on the kind of training."""

from __future__ import annotations

from typing import Any

import pytest

import pullback as pb
from tests.advisor.runs import LEARNS, STUCK, Line, found, losses, severities
from tests.advisor.threshold_rows import numbers_by_heart, surer_of_mistakes

STANDING = losses(2.3, 2.3, 2.31, 2.3, 2.3, 2.29, 2.3, 2.3)


def sharpness(smallest: float, residual: float) -> Line:
    return 70, "sharpness", {"hessian": 10.0, "smallest": smallest, "smallest_residual": residual}


def test_a_saddle_has_negative_curvature() -> None:
    saddle = found("saddle-plateau", *STANDING, sharpness(-2.0, 0.1))
    assert saddle is not None
    assert (saddle.severity, saddle.steps) == ("warning", (40, 70))
    assert saddle.evidence["smallest curvature"] == -2
    assert found("minimum-plateau", *STANDING, sharpness(-2.0, 0.1)) is None


def test_a_minimum_has_none() -> None:
    converged = losses(2.3, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1, 0.1)
    minimum = found("minimum-plateau", *converged, sharpness(-0.01, 0.01))
    assert minimum is not None
    assert minimum.severity == "info"
    assert found("saddle-plateau", *converged, sharpness(-0.01, 0.01)) is None
    stuck = found("minimum-plateau", *STANDING, sharpness(0.0, 0.0))
    assert stuck is not None
    assert stuck.severity == "warning"


def test_an_uncertain_sign_or_a_moving_loss_is_no_finding() -> None:
    falling = losses(*(2.3 - 0.2 * place for place in range(8)))
    for name in ("saddle-plateau", "minimum-plateau"):
        assert found(name, *STANDING, sharpness(-0.2, 1.0)) is None
        assert found(name, *falling, sharpness(-2.0, 0.1)) is None
        assert found(name, *STUCK, sharpness(-2.0, 0.1)) is None  # too few measurements
        early = sharpness(-2.0, 0.1)[1:]
        assert found(name, *STANDING, (0, *early)) is None  # curvature of before the plateau


def effective(norm: float, step: int, decay: float = 0.0) -> Line:
    values = {"norm": {"a": norm, "b": 50.0 * norm}, "invariant": {"a": True, "b": False}, "weight_decay": decay}
    return step, "effective_lr", values


def test_effective_rate_decay() -> None:
    grows = [effective(1.0, 0), effective(4.0, 100)]
    finding = found("effective-rate-decay", *grows)
    assert finding is not None
    assert finding.layer == "a"
    assert finding.evidence["factor"] == 16
    assert severities("effective-rate-decay", *grows) == ("info", "warning")
    assert found("effective-rate-decay", effective(1.0, 0), effective(1.3, 100)) is None
    assert found("effective-rate-decay", effective(1.0, 0), effective(4.0, 100, 5e-4)) is None


def test_lazy_regime_is_learning_without_a_moving_kernel() -> None:
    still = [(0, "tangent", {"drift": 0.0}), (20, "tangent", {"drift": 0.02, "cka": 0.99})]
    finding = found("lazy-regime", *LEARNS, *still)
    assert finding is not None
    assert finding.severity == "info"
    assert finding.evidence["CKA with the first kernel"] == 0.99
    assert found("lazy-regime", *STUCK, *still) is None  # nothing was learnt
    assert found("lazy-regime", *LEARNS, still[0], (20, "tangent", {"drift": 0.8})) is None


@pytest.mark.parametrize(("probe", "prefix"), [("test", ""), ("epoch", "test_")])
def test_memorisation(probe: str, prefix: str) -> None:
    train = [(0, "loss", {"loss": 2.3, "accuracy": 0.1}), (90, "loss", {"loss": 0.01, "accuracy": 1.0})]
    finding = found("memorisation", *train, (90, probe, {f"{prefix}accuracy": 0.55}))
    assert finding is not None
    assert finding.severity == "warning"
    assert finding.evidence["test accuracy"] == 0.55
    assert found("memorisation", *train, (90, probe, {f"{prefix}accuracy": 0.95})) is None
    rising = [(s, probe, {f"{prefix}loss": loss}) for s, loss in ((30, 0.4), (60, 0.5), (90, 0.9))]
    finding = found("memorisation", *train, *rising)
    assert finding is not None
    assert finding.severity == "info"  # accuracy may still be fine
    assert finding.evidence["lowest test loss"] == 0.4
    assert found("memorisation", *train, *rising[:2]) is None
    assert found("memorisation", *rising) is None


def test_a_gap_without_a_fall_is_no_harm() -> None:
    """Small data leaves one in the best of runs; early stopping wins back what was better before."""

    def told(accuracies: list[float], loss: list[float], form: str = "cross-entropy") -> pb.Finding | None:
        line = (0, "loss", {"loss": 2.0, "accuracy": 1.0, "constant_loss": 2.0, "form": form})
        test = [(k, "test", {"accuracy": a, "loss": b}) for k, (a, b) in enumerate(zip(accuracies, loss, strict=True))]
        return found(
            "memorisation", line, *test, (9, "loss", {"loss": 0.01, "accuracy": 1.0}), loss=[2.0] + [0.01] * 40
        )

    level = told([0.6] * 8, [1.0] * 8)
    assert level is not None
    assert (level.severity, level.change) == ("info", None)
    lost = told([0.6, 0.7, 0.75, 0.75, 0.7, 0.6, 0.5, 0.5], [1.0] * 8)
    assert lost is not None
    assert (lost.severity, lost.change) == ("warning", pb.Change("early_stopping"))
    assert lost.evidence["fall of the test accuracy"] == pytest.approx(0.25)
    sure = told([0.9] * 8, [0.5] * 4 + [0.8] * 4)  # surer of its mistakes
    assert sure is not None
    assert (sure.severity, sure.change) == ("info", pb.Change("early_stopping"))
    numbers = told([0.9] * 8, [0.5] * 4 + [0.8] * 4, "squared")
    assert numbers is not None
    assert numbers.severity == "warning"


def test_a_few_samples_that_are_all_right_are_nothing_known_by_heart() -> None:
    line = (0, "loss", {"loss": 2.0, "accuracy": 1.0, "constant_loss": 2.0})
    assert found("memorisation", line, (9, "test", {"accuracy": 0.5}), loss=[2.0] + [0.6] * 40) is None
    assert found("memorisation", line, (9, "test", {"accuracy": 0.5}), loss=[2.0] + [0.1] * 40) is not None


def test_numbers_known_by_heart_are_told_by_a_smaller_rise() -> None:
    """Of a held-out error that has most of one answer's; not where the training has some left, or after few looks."""

    def told(last: float, **what: Any) -> list[str]:
        return [f.severity for f in pb.diagnose(numbers_by_heart(last, **what)) if f.name == "memorisation"]

    assert told(0.7) == ["warning"]
    assert told(0.45) == told(0.7, left=0.2) == told(0.7, looks=5) == []


def test_a_held_out_loss_above_that_of_one_answer_is_a_harm() -> None:
    """No network at all would do better by it; not after few looks, nor where it never was better than that."""

    def told(last: float, **what: Any) -> list[str]:
        return [f.severity for f in pb.diagnose(surer_of_mistakes(last, **what)) if f.name == "memorisation"]

    assert told(3.0) == ["warning"]
    assert told(1.9) == told(3.0, looks=5) == told(4.0, best=2.5) == ["info"]
    finding = next(f for f in pb.diagnose(surer_of_mistakes(3.0)) if f.name == "memorisation")
    assert finding.evidence["loss of one answer for all"] == 2.0
    assert finding.change == pb.Change("early_stopping")
