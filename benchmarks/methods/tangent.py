"""The methods of the tangent-kernel cases; each returns the total kernel: (N, N, C, C) if full, (N, N) if traced."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.environment import ROOT
from benchmarks.methods.checks import numbers
from benchmarks.methods.problem import Blocks, Call, Elsewhere, Problem, Skip

JAX_PYTHON = ROOT / ".bench-jax" / "bin" / "python"


def pullback(contract: str) -> Callable[[Problem], Call]:
    def prepare(problem: Problem) -> Call:
        from pullback import tangent_kernel

        model = problem.model.eval()
        return lambda: Blocks(tangent_kernel(model, problem.x, contract=contract).total, {})

    return prepare


def jacobian_form(contract: str) -> Callable[[Problem], Call]:
    """Of the torch.func tutorial: the Jacobians of all samples, then one product per parameter.

    Kinder than the tutorial's code: the Jacobian is formed once, since both sides are the same samples, the
    products are added up as they come, and each parameter's Jacobian is let go after its product.
    """
    pattern = {"full": "Naf,Mbf->NMab", "trace": "Naf,Maf->NM"}[contract]

    def prepare(problem: Problem) -> Call:
        from torch.func import functional_call, jacrev, vmap

        parameters = {name: p.detach() for name, p in problem.model.named_parameters()}

        def output(params: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(problem.model, params, (x.unsqueeze(0),)).squeeze(0)

        def call() -> Blocks:
            jacobians = vmap(jacrev(output), (None, 0))(parameters, problem.x)
            total: Tensor | None = None
            for name in parameters:
                j = jacobians.pop(name).flatten(2)
                product = torch.einsum(pattern, j, j)
                total = product if total is None else total.add_(product)
            assert total is not None
            return Blocks(total, {})

        return call

    return prepare


def neural_tangents(network: str, contract: str, implementation: str) -> Callable[[Problem], Call]:
    """``nt.empirical_ntk_fn`` on the same weights and inputs, timed by ``jax_child.py`` in its own environment."""

    def prepare(problem: Problem) -> Call:
        if not JAX_PYTHON.exists():
            raise Skip("there is no .bench-jax; benchmarks/setup.sh makes it")

        def call() -> Elsewhere:
            with tempfile.TemporaryDirectory() as folder:
                given, result = Path(folder) / "given.npz", Path(folder) / "kernel.npy"
                weights = {name: p.detach().numpy() for name, p in problem.model.named_parameters()}
                np.savez(given, x=problem.x.numpy(), **weights)
                jax_child = (JAX_PYTHON, "-m", "benchmarks.harness.jax_child")
                command = [*jax_child, given, result, network, contract, implementation]
                words = [str(word) for word in command] + [str(torch.get_num_threads())]
                done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
                if done.returncode:
                    sys.exit(f"neural-tangents ended with {done.returncode}\n{done.stderr[-4000:]}")
                report = json.loads(done.stdout.splitlines()[-1])
                kernel = torch.from_numpy(np.load(result))
            return Elsewhere(report | {"checks": {"total": numbers(kernel)}})

        return call

    return prepare
