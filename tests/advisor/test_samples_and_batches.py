"""Findings on samples, classes, batches, inputs and conditioning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import pullback as pb
from tests.advisor.runs import Line, a_run, found, severities


def test_conflicting_gradients_name_classes_and_samples() -> None:
    """S0-16: two opposite gradients have cosine -1, and all of their pairs conflict."""
    found_alignment = pb.alignment(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    values = {
        "mean_cosine": found_alignment.mean_cosine,
        "conflict_fraction": found_alignment.conflict_fraction,
        "worst_pairs": [list(pair) for pair in found_alignment.worst_pairs],
    }
    finding = found("conflicting-gradients", (50, "alignment", values), (50, "classes", {"worst": [3, 8, -0.7]}))
    assert finding is not None
    assert finding.severity == "warning"
    assert finding.evidence["mean cosine"] == -1
    assert finding.evidence["share of conflicting pairs"] == 1
    assert finding.evidence["cosine between the worst classes"] == -0.7
    assert finding.evidence["cosine of the worst pair"] == -1
    assert "classes 3 and 8, samples 0 and 1" in finding.action
    plain = found("conflicting-gradients", (50, "alignment", {"mean_cosine": -0.2, "conflict_fraction": 0.8}))
    assert plain is not None
    assert "classes" not in plain.action
    calm = (50, "alignment", {"mean_cosine": 0.0, "conflict_fraction": 0.5})
    assert found("conflicting-gradients", calm) is None
    opposed = (50, "classes", {"within": 0.9, "between": -0.9})  # as many against as for: the mean does not see it
    assert severities("conflicting-gradients", calm, opposed) == ("info", "warning")
    assert found("conflicting-gradients", calm, (50, "classes", {"within": 0.9, "between": -0.1})) is None


def many_labels(count: int) -> list[list[Any]]:
    return [[place, 5.0, "label"] for place in range(count)]


def test_suspect_samples_are_listed_by_reason() -> None:
    suspects = [[4, 5.0, "label"], [9, 1.0, "duplicate"], [7, 9.0, "outlier"], [8, 4.0, "outlier"], ["x"], 3]
    finding = found("suspect-samples", (50, "samples", {"num_samples": 100, "suspects": suspects}))
    assert finding is not None
    assert finding.severity == "info"
    assert finding.evidence == {"labels": 1, "outliers": 1, "samples": 100, "share of suspect labels": 0.01}
    assert finding.action.startswith("Check the labels of samples 4 of step 50; look at samples 7 of step 50")
    assert finding.change == pb.Change("check_samples", (4, 7))
    copies = found("duplicates", (50, "samples", {"num_samples": 100, "suspects": suspects}))
    assert copies is not None
    assert (copies.severity, copies.evidence["duplicates"]) == ("info", 1)
    assert copies.action.startswith("Remove the copies among samples 9 of step 50")
    assert copies.change == pb.Change("check_samples", (9,))
    assert found("duplicates", (50, "samples", {"num_samples": 100, "suspects": many_labels(8)})) is None
    many = many_labels(8)
    finding = found("suspect-samples", (50, "samples", {"num_samples": 100, "suspects": many}))
    assert finding is not None
    assert finding.severity == "warning"
    assert "0, 1, 2, 3, 4 and 3 more" in finding.action
    assert found("suspect-samples", (50, "samples", {"num_samples": 100, "suspects": []})) is None


def test_outliers_are_named_by_the_measurement_that_saw_most_labels_by_the_last() -> None:
    early = [[1, 9.0, "outlier"], [2, 9.0, "outlier"], [3, 9.0, "label"]]
    records = [(0, early), (50, [[7, 9.0, "outlier"], [8, 9.0, "label"], [9, 9.0, "label"]]), (90, [])]
    lines = [(step, "samples", {"num_samples": 100, "suspects": each}) for step, each in records]
    finding = found("suspect-samples", *lines)
    assert finding is not None
    assert finding.evidence == {"labels": 2, "outliers": 2, "samples": 100, "share of suspect labels": 0.01}
    assert finding.steps == (0, 50)
    finding = found("suspect-samples", *lines[:2])
    assert finding is not None
    assert finding.evidence == {"labels": 2, "outliers": 2, "samples": 100, "share of suspect labels": 0.02}
    assert (finding.steps, "labels of samples 8, 9 of step 50" in finding.action) == ((0, 50), True)


def test_the_probe_lists_some_and_counts_all() -> None:
    """Of forty percent wrong labels in 256 samples twenty are listed."""
    seen = {"num_samples": 256, "suspects": many_labels(20), "num_suspects": {"label": 100}}
    finding = found("suspect-samples", (50, "samples", seen))
    assert finding is not None
    assert finding.evidence["labels"] == 100
    assert finding.evidence["share of suspect labels"] == 100 / 256


def test_labels_a_model_contradicts_before_it_has_learnt_anything() -> None:
    """Weights that are too large are sure of what they do not know: order in time tells them from wrong labels."""
    sure = [(step, "samples", {"num_samples": 100, "suspects": many_labels(8)}) for step in (1, 60, 100)]

    def right(first: float) -> list[tuple[int, str, dict[str, Any]]]:
        shares = ((1, first), (60, 0.7), (100, 0.8))
        return [(s, "loss", {"loss": 1.0, "accuracy": a, "constant_accuracy": 0.1}) for s, a in shares]

    known, unlearnt = (found("suspect-samples", *sure, *right(first)) for first in (0.6, 0.1))
    assert known is not None
    assert unlearnt is not None
    assert (known.severity, unlearnt.severity) == ("warning", "info")


def noise(scale: float, batch: int, stderr: float = 0.0, step: int = 50) -> tuple[int, str, dict[str, float]]:
    values = {"signal_to_noise": 1 / scale, "signal_to_noise_stderr": stderr, "batch_size": batch}
    return step, "noise", values


def test_batches_against_the_noise_scale() -> None:
    assert severities("batch-too-small", noise(1000, 8, 1e-4)) == ("info", "warning")
    assert found("batch-too-small", noise(1000, 8, 0.01)) is None  # a scale of 47 at two standard errors
    assert found("batch-too-small", noise(1000, 200)) is None
    assert severities("batch-too-large", noise(10, 512, 0.005)) == ("info", "info")
    assert found("batch-too-large", noise(10, 512, 0.05)) is None  # 120 at two standard errors
    assert found("batch-too-large", noise(100, 512)) is None


def test_the_noise_scale_is_that_of_all_measurements() -> None:
    """A single one of them may show no signal, or less than none: it is unbiased, and scatters."""
    scattered = [noise(scale, 2, step=step) for step, scale in enumerate((50.0, -100.0, 40.0, 200.0, -90.0, 60.0))]
    finding = found("batch-too-small", *scattered)
    assert finding is not None
    shares = [1 / (1 + scale) for scale in (50.0, -100.0, 40.0, 200.0, -90.0, 60.0)]
    assert finding.evidence["noise scale"] == pytest.approx(6 / sum(shares) - 1)
    assert found("batch-too-small", *[noise(scale, 2, step=step) for step, scale in enumerate((3.0, -4.0))]) is None
    drowned = found("batch-too-small", *[noise(scale, 2, 0.02, step) for step, scale in enumerate((-400.0, -500.0))])
    assert drowned is not None
    assert drowned.evidence["noise scale, at least"] > 20
    impossible = [noise(scale, 2, 0.0, step) for step, scale in enumerate((-400.0, -500.0))]
    assert found("batch-too-small", *impossible) is None  # less than no signal, without an error
    assert found("batch-too-large", *[noise(-400.0, 10_000, step=step) for step in (1, 2)]) is None


def test_batch_norm_of_few_values() -> None:
    counts = {"batch_size": 4, "smallest_count": {"bn1": 256, "bn2": 4}}
    finding = found("batch-norm-batch-too-small", (50, "batch_norm", counts))
    assert finding is not None
    assert (finding.severity, finding.layer) == ("warning", "bn2")
    assert finding.evidence == {"values per statistic": 4, "batch size": 4}
    assert found("batch-norm-batch-too-small", (50, "batch_norm", {"smallest_count": {"bn1": 32}})) is None


def test_ill_conditioning_suggests_three_remedies() -> None:
    """S0-20, S0-28: m copies of one gradient are one direction. Worth knowing, not a fault."""
    copies = pb.moments(torch.ones(256, 256), num_params=3)
    finding = found(
        "ill-conditioning", (50, "kernel", {"effective_rank": copies.effective_rank, "num_samples": copies.num_samples})
    )
    assert finding is not None
    assert finding.severity == "info"
    assert abs(finding.evidence["effective rank"] - 1) < 1e-12
    for remedy in ("adaptive optimiser", "smaller learning rate", "second-order"):
        assert remedy in finding.action
    assert found("ill-conditioning", (50, "kernel", {"effective_rank": 40.0, "num_samples": 256})) is None


def test_inputs_not_normalised() -> None:
    bytes_ = {"largest_abs": 255.0, "std_ratio": 3.0, "largest_mean_over_std": 2.0}
    finding = found("inputs-not-normalised", (50, "inputs", bytes_))
    assert finding is not None
    assert finding.evidence == {"largest abs": 255.0}
    offset = {"largest_abs": 53.0, "std_ratio": 1.1, "largest_mean_over_std": 50.0}
    assert severities("inputs-not-normalised", (50, "inputs", offset)) == ("info", "warning")
    assert found("inputs-not-normalised", (50, "inputs", offset | {"largest_abs": 1.0})) is None  # a dark corner
    assert found("inputs-not-normalised", (50, "inputs", {"largest_abs": 4.0, "std_ratio": 2e5})) is not None
    assert found("inputs-not-normalised", (50, "inputs", {"largest_abs": 4.0, "std_ratio": 1.0})) is None


def test_a_few_inputs_far_out_stand_before_what_follows_from_them() -> None:
    """Their numbers make all look unscaled, and the first answers wild."""
    values = {"largest_abs": 300.0, "far_samples": [[7, 90.0], [2, 80.0]], "num_far": 2}
    lines = [
        (1, "inputs", values),
        (1, "targets", {"num_samples": 40}),
        (1, "loss", {"loss": 60.0, "constant_loss": 2.0}),
    ]
    first, *rest = pb.diagnose(a_run(*lines, (30, "kernel", {}), loss=[60.0] + [2.0] * 40))
    assert (first.name, first.severity, first.steps) == ("outlying-samples", "warning", (1, 1))
    assert first.change == pb.Change("check_samples", (2, 7))
    assert "samples 7, 2 of the batch of step 1" in first.action
    assert "90 times" in first.summary
    assert [(f.name, f.because[:1], f.change) for f in rest] == [
        ("chaotic-initialisation", ("outlying-samples",), None),
        ("not-learning", ("outlying-samples",), None),
    ]
    for altered in ([[7]], [["7", 90.0]], "7", [[7, math.nan]]):
        assert found("outlying-samples", (1, "inputs", values | {"far_samples": altered}), lines[1]) is None


def test_batches_drawn_with_replacement_hold_no_copies_of_the_data() -> None:
    """Of 200 such runs none is told of copies; of 50 whose data holds a few samples often, all are."""

    def run(generator: np.random.Generator, weights: np.ndarray) -> pb.Finding | None:
        lines: list[Line] = []
        for step in range(12):
            times = generator.multinomial(32, weights)
            copies = sorted((int(n) for n in times if n > 1), reverse=True)
            count = sum(copies) - len(copies)
            suspects = [[31 - k, 1.0, "duplicate"] for k in range(min(20, count))]
            seen = {"num_samples": 32, "suspects": suspects, "num_suspects": {"duplicate": count}, "copies": copies}
            lines.append((step, "samples", seen if copies else {"num_samples": 32, "suspects": []}))
        return found("duplicates", *lines)

    generator = np.random.default_rng(5)
    for size in generator.integers(90, 2000, 200):
        assert run(generator, np.full(size, 1 / size)) is None
    for size in generator.integers(200, 2000, 50):
        weights = np.full(size, 0.7 / size)
        weights[:4] += 0.3 / 4
        assert run(generator, weights) is not None


def test_one_sample_a_batch_of_which_no_noise_could_be_measured() -> None:
    """Nor does a single sample say anything of ranks."""

    def told(batch: int, last: float, measured: int = 1) -> list[str]:
        known = {"loss": 2.0, "constant_loss": 2.0}
        lines: list[Line] = [(0, "loss_form", {"reduction": "mean", "batch_size": batch}), (1, "loss", known)]
        for step in (1, 2, 60):
            lines += [
                (step, "activations", {"effective_rank": {"a": 1.0}}),
                (step, "kernel", {"num_samples": measured}),
            ]
        return [f.name for f in pb.diagnose(a_run(*lines, loss=[2.0] * 30 + [last] * 30))]

    assert told(1, 1.2) == told(2, 1.2) == ["batch-too-small"]
    assert told(3, 1.2) == told(1, 0.2) == []
    assert told(3, 1.2, 3) == ["rank-collapse"]


def test_a_short_run_is_not_said_to_fail_by_gradients_that_conflict() -> None:
    """Of arbitrary labels, in its first steps; of many steps it is, as it is where nobody shows the loop's loss."""
    conflict = (1, "alignment", {"mean_cosine": -0.2, "conflict_fraction": 0.8})

    def told(steps: int) -> str | None:
        finding = found("conflicting-gradients", conflict, loss=[1.1] * steps)
        return finding and finding.severity

    assert (told(6), told(29), told(30), told(0)) == ("info", "info", "warning", "warning")


def test_copies_are_told_by_whole_batches() -> None:
    """More than the few samples that are measured show; as many as draws with replacement give are none."""
    batch = {"copies": [12, 9, 2], "copied": [3, 5, 8, 9], "num_samples": 32}
    finding = found("duplicates", (1, "inputs", batch), (50, "inputs", batch))
    assert finding is not None
    assert (finding.severity, finding.change) == ("warning", pb.Change("check_samples", (3, 5, 8, 9)))
    assert finding.evidence == {"duplicates": 20, "samples": 32, "most often": 12, "share": 20 / 32}
    half = found("duplicates", (1, "inputs", batch), *[(k, "inputs", {"largest_abs": 1.0}) for k in (8, 64)])
    assert half is not None
    assert half.severity == "info"  # of one batch of three
    assert found("duplicates", (1, "inputs", {"copies": [2, 2], "copied": [1, 5], "num_samples": 64})) is None
    for damaged in ({"copied": "x"}, {"copies": "x"}, {"num_samples": 0}, {"copied": ["a"]}, {"copies": []}):
        assert found("duplicates", (1, "inputs", batch | damaged)) is None
    cause, effect = (
        f for f in pb.diagnose(a_run(
            (1, "inputs", batch), (1, "loss", {"loss": 1.0, "accuracy": 1.0}), (50, "test", {"accuracy": 0.5})
        )) if f.severity == "warning"
    )  # fmt: skip
    assert (cause.name, effect.name, effect.because) == ("duplicates", "memorisation", ("duplicates",))


def test_two_suspect_labels_of_twenty_are_chance() -> None:
    """A share of three hundredths gives so many in 12 of 100 runs; four in 3 of 1000."""

    def told(count: int, samples: int) -> str | None:
        finding = found("suspect-samples", (50, "samples", {"num_samples": samples, "suspects": many_labels(count)}))
        return finding and finding.severity

    assert (told(2, 20), told(4, 20)) == ("info", "warning")


def test_held_out_samples_that_are_far_easier_speak_against_the_training_labels() -> None:
    suspect = (60, "samples", {"num_samples": 16, "suspects": many_labels(1)})

    def told(test: float, *more: Line, **known: Any) -> str | None:
        course = [2.0] * 10 + [1.5] * 50
        finding = found("suspect-samples", suspect, (60, "test", {"loss": test}), *more, loss=course, **known)
        return finding and finding.severity

    assert (told(0.7), told(1.4)) == ("warning", "info")
    assert told(0.7, meta={"model": {"modules": {"Dropout": 2}}}) == "info"  # the model's own noise
    assert told(0.7, least=None) == "info"


def test_one_sample_a_batch_is_named_whatever_noise_was_measured() -> None:
    calm = [(k, "noise", {"signal_to_noise": 2.0, "signal_to_noise_stderr": 0.01, "batch_size": 1}) for k in (1, 2)]
    form = (0, "loss_form", {"reduction": "mean", "batch_size": 1})
    level = (1, "loss", {"loss": 2.0, "constant_loss": 2.0})
    assert found("batch-too-small", form, level, *calm, loss=[2.0] * 60) is not None
    assert found("batch-too-small", form, level, *calm, loss=[2.0] * 30 + [0.1] * 30) is None
