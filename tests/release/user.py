"""What a user writes: checked by mypy, strictly, against the types that come with the wheel, and run."""

from __future__ import annotations

import tempfile

import torch

import pullback as pb

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
loss_fn = torch.nn.CrossEntropyLoss()
x, y = torch.randn(12, 3), torch.arange(12) % 2

kernel: pb.Kernel = pb.backward_kernel(model, loss_fn, x, y)
conflict: float = pb.alignment(kernel).conflict_fraction
pairs: pb.Eigenpairs = pb.eigenvalues(pb.Hessian(model, loss_fn, (x, y)), 2)

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with tempfile.TemporaryDirectory() as folder:
    with pb.Monitor(model, loss_fn, f"{folder}/run", optimizer=optimizer, every=4) as monitor:
        for _ in range(8):
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(x, y, loss=loss)
    run: pb.Run = pb.load_run(f"{folder}/run")
    findings: list[pb.Finding] = pb.diagnose(run)
    page = pb.write_report(run, f"{folder}/report.html")
    assert page.stat().st_size > 100_000
print(kernel, 0 <= conflict <= 1, pairs.converged, run.steps)
