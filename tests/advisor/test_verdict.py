"""The verdict: what a run came to, and why, in one sentence."""

from __future__ import annotations

import math

import pytest

from pullback.advisor import Finding, diagnose, verdict
from pullback.advisor.causes import ORDER
from pullback.advisor.rules import RULES
from pullback.advisor.sources import NEEDS, unseen
from pullback.advisor.verdict import LONGEST, OUTCOMES
from pullback.runs import Run
from tests.advisor.runs import a_run, losses
from tests.advisor.test_thresholds import ROWS

BESIDE = {"epoch", "learning_rate", "gradient_norm", "optimizer", "loss_form"}  # of the loop, or instead of another one
SOURCES = {source for needs in NEEDS.values() for group in needs for source in group} - BESIDE


def a_finding(name: str, severity: str = "warning", **known) -> Finding:
    told = {"layer": None, "steps": (34, 60), "evidence": {}, "threshold": "", "source": "", "action": ""}
    return Finding(name, severity, **(told | known))


def sharp(step: int, sharpness: float, rate: float, momentum: float = 0.0):
    limit = (2 + 2 * momentum) / rate
    return step, "sharpness", {"hessian": sharpness, "limit": limit, "learning_rate": rate, "optimizer": "SGD"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_run_that_diverges_names_its_rate_beside_what_the_curvature_bears(momentum):
    """The curvature of a quadratic bears (2 + 2 m) / sharpness."""
    bears = (2 + 2 * momentum) / 7.5
    run = a_run(*losses(2.3, 5.0, 50.0, math.nan), *(sharp(10 * k, 7.5, 3.0, momentum) for k in range(4)))
    assert verdict(run) == (
        f"Diverges from step 30: the learning rate, 3, is beyond what the curvature bears, {bears:.3g}"
    )


def test_of_several_curvatures_it_is_the_one_that_the_finding_was_made_of():
    run = a_run(*losses(2.3, 5.0, 50.0, math.nan), *(sharp(10 * k, 7.5 * 2**k, 3.0) for k in range(4)))
    found = next(finding for finding in diagnose(run) if finding.name == "learning-rate-too-high")
    assert verdict(run).endswith(f", {3.0 * found.evidence['limit'] / found.evidence['sharpness']:.3g}")


def test_a_rate_that_no_curvature_speaks_against_is_told_by_its_summary():
    run = a_run(*losses(2.3, 1.0))
    cause = a_finding("learning-rate-too-high", summary="Steps are 3 times as long as the weights, so that they fail.")
    effect = a_finding("divergence", because=("learning-rate-too-high",), summary="The loss grew: worse.")
    assert verdict(run, [cause, effect]) == (
        "Diverges from step 34: steps are 3 times as long as the weights, so that they fail"
    )


def test_the_gravest_outcome_is_told_and_further_causes_are_counted():
    run = a_run(*losses(2.3, 2.3))
    cause = a_finding("data-not-shuffled", summary="The samples come in an order: a batch looks like no other.")
    effects = [a_finding(name, because=("data-not-shuffled",)) for name in ("not-learning", "loss-oscillates")]
    other = a_finding("class-imbalance", summary="Class 3 makes up 90% of the samples.")
    assert verdict(run, [cause, *effects]) == "Learns nothing: the samples come in an order"
    assert verdict(run, [cause, *effects, other]).endswith("an order, and 1 more cause")
    assert verdict(run, [cause, *effects, other, other]).endswith("an order, and 2 more causes")
    assert verdict(run, [cause, other]).startswith("Reached a loss of 2.3 at step 10: the samples")


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_is_one_of_the_findings_and_speaks_for_itself(name):
    assert name in ORDER
    said = verdict(a_run(*losses(2.3, 2.3)), [a_finding(name, summary="Thus it is.")])
    assert said == f"{OUTCOMES[name].format(step=34)}: thus it is"


@pytest.mark.parametrize("name", ORDER)
def test_a_finding_without_a_summary_is_told_by_its_name(name):
    assert verdict(a_run(*losses(2.3, 2.3)), [a_finding(name)]).endswith(f": {name.replace('-', ' ')}")


def test_a_healthy_run_is_told_by_what_it_reached_and_by_what_was_looked_for():
    shown = [2.3 * 0.9**k for k in range(100)]
    records = [(k, "loss", {"loss": 0.1, "constant_loss": 2.0, "form": "other"}) for k in (1, 50, 100)]
    run = a_run(*records, loss=shown)
    level = sorted(shown[-10:])[4:6]
    last = sum(level) / 2
    everything = a_run(
        *records, *((1, probe, {}) for probe in SOURCES), loss=shown, gradient_norm=[1.0], learning_rate=[1.0]
    )
    reached = (
        f"Reached a loss of {last:.3g} at step 100 (median of 10 steps), under 0.01% of the best constant answer's 2: "
    )
    assert verdict(everything, []) == reached + f"no fault found by any of {len(RULES)} rules"
    info, other = a_finding("ill-conditioning", "info"), a_finding("duplicates", "info")
    assert verdict(everything, [info]).endswith(f"any of {len(RULES)} rules; worth knowing: ill conditioning")
    assert verdict(everything, [info, other, info]).endswith("; worth knowing: ill conditioning and duplicates")
    able = len(RULES) - len(unseen(run))
    assert verdict(run, []).startswith(reached + f"no fault found by {able} of {len(RULES)} rules; not measured: ")


def test_rules_whose_probes_did_not_run_are_not_counted():
    loss = [2.0 - 0.01 * k for k in range(100)]
    asked = [(1, probe, {}) for probe in SOURCES - {"tangent", "test", "effective_lr"}]
    shown = {"loss": loss, "gradient_norm": [1.0], "learning_rate": [1.0]}
    said = verdict(a_run((1, "loss", {"loss": 2.0}), *asked, **shown), [])
    able = len(RULES) - 2  # norms of layers that are not there have nothing to be told
    assert said.endswith(f": no fault found by {able} of {len(RULES)} rules; not measured: held-out loss and tangent")
    young = verdict(a_run((1, "loss", {"loss": 2.0}), loss=loss), [])
    assert young.endswith("not measured: activations, alignment, all_targets, flow and 13 more"), young
    normed = a_run(*asked, meta={"model": {"modules": {"LayerNorm": 2}}}, **shown)
    assert set(unseen(normed)) == {"memorisation", "lazy-regime", "effective-rate-decay"}


def test_every_rule_has_its_sources():
    assert set(NEEDS) == set(ORDER)
    assert len(RULES) == len(ORDER)


@pytest.mark.parametrize("threshold", ROWS)
def test_what_finds_something_could_look(threshold):
    for row in ROWS[threshold]:
        made = row.make(row.yes)
        run = made if isinstance(made, Run) else a_run(*made, least=row.least)
        assert row.name not in unseen(run)


def test_a_loss_above_its_first_one_is_never_said_to_be_reached():
    for last, words in (
        (2.29, "Reached a loss of 2.29"),
        (2.31, "Ends at a loss of 2.31 at step 40 (median of 4 steps), above its first one, 2.3"),
    ):
        assert verdict(a_run(loss=[2.3, 2.0, *[last] * 38]), []).startswith(words)


@pytest.mark.parametrize(
    ("last", "shown"),
    [(1.0, "50%"), (0.01, "0.5%"), (0.0, "0%"), (1e-5, "under 0.01%"), (3.0, "150%"), (6.0, "3 times")],
)
def test_the_share_of_one_answer_s_loss_is_told_as_finely_as_it_matters(last, shown):
    run = a_run((1, "loss", {"loss": last, "constant_loss": 2.0, "form": "other"}), loss=[last] * 40)
    told = shown if "times" in shown else f"{shown} of"
    assert f", {told} the best constant answer's 2:" in verdict(run, [])


def test_nothing_that_a_run_says_of_itself_gets_through_as_control():
    run = a_run(*losses(2.3, 2.3))
    assert "\x1b" not in verdict(run, [a_finding("divergence", summary="\x1b[31mred\n")])
    assert len(verdict(run, [a_finding("divergence", summary="x" * 1000)])) == LONGEST
    named = a_run(*losses(2.3, 2.3), meta={"model": {"layers": ["Encoder"]}})
    told = [a_finding("parameters-not-trained", summary="Encoder never change, because no optimizer holds them.")]
    assert ": Encoder never change" in verdict(named, told)
    assert verdict(a_run()).startswith("Nothing is known of its loss: the record holds no loss")


def test_a_run_is_read_by_its_path(tmp_path):
    from pullback.runs import RunWriter

    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(1, "loss", {"loss": math.nan})
    assert verdict(tmp_path / "run") == verdict(writer.path)
