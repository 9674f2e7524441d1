"""Findings from records: all of them, whatever the records hold. S0-28."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.advisor.causes import ORDER
from pullback.advisor.rules import RULES
from pullback.advisor.severity import learns
from pullback.runs import RunWriter
from tests.advisor.runs import LEARNS, a_run, losses


def test_findings_are_stored_and_read(tmp_path: Path) -> None:
    """What a run's findings are is told when it is read; what its own loop stored under other names comes last."""
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(0, "loss", {"loss": 2.0})
        writer.append(50, "loss", {"loss": math.nan})
        (found,) = pb.diagnose(tmp_path / "run")
        own = replace(found, name="my-own", severity="info", action="Look")
        for stored in (own, replace(found, action="Of an earlier version")):
            writer.append(50, "finding", stored.as_record())
        writer.append(50, "finding", {"name": "damaged", "severity": "info"})
    run = pb.load_run(tmp_path / "run")
    assert pb.diagnose(run) == [found, own]
    assert run.findings == [found.as_record(), own.as_record(), {"name": "damaged", "severity": "info"}]
    assert run.until(0).findings == []


def test_a_run_that_learns_has_no_findings_of_its_own() -> None:
    assert pb.diagnose(a_run(*LEARNS)) == []


def test_a_loss_that_fell_to_one_answer_for_all_samples_is_not_learning() -> None:
    """From wild first weights to ln C."""

    def fell(accuracy: float) -> list[tuple[int, str, dict[str, float]]]:
        right = {"accuracy": accuracy, "constant_accuracy": 0.15}
        return [(10 * place, "loss", {"loss": loss} | right) for place, loss in enumerate((3.2, 2.4, 2.3, 2.3))]

    assert [learns(a_run(*fell(accuracy))) for accuracy in (0.11, 0.15, 0.3)] == [False, False, True]
    assert not learns(a_run(*losses(2.4, 2.3, 2.3)))
    assert learns(a_run(*losses(3.2, 2.4, 2.3)))  # nothing else is known of it


@pytest.mark.parametrize(("accuracy", "samples", "is_learnt"), [(0.2, 11, False), (0.2, 110, True), (0.6, 11, True)])
def test_a_few_right_answers_are_chance(accuracy: float, samples: int, is_learnt: bool) -> None:
    """Of ten classes, where the loss of one answer is not known: 11 samples have two right ones more often than not."""
    right = {"accuracy": accuracy, "constant_accuracy": 0.1}
    records = [(10 * k, "loss", {"loss": loss} | right) for k, loss in enumerate((38.0, 5.0, 2.3, 2.3))]
    counted = [(10 * k, "kernel", {"num_samples": samples}) for k in range(4)]
    assert learns(a_run(*records, *counted)) == is_learnt


def test_every_name_of_the_docstring_has_its_rule_and_its_test() -> None:
    text = (pb.diagnose.__doc__ or "").partition("Names: ")[2].partition(".")[0]
    names = re.findall(r"[a-z]+(?:-[a-z]+)*", text)
    assert len(names) == len(set(names)) == 40
    assert len(RULES) == len(set(RULES)) >= len(names)  # what is seen in several ways has several rules
    assert set(names) == set(ORDER)
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    assert [name for name in names if f'"{name}"' not in tests] == []


METRICS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "batch_loss", "accuracy", "constant_accuracy"),
    "flow": ("verdict", "slope", "gradient_norm"),
    "kernel": ("effective_rank", "num_samples"),
    "alignment": ("mean_cosine", "conflict_fraction", "worst_pairs"),
    "classes": ("worst",),
    "sharpness": ("hessian", "limit", "optimizer", "smallest", "smallest_residual", "preconditioned"),
    "updates": ("median",),
    "noise": ("noise_scale", "batch_size", "noise_scale_stderr"),
    "samples": ("suspects", "num_samples"),
    "tangent": ("drift", "cka"),
    "activations": ("effective_rank", "width", "dead", "saturated", "kind"),
    "effective_lr": ("norm", "invariant", "weight_decay"),
    "initialisation": ("chi", "sigma_w", "critical_sigma_w"),
    "inputs": ("largest_abs", "std_ratio", "largest_mean_over_std"),
    "batch_norm": ("smallest_count", "batch_size"),
    "test": ("loss", "accuracy"),
}
scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(["vanishing", "Tanh", "SGD"])
values = (
    scalars
    | st.lists(scalars, max_size=3)
    | st.lists(st.lists(scalars, max_size=3), max_size=2)
    | st.dictionaries(st.sampled_from("ab"), scalars, max_size=2)
)
record = st.sampled_from(sorted(METRICS)).flatmap(
    lambda probe: st.tuples(st.integers(0, 9), st.just(probe), st.dictionaries(st.sampled_from(METRICS[probe]), values))
)


@given(st.lists(record, max_size=12))
def test_altered_records_are_no_crash(records: list[tuple[int, str, dict[str, Any]]]) -> None:
    found = pb.diagnose(a_run(*records))
    assert all(finding.action for finding in found)
    assert all(str(finding) for finding in found)


def test_no_run() -> None:
    with pytest.raises(pb.InputError, match=r"a run folder with run\.json"):
        pb.diagnose("nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LightningCallback", "TransformersCallback"])
def test_callbacks_show_the_same_list(name: str, tmp_path: Path) -> None:
    module = pytest.importorskip("pullback.monitor")
    pytest.importorskip("lightning" if name == "LightningCallback" else "transformers")
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(3, "loss", {"loss": math.nan})
    callback = getattr(module, name)(tmp_path / "run", torch.nn.MSELoss())
    assert callback.findings == pb.load_run(tmp_path / "run").findings != []
    assert [each["name"] for each in callback.findings] == [finding.name for finding in pb.diagnose(tmp_path / "run")]
