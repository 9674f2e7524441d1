"""Step numbers given by others, and training that is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

import pullback as pb
from pullback.monitor import Schedule
from tests.monitor.loop import Loop, measured


def test_resumed_training_is_the_same_run(tmp_path: Path) -> None:
    """Interrupted beyond its checkpoint, the run is afterwards that of an uninterrupted training."""
    whole = Loop()
    with whole.monitor(tmp_path / "whole", every=2) as monitor:
        whole.run(20, monitor)
    loop = Loop()
    with loop.monitor(tmp_path / "run", every=2) as monitor:
        loop.run(9, monitor)
        loop.save(tmp_path / "checkpoint.pt")
        loop.run(4, monitor)
    again = Loop.load(tmp_path / "checkpoint.pt")
    with again.monitor(tmp_path / "run", every=2, resume=9) as monitor:
        assert (monitor.num_steps, monitor.num_measurements) == (9, 4)
        assert monitor.seconds > 0
        again.run(11, monitor)
    found, expected = pb.load_run(tmp_path / "run"), pb.load_run(tmp_path / "whole")
    assert measured(found) == measured(expected)
    assert [r.step for r in found.of("sharpness")] == [2, 16]  # the 1st and the 8th measurement, as without a break
    assert found.array_steps("alignment", "cosine") == [2, 16]
    assert sum(p.numel() for p in again.model.parameters()) == found.meta["model"]["num_params"]


def test_resume_from_nothing_and_to_nothing(tmp_path: Path) -> None:
    """0 begins a run, or begins it anew; the same script serves for both."""
    for _ in range(2):
        loop = Loop()
        with loop.monitor(tmp_path / "run", every=2, resume=0) as monitor:
            loop.run(4, monitor)
        run = pb.load_run(tmp_path / "run")
        assert [record.step for record in run.of("loss")] == [2, 4]


def test_without_resume_a_run_is_not_touched(tmp_path: Path) -> None:
    Loop().monitor(tmp_path / "run").close()
    with pytest.raises(pb.InputError, match="one that holds a run"):
        Loop().monitor(tmp_path / "run")
    for bad in (-1, 1.5, True):
        with pytest.raises(pb.InputError, match="`resume` as a whole number from 0"):
            Loop().monitor(tmp_path / "other", resume=bad)
    assert not (tmp_path / "other").exists()


def test_steps_counted_by_others(tmp_path: Path) -> None:
    """Numbers that leave some out (two optimizers in one step): measured where a multiple of ``every`` is passed."""
    loop = Loop()
    x, y = loop.batch()
    with loop.monitor(tmp_path / "run", every=3) as monitor:
        for step in (2, 4, 6, 8, 10):
            due = monitor.is_due(step)
            monitor.step(x, y, step=step)
            assert due == (monitor.num_steps in pb.load_run(tmp_path / "run").steps)
        assert not monitor.is_due()
        monitor.step(x, y)
        assert monitor.is_due()
    assert pb.load_run(tmp_path / "run").steps == [4, 6, 10, 11]  # the last is the end
    assert [s for s in range(1, 13) if Schedule(4).is_due(s)] == [4, 8, 12]
    assert Schedule(4).is_due(9, 3)
    assert not Schedule(4).is_due(7, 4)
