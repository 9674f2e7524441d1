"""Training loss against processor time: second-order and natural methods beside Adam and SGD with momentum, all tuned.

    python -m benchmarks.studies.second_order --preset full --out benchmarks/results/second_order.json

Handwritten digits, an MLP and a small convolutional network, five seeds. Each method is given the same processor time
(of one thread, evaluation not counted) and has the best of three rates, picked by the loss at its end on a seed of
their own, which is not counted either. A run whose step is refused (inner products of gradients below what float32
holds) keeps the loss it had then.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gallery.kit.claims import decide
from pullback import UnsupportedError
from pullback.dynamics import HessianFree, LevenbergMarquardt, NaturalGradient

LOSS = nn.CrossEntropyLoss()
Make = Callable[[nn.Module, float], Any]
FIRST_ORDER: dict[str, Make] = {
    "SGD": lambda m, lr: torch.optim.SGD(m.parameters(), lr, 0.9),
    "Adam": lambda m, lr: torch.optim.Adam(m.parameters(), lr),
}
OTHERS: dict[str, Make] = {
    "HessianFree": lambda m, lr: HessianFree(m, LOSS, lr, damping=1.0, max_iters=30),
    "LevenbergMarquardt": lambda m, lr: LevenbergMarquardt(m, LOSS, lr, 1.0, form="kernel", least_damping=0.1),
    "NaturalGradient true": lambda m, lr: NaturalGradient(m, LOSS, lr, 0.1, fisher="true", form="kernel"),
    "NaturalGradient sampled": lambda m, lr: NaturalGradient(m, LOSS, lr, 0.1, fisher="sampled", form="kernel"),
    "NaturalGradient empirical": lambda m, lr: NaturalGradient(m, LOSS, lr, 0.1, fisher="empirical", form="kernel"),
}
RATES = {"SGD": (0.03, 0.1, 0.3), "Adam": (1e-3, 3e-3, 1e-2), "HessianFree": (0.3, 1.0, 0.6)}
RATES |= {name: (0.5, 0.2, 1.0) for name in OTHERS if name not in RATES}
BATCH = {"SGD": 64, "Adam": 64, "HessianFree": 512, "LevenbergMarquardt": 32}
BATCH |= {name: 32 if name.endswith("true") else 128 for name in OTHERS if name.startswith("Natural")}
PRESETS = {"small": (0.05, 1, 1), "full": (2.0, 5, 3)}  # seconds, seeds, rates tried
MARKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the time: where the loss is measured


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
    """Loss on all training samples at every mark of the time, and accuracy on the others at its end."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    model = make().eval()
    optimizer = (FIRST_ORDER | OTHERS)[method](model, rate)
    generator, used, steps, losses, refused = torch.Generator().manual_seed(seed), 0.0, 0, [], ""
    for mark in MARKS:
        while used < mark * seconds and not refused:
            start = time.process_time()
            chosen = torch.randint(len(x), (BATCH[method],), generator=generator)
            try:
                step(model, optimizer, x[chosen], y[chosen])
            except UnsupportedError as error:
                refused = f"step {steps}: {error}"
            used, steps = used + time.process_time() - start, steps + 1
        with torch.no_grad():
            losses.append(float(LOSS(model(x), y)))
    with torch.no_grad():
        accuracy = float((model(x_test).argmax(1) == y_test).float().mean())
    return {"losses": losses, "accuracy": accuracy, "steps": steps, "refused": refused}


def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> None:
    """One update, of either kind."""
    if type(optimizer).__module__.startswith("torch."):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    else:
        optimizer.step(x, y)


def run(preset: str) -> dict[str, Any]:
    """Rows by network and method: medians, and the range over seeds."""
    torch.set_num_threads(1)
    seconds, seeds, count = PRESETS[preset]
    data, found = digits(), {}
    for name, make in (("MLP", mlp), ("conv", conv)):
        for method in FIRST_ORDER | OTHERS:
            tried = {r: train(make, method, r, 100, seconds, data)["losses"][-1] for r in RATES[method][:count]}
            best = min(tried, key=lambda r: (math.isnan(tried[r]), tried[r]))
            runs = [train(make, method, best, seed, seconds, data) for seed in range(seeds)]
            found[f"{name}, {method}"] = {"rate": best, "tried": tried, "runs": runs}
            print(line(f"{name}, {method}", found[f"{name}, {method}"]), flush=True)
    return {"preset": preset, "seconds": seconds, "marks": MARKS, "batch": BATCH, "rows": found}


def verdicts(rows: dict[str, Any]) -> list[str]:
    """Who has less loss than tuned SGD after equal processor time, decided over seeds under both networks."""
    said = []
    for method in [*FIRST_ORDER, *OTHERS][1:]:
        gains = {
            name: [
                math.log(plain["losses"][-1] / run["losses"][-1])
                for plain, run in zip(rows[f"{name}, SGD"]["runs"], rows[f"{name}, {method}"]["runs"], strict=True)
            ]
            for name in ("MLP", "conv")
        }
        claim = decide(f"{method} has less loss than SGD after equal time", gains)
        shown = "; ".join(f"{e.condition} {e.mean:.2f} ± {e.stderr:.2f}" for e in claim.evidence)
        said.append(f"| {method} | {claim.verdict} | {shown} |")
    return said


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table in docs/dynamics.md."""
    columns = list(zip(*(run["losses"] for run in row["runs"]), strict=True))
    middle = [f"{statistics.median(c):.3g}" for c in columns[-3:]]
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
    found["verdicts"] = verdicts(found["rows"])
    print("\n".join(found["verdicts"]))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
