"""``on_finding``: each finding once, when it first appears; what it raises, and nothing else, stops the training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.monitor import findings as told
from pullback.monitor.findings import DENSE, LASTING, Findings
from pullback.monitor.sinks import TensorBoard, WeightsAndBiases
from pullback.runs.course_file import COURSE_FILE
from tests.monitor.loop import Loop

RATE = 1e6  # the third loss is NaN
PROBES = ("loss", "gradients")


class Stop(Exception):
    pass


def wild(folder: Path, **options: Any) -> tuple[Loop, pb.Monitor]:
    """A training that diverges at its third step, watched."""
    loop = Loop()
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return loop, loop.monitor(folder, **({"probes": PROBES} | options))


def expected(run: pb.Run, steps: list[int]) -> set[tuple[int, str, str | None]]:
    """Step, name and layer of each finding that cannot pass, by a diagnosis of the run as it stood after each step."""
    found: dict[tuple[str, str | None], int] = {}
    for step in steps:
        for finding in pb.diagnose(run.until(step)):
            if finding.severity != "info" and finding.name in {*told.FACTS, "divergence"}:
                found.setdefault((finding.name, finding.layer), step)
    return {(step, *key) for key, step in found.items()}


@pytest.mark.filterwarnings("ignore:Monitor")
def test_each_finding_once_when_it_first_appears(tmp_path: Path) -> None:
    got: list[tuple[int, str, str | None]] = []
    loop, monitor = wild(tmp_path / "run", on_finding=lambda f: got.append((loop.step, f.name, f.layer)))
    with monitor:
        loop.run(6, monitor)
    run = pb.load_run(tmp_path / "run")
    assert "divergence" in {name for _, name, _ in got}
    facts = {each for each in got if each[1] in {*told.FACTS, "divergence"}}
    assert facts == expected(run, [1, 2, 3, 4, 5, 6])
    at_end = {(f.name, f.layer) for f in pb.diagnose(run) if f.severity != "info"}
    assert {each[1:] for each in got} == at_end | {each[1:] for each in facts}
    assert all(each[0] >= told.HELD for each in got if each not in facts)
    assert len({each[1:] for each in got}) == len(got)


@pytest.mark.filterwarnings("ignore:Monitor")
def test_an_alarm_is_told_at_its_step_and_the_record_stays_as_it_is(tmp_path: Path) -> None:
    """Between measurements; and to look changes nothing of what is written."""
    got: list[Any] = []
    steps: list[int] = []
    for name, on_finding in (("told", got.append), ("untold", None)):
        loop, monitor = wild(tmp_path / name, every=1000, on_finding=on_finding)
        with monitor:
            for step in loop.steps(6, monitor):
                steps += [step] * (len(got) - len(steps))
    [(step, found)] = [each for each in zip(steps, got, strict=True) if each[1].name == "divergence"]
    assert (step, found.severity, found.steps[0]) == (3, "critical", 3)
    a, b = (pb.load_run(tmp_path / name) for name in ("told", "untold"))
    assert [(r.step, r.probe) for r in a.records] == [(r.step, r.probe) for r in b.records]
    assert (tmp_path / "told" / COURSE_FILE).read_bytes() == (tmp_path / "untold" / COURSE_FILE).read_bytes()


@pytest.mark.filterwarnings("ignore:Monitor")
def test_what_it_raises_stops_the_training(tmp_path: Path) -> None:
    """At the step; it is called no more, the record is finished and tells why."""
    calls: list[str] = []

    def stop(finding: Any) -> None:
        calls.append(finding.name)
        raise Stop(finding.name)

    loop, monitor = wild(tmp_path / "run", on_finding=stop)
    with pytest.raises(Stop, match=r"."), monitor:
        loop.run(6, monitor)
    assert loop.step <= 3
    assert len(calls) == 1
    end = list(pb.load_run(tmp_path / "run").of("end"))[-1]
    assert (end.step, end.values["error"]) == (loop.step, f"Stop: {calls[0]}")


def test_at_the_end_there_is_nothing_left_to_stop(tmp_path: Path, judged: list[Any]) -> None:
    def stop(finding: Any) -> None:
        raise Stop(finding.name)

    loop = Loop()
    monitor = loop.monitor(tmp_path / "run", probes=["loss"], on_finding=stop)
    loop.run(2, monitor)
    judged.append(finding("not-learning"))
    with pytest.warns(UserWarning, match=r"`on_finding` failed \(not-learning\); training goes on"):
        monitor.close()


def test_what_cannot_be_called(tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match="`on_finding` as a function of a finding, got stop. Pass a function"):
        Loop().monitor(tmp_path / "run", on_finding="stop")
    assert not (tmp_path / "run").exists()


def test_what_a_resumed_run_has_shown_is_not_new(tmp_path: Path, judged: list[Any]) -> None:
    got: list[str] = []
    for resume in (None, 2):
        judged.append(finding("divergence"))
        options = {"probes": ["loss"], "resume": resume, "on_finding": lambda each: got.append(each.name)}
        loop = Loop()
        with loop.monitor(tmp_path / "run", **options) as monitor:
            loop.run(2, monitor)
            judged.append(finding("dead-units" if resume is None else "rank-collapse"))
            loop.run(2, monitor)
    assert got == ["divergence", "dead-units", "rank-collapse"]


def finding(name: str, layer: str | None = None, severity: str = "warning", **evidence: float) -> Any:
    return SimpleNamespace(name=name, layer=layer, severity=severity, evidence=evidence)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What any run is found to be, in place of a diagnosis; ``looks`` counts how often that is asked for."""
    found: list[Any] = []
    monkeypatch.setattr(told, "judges", [lambda run: list(found)])
    monkeypatch.setattr(told, "verdicts", [lambda run, findings: f"{len(findings)} things"])
    return found


class Output:
    """Counts the looks at a record, and keeps what is told."""

    def __init__(self, tells: bool = False) -> None:
        self.tells, self.looks, self.said, self.writer = tells, 0, [], self
        self.earlier = None

    def so_far(self) -> None:
        self.looks += 1

    def tell(self, *told: Any) -> None:
        self.said.append(told)

    def end(self, *told: Any) -> None:
        self.said.append("end")

    def say_once(self, about: str, text: str) -> None:
        self.said.append(text)


def test_looks_are_few(judged: list[Any]) -> None:
    """After each of the first measurements; then they grow with the logarithm. None where nobody asks."""
    output = Output()
    findings = Findings(output, print)
    seen = []
    for count in range(1, 1001):
        findings.look(count, count, 0)
        seen.append(output.looks)
    assert seen[: 2 * DENSE - 1] == list(range(1, 2 * DENSE))
    assert seen[999] < 2 * DENSE + (DENSE + 1) * 4.9  # ln(1000 / 8) = 4.8
    findings.look(1000, 1000, 1)
    findings.look(1000, 1000, 1)
    assert output.looks == seen[999] + 1  # an alarm, once
    silent = Output()
    Findings(silent, None).look(1, 1, 1, at_end=True)
    assert silent.looks == 0


@pytest.mark.parametrize("name", sorted(told.SLOW))
def test_slow_is_told_once_it_has_lasted(judged: list[Any], name: str) -> None:
    got: list[str] = []
    findings = Findings(Output(), lambda each: got.append(each.name))

    def look(step: int, **how: Any) -> list[str]:
        findings.look(step, 0, step, **how)
        findings.hand_on()
        return got

    judged[:] = [finding(name)]
    assert look(8) == []
    assert look(7 + LASTING) == []
    judged.clear()
    assert look(8 + LASTING) == []
    judged[:] = [finding(name), finding("dead-units", severity="info")]
    assert look(4 * LASTING) == []
    assert look(8 * LASTING - 1) == []
    assert look(8 * LASTING) == [name]
    assert look(9 * LASTING) == [name]


def told_at(judged: list[Any], found: Any, looks: list[tuple[int, bool]]) -> list[int]:
    """Steps at which it is told, of looks at steps with a measurement each, some of which see it."""
    got: list[str] = []
    findings, steps = Findings(Output(), lambda each: got.append(each.name)), []
    for count, (step, seen) in enumerate(looks, start=1):
        judged[:] = [found] if seen else []
        findings.look(step, count, 0)
        findings.hand_on()
        steps += [step] * (len(got) - len(steps))
    return steps


def test_what_may_pass_is_told_once_it_has_lasted(judged: list[Any]) -> None:
    powers = [2**k for k in range(16)]
    seen = [(step, True) for step in powers]
    assert told_at(judged, finding("gradients-not-zeroed"), seen) == [1]
    assert told_at(judged, finding("divergence", measurements=1.0), seen) == [1]  # a loss that is no number
    grown = finding("divergence", **{"last loss": 9.0})
    for rate in (grown, finding("learning-rate-too-high")):
        assert told_at(judged, rate, seen) == [powers[told.HELD - 1]]
    assert told_at(judged, finding("dead-units"), seen) == [next(s for s in powers if s >= 1 + told.STEPS)]
    broken = [(step, step not in (4, 128)) for step in powers]  # it passes, twice
    assert told_at(judged, grown, broken) == [64]
    assert told_at(judged, finding("dead-units"), broken) == [2**14]  # looks at 10, 12 and 15 measurements
    late = [(5000 + step, True) for step in powers]
    assert told_at(judged, finding("dead-units"), late) == [5000 + 2 * told.STEPS]


def test_slow_is_told_at_the_end(judged: list[Any]) -> None:
    got: list[str] = []
    findings = Findings(Output(), lambda each: got.append(each.name))
    judged[:] = [finding("not-learning"), finding("lazy-regime", severity="info")]
    findings.look(5, 1, 0)
    findings.look(5, 1, 0, at_end=True)
    findings.hand_on()
    assert got == ["not-learning"]


def test_sinks_are_told_when_something_changes(judged: list[Any]) -> None:
    output = Output(tells=True)
    findings = Findings(output, None)
    findings.look(1, 1, 0)
    findings.look(2, 2, 0)
    judged[:] = [new := finding("gradients-not-zeroed", "fc")]
    findings.look(3, 3, 0)
    findings.look(4, 4, 0, at_end=True)
    first, changed = (1, "0 things", [], []), (3, "1 things", [new], [new])
    assert output.said == [first, changed, (4, "1 things", [new], []), "end"]


def test_a_record_that_cannot_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Any) -> list[Any]:
        raise OSError("no such file")

    monkeypatch.setattr(told, "judges", [fails])
    output = Output()
    Findings(output, print).look(1, 1, 0)
    assert output.said == ["what the record shows could not be told (no such file)"]


class Board:
    """Takes what a ``SummaryWriter`` and a run of wandb take."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.summary: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: self.calls.append((name, *args, *named.values()))


def test_what_boards_show() -> None:
    writer, run = Board(), Board()
    fault = pb.diagnose.__globals__["Finding"]("divergence", "critical", None, (3, 3), {"loss": 9.0}, "t", "s", "Stop")
    TensorBoard(writer).tell(3, "Diverges", [fault], [fault])
    TensorBoard(writer).tell(4, "Fine", [], [])
    assert writer.calls == [
        ("add_text", "pullback/verdict", "Diverges", 3),
        ("add_text", "pullback/findings", f"- {fault}", 3),
        ("flush",),
        ("add_text", "pullback/verdict", "Fine", 4),
        ("add_text", "pullback/findings", "none", 4),
        ("flush",),
    ]
    WeightsAndBiases(run).tell(3, "Diverges", [fault], [fault, finding("d" * 90)])
    assert run.summary == {"pullback/verdict": "Diverges", "pullback/findings": [str(fault)]}
    first, second = run.calls
    assert first == ("alert", "divergence, step 3", str(fault), "ERROR")
    assert (second[1], second[3]) == ("d" * 63, "WARN")


def test_the_page_is_kept(tmp_path: Path) -> None:
    loop = Loop()
    loop.monitor(tmp_path / "run", probes=["loss"]).close()
    kept: list[str] = []
    run = SimpleNamespace(log_artifact=lambda path, type: kept.append((type, Path(path).name, Path(path).read_text())))
    WeightsAndBiases(run).end(pb.load_run(tmp_path / "run"))
    [(kind, name, text)] = kept
    assert (kind, name) == ("report", "report.html")
    assert text.startswith("<!doctype html>")
