"""A new probe is one file and one line: written beside the others, named in a preset, and a run has its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.monitor import PRESETS, PROBES, probes

FILE = '''"""How far inputs are from zero."""

from __future__ import annotations

from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(observed: Observation) -> Measurement:
    """``mean_size``: mean |x_i| over samples and features."""
    return Measurement({"mean_size": float(observed.x.abs().mean())})


PROBE = Probe("sizes", measure)
'''


def test_a_probe_is_a_file_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sizes.py").write_text(FILE)
    monkeypatch.setattr(probes, "__path__", [*probes.__path__, str(tmp_path)])
    for name, probe in probes.loaded(["sizes"]).items():  # the line: its name in a preset
        monkeypatch.setitem(PROBES, name, probe)
    monkeypatch.setitem(PRESETS, "light", (*PRESETS["light"], "sizes"))
    model = nn.Linear(4, 2)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 1, 0])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = tmp_path / "run"
    with pb.Monitor(model, nn.CrossEntropyLoss(), run, optimizer=optimizer, probes="light", budget=None) as monitor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        monitor.step(x, y, loss=loss)
    (record,) = pb.load_run(run).of("sizes")
    assert record.values == {"mean_size": pytest.approx(float(x.abs().mean()))}
    json.dumps(record.values)


def test_every_file_is_a_probe_of_some_preset() -> None:
    folder = Path(probes.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "PROBE = Probe(" in path.read_text(encoding="utf-8")}
    assert files == set(PROBES)
    assert list(PRESETS["full"]) == list(PROBES)
    assert set(PRESETS["light"]) < set(PRESETS["standard"]) < set(PROBES)
