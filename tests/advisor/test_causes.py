"""One cause first: what follows from what, by mechanism and by time, and no two remedies for one cause."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.advisor.causes import AT_THE_END, FOLLOWS, FROM_START, GIVES_WAY, ORDER, in_order
from pullback.advisor.change import Change
from pullback.advisor.findings import SEVERITIES, Finding
from tests.advisor.runs import Line, a_run


def a_finding(name: str, step: int = 1, severity: str = "warning", last: int = 100) -> Finding:
    return Finding(
        name, severity, None, (step, last), {}, "t", "s", f"do {name}", change=Change("learning_rate", 0.5)
    )  # fmt: skip


def told(*findings: Finding) -> list[tuple[str, tuple[str, ...]]]:
    return [(f.name, f.because) for f in in_order(findings)]


def test_the_tables_name_what_there_is() -> None:
    assert set(FOLLOWS) | FROM_START | AT_THE_END | set(GIVES_WAY) <= set(ORDER)
    for causes in (*FOLLOWS.values(), *GIVES_WAY.values()):
        assert set(causes) <= set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_what_was_so_at_the_start_follows_from_no_step() -> None:
    """A gradient that is lost, or units that are off, before a first step that is too long as well."""
    lost = {"verdict": "vanishing", "slope": -9.0, "gradient_norm": {"a": 1e-6, "b": 1.0}}

    def told(off: float, ratio: float = 0.6) -> list[str]:
        lines: list[Line] = [(1, "loss", {"loss": 2.0, "constant_loss": 2.0})]
        for step in (1, 2, 4, 50):
            moved = {"a": ratio if step == 1 else 0.6, "b": 0.6}
            lines += [(step, "flow", lost), (step, "updates", {"median": 0.6, "ratio": moved})]
            lines += [(step, "activations", {"dead": {"a": off}, "kind": {"a": "ReLU"}})]
        return [f.name for f in pb.diagnose(a_run(*lines, loss=[2.0] * 60)) if not f.because]

    assert told(0.0) == ["vanishing-gradients", "learning-rate-too-high"]
    assert told(0.6) == ["vanishing-gradients", "learning-rate-too-high"]  # by the toss of a coin
    assert told(0.9) == ["learning-rate-too-high"]  # which the first step may have switched off
    assert told(0.9, ratio=0.0) == ["dead-units", "learning-rate-too-high"]


def test_a_rate_out_of_reach_before_dead_units_before_vanishing_gradients() -> None:
    chain = [a_finding(n, 1) for n in ("vanishing-gradients", "dead-units", "learning-rate-too-high", "not-learning")]
    for order in itertools.permutations(chain):
        found = in_order(order)
        assert [f.name for f in found] == [
            "learning-rate-too-high", "dead-units", "vanishing-gradients", "not-learning",
        ]  # fmt: skip
        assert [f.because[:1] for f in found] == [(), *[("learning-rate-too-high",)] * 3]
        assert [f.change is None for f in found] == [False, True, True, True]
        assert {f.action for f in found} == {"do learning-rate-too-high"}


def test_what_stands_in_the_settings_comes_before_what_was_measured() -> None:
    """Batches of one sample, and an activation whose slope is a quarter at most."""
    line = (1, "loss", {"loss": 2.0, "constant_loss": 2.0})
    collapsed = [(k, "activations", {"effective_rank": {"a": 1.0}, "width": {"a": 50}}) for k in (8, 32)]
    few = (0, "loss_form", {"batch_size": 1})
    found = pb.diagnose(a_run(line, few, *collapsed, loss=[2.0] * 40))
    assert [f.name for f in found if not f.because] == ["batch-too-small", "rank-collapse"]
    leapt = [2.0] * 3 + [20.0] * 4 + [2.0] * 33
    vanishing = {"verdict": "vanishing", "slope": -4.0}
    for kind, first in (("Sigmoid", "vanishing-gradients"), ("Tanh", "learning-rate-too-high")):
        units = (1, "activations", {"kind": {"a": kind}})
        run = a_run(line, units, (1, "flow", vanishing), (32, "flow", vanishing), loss=leapt)
        assert pb.diagnose(run)[0].name == first
    steady = (1, "flow", {"verdict": "steady", "slope": 0.0})
    later = a_run(line, (1, "activations", {"kind": {"a": "Sigmoid"}}), steady, (32, "flow", vanishing), loss=leapt)
    assert pb.diagnose(later)[0].name == "learning-rate-too-high"


def test_what_was_seen_first_does_not_follow_from_what_came_later() -> None:
    early, late = a_finding("dead-units", 0), a_finding("learning-rate-too-high", 30)
    assert told(early, late) == [("dead-units", ()), ("learning-rate-too-high", ())]
    assert told(replace(early, steps=(1, 100)), late) == [("learning-rate-too-high", ()), ("dead-units", ())]
    assert told(a_finding("dead-units", 30), late)[1] == ("dead-units", ("learning-rate-too-high",))
    exploding = a_finding("exploding-gradients", 0)
    assert told(late, exploding) == [
        ("exploding-gradients", ()), ("learning-rate-too-high", ("exploding-gradients",)),
    ]  # fmt: skip
    wrecked = a_finding("exploding-gradients", 40)
    assert told(late, wrecked) == [
        ("learning-rate-too-high", ()), ("exploding-gradients", ("learning-rate-too-high",)),
    ]  # fmt: skip


def test_the_data_and_the_loop_are_there_from_the_start_whenever_they_are_seen() -> None:
    found = in_order([a_finding("divergence", 2, "critical"), a_finding("inputs-not-normalised", 64)])
    assert [(f.name, f.severity) for f in found] == [("inputs-not-normalised", "critical"), ("divergence", "critical")]


def test_what_is_only_worth_knowing_causes_no_harm() -> None:
    frozen = a_finding("parameters-not-trained", 0, "info")
    assert told(a_finding("not-learning"), frozen) == [("not-learning", ()), ("parameters-not-trained", ())]
    assert in_order([a_finding("not-learning"), frozen])[1].severity == "info"


def test_advice_gives_way_to_what_contradicts_it() -> None:
    low = a_finding("learning-rate-too-low")
    assert told(low, a_finding("rank-collapse")) == [("rank-collapse", ())]
    assert told(low, a_finding("not-learning")) == [
        ("learning-rate-too-low", ()), ("not-learning", ("learning-rate-too-low",)),
    ]  # fmt: skip
    nan = a_finding("non-finite-data", 7, "critical")
    assert told(nan, a_finding("learning-rate-too-high", 1), a_finding("divergence", 7, "critical")) == [
        ("non-finite-data", ()), ("divergence", ("non-finite-data",)),
    ]  # fmt: skip


def test_advice_does_not_give_way_to_what_is_only_worth_knowing() -> None:
    """Gradients that vanish where training works say nothing against a rate that is too low."""
    mentioned = a_finding("vanishing-gradients", severity="info")
    assert told(a_finding("learning-rate-too-low"), mentioned) == [
        ("learning-rate-too-low", ()), ("vanishing-gradients", ()),
    ]  # fmt: skip


def test_what_cannot_be_judged_is_said_first() -> None:
    found = told(a_finding("divergence", severity="critical"), a_finding("not-measured"))
    assert [name for name, _ in found] == ["not-measured", "divergence"]
    found = told(a_finding("divergence", severity="critical"), a_finding("not-measured", severity="info"))
    assert [name for name, _ in found] == ["divergence", "not-measured"]


def test_measurements_that_fail_of_weights_thrown_far_out_follow_from_the_rate() -> None:
    thrown = a_finding("learning-rate-too-high", 1)
    assert told(thrown, a_finding("not-measured"))[1] == ("not-measured", ("learning-rate-too-high",))
    later = told(a_finding("learning-rate-too-high", 2), a_finding("not-measured"))
    assert later == [("not-measured", ()), ("learning-rate-too-high", ())]


@given(
    st.lists(st.sampled_from(ORDER), unique=True, max_size=12).flatmap(
        lambda names: st.tuples(
            *[st.tuples(st.just(n), st.integers(0, 3), st.sampled_from(SEVERITIES), st.integers(3, 5)) for n in names]
        )
    )
)
def test_any_findings_come_out_once_each_beneath_their_cause(drawn: tuple[tuple[str, int, str, int], ...]) -> None:
    given_ = [a_finding(name, step, severity, last) for name, step, severity, last in drawn]
    found = in_order(given_)
    names = [f.name for f in found]
    faults = {g.name for g in given_ if g.severity != "info"}
    kept = {f.name for f in given_ if not faults & set(GIVES_WAY.get(f.name, ()))}
    assert sorted(names) == sorted(kept)
    for place, finding in enumerate(found):
        assert (finding.change is None) == bool(finding.because)
        for cause in finding.because:
            assert cause in FOLLOWS[finding.name]
        if finding.because:
            assert names.index(finding.because[0]) < place
    roots = [f for f in found if not f.because]
    for root, after in itertools.pairwise(f for f in roots if f.name != "not-measured"):
        assert SEVERITIES.index(root.severity) >= SEVERITIES.index(after.severity)


def test_the_order_does_not_hang_on_that_of_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [a_finding(name, place % 3) for place, name in enumerate(ORDER)]
    assert in_order(findings) == in_order(findings[::-1])


def test_a_finding_that_stays_a_cause_keeps_all_it_says() -> None:
    only = a_finding("dead-units")
    assert in_order([only]) == [only]
    assert in_order([]) == []
    assert pb.Finding is Finding
    assert replace(only, steps=(1, 100)) == only
    assert math.isclose(only.change.value, 0.5)  # type: ignore[union-attr]


def test_a_small_decay_is_no_cause_where_no_gradient_comes_through() -> None:
    """It is all there is of a step then; a decay that is too high has its gradients at the start, or needs no cause."""
    steps = [(k, "updates", {"shrink": 0.9, "norm": 1.0, "median": 0.005}) for k in (2, 4, 8, 16)]
    stuck = (1, "loss", {"loss": 2.0, "constant_loss": 2.0})

    def told(first: int, decay: float = 0.1) -> list[tuple[str, tuple[str, ...]]]:
        optimizer = {"class": "AdamW", "learning_rate": 0.05, "weight_decay": decay}
        flow = [(k, "flow", {"verdict": "vanishing", "slope": -3.0}) for k in (1, 2, 4, 8, 16) if k >= first]
        flow = [(step, probe, values | {"gradient_norm": {"a": 1e-9, "b": 1.0}}) for step, probe, values in flow]
        run = a_run(stuck, *steps, *flow, (30, "kernel", {}), meta={"optimizer": optimizer}, loss=[2.0] * 30)
        return [(f.name, f.because[:1]) for f in pb.diagnose(run)][:2]

    assert told(1) == [("vanishing-gradients", ()), ("weight-decay-too-high", ("vanishing-gradients",))]
    decayed = [("weight-decay-too-high", ()), ("vanishing-gradients", ("weight-decay-too-high",))]
    assert (
        told(8) == told(1, decay=0.21) == decayed
    )  # which takes a hundredth of the weights a step: the settings say it


def test_what_is_ignored_is_gone_and_what_followed_from_it_stands_for_itself() -> None:
    run = a_run(*((step, "loss", {"loss": loss}) for step, loss in enumerate((2.0, 5.0, 50.0, math.inf), start=1)))
    names = [finding.name for finding in pb.diagnose(run)]
    assert pb.diagnose(run).ignored == ()
    for name in names:
        left = pb.diagnose(run, ignore=[name, "dead-units"])
        assert sorted(finding.name for finding in left) == sorted(set(names) - {name})
        assert left.ignored == (name,)
        assert all(name not in finding.because for finding in left)
    assert pb.diagnose(run, ignore=names[0]) == pb.diagnose(run, ignore=(names[0],))
    assert pb.diagnose(run, ignore=names) == []


def test_what_gives_way_does_not_come_back() -> None:
    """Where two say the same, whoever ignores the one does not want to hear the other."""
    pair = next((name, others[0]) for name, others in GIVES_WAY.items())
    assert told(*map(a_finding, pair)) == [(pair[1], ())]


def test_stored_findings_can_be_ignored_by_their_names() -> None:
    own = {"severity": "warning", "layer": None, "steps": [1, 1], "evidence": {}, "threshold": "", "source": ""}
    run = a_run((1, "finding", own | {"name": "mine", "action": "a"}), (1, "loss", {"loss": 1.0}))
    assert "mine" in [finding.name for finding in pb.diagnose(run)]
    assert pb.diagnose(run, ignore="mine").ignored == ("mine",)
    with pytest.raises(
        pb.InputError, match="`ignore` of names among not-measured, .*, memorisation.*, mine, got 'yours'"
    ):
        pb.diagnose(run, ignore=["yours", "mine"])
    with pytest.raises(pb.InputError, match="got 3, 'yours'"):
        pb.diagnose(run, ignore=[3, "yours"])  # type: ignore[list-item]
