"""Kernels of infinitely wide networks by neural-tangents' ``stax``, for the tests: run with the Python of .bench-jax.

    .bench-jax/bin/python -W ignore benchmarks/studies/infinite_width_numbers.py > tests/data/neural_tangents.json

Inputs are written with the numbers. Images are stored with channels first, as torch has them.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any


def networks() -> dict[str, tuple[str, Any]]:
    """Name -> (kind of input, layers)."""
    from neural_tangents import stax

    def dense(out: int = 8, w: float = 1.4, b: float | None = 0.1) -> Any:
        return stax.Dense(out, w, b)

    def conv(w: float = 1.4, b: float = 0.1, **options: Any) -> Any:
        return stax.Conv(8, (3, 3), W_std=w, b_std=b, **options)

    head = dense(1, 1.2, 0.2)
    five = [each for _ in range(5) for each in (dense(8, 2**0.5, 0.05), stax.Relu())]
    branch = stax.serial(stax.Relu(), dense(8, 0.9, 0.3))
    image_branch = stax.serial(stax.Relu(), conv(padding="SAME"))
    return {
        "relu_5": ("vectors", [*five, head]),
        "no_bias": ("vectors", [dense(8, 1.1, None), stax.Erf(), dense(1, 1.3, None)]),
        "erf_2": ("vectors", [dense(), stax.Erf(), dense(), stax.Erf(), head]),
        "gelu_2": ("vectors", [dense(), stax.Gelu(), dense(), stax.Gelu(), head]),
        "sin_2": ("vectors", [dense(), stax.Sin(), dense(), stax.Sin(), head]),
        "leaky_relu_2": ("vectors", [dense(), stax.LeakyRelu(0.01), dense(), stax.LeakyRelu(0.01), head]),
        "residual": ("vectors", [dense(), stax.FanOut(2), stax.parallel(stax.Identity(), branch), stax.FanInSum(),
                                 stax.Relu(), head]),
        "layer_norm": ("vectors", [dense(), stax.LayerNorm(), stax.Relu(), dense(), stax.LayerNorm(), stax.Erf(),
                                   head]),
        "conv_flatten": ("images", [conv(padding="SAME"), stax.Relu(), conv(padding="CIRCULAR"), stax.Erf(),
                                    stax.Flatten(), head]),
        "conv_strided": ("images", [conv(strides=(2, 1)), stax.Relu(), conv(padding="SAME"), stax.Relu(),
                                    stax.Flatten(), head]),
        "conv_global": ("images", [conv(padding="SAME"), stax.Relu(), conv(padding="SAME"), stax.Relu(),
                                   stax.GlobalAvgPool(), head]),
        "average_pool": ("images", [conv(padding="SAME"), stax.Relu(), stax.AvgPool((2, 2), (2, 2)),
                                    conv(padding="SAME"), stax.Relu(), stax.Flatten(), head]),
        "average_pool_overlap": ("images", [conv(padding="SAME"), stax.Relu(), stax.AvgPool((3, 2), (1, 2)),
                                            stax.Flatten(), head]),
        "sum_pool": ("images", [conv(padding="SAME"), stax.Relu(), stax.SumPool((2, 2), (2, 2)), conv(padding="SAME"),
                                stax.Relu(), stax.GlobalSumPool(), head]),
        "residual_images": ("images", [conv(padding="SAME"), stax.FanOut(2),
                                       stax.parallel(stax.Identity(), image_branch), stax.FanInSum(), stax.Relu(),
                                       stax.GlobalAvgPool(), head]),
        "layer_norm_images": ("images", [conv(padding="SAME"), stax.LayerNorm((1, 2, 3)), stax.Relu(), stax.Flatten(),
                                         head]),
    }  # fmt: skip


def main() -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    import numpy as np
    from neural_tangents import stax

    make = np.random.default_rng(0)
    inputs = {"vectors": (make.normal(size=(3, 5)), make.normal(size=(2, 5)))}
    inputs["images"] = (make.normal(size=(2, 3, 4, 6)), make.normal(size=(1, 3, 4, 6)))
    found: dict[str, Any] = {
        "made_by": {name: version(name) for name in ("jax", "neural-tangents")},
        "inputs": {kind: [x.tolist() for x in pair] for kind, pair in inputs.items()},
        "networks": {},
    }
    for name, (kind, layers) in networks().items():
        pair = [np.moveaxis(x, 1, -1) if kind == "images" else x for x in inputs[kind]]
        _, _, kernel = stax.serial(*layers)
        kernels = kernel(*pair, ("nngp", "ntk"))
        found["networks"][name] = {"input": kind, "nngp": kernels.nngp.tolist(), "ntk": kernels.ntk.tolist()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
