"""Singular values of the Jacobian of real networks, whole and by layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_count, input_error
from pullback._results import Drawn, Estimate
from pullback._rng import make_generator
from pullback._statistics import mean_and_stderr
from pullback.functional import check_batch
from pullback.measure.networks.drawn import DATA
from pullback.measure.networks.settled import settled_inputs
from pullback.measure.networks.spec import NetworkSpec
from pullback.operators import Jacobian, layer_jacobians
from pullback.spectral import Eigenpairs, eigenvalues

LARGEST_BYTES = 2**31  # of the Jacobians of all samples; above that only products are affordable


@dataclass(frozen=True)
class JacobianSpectrum(Drawn):
    """Squared singular values s^2 of S Jacobians, and their moments, each averaged over the S.

    A Jacobian of C outputs in D inputs has n = min(C, D) of them. Moments are taken within each Jacobian first; the
    standard errors are those of the mean over Jacobians, and nan where there is only one.

    Attributes:
        squares: (S, n), descending.
        mean: E s^2, which is |J|_F^2 / n: chi_1^L in a wide network of L layers of one width.
        variance: of s^2 within a Jacobian.
        relative_variance: variance / mean^2; 0 where all singular values are equal.
        layers: squares of every layer's own Jacobian, one (S, n) a layer; empty unless asked for.
        layer_means: E s^2 of every layer, (L,); chi_1 each in a wide network. None unless asked for.
        across: "seeds" or "samples": what the S Jacobians differ in, and standard errors speak of.
    """

    squares: Tensor
    mean: Estimate
    variance: Estimate
    relative_variance: Estimate
    layers: tuple[Tensor, ...]
    layer_means: Estimate | None
    across: str

    def __str__(self) -> str:
        largest, smallest = float(self.squares[:, 0].mean()), float(self.squares[:, -1].mean())
        return (
            f"{len(self.squares)} Jacobians ({self.across}), {self.squares.shape[1]} squared singular values each\n"
            f"mean {self.mean}\nvariance / mean^2 {self.relative_variance}\n"
            f"largest {largest:.4g}, smallest {smallest:.4g}"
        )


def jacobian_spectrum(
    model: nn.Module | NetworkSpec,
    x: Tensor | None = None,
    *,
    seeds: int = 10,
    seed: int = 0,
    layers: bool = False,
    dtype: torch.dtype = torch.float64,
) -> JacobianSpectrum:
    """All squared singular values of the derivative of a network's outputs in its inputs, from dense matrices.

    Args:
        model: any module in eval mode, or a spec, of which ``seeds`` networks are drawn (``spec.build(seed + i)``).
        x: of a module the inputs (S, ...), one Jacobian each. Of a spec one input (1, D) for all networks; None draws
            an input for each, of the length at which the first layer already has the length q* that layers settle at
            (mean square 1 for residual networks, and where every length or none is settled at).
        seeds: S of a spec; at least 2. A module is one network.
        seed: of the first network, and of the inputs.
        layers: also each layer's own Jacobian, from activations to activations; see ``pb.layer_jacobians``.
        dtype: of a spec's networks; a module has its own.

    Returns:
        JacobianSpectrum.

    Raises:
        InputError: a module without ``x``, a spec with batch norm or dropout (whose inputs have no Jacobian of their
            own), ``seeds`` < 2, Jacobians above 2 GB; see ``Jacobian`` and, with ``layers``, ``layer_jacobians``.

    Cost: C backward passes for all samples of a module at once, then one singular value decomposition a Jacobian, which
        is min(C, D)^2 max(C, D) operations. ``jacobian_extremes`` finds the ends without the matrix, and
        ``pb.frobenius_norm`` of a ``Jacobian`` the mean.

    References: Pennington, Schoenholz and Ganguli (2018), arXiv:1802.09979; ``theory.MeanField.jacobian_moments``.

    Example:
        >>> spec = NetworkSpec("relu", 2**0.5, depth=2, width=60)
        >>> found, expected = jacobian_spectrum(spec, seeds=20), spec.theory().jacobian_moments(2)
        >>> abs(found.mean.value - expected.mean) < 4 * found.mean.stderr < 0.3
        True
    """
    where = "jacobian_spectrum"
    if isinstance(model, NetworkSpec):
        check_count(where, "seeds", seeds, 2)
        inputs = _inputs(model, x, seeds, seed, dtype, where)
        drawn = [
            _of_module(model.build(seed=seed + i, dtype=dtype), one, layers, where) for i, one in enumerate(inputs)
        ]
        squares = [torch.cat(rows) for rows in zip(*(rows for rows, _ in drawn), strict=True)]
        return _summary(squares, sum(passes for _, passes in drawn), "seeds")
    if x is None:
        raise input_error(where, "`x` for a module", "None", "Pass inputs (S, ...)")
    return _summary(*_of_module(model, x, layers, where), "samples")


def jacobian_extremes(
    model: nn.Module,
    x: Tensor,
    k: int = 1,
    which: str = "largest",
    *,
    tol: float = 1e-4,
    max_matvecs: int | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """Outermost squared singular values of the Jacobian of one input's outputs, no matrix formed.

    They are the eigenvalues of J^T J or J J^T, whichever is smaller. Each lies within its residual of one, and
    residuals are relative to the largest: of small singular values this tells only that they are below. Those lie close
    together in wide Gaussian layers, and take many more products than the largest.

    Args:
        model: any module in eval mode.
        x: one input, (1, ...).
        k: how many (for "both": from each end).
        which: "largest", "smallest" or "both".
        tol: as of ``pb.eigenvalues``.
        max_matvecs: as of ``pb.eigenvalues``, each of them a product with J and one with its transpose.
        seed: of the start vector.

    Returns:
        Eigenpairs; the vectors are singular vectors, of inputs where D <= C and of outputs otherwise.

    Raises:
        InputError: more than one sample; see ``Jacobian`` and ``pb.eigenvalues``.

    Cost: two backward passes a product, whatever the widths.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(90, 80), nn.Tanh()).double(), torch.ones(1, 90, dtype=torch.float64)
        >>> exact = jacobian_spectrum(model, x).squares[0]
        >>> abs(float(jacobian_extremes(model, x).values[0] / exact[0]) - 1) < 1e-6
        True
    """
    where = "jacobian_extremes"
    count = check_batch(where, x)
    if count != 1:
        raise input_error(where, "one sample (1, ...)", f"{count} samples", "Pass x[:1]")
    J = Jacobian(model, x, wrt="input")
    narrow = J if J.shape[1] <= J.shape[0] else J.T
    return eigenvalues(narrow.T @ narrow, k, which, tol=tol, max_matvecs=max_matvecs, seed=seed)


def _inputs(spec: NetworkSpec, x: Tensor | None, seeds: int, seed: int, dtype: torch.dtype, where: str) -> list[Tensor]:
    """One input (1, D) for each network."""
    if spec.needs_training_mode:
        got = "batch norm" if spec.batch_norm else f"keep_prob {spec.keep_prob}"
        raise input_error(where, "a spec without batch norm and dropout", got, "Build a module and call eval() on it")
    if x is None:
        return [settled_inputs(spec, 1, make_generator(seed + i + DATA), where).to(dtype) for i in range(seeds)]
    if x.shape != (1, spec.input_width):
        expected = f"one input (1, {spec.input_width}) for a spec"
        raise input_error(where, expected, f"shape {tuple(x.shape)}", "Pass a module for more")
    return [x.to(dtype)] * seeds


def _of_module(model: nn.Module, x: Tensor, layers: bool, where: str) -> tuple[list[Tensor], int]:
    """Squared singular values (S, n) of the whole Jacobian and, if asked for, every layer's; passes for the former."""
    J = Jacobian(model, x, wrt="input")
    num_bytes = J.num_samples * J.num_outputs * (J.shape[1] // J.num_samples) * J.dtype.itemsize
    if num_bytes > LARGEST_BYTES:
        got = f"{num_bytes / 2**30:.1f} GB for {J.num_samples} samples"
        raise input_error(where, "Jacobians of at most 2 GB", got, "Use jacobian_extremes, or fewer samples")
    matrices = [J.per_sample(), *(layer_jacobians(model, x) if layers else [])]
    wide = [matrix.to(torch.promote_types(matrix.dtype, torch.float32)) for matrix in matrices]  # none in half
    return [torch.linalg.svdvals(matrix).square() for matrix in wide], J.num_outputs


def _summary(squares: list[Tensor], passes: int, across: str) -> JacobianSpectrum:
    """The moments, each of them within a Jacobian first."""
    whole, *layers = squares
    mean, variance = whole.mean(1), whole.var(1, correction=0)
    return JacobianSpectrum(
        squares=whole,
        mean=_estimate(mean, passes),
        variance=_estimate(variance, passes),
        relative_variance=_estimate(variance / mean.square(), passes),
        layers=tuple(layers),
        layer_means=_estimate(torch.stack([s.mean(1) for s in layers], 1), passes) if layers else None,
        across=across,
    )


def _estimate(by_seed: Tensor, passes: int) -> Estimate:
    """Mean over Jacobians, (S,) or (S, L)."""
    value, stderr = (
        mean_and_stderr(by_seed) if len(by_seed) > 1 else (by_seed[0], torch.full_like(by_seed[0], math.nan))
    )
    if value.dim() == 0:
        return Estimate(float(value), float(stderr), passes)
    return Estimate(value, stderr, passes)
