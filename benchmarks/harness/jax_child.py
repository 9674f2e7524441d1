"""Measures neural-tangents; run by ``methods.tangent.neural_tangents`` with the Python of .bench-jax.

Arguments: an .npz with ``x`` and the weights by torch's names, where to save the kernel, the network (mlp, conv),
full or trace, the implementation's name, the number of threads. Compiling is done before the level of memory is
read and is not timed; the first call is a warm-up.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.harness import measuring

SECONDS = 2.0


def main(given: str, result: str, network: str, contract: str, implementation: str, threads: str) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])  # XLA has as many threads as cores
    import jax
    import neural_tangents as nt
    import numpy as np

    jax.config.update("jax_platforms", "cpu")
    arrays = dict(np.load(given))
    x = arrays.pop("x")
    apply, parameters, x = {"mlp": mlp, "conv": conv}[network](arrays, x)
    kernel_fn = nt.empirical_ntk_fn(
        apply,
        trace_axes={"full": (), "trace": (-1,)}[contract],
        vmap_axes=0,
        implementation=nt.NtkImplementation[implementation],
    )
    x, parameters = jax.device_put((x, parameters))
    compiled = jax.jit(lambda x, parameters: kernel_fn(x, None, parameters)).lower(x, parameters).compile()
    gc.collect()
    level = measuring.resident("VmRSS")
    compiled(x, parameters).block_until_ready()
    report, kernel = measuring.repeat(lambda: compiled(x, parameters).block_until_ready(), level, SECONDS)
    outputs = {"full": 1, "trace": 10}[contract]  # its trace is the mean over the outputs, not the sum
    np.save(Path(result), outputs * np.asarray(kernel))
    report["packages"] = {name: version(name) for name in ("jax", "jaxlib", "neural-tangents")}
    print(json.dumps(report))


def mlp(arrays: dict[str, Any], x: Any) -> tuple[Any, Any, Any]:
    """Linear layers with ReLU between; ``0.weight`` is (p, d)."""
    import jax
    import jax.numpy as jnp

    names = [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]
    parameters = [(arrays[f"{name}.weight"].T.copy(), arrays[f"{name}.bias"]) for name in names]

    def apply(parameters: Any, x: Any) -> Any:
        for i, (w, b) in enumerate(parameters):
            x = jnp.dot(x if i == 0 else jax.nn.relu(x), w) + b
        return x

    return apply, parameters, x


def conv(arrays: dict[str, Any], x: Any) -> tuple[Any, Any, Any]:
    """Convolutions with ReLU, then one linear layer, channels last: the layout XLA prefers on a processor."""
    import jax
    import jax.numpy as jnp

    names = [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]
    *inner, last = names
    channels = arrays[f"{inner[-1]}.weight"].shape[0]
    head = arrays[f"{last}.weight"]  # (10, channels * side * side), channels first
    side = round((head.shape[1] / channels) ** 0.5)
    head = head.reshape(-1, channels, side, side).transpose(2, 3, 1, 0).reshape(-1, head.shape[0])
    parameters = [(arrays[f"{n}.weight"].transpose(2, 3, 1, 0).copy(), arrays[f"{n}.bias"]) for n in inner]
    parameters.append((head.copy(), arrays[f"{last}.bias"]))

    def apply(parameters: Any, x: Any) -> Any:
        for w, b in parameters[:-1]:
            y = jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(y + b)
        w, b = parameters[-1]
        return jnp.dot(x.reshape(x.shape[0], -1), w) + b

    return apply, parameters, x.transpose(0, 2, 3, 1).copy()


if __name__ == "__main__":
    main(*sys.argv[1:])
