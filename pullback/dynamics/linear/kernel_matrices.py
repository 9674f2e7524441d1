"""What the calls on kernels are given, as plain matrices: kernels of any origin, values with an axis of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.kernels import Kernel

FEW = 10  # rows below which the rounding of long inner products, not of the matrix, sets what is 0
NEGATIVE = 10  # roundings below 0 an eigenvalue may lie


@dataclass(frozen=True)
class Layout:
    """How values of samples, (N, ...), stand in the columns a kernel multiplies.

    Attributes:
        samples: N.
        outputs: shape of one sample's values.
        full: whether the kernel couples outputs; otherwise it is the same for each of them, and 0 between two.
    """

    samples: int
    outputs: tuple[int, ...]
    full: bool

    @property
    def count(self) -> int:
        """Numbers in all: samples times outputs."""
        return self.samples * math.prod(self.outputs)

    def columns(self, values: Tensor) -> Tensor:
        """(N, ...) -> (N, C), or (N C, 1) where outputs are coupled."""
        flat = values.reshape(len(values), -1)
        return flat.reshape(-1, 1) if self.full else flat

    def values(self, columns: Tensor) -> Tensor:
        """``columns`` undone, for any number of samples: (..., M, C) or (..., M C, 1) -> (..., M, *outputs)."""
        samples = columns.shape[-2] // (math.prod(self.outputs) if self.full else 1)
        return columns.reshape(*columns.shape[:-2], samples, *self.outputs)


def kernel_of(kernel: Any, name: str, where: str, *, outputs: bool = True) -> Tensor:
    """A kernel as a finite tensor (N1, N2) or (N1, N2, C, C), in its own dtype.

    Args:
        kernel: a tensor, an array, or a ``Kernel``.
        name: of the argument, for error messages.
        where: the caller.
        outputs: whether a ``Kernel`` must hold each output by itself; a sum over several is no kernel of any of them.
    """
    if isinstance(kernel, Kernel):
        plan = kernel.plan
        if outputs and plan.num_outputs > 1 and plan.contract != "full":
            raise input_error(
                where, f"`{name}` of single outputs", f"{plan.contract!r} of {plan.num_outputs} outputs",
                "Pass contract='full' to tangent_kernel",
            )  # fmt: skip
        kernel = kernel.total
    matrix = torch.as_tensor(kernel).detach()
    matrix = matrix if matrix.is_floating_point() else matrix.double()
    paired = matrix.dim() == 2 or (matrix.dim() == 4 and matrix.shape[2] == matrix.shape[3])
    if not paired or not matrix.numel():
        raise input_error(
            where,
            f"`{name}` (N1, N2) or (N1, N2, C, C)",
            f"shape {tuple(matrix.shape)}",
            "Pass a kernel between samples",
        )
    if not bool(torch.isfinite(matrix).all()):
        raise input_error(where, f"a finite `{name}`", "NaN or infinity", "Look for the sample that makes it")
    return matrix


def square_kernel(kernel: Any, name: str, where: str, *, outputs: bool = True) -> Tensor:
    """``kernel_of`` between a set of samples and itself."""
    matrix = kernel_of(kernel, name, where, outputs=outputs)
    if matrix.shape[0] != matrix.shape[1]:
        shape = tuple(matrix.shape)
        raise input_error(where, f"a square `{name}`", f"shape {shape}", "Pass kernels to other samples as cross=")
    return matrix


def cross_kernel(cross: Any, kernel: Tensor, name: str, where: str, *, outputs: bool = True) -> Tensor:
    """``kernel_of`` between other samples (rows) and those of ``kernel``, of the same kind."""
    matrix = kernel_of(cross, name, where, outputs=outputs)
    if matrix.shape[1:] != kernel.shape[1:]:
        shape = ", ".join(map(str, kernel.shape[1:]))
        got = f"shape {tuple(matrix.shape)}"
        raise input_error(where, f"`{name}` (M, {shape})", got, "Rows are the other samples, columns those of `kernel`")
    return matrix


def layout_of(kernel: Tensor, shape: torch.Size, name: str, where: str) -> Layout:
    """How values of this shape meet the kernel."""
    samples, full = kernel.shape[0], kernel.dim() == 4
    outputs = math.prod(shape[1:])
    if not shape or shape[0] != samples or not outputs or (full and outputs != kernel.shape[2]):
        expected = f"({samples}, ...)" if not full else f"({samples}, ...) with {kernel.shape[2]} outputs"
        raise input_error(
            where, f"`{name}` {expected}", f"shape {tuple(shape)}", f"Pass `{name}` of the kernel's samples"
        )
    return Layout(samples, tuple(shape[1:]), full)


def as_matrix(kernel: Tensor) -> Tensor:
    """(N1, N2) as it is, (N1, N2, C, C) as (N1 C, N2 C), in float64."""
    kernel = kernel.double()
    return kernel if kernel.dim() == 2 else kernel.transpose(1, 2).flatten(2).flatten(0, 1)


def values_of(values: Any, name: str, where: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """Finite numbers as float64, of the asked shape."""
    tensor = torch.as_tensor(values).detach()
    if shape is not None and tuple(tensor.shape) != shape:
        raise input_error(where, f"`{name}` {shape}", f"shape {tuple(tensor.shape)}", f"Pass `{name}` of that shape")
    if not bool(torch.isfinite(tensor).all()):
        raise input_error(where, f"finite `{name}`", "NaN or infinity", f"Check `{name}`")
    return tensor.double()


@dataclass(frozen=True)
class Modes:
    """Eigenvalues, ascending and at least 0, and eigenvectors of a kernel.

    Attributes:
        values: (m,).
        vectors: (m, m), columns.
        floor: below which an eigenvalue is rounding of 0.
    """

    values: Tensor
    vectors: Tensor
    floor: float

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[-1])


def modes_of(kernel: Tensor, name: str, where: str) -> Modes:
    """Eigenpairs of a kernel, which must be symmetric and positive semi-definite up to its dtype's rounding."""
    matrix = as_matrix(kernel)
    rounding = (len(matrix) + FEW) * torch.finfo(kernel.dtype).eps
    skew, size = float((matrix - matrix.T).abs().max()), float(matrix.abs().max())
    if skew > NEGATIVE * rounding * size:
        got = f"K - K^T of size {skew:.3g} at {size:.3g}"
        raise input_error(where, f"a symmetric `{name}`", got, "Pass the kernel of one set of samples with itself")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    largest = float(values.abs().max())
    if float(values[0]) < -NEGATIVE * rounding * largest:
        got = f"a smallest eigenvalue of {float(values[0]):.3g} beside {float(values[-1]):.3g}"
        raise input_error(
            where, f"a positive semi-definite `{name}`", got, "Pass inner products of gradients or features"
        )
    return Modes(values.clamp(min=0), vectors, rounding * largest)
