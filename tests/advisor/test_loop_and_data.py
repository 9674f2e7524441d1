"""Mistakes of the loop and of the data, told from records made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import f_oneway

import pullback as pb
from pullback.runs import Record, Run
from tests.advisor.runs import LEARNS, STUCK, Line, a_run, found, losses
from tests.advisor.threshold_rows import says_one

FELL = {"loss": [2.3 * 0.9**k for k in range(60)]}
NOT_FINITE = {"loss": math.nan, "gradients": [], "weights": [], "inputs": [], "targets": [], "outputs": []}


def test_numbers_that_are_none_in_the_data_are_never_blamed_on_the_rate() -> None:
    sharp = (6, "sharpness", {"hessian": 30.0, "limit": 20.0, "optimizer": "SGD", "learning_rate": 0.1})
    bad = (7, "not_finite", NOT_FINITE | {"inputs": [3, 19], "targets": [4], "weights": ["a"], "gradients": ["a"]})
    run = a_run(sharp, bad, loss=[2.3] * 6 + [math.nan] * 3)
    first, *rest = pb.diagnose(run)
    assert (first.name, first.severity, first.steps) == ("non-finite-data", "critical", (7, 7))
    assert first.change == pb.Change("check_samples", (3, 4, 19))
    assert "samples 3, 4, 19 of the batch of step 7" in first.action
    assert [(f.name, f.because, f.change) for f in rest] == [("divergence", ("non-finite-data",), None)]
    assert found("non-finite-data", (7, "not_finite", NOT_FINITE | {"weights": ["a"]})) is None


def test_a_gradient_that_is_none_beside_a_loss_that_is_one() -> None:
    broken = NOT_FINITE | {"loss": 2.0, "gradients": ["net.2.weight", "net.2.bias"]}
    first, second = pb.diagnose(a_run((4, "not_finite", broken), loss=[2.3, 2.2, 2.1, 2.0, math.nan]))
    assert (first.name, first.layer, first.change) == ("non-finite-gradients", "net.2", None)
    assert "net.2.weight, net.2.bias" in first.summary
    assert (second.name, second.because) == ("divergence", ("non-finite-gradients",))
    for other in ({"loss": math.nan}, {"inputs": [1]}, {"gradients": []}):
        assert found("non-finite-gradients", (4, "not_finite", broken | other)) is None


@pytest.mark.parametrize(
    ("outputs", "word"), [([0, 3], "forward pass"), ([], "Look in the loss"), (None, "forward pass")]
)
def test_a_first_loss_that_is_none_is_not_blamed_on_the_rate(outputs: list[int] | None, word: str) -> None:
    """No step was made before it: the forward pass, or the loss, made it of finite data."""
    broken = NOT_FINITE | {"gradients": ["a"], "weights": ["a"]}
    broken = (
        broken | {"outputs": outputs} if outputs is not None else {k: v for k, v in broken.items() if k != "outputs"}
    )
    first, second = pb.diagnose(a_run((1, "not_finite", broken), loss=[math.nan] * 5))
    assert (first.name, first.severity, first.change) == ("non-finite-outputs", "critical", None)
    assert word in first.action
    assert (second.name, second.because, second.change) == ("divergence", ("non-finite-outputs",), None)
    later = (2, "not_finite", broken)
    assert [f.name for f in pb.diagnose(a_run(later, loss=[2.0] + [math.nan] * 5))] == ["divergence"]
    data = (1, "not_finite", broken | {"inputs": [1]})
    assert [f.name for f in pb.diagnose(a_run(data, loss=[math.nan] * 5))] == ["non-finite-data", "divergence"]


@pytest.mark.parametrize(
    ("form", "outputs", "word"),
    [
        ("cross-entropy", "probabilities", "Take the softmax out"),
        ("nll", "probabilities", "CrossEntropyLoss"),
        ("nll", "scores", "CrossEntropyLoss"),
        ("binary", "probabilities", "Take the sigmoid out"),
    ],
)
def test_a_loss_of_probabilities(form: str, outputs: str, word: str) -> None:
    def seen(count: int = 4, **changed: Any) -> list[Line]:
        values = {"loss": 1.0, "constant_loss": 2.0, "form": form, "outputs": outputs}
        return [(k, "loss", values | (changed if k == 2 else {})) for k in range(count)]

    finding = found("loss-of-probabilities", *seen())
    assert finding is not None
    assert (finding.severity, finding.change) == ("warning", pb.Change("loss_from_logits"))
    assert word in finding.action
    assert found("loss-of-probabilities", *seen(outputs="log-probabilities")) is None  # not in all of them


@pytest.mark.parametrize(
    ("form", "outputs"),
    [("cross-entropy", "scores"), ("cross-entropy", "log-probabilities"), ("binary-nll", "probabilities"),
     ("binary", "scores"), ("squared", "scores")],
)  # fmt: skip
def test_losses_of_what_they_ask_for(form: str, outputs: str) -> None:
    values = {"loss": 1.0, "constant_loss": 2.0, "form": form, "outputs": outputs}
    assert found("loss-of-probabilities", *[(k, "loss", values) for k in range(5)]) is None


def test_one_binary_score_between_0_and_1_for_all_samples_is_no_probability() -> None:
    values = {"loss": 0.69, "constant_loss": 0.69, "form": "binary", "outputs": "probabilities"}
    assert found("loss-of-probabilities", *[(k, "loss", values) for k in range(5)]) is None


def described(**parts: Any) -> dict[str, Any]:
    return {"meta": {"model": {"layers": ["a", "b"], "frozen": parts.get("frozen", []),
                               "frozen_behind": parts.get("behind", [])},
                     "optimizer": {"class": "SGD", "left_out": parts.get("left_out", [])}}}  # fmt: skip


def test_parameters_in_no_optimizer() -> None:
    finding = found("parameters-not-trained", *LEARNS, **described(left_out=["head.weight", "head.bias"]))
    assert finding is not None
    assert (finding.severity, finding.layer) == ("warning", "head")
    assert finding.change == pb.Change("train_parameters", ("head.weight", "head.bias"))
    assert found("parameters-not-trained", *STUCK, **described()) is None


def test_frozen_on_purpose_and_by_mistake() -> None:
    backbone = described(frozen=["base.weight"])
    for course in (LEARNS, STUCK):
        finding = found("parameters-not-trained", *course, **backbone)
        assert finding is not None
        assert (finding.severity, finding.change) == ("info", None)
    for first, last, severity in ((2.3, 1.6, "warning"), (2.3, 0.2, "info"), (1.2, 1.0, "info")):  # knew something
        course = [first] * 4 + [last] * 60
        run = a_run((1, "loss", {"loss": first, "constant_loss": 2.3}), (60, "kernel", {}), loss=course, **backbone)
        (finding,) = pb.diagnose(run)
        assert (finding.name, finding.severity) == ("parameters-not-trained", severity)
        assert (finding.change is None) == (severity == "info")
    behind = described(frozen=["base.weight", "head.weight"], behind=["head.weight"])
    levels = [found("parameters-not-trained", *course, **behind) for course in (LEARNS, STUCK)]
    assert [f.severity for f in levels if f] == ["info", "warning"]
    assert levels[1] is not None
    assert levels[1].change == pb.Change("train_parameters", ("head.weight",))


def test_layers_that_no_gradient_reaches_and_dead_units_that_explain_it() -> None:
    still = [(k, "updates", {"ratio": {"a": 0.0, "b": 0.01}, "median": 0.005}) for k in (2, 4, 8)]
    finding = found("parameters-not-trained", *still, *STUCK)
    assert finding is not None
    assert finding.change == pb.Change("train_parameters", ("a",))
    assert found("parameters-not-trained", *still[:1], *STUCK) is None
    once = [still[0], (4, "updates", {"ratio": {"a": 0.01, "b": 0.01}, "median": 0.01}), still[2]]
    assert found("parameters-not-trained", *once, *STUCK) is None
    dead = [(k, "activations", {"dead": {"a": 1.0}}) for k in (1, 2, 4, 8)]
    names = [f.name for f in pb.diagnose(a_run(*still, *dead, *STUCK))]
    assert names.index("dead-units") < names.index("parameters-not-trained")


def gradients(norms: list[float], measured: float = 1.0, every: int = 10, **known: Any) -> Run:
    lines = [(k, "gradients", {"rms_gradient_norm": measured}) for k in [1, *range(every, len(norms), every)]]
    return a_run(*lines, *known.pop("more", []), gradient_norm=norms, **known)


def names(run: Run) -> list[str]:
    return [f.name for f in pb.diagnose(run)]


def test_gradients_that_add_up() -> None:
    """Against a factor that stays, and against a batch's own noise."""
    assert "gradients-not-zeroed" in names(gradients([float(k) for k in range(1, 80)]))
    assert "gradients-not-zeroed" not in names(gradients([30.0] * 80))  # accumulated, scaled or summed
    assert "gradients-not-zeroed" in names(gradients([30.0 * k for k in range(1, 80)]))
    generator = np.random.default_rng(0)
    walk = np.linalg.norm(np.cumsum(generator.standard_normal((400, 30)) / 30, 0), axis=1).tolist()
    assert "gradients-not-zeroed" in names(gradients(walk))  # unrelated ones: the root of their number
    for seed in range(100):  # a batch's own, below the samples' root mean square
        own = np.minimum(0.9, 0.2 * np.random.default_rng(seed).lognormal(0.0, 0.5, 80)).tolist()
        assert "gradients-not-zeroed" not in names(gradients(own))
    assert "gradients-not-zeroed" not in names(gradients([1.0], measured=0.0))
    left_out = gradients([30.0 * k for k in range(1, 80)], **described(left_out=["b"]))
    found_names = names(left_out)
    assert found_names.index("parameters-not-trained") < found_names.index("gradients-not-zeroed")
    assert "gradients-not-zeroed" not in names(gradients([]))


def test_a_sum_over_the_batch_is_said_where_steps_are_too_long() -> None:
    """The curvature that is recorded is that of the sum; the loop's losses are taken as means."""
    values = {"hessian": 128.0, "limit": 20.0, "optimizer": "SGD", "learning_rate": 0.1}
    sharp = [(k, "sharpness", values) for k in (1, 8)]
    for reduction, told in (("sum", True), ("mean", False)):
        form = (0, "loss_form", {"reduction": reduction, "batch_size": 64})
        finding = found("learning-rate-too-high", form, *sharp, *STUCK)
        assert finding is not None
        assert ("summed over 64 samples" in finding.summary) == told
        assert finding.change is not None
        assert finding.change.value == pytest.approx(1 / 64 if told else 0.25 * 20 / 128)
    known = (1, "loss", {"loss": 2.0, "constant_loss": 2.0})
    summed = (0, "loss_form", {"reduction": "sum", "batch_size": 64})
    stuck = a_run(known, summed, (40, "kernel", {}), loss=[128.0] * 40)
    assert [f.name for f in pb.diagnose(stuck)] == ["not-learning"]


def batches(tables: list[list[float]]) -> list[Line]:
    return [(k, "targets", {"counts": {str(c): n for c, n in enumerate(row) if n}}) for k, row in enumerate(tables)]


def test_an_order_of_the_classes_and_of_numbers() -> None:
    pure = [[32.0 if c == k // 2 else 0.0 for c in range(5)] for k in range(10)]
    finding = found("data-not-shuffled", *batches(pure))
    assert finding is not None
    assert finding.change == pb.Change("shuffle")
    mixed = np.random.default_rng(1).multinomial(32, [0.2] * 5, 10).astype(float).tolist()
    assert found("data-not-shuffled", *batches(mixed)) is None
    assert found("data-not-shuffled", *batches(pure[:4])) is None

    def numbers(between: float) -> list[Line]:
        values = {"sample_std": 1.0, "num_samples": 32, "std": 1.0, "largest_mean": 0.0}
        return [(k, "targets", values | {"sample_mean": between * k}) for k in range(10)]

    assert found("data-not-shuffled", *numbers(0.3)) is not None
    assert found("data-not-shuffled", *numbers(0.02)) is None


@pytest.mark.parametrize("classes", [2, 10])
def test_batches_drawn_at_random_are_hardly_ever_called_ordered(classes: int) -> None:
    """Of 300 shuffled runs none: the bound lies six standard errors beyond chance."""
    generator = np.random.default_rng(3)
    shares = generator.dirichlet([0.5] * classes, 300)
    for share in shares:
        table = generator.multinomial(16, share, 12).astype(float).tolist()
        assert found("data-not-shuffled", *batches(table)) is None


def test_a_class_that_is_rare() -> None:
    most = found("class-imbalance", *batches([[99.0, 1.0]] * 3), *LEARNS)
    assert most is not None
    assert (most.severity, most.change) == ("warning", pb.Change("balance_classes"))
    some = [found("class-imbalance", *batches([[30.0, 1.0, 1.0]] * 5), *course) for course in (LEARNS, STUCK)]
    assert [f.severity for f in some if f] == ["info", "warning"]
    assert found("class-imbalance", *batches([[10.0, 1.0]] * 20)) is None
    assert found("class-imbalance", *batches([[45.0, 1.0]])) is None  # of 46 labels
    assert found("class-imbalance", *batches([[500.0]])) is None


def test_targets_off_scale() -> None:
    far = (0, "targets", {"std": 77.0, "largest_mean": 152.0})
    finding = found("targets-not-normalised", far, *STUCK)
    assert finding is not None
    assert (finding.severity, finding.change) == ("warning", pb.Change("standardise_targets"))
    assert found("targets-not-normalised", (0, "targets", {"std": 1.0, "largest_mean": -3.0})) is None


def test_a_schedule_that_has_come_to_nothing() -> None:
    rates = [0.7**k for k in range(100)]
    finding = found("schedule-at-zero", learning_rate=rates, loss=[2.3] * 100)
    assert finding is not None
    assert (finding.severity, finding.steps) == ("warning", (21, 100))
    assert "learning-rate-too-low" not in names(a_run(learning_rate=rates, loss=[2.3] * 100))
    cosine = [0.5 * (1 + math.cos(math.pi * k / 100)) for k in range(100)]
    warm = [min(1.0, k / 50) for k in range(100)]
    for healthy in (cosine, warm, [0.1] * 100, [0.0] * 100, rates[:10]):
        assert found("schedule-at-zero", learning_rate=healthy, loss=[2.3] * len(healthy)) is None


def failing(*records: tuple[int, str, str]) -> Run:
    errors = tuple(Record(step, 0.0, probe, {}, error) for step, probe, error in records)
    run = a_run(*losses(2.0, 1.0, 0.5))
    return Run(run.path, run.meta, (*run.records, *errors), courses=run.courses)


def test_probes_that_failed_are_said_first_with_what_to_change() -> None:
    words = "InputError: kernel: expected labels of shape (8,), got (8, 4). Put the class axis second"
    first = pb.diagnose(failing((0, "kernel", words), (10, "kernel", words), (10, "flow", words)))[0]
    assert (first.name, first.severity) == ("not-measured", "warning")
    assert first.action == "Put the class axis second"
    assert first.summary.startswith("kernel, flow could not be measured (InputError: kernel: expected labels")
    assert pb.diagnose(failing((0, "loss", words))) == []  # the probe answered at other steps
    assert pb.diagnose(failing((0, "jacobian", words)))[0].severity == "info"
    first = pb.diagnose(failing((0, "kernel", "RuntimeError: no")))[0]
    assert "eval mode" in first.action


def test_probes_that_fail_because_the_loss_is_none_are_no_riddle() -> None:
    words = "InputError: kernel: expected a finite loss for every sample, got nan for sample 0. Check that sample"
    assert [f.name for f in pb.diagnose(failing((30, "kernel", words), (30, "flow", "RuntimeError: svd")))] == [
        "divergence"
    ]


def test_a_probe_that_fails_in_a_run_that_blows_up_does_not_stand_before_the_cause() -> None:
    words = "SelfCheckError: Hessian: expected a symmetric matrix, got u^T H v and v^T H u that differ"

    def told(*values: float) -> list[tuple[str, str]]:
        run = failing((1, "sharpness", words))
        found = pb.diagnose(Run(run.path, run.meta, (*a_run(*losses(*values)).records, *run.records[3:])))
        return [(f.name, f.severity) for f in found]

    assert told(2.0, 1.0, 0.5)[0] == ("not-measured", "warning")
    first, *rest = told(2.0, 40.0, float("nan"))
    assert first == ("divergence", "critical")
    assert ("not-measured", "info") in rest


def test_what_cannot_be_seen_is_no_all_clear() -> None:
    assert [(f.name, f.severity) for f in pb.diagnose(a_run())] == [("not-measured", "warning")]
    unseen = pb.diagnose(a_run((1, "loss", {"loss": 1.0}), loss=[1.0 - k / 200 for k in range(100)]))
    assert unseen[0].name == "not-measured"
    assert "of step 1, of 100" in unseen[0].summary
    assert pb.diagnose(a_run((90, "loss", {"loss": 1.0}), loss=[1.0 - k / 200 for k in range(100)])) == []
    assert pb.diagnose(a_run(loss=[1.0 - k / 200 for k in range(100)]))[0].name == "not-measured"


def test_an_error_that_ended_the_training() -> None:
    def ended(error: str | None) -> list[str]:
        return names(a_run(*LEARNS, (20, "end", {"steps": 20, "error": error})))

    assert ended("RuntimeError: out of memory") == ["not-measured"]
    assert ended(None) == ended("KeyboardInterrupt") == []


def diverging(norms: list[float], measured: tuple[int, ...], losses_of: list[float] | None = None) -> list[str]:
    lines = [(step, "gradients", {"rms_gradient_norm": 1.0}) for step in measured]
    lines += [(0, "loss", {"constant_loss": 2.0})] if losses_of else []
    run = a_run(*lines, gradient_norm=norms, **({"loss": losses_of} if losses_of else {}))
    return [finding.name for finding in pb.diagnose(run)]


@pytest.mark.parametrize(
    ("norms", "sizes", "summed"),
    [
        ((0.1, 0.17, 0.25, 0.39, 0.6, 0.7, 1.2, 1.5), {1: 0.64, 2: 0.38, 4: 0.73, 8: 1.2, 16: 3.6}, True),
        ((3.7, 5.5, 7.3, 10.9, 15.5, 13.4, 13.8, 26.0), {1: 7.4, 2: 8.5, 4: 8.6, 8: 16.7, 16: 17.6}, True),
        ((0.1, 0.17, 0.25, 0.39, 0.6, 0.7, 1.2, 1.5), {1: 0.64, 2: 0.9, 4: 1.5, 8: 3.6, 16: 3.6}, False),
        ((3.7, 5.5, 7.3, 10.9, 10.5, 13.4, 13.8, 26.0), {1: 7.4, 2: 8.5, 4: 8.6, 8: 16.7, 16: 17.6}, False),
    ],
)
def test_a_sum_shows_before_the_loss_leaps(norms: tuple[float, ...], sizes: dict[int, float], summed: bool) -> None:
    """Five steps in a row that grow, while samples' gradients, between measurements too, are not twice as long."""
    lines = [(step, "gradients", {"rms_gradient_norm": size}) for step, size in sizes.items()]
    course = [2.0] * 9 + [20.0] * 11
    run = a_run((0, "loss", {"constant_loss": 2.0}), *lines, gradient_norm=list(norms), loss=course)
    assert ("gradients-not-zeroed" in names(run)) == summed


def test_a_norm_that_grows_at_every_step_is_a_sum_after_a_leap_too() -> None:
    """Twice and more as long as the samples', which grow as well; a mean stays below them however long they grow."""
    growing, course = [0.2 * 1.2**k for k in range(40)], [2.0] * 15 + [20.0] * 25
    assert "gradients-not-zeroed" in diverging(growing, (1, 2, 4, 8, 16, 32), course)
    sizes = [(step, "gradients", {"rms_gradient_norm": 1.2**step}) for step in (1, 2, 4, 8, 16, 32)]
    mean = a_run((0, "loss", {"constant_loss": 2.0}), *sizes, gradient_norm=growing, loss=course)
    assert "gradients-not-zeroed" not in names(mean)
    restless = [norm * (1.3 if k % 2 else 1.0) for k, norm in enumerate(growing)]
    assert "gradients-not-zeroed" not in diverging(restless, (1, 2, 4, 8, 16, 32), course)


def test_gradients_of_a_run_that_diverges_are_no_sum() -> None:
    """Samples' gradients grow as fast as the loop's, and between measurements nobody sees them."""
    leaping = [0.3, 0.3, 0.3, 0.3, 1e3, 1e6, 1e9, 1e12]
    assert "gradients-not-zeroed" not in diverging(leaping, (1, 2))
    assert "gradients-not-zeroed" not in diverging(leaping, (1, 2, 8), [2.0] * 4 + [1e3, 1e6, 1e9, 1e12])
    assert "gradients-not-zeroed" in diverging(leaping, (1, 2, 8), [2.0] * 8)


def test_few_samples_a_batch_are_few_for_batch_norm_whatever_their_positions() -> None:
    def told(batch: float, count: int) -> pb.Finding | None:
        return found(
            "batch-norm-batch-too-small", (1, "batch_norm", {"smallest_count": {"a": count}, "batch_size": batch})
        )

    finding = told(3, 192)
    assert finding is not None
    assert finding.severity == "warning"
    assert finding.change == pb.Change("batch_size", 32 / 3)
    assert "of 3 samples" in finding.summary
    few = told(8, 8)
    assert few is not None
    assert "of 8 values" in few.summary
    assert few.change == pb.Change("batch_size", 4.0)
    assert told(8, 128) is None


def test_loops_whose_steps_leap_are_compared_with_no_measurement() -> None:
    """The loop's loss is of before a step, the measured one of after it: a wild start is told nevertheless."""
    measured = [
        (k, "loss", {"loss": 100.0 * b, "batch_loss": b, "constant_loss": 2.0})
        for k, b in enumerate((60.0, 6e3, 6e5), 1)
    ]
    finding = found("chaotic-initialisation", *measured, loss=[60.0, 6e3, 6e5, 6e7, math.nan])
    assert finding is not None
    assert finding.severity == "critical"
    scaled = [(k, "loss", {"loss": 1.0, "batch_loss": 60.0, "constant_loss": 2.0}) for k in (1, 2, 4)]
    assert found("chaotic-initialisation", *scaled, loss=[60.0] * 5) is None


@pytest.mark.parametrize(
    ("optimizer", "cosine", "gradient", "expected"),
    [
        ("Adam", 0.8, 1.9, True),
        ("Adam", 0.8, 2.1, False),  # the gradient is the larger part of the sum
        ("Adam", 0.4, 0.1, False),  # steps that do not go where decay would: it is not of these weights
        ("RMSprop", 0.6, 1.0, True),
        ("AdamW", 0.8, 0.1, False),  # apart from the gradient: the rate times the decay is all it takes
    ],
)
def test_decay_within_the_gradient_is_weighed_against_it(
    optimizer: str, cosine: float, gradient: float, expected: bool
) -> None:
    """Weights of norm 2 and a decay of 1, in steps too short to show in the norm."""
    updates = [(step, "updates", {"shrink": cosine, "norm": 2.0, "median": 0.01}) for step in (1, 4, 9)]
    meta = {"optimizer": {"class": optimizer, "learning_rate": 1e-4, "weight_decay": 1.0}}
    run = a_run(*updates, meta=meta, loss=[2.0] * 10, gradient_norm=[gradient] * 10)
    assert ("weight-decay-too-high" in {finding.name for finding in pb.diagnose(run)}) is expected


@pytest.mark.parametrize(("alive", "length", "cause"), [(0, 0.05, True), (0, 0.001, True), (3, 0.05, False)])
def test_decay_that_is_most_from_the_start_follows_from_no_rate(alive: int, length: float, cause: bool) -> None:
    """Of a run that learns nothing after a first step far too long, with gradients that are large for some steps."""
    seen = [(step, "updates", {"shrink": 0.9, "norm": 2.0, "median": length}) for step in (2, 4, 9)]
    meta = {"optimizer": {"class": "RMSprop", "learning_rate": 0.1, "weight_decay": 1.0}}
    norms = [9.0] * alive + [0.1] * (40 - alive)
    run = a_run((1, "updates", {"median": 20.0}), *seen, meta=meta, loss=[2.0] * 40, gradient_norm=norms)
    told = {finding.name: finding.because for finding in pb.diagnose(run)}
    assert told["weight-decay-too-high"] == (() if cause else ("learning-rate-too-high",))
    assert told["learning-rate-too-high"] == (("weight-decay-too-high",) if cause else ())


@pytest.mark.parametrize(("rate", "first"), [(0.0051, "weight-decay-too-high"), (0.0049, "vanishing-gradients")])
def test_decay_that_takes_the_weights_follows_from_no_gradient_that_vanishes(rate: float, first: str) -> None:
    """Two of decay: a hundredth of the weights a step is the settings' doing; less is all there is of a step."""
    meta = {"optimizer": {"class": "SGD", "learning_rate": rate, "weight_decay": 2.0}}
    flow = (1, "flow", {"verdict": "vanishing", "slope": -2.0})
    steps = [(k, "updates", {"shrink": 1.0, "norm": 1.0, "median": 2.0 * rate}) for k in (2, 9)]
    told = [f.name for f in pb.diagnose(a_run(flow, *steps, (40, "kernel", {}), meta=meta, loss=[2.0] * 40))]
    assert told[0] == first
    assert set(told) >= {"weight-decay-too-high", "vanishing-gradients"}


@pytest.mark.parametrize(("measured", "summed"), [((1, 2, 64, 128), True), ((128, 192), False)])
def test_gradients_long_before_the_first_that_is_measured_are_no_evidence(
    measured: tuple[int, ...], summed: bool
) -> None:
    """Samples whose gradients could be measured only once they were long: .grad grew as they did."""
    lines = [(step, "gradients", {"rms_gradient_norm": 1e4}) for step in measured]
    run = a_run(*lines, gradient_norm=[100.0 * k for k in range(1, 193)])
    assert ("gradients-not-zeroed" in names(run)) is summed


@pytest.mark.parametrize(
    ("known", "said"),
    [({}, True), ({"right": 0.1}, False), ({"level": 1.96}, False), ({"ratio": 3.0}, False), ({"others": 4.0}, False)],
)
def test_a_model_that_says_one_class_although_it_learns(known: dict[str, float], said: bool) -> None:
    """Not where others are right as well, nothing is learnt, classes are near in number, or few others were seen."""
    finding = next((f for f in pb.diagnose(says_one(**known)) if f.name == "class-imbalance"), None)
    assert (finding is not None) is said
    if finding is not None:
        assert (finding.severity, finding.change) == ("warning", pb.Change("balance_classes"))
        assert finding.summary.endswith("the others hardly count, and so it is here.")


def test_standard_errors_of_an_order_of_numbers() -> None:
    """By the F of an analysis of variance: of a chi-squared number of d degrees the errors are (F - 1) sqrt(d / 2)."""
    draws = np.random.default_rng(0).standard_normal((8, 30)) + np.arange(8)[:, None]
    sums = draws.sum(1)
    values = {"sums": [sums.sum()], "square_sums": [(draws**2).sum()], "squared_sums": [(sums**2 / 30).sum()]}
    line = (8, "all_targets", {"batches": 8, "num_samples": 240} | values)
    finding = found("data-not-shuffled", line, (1, "targets", {"mean": 0.0}), loss=[1.0] * 8)
    assert finding is not None
    F = f_oneway(*draws).statistic
    assert finding.evidence["beyond chance by standard errors"] == pytest.approx((F - 1) * math.sqrt(7 / 2))
