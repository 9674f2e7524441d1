"""Planted faults are found in trained networks, and healthy ones are left in peace: a sample of the benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.pathologies.faults import FAULTS, HEALTHY
from benchmarks.pathologies.run import cases, is_false_alarm, is_found, main, result, table
from benchmarks.pathologies.setups import ARCHITECTURES

# What the records cannot show, measured: see benchmarks/pathologies/README.md.
MISSED = ("rate beyond all bounds", "two samples a batch")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if "mlp" in fault.architectures])
def test_planted_faults_are_found(name: str) -> None:
    found = result("fault", name, "mlp", 2)
    assert is_found(found) is (name not in MISSED), found["findings"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("name", list(HEALTHY))
def test_healthy_runs_have_no_warning(name: str, architecture: str) -> None:
    found = result("healthy", name, architecture, 2)
    assert found["failed_probes"] == []
    assert found["loss"][-1] < 0.8 * found["loss"][0]  # it is healthy
    assert not is_false_alarm(found), found["findings"]


def test_the_full_preset_is_large_enough() -> None:
    full = cases("full")
    assert len(FAULTS) >= 20
    assert len({case[1:] for case in full if case[0] == "healthy"}) >= 20
    assert {case[2] for case in full} == set(ARCHITECTURES)
    assert {case[3] for case in full} == set(range(5))
    assert {name for fault in FAULTS.values() for name in fault.names} >= {"divergence", "memorisation", "dead-units"}


def a_result(kind: str, name: str, findings: dict[str, str], evidence: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "kind": kind, "name": name, "architecture": "mlp", "seed": 2, "findings": findings, "evidence": evidence,
    }  # fmt: skip


def test_scores() -> None:
    name = "a tenth of the labels wrong"
    few, many = ({"suspect-samples": {"labels": count, "samples": 100.0}} for count in (0.0, 8.0))
    planted = [a_result("fault", name, {"suspect-samples": "info"}, each) for each in (few, many)]
    assert [is_found(each) for each in planted] == [False, True]  # that samples are named is not enough
    alarms = [a_result("healthy", "as it is", {"dead-units": severity}, {}) for severity in ("info", "warning")]
    assert [is_false_alarm(each) for each in alarms] == [False, True]
    text = table([*planted, *alarms])
    assert f"| {name} | 1 of 2 |  |  |" in text
    assert "| healthy, no warning: as it is | 1 of 2 |  |  |" in text


def test_a_stopped_benchmark_goes_on(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    made: list[tuple[str, ...]] = []

    def quick(*case: Any) -> dict[str, Any]:
        made.append(case)
        if len(made) == 3:
            raise KeyboardInterrupt
        kind, name, architecture, seed = case
        return a_result(kind, name, {}, {}) | {"architecture": architecture, "seed": seed, "seconds": 0.0}

    monkeypatch.setattr("benchmarks.pathologies.run.result", quick)
    monkeypatch.setattr("sys.argv", ["run", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        main()
    main()
    assert len(made) == len(cases("small")) + 1  # the one that was stopped is made again, and no other
    assert (tmp_path / "small.md").read_text() in capsys.readouterr().out
