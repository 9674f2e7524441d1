"""Training loss against processor time: second-order and natural methods beside Adam and SGD with momentum, both tuned.

    python -m benchmarks.second_order --preset full --out benchmarks/results/second_order.json

Handwritten digits, an MLP and a small convolutional network, five seeds. Each method is given the same processor time
(of one thread, evaluation not counted); SGD and Adam had the best of their rates picked by the loss at its end on a
seed of their own, which is not counted either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pullback.dynamics import HessianFree, LevenbergMarquardt, NaturalGradient

LOSS = nn.CrossEntropyLoss()
RATES = {"SGD": (0.03, 0.1, 0.3), "Adam": (1e-3, 3e-3, 1e-2)}
BATCH = {"SGD": 64, "Adam": 64, "HessianFree": 512, "LevenbergMarquardt": 32}
OTHERS: dict[str, Callable[[nn.Module], Any]] = {
    "HessianFree": lambda m: HessianFree(m, LOSS, damping=1.0, max_iters=30),
    "LevenbergMarquardt": lambda m: LevenbergMarquardt(m, LOSS, 0.5, 1.0, form="kernel", least_damping=0.1),
    "NaturalGradient true": lambda m: NaturalGradient(m, LOSS, 0.5, 0.1, fisher="true", form="kernel"),
    "NaturalGradient sampled": lambda m: NaturalGradient(m, LOSS, 0.1, 0.1, fisher="sampled", form="kernel"),
    "NaturalGradient empirical": lambda m: NaturalGradient(m, LOSS, 0.1, 0.1, fisher="empirical", form="kernel"),
}
BATCH |= {name: 32 if name.endswith("true") else 128 for name in OTHERS if name.startswith("Natural")}
PRESETS = {"small": (0.05, 1, 1), "full": (0.4, 5, 3)}  # seconds, seeds, rates tried


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test samples, 1400 and 397."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y, order = torch.tensor(data.target), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1400]], y[order[:1400]], x[order[1400:]], y[order[1400:]]


def train(
    make: Callable[[], nn.Module], method: str, rate: float, seed: int, seconds: float, data: Any
) -> dict[str, Any]:
    """Loss on all training samples after quarters of the time, and accuracy on the others at its end."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    model = make().eval()
    named = {
        "SGD": lambda: torch.optim.SGD(model.parameters(), rate, 0.9),
        "Adam": lambda: torch.optim.Adam(model.parameters(), rate),
    }
    optimizer = named[method]() if method in named else OTHERS[method](model)
    generator, used, steps, losses = torch.Generator().manual_seed(seed), 0.0, 0, []
    for mark in (seconds / 4, seconds / 2, seconds):
        while used < mark:
            start = time.process_time()
            chosen = torch.randint(len(x), (BATCH[method],), generator=generator)
            if method in named:
                optimizer.zero_grad()
                LOSS(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
            else:
                optimizer.step(x[chosen], y[chosen])
            used, steps = used + time.process_time() - start, steps + 1
        with torch.no_grad():
            losses.append(float(LOSS(model(x), y)))
    with torch.no_grad():
        accuracy = float((model(x_test).argmax(1) == y_test).float().mean())
    return {"losses": losses, "accuracy": accuracy, "steps": steps}


def run(preset: str) -> dict[str, Any]:
    """Rows by network and method: medians, and the range over seeds."""
    torch.set_num_threads(1)
    seconds, seeds, tried = PRESETS[preset]
    data, found = digits(), {}
    for name, make in (("MLP", mlp), ("conv", conv)):
        for method in [*RATES, *OTHERS]:
            rates = RATES.get(method, (0.0,))[:tried] if method in RATES else (0.0,)
            best = rates[0]
            if len(rates) > 1:
                best = min(rates, key=lambda r: train(make, method, r, 100, seconds, data)["losses"][-1])
            runs = [train(make, method, best, seed, seconds, data) for seed in range(seeds)]
            found[f"{name}, {method}"] = {"rate": best, "runs": runs}
            print(line(f"{name}, {method}", found[f"{name}, {method}"]), flush=True)
    return {"preset": preset, "seconds": seconds, "batch": BATCH, "rows": found}


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table in docs/dynamics.md."""
    columns = list(zip(*(run["losses"] for run in row["runs"]), strict=True))
    middle = [f"{statistics.median(c):.3g}" for c in columns]
    last = f"{min(columns[-1]):.3g} to {max(columns[-1]):.3g}"
    accuracy = statistics.median(run["accuracy"] for run in row["runs"])
    steps = statistics.median(run["steps"] for run in row["runs"])
    return f"| {name} | {steps:.0f} | {' | '.join(middle)} | {last} | {100 * accuracy:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = run(options.preset)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
