"""Linearised networks beside neural-tangents: full kernels, training step by step, training by formula.

    .venv/bin/python -m benchmarks.studies.linearised_training      # makes benchmarks/results/linearised_training.json

Both sides take the same weights, samples and targets, float32, on one processor; what is compared is processor time
(the least of several calls, after one that compiles), which other work on the machine does not change much. The peer
runs in .bench-jax (``setup.sh``), where this script calls itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.environment import RESULTS, ROOT

JAX_PYTHON = ROOT / ".bench-jax" / "bin" / "python"
STEPS, RATE, CALLS, AGREE = 20, 1e-3, 3, 1e-5
LATE = 1e4  # a time of gradient flow
# name -> kind, width (units or channels), samples, side of the images. Of the small ones the time is that of the calls
# between operations, of the large ones that of the operations
SIZES = {
    "mlp": ("mlp", 128, 64, 0),
    "conv": ("conv", 16, 16, 16),
    "mlp_large": ("mlp", 512, 256, 0),
    "conv_large": ("conv", 32, 32, 32),
}
FORMULA = ("mlp", "conv")  # of the large ones it is an eigendecomposition of a matrix of 2,560, and little else


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Least processor time of some calls, after one that is not counted."""
    answer, best = call(), float("inf")
    for _ in range(CALLS):
        began = time.process_time()
        answer = call()
        best = min(best, time.process_time() - began)
    return best, answer


def ours(network: str, folder: Path) -> dict[str, float]:
    import torch
    from torch import nn

    import pullback as pb

    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, width, samples, side = SIZES[network]
    if kind == "mlp":
        model = nn.Sequential(
            nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 10),
        ).eval()  # fmt: skip
        x = torch.randn(samples, 784)
    else:
        model = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(width * (side - 4) ** 2, 10),
        ).eval()  # fmt: skip
        x = torch.randn(samples, 3, side, side)
    y = torch.randn(len(x), 10)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    np.savez(folder / "given.npz", x=x.numpy(), y=y.numpy(), **weights)

    def trained() -> torch.Tensor:
        linear = pb.linearize(model)
        optimizer = torch.optim.SGD(linear.parameters(), RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            ((linear(x) - y) ** 2).mean().div(2).backward()
            optimizer.step()
        return linear(x).detach()

    start = model(x).detach()
    kernel = pb.tangent_kernel(model, x, contract="full").total
    answers = {
        "kernel": timed(lambda: pb.tangent_kernel(model, x, contract="full").total),
        "training": timed(trained),
    }
    if network in FORMULA:
        answers["formula"] = timed(lambda: pb.linear_dynamics(kernel, y, initial=start, time=LATE).train)
    np.savez(folder / "ours.npz", **{name: answer.numpy() for name, (_, answer) in answers.items()})
    return {name: seconds for name, (seconds, _) in answers.items()}


def theirs(network: str, folder: Path) -> dict[str, float]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # XLA has as many threads as cores
    import jax
    import jax_child
    import neural_tangents as nt

    arrays = dict(np.load(folder / "given.npz"))
    x, y = arrays.pop("x"), arrays.pop("y")
    apply, parameters, x = {"mlp": jax_child.mlp, "conv": jax_child.conv}[SIZES[network][0]](arrays, x)
    x, y, parameters = jax.device_put((x, y, parameters))
    kernel_fn = nt.empirical_ntk_fn(
        apply, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES
    )
    whole = jax.jit(lambda x, p: kernel_fn(x, None, p))
    linear = nt.linearize(apply, parameters)
    step = jax.jit(
        lambda p: jax.tree_util.tree_map(
            lambda w, g: w - RATE * g, p, jax.grad(lambda q: ((linear(q, x) - y) ** 2).mean() / 2)(p)
        )
    )
    outputs = jax.jit(lambda p: linear(p, x))

    def trained() -> Any:
        now = parameters
        for _ in range(STEPS):
            now = step(now)
        return outputs(now).block_until_ready()

    start, kernel = apply(parameters, x), whole(x, parameters)

    def formula() -> Any:
        predict = nt.predict.gradient_descent_mse(kernel, y, trace_axes=())
        return predict(t=LATE, fx_train_0=start).block_until_ready()

    answers = {
        "kernel": timed(lambda: whole(x, parameters).block_until_ready()),
        "training": timed(trained),
    }
    if network in FORMULA:
        answers["formula"] = timed(formula)
    np.savez(folder / "theirs.npz", **{name: np.asarray(answer) for name, (_, answer) in answers.items()})
    return {name: seconds for name, (seconds, _) in answers.items()}


def compared(network: str) -> dict[str, Any]:
    """Both sides' seconds and how far their numbers are apart, relative to the largest."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = {"pullback": ours(network, folder)}
        command = [str(JAX_PYTHON), "-W", "ignore", "-m", "benchmarks.studies.linearised_training", network, name]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        if done.returncode:
            sys.exit(f"neural-tangents ended with {done.returncode}\n{done.stderr[-4000:]}")
        seconds["neural-tangents"] = json.loads(done.stdout.splitlines()[-1])
        one, other = (np.load(folder / f"{side}.npz") for side in ("ours", "theirs"))
        apart = {key: float(np.abs(one[key] - other[key]).max() / np.abs(other[key]).max()) for key in one.files}
    return {"seconds": seconds, "apart": apart}


def main() -> None:
    if len(sys.argv) == 3:  # the peer
        print(json.dumps(theirs(sys.argv[1], Path(sys.argv[2]))))
        return
    if not JAX_PYTHON.exists():
        sys.exit("there is no .bench-jax; benchmarks/setup.sh makes it")
    found = {network: compared(network) for network in SIZES}
    made_on = {"threads": "1", "torch": version("torch"), "neural-tangents": "0.6.5"}
    path = RESULTS / "linearised_training.json"
    path.write_text(json.dumps({"networks": found, "made_on": made_on}, indent=1) + "\n")
    for network, each in found.items():
        for key, apart in each["apart"].items():
            mine, peer = (each["seconds"][side][key] for side in ("pullback", "neural-tangents"))
            met = "met" if mine <= peer and apart <= AGREE else "NOT MET"
            print(f"{network:10} {key:9} {mine:8.4f} s {peer:8.4f} s  {peer / mine:6.2f}x  apart {apart:.1e}  {met}")


if __name__ == "__main__":
    main()
