"""One training that goes wrong slowly and one that diverges, each watched; what their records say, as one line of JSON.

Called as ``python -m tests.monitor.same_record FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pullback as pb

CE = nn.CrossEntropyLoss()
STEPS, BATCH, WIDTH = 12, 64, 96
RATES = {"slow": 1e-5, "wild": 3.0}
METRICS = ("loss.loss", "kernel.M1", "noise.noise_scale", "sharpness.hessian", "alignment.mean_cosine")


def train(folder: Path, rate: float, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Steps, probes and findings, which are to be the same, and numbers, which may differ by rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 8))
    model = model.to(dtype)
    x, y = torch.randn(4, BATCH, 32).to(dtype) + 12, torch.randint(8, (4, BATCH))  # far from centred
    optimizer = torch.optim.SGD(model.parameters(), rate)
    with pb.Monitor(model, CE, folder, optimizer=optimizer, every=8) as monitor:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = CE(model(x[step % 4]), y[step % 4])
            loss.backward()
            optimizer.step()
            monitor.step(x[step % 4], y[step % 4], loss=loss)
    run = pb.load_run(folder)
    found = {
        "records": [[r.step, r.probe, r.error, r.values.get("num_samples")] for r in run.records],
        "findings": [
            [f.name, f.severity, f.layer, f.steps, f.because, f.change and f.change.kind] for f in pb.diagnose(run)
        ],
        "steps": {name: run.course(name)[0].tolist() for name in ("loss", "gradient_norm", "learning_rate")},
        "numbers": {name: run.series(*name.split("."))[1] for name in METRICS}
        | {name: run.course(name)[1].tolist() for name in ("loss", "gradient_norm")},
    }
    return json.loads(json.dumps(found))  # as it comes from another process, without tuples


def records(folder: Path) -> dict[str, Any]:
    """What the records of both say."""
    return {"threads": torch.get_num_threads()} | {name: train(folder / name, rate) for name, rate in RATES.items()}


if __name__ == "__main__":
    print(json.dumps(records(Path(sys.argv[1]))))
