"""What following wide networks costs, how exact a Hessian's norm is, and whether optimizers stay in the ball.

    .venv/bin/python -m benchmarks.studies.wide_networks        # makes results/wide_networks.json; some minutes

Costs are processor time, which other work on the machine does not change much; the rest are numbers of networks drawn
from fixed seeds, in float64.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.environment import RESULTS
from pullback import measure
from pullback.diagnostics import TangentPath, follow
from pullback.modules import WideNetwork

PATH = RESULTS / "wide_networks.json"
WIDTH, SAMPLES, INPUTS, STEPS, EVERY = 10_000, 256, 32, 1000, 20
ROUNDS = 5  # stretches of training with and without the kernel, in turn
PRODUCTS, DRAWS = 30, 10


def half(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error of each sample."""
    return (outputs - targets).square().sum(1) / 2


def data(samples: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=make, dtype=torch.float64)
    return x, torch.randn(samples, 1, generator=make, dtype=torch.float64)


def stepper(model: nn.Module, x: Tensor, y: Tensor, optimizer: Any, batch: int | None = None) -> Callable[[], None]:
    """Steps over all samples, or over batches drawn from a fixed seed."""
    make = torch.Generator().manual_seed(1)

    def step() -> None:
        some = torch.randperm(len(x), generator=make)[:batch] if batch else slice(None)
        optimizer.zero_grad()
        half(model(x[some]), y[some]).mean().backward()
        optimizer.step()

    return step


def cost_of_following() -> dict[str, Any]:
    """1,000 steps alone and 1,000 with a kernel every 20, in stretches by turns, in float32."""
    model = WideNetwork(INPUTS, [WIDTH])
    x, y = (each.float() for each in data(SAMPLES, INPUTS))
    step = stepper(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1))
    step()
    began = time.process_time()
    path = TangentPath(model, half, x, y)
    spent = {"training": 0.0, "training and kernels": time.process_time() - began}  # the kernel at the start, too
    for _ in range(ROUNDS):
        for name in spent:
            began = time.process_time()
            if name == "training":
                for _ in range(STEPS // ROUNDS):
                    step()
            else:
                follow(path, step, STEPS // ROUNDS, EVERY)
            spent[name] += time.process_time() - began
    ratio = spent["training and kernels"] / spent["training"]
    return {"seconds": spent, "ratio": ratio, "kernels": len(path.points), "delta_k": path.delta_k}


def hessian_norms() -> dict[str, Any]:
    """At most 30 products at width 10,000, one hidden layer, against the closed form."""
    x, errors, residuals = torch.tensor([[1.0, -1.0]], dtype=torch.float64), [], []
    for seed in range(DRAWS):
        model = WideNetwork(2, [WIDTH], seed=seed, dtype=torch.float64)
        found = measure.linearity(model, x, max_matvecs=PRODUCTS - 2).hessian_norm  # two confirm what was found
        assert found.num_matvecs <= PRODUCTS
        t = torch.tanh(model.layers[0].weight.detach() @ x[0] / math.sqrt(2))
        exact = float((2 * t * (1 - t * t)).abs().max()) / math.sqrt(WIDTH)
        errors.append(abs(float(found.value) - exact) / exact)
        residuals.append(float(found.stderr) / exact)
    return {"products": PRODUCTS, "errors": errors, "residuals": residuals}


OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], int | None]] = {
    "gradient descent": (lambda p: torch.optim.SGD(p, lr=1.0), None),
    "SGD, batches of 2": (lambda p: torch.optim.SGD(p, lr=0.2), 2),
    "momentum 0.9": (lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9), None),
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.01), None),
}


def in_the_ball() -> list[dict[str, Any]]:
    """Distances travelled over R = 2 sqrt(2 beta L_0) / mu, constants taken over the path."""
    found = []
    x, y = data(8, 10, seed=3)
    for width in (128, 512, 2048):
        for name, (make, batch) in OPTIMIZERS.items():
            model = WideNetwork(10, [width], dtype=torch.float64)
            path = TangentPath(model, half, x, y, curvature=True)
            follow(path, stepper(model, x, y, make(model.parameters()), batch), 600, 60)
            found.append(
                {"width": width, "optimizer": name, "distance": path.distance, "radius": path.radius, "mu": path.mu,
                 "inside": path.inside, "delta_k": path.delta_k, "loss": [path.points[0].loss, path.points[-1].loss],
                 "largest_condition": max(point.condition for point in path.points)}
            )  # fmt: skip
    return found


def main() -> None:
    torch.set_num_threads(1)
    found = {"following": cost_of_following(), "hessian": hessian_norms(), "ball": in_the_ball()}
    found["made_on"] = {"threads": "1", "torch": version("torch")}
    PATH.write_text(json.dumps(found, indent=1) + "\n")
    cost, errors = found["following"], found["hessian"]["errors"]
    print(f"training with {cost['kernels']} kernels over training: {cost['ratio']:.2f}")
    print(f"Hessian norms: largest error {max(errors):.2%} within {PRODUCTS} products")
    for each in found["ball"]:
        share = each["distance"] / each["radius"]
        print(f"{each['width']:5} {each['optimizer']:18} |w - w0| / R = {share:.3f}, loss {each['loss'][-1]:.1e}")


if __name__ == "__main__":
    main()
