"""What theory predicts on a grid of settings is ``tests/data/predictions.json``, which reviews see change.

The other files of this folder hold each prediction to another way to it; here is that no setting's number moves by
itself. Who changes one on purpose writes the file anew: ``python -m tests.theory.test_kept_numbers``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pullback import theory
from tests.kept import differences, flat

FILE = Path(__file__).parents[1] / "data" / "predictions.json"
ACTIVATIONS = ("tanh", "erf", "relu", "hard_tanh", "gelu", "linear")
INPUTS = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0], [0.0, 0.0, 0.4], [1.0, -0.5, 0.31]])
IMAGES = np.linspace(-1, 1, 3 * 2 * 4 * 5).reshape(3, 2, 4, 5) ** 3
POINTS = ((0.8, 0.0, 1.0), (1.3, 0.3, 1.0), (1.9, 0.5, 1.0), (1.4, 0.2, 0.9))
WHOLE = ("q_star", "chi", "c_star", "xi_c", "xi_q", "xi_grad", "phase", "bend_gain", "pair_gain")


def net_numbers(name: str, sigma_w: float, sigma_b: float, keep: float) -> list[Any]:
    net = theory.MeanField(name, sigma_w, sigma_b, keep)
    calls: list[Callable[[], Any]] = [lambda each=each: getattr(net, each) for each in WHOLE]  # type: ignore[misc]
    calls += [lambda: (net.q_map(0.7), net.q_slope(0.7), net.phi_slope_square(0.7), net.second_moment(0.7))]
    calls += [lambda: (net.c_map(0.4), net.c_slope(0.4), net.pair(-0.3))]
    calls += [lambda: net.jacobian_moments(4), lambda: net.jacobian_moments(3, "orthogonal")]
    calls += [lambda: net.curve_metrics(4), lambda: theory.signal_profile(net, 4, q0=0.6, c0=0.2)]
    calls += [lambda: theory.backward_profile(net, [3, 9, 5])]
    return [number for call in calls for number in flat(answer(call))]


def answer(call: Callable[[], Any]) -> Any:
    """What is refused is kept as the words of the refusal."""
    try:
        return call()
    except theory_errors as error:
        return str(error)


theory_errors = (ValueError, NotImplementedError)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3, padding=1, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(6, 1),
    )  # fmt: skip


def limits(model: nn.Module, x: np.ndarray) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    found = theory.limit_of(model.double(), weights="torch")
    return found.kernels(torch.as_tensor(x)) if hasattr(found, "kernels") else found


CALLS: dict[str, Callable[[], Any]] = {
    **{
        f"{name} {w} {b} {keep}": lambda name=name, w=w, b=b, keep=keep: net_numbers(name, w, b, keep)
        for name in ACTIVATIONS
        for w, b, keep in POINTS
    },
    **{f"points of {n}": lambda n=n: (theory.critical_points(n, 0.2), theory.starting_point(n)) for n in ACTIVATIONS},
    **{f"smoothness of {n}": lambda n=n: theory.smoothness_constants(n) for n in ACTIVATIONS},
    **{
        f"batch norm {n} {size}": lambda n=n, size=size: theory.batch_norm_gradient_factor(n, size)
        for n in ("linear", "relu", "tanh")
        for size in (4, 32, math.inf)
    },
    **{
        f"residual {n} {scale}": lambda n=n, scale=scale: theory.residual_profile(
            n, 1.2, 0.3, 5, scale=scale, length=0.7, correlation=0.3
        )
        for n in ("tanh", "relu")
        for scale in (1.0, 0.4)
    },
    **{
        f"infinite width {n} {p} {width}": lambda n=n, p=p, width=width: theory.infinite_width_kernels(
            n, 3, 1.4, 0.2, INPUTS, INPUTS[:2], p, width=width
        )
        for n in ACTIVATIONS
        for p, width in (("ntk", None), ("standard", 7))
    },
    **{
        f"convolutional {n} {p} {r}": lambda n=n, p=p, r=r: theory.convolutional_kernels(
            n, 2, 1.4, 0.2, IMAGES, padding=p, readout=r
        )
        for n in ("relu", "erf")
        for p in ("circular", "zero")
        for r in ("flatten", "mean")
    },
    "wide network": lambda: [theory.wide_network_kernels(n, 3, INPUTS, train_output=bool(o))
                             for n in ACTIVATIONS for o in (0, 1)],
    "density": lambda: [theory.jacobian_density(theory.MeanField("hard_tanh", 1.2, 0.1), d, i) for d in (2, 5)
                        for i in ("gaussian", "orthogonal")],
    "slopes": lambda: [theory.hessian_slope(d, 30, 900, linear=o) for d in (1, 2, 4) for o in (False, True)],
    "bounds": lambda: (
        theory.kernel_change_bound(0.3, 1.2, 2.0, 1.5), theory.output_hessian_bound(0.5, 0.2, 1.1, 0.7),
        theory.path_radius(2.0, 0.4, 1.3),
    ),
    "phases": lambda: theory.phase_diagram("tanh", [0.5, 1.0, 1.5, 3.0], [0.0, 0.2, 0.7]),
    "a network of one's own": lambda: limits(convolutional(), IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_numbers_are_those_that_are_kept(name: str) -> None:
    expected = json.loads(FILE.read_text())[name]
    found = flat(CALLS[name]()) if name not in OWN else CALLS[name]()
    assert differences(found, expected) == []


OWN = {name for name in CALLS if name.split()[0] in ACTIVATIONS}  # flat already

if __name__ == "__main__":
    kept = {name: call() if name in OWN else flat(call()) for name, call in CALLS.items()}
    FILE.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(numbers)}' for name, numbers in kept.items()) + "\n}\n")
