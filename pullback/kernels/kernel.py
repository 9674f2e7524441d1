"""``Kernel``: inner products of gradients with their blocks per layer and parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pullback._hooks import viewers
from pullback._results import Drawn, to_frame
from pullback.functional.batch import Batch
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.kernels.gram.blocks import Blocks
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.operators.operator import Operator

MOST_NAMED = 6  # blocks that a line names
LONGEST = 300  # characters of it


class Kernel(Operator, Drawn):
    """Inner products of gradients, as a matrix and an operator, with its blocks per layer and per parameter.

    Rows are samples, or (sample, output) pairs with the outputs of a sample next to each other. A kernel that is copied
    or saved (``copy.deepcopy``, ``pickle``, ``torch.save``) takes the blocks of all layers and parameters along, which
    are computed then, and leaves the model behind.

    Attributes:
        total: Tensor (N1, N2), loss^2 / parameter^2; for tangent kernels see ``tangent_kernel``. Symmetric to the
            bit if both sides are the same samples.
        layers: module name -> its block, in the order of the forward pass; the blocks sum to ``total``. Computed
            when first asked for, unless ``plan.keep_layers``.
        parameters: parameter name -> its block, computed when first asked for; shared parameters appear once.
        num_params: P, the number of trainable numbers covered.
        layer_sizes: module name -> the number of trainable numbers it owns.
        plan: the plan that was run.
        losses: the rows' losses, (N1,), or the values whose gradients they are, (N1, C).
        outputs: what the model returned for the rows.
        symmetric: both sides are the same samples.
        labels: class of every row, (N1,), where the targets are class numbers, else None; may be set. Pictures are
            sorted by it.
    """

    labels: Tensor | None = None

    def __init__(
        self,
        blocks: Blocks,
        plan: KernelPlan,
        captured: Captured,
        block_of: Callable[[tuple[str, ...]], Tensor],
        *,
        symmetric: bool,
        by_output: bool = False,
    ) -> None:
        assert blocks.total is not None
        view = captured.view
        self._matrix = blocks.total
        self._by_output = by_output
        self.plan = plan
        self.losses = captured.values.squeeze(1) if captured.num_outputs == 1 else captured.values
        self.outputs = captured.outputs
        self.num_params = view.num_params
        self.layer_sizes = {
            layer: sum(view.parameters[name].numel() for name in names) for layer, names in view.layers.items()
        }
        self.symmetric = symmetric
        known = {layer: self._shown(block) for layer, block in blocks.layers.items()}
        self.layers: Mapping[str, Tensor] = _Blocks(
            captured.order, lambda layer: self._shown(block_of(view.layers[layer])), known
        )
        self.parameters: Mapping[str, Tensor] = _Blocks(
            tuple(view.parameters), lambda name: self._shown(block_of((name,))), {}
        )
        rows, columns = plan.shape
        super().__init__((rows, columns), self._matrix.dtype, self._matrix.device)

    @property
    def total(self) -> Tensor:
        """The whole kernel."""
        return self._shown(self._matrix)

    def _shown(self, block: Tensor) -> Tensor:
        """A block with its axes as documented: samples first, then outputs. A view."""
        if self.plan.contract == "diagonal":
            return block.permute(1, 2, 0)
        if not self._by_output:
            return block
        C = self.plan.num_outputs
        return block.unflatten(0, (-1, C)).unflatten(2, (-1, C)).transpose(1, 2)

    @without_autocast()
    def _matmat(self, matrix: Tensor) -> Tensor:
        if self.plan.contract == "diagonal":
            each = matrix.unflatten(0, (-1, self.plan.num_outputs))  # (N2, C, K)
            return torch.einsum("cij,jck->ick", self._matrix, each).flatten(0, 1)
        return self._matrix @ matrix

    @without_autocast()
    def _rmatmat(self, matrix: Tensor) -> Tensor:
        if self.plan.contract == "diagonal":
            each = matrix.unflatten(0, (-1, self.plan.num_outputs))
            return torch.einsum("cij,ick->jck", self._matrix, each).flatten(0, 1)
        return self._matrix.T @ matrix

    def to_dense(self) -> Tensor:
        """The kernel as a matrix, rows (sample, output)."""
        return self._matrix if self.plan.contract != "diagonal" else super().to_dense()

    def plot(self, labels: Any = None) -> Any:
        """Heat map of the samples, sorted by class, and the eigenvalues: a ``plotly.graph_objects.Figure``.

        Args:
            labels: a class for every row, (N1,); None for those in ``labels``.

        Raises:
            InputError: as many labels as there are rows are needed.
        """
        return viewers[0](self, labels=labels).figure()

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each layer: parameters, trace, Frobenius norm, share of the trace.

        Raises:
            InputError: pandas is not installed.
        """
        blocks = {name: block.detach().double().cpu() for name, block in self.layers.items()}
        traces = [float(_trace(block)) for block in blocks.values()]
        columns: dict[str, list[Any]] = {
            "layer": list(blocks),
            "parameters": [self.layer_sizes[name] for name in blocks],
            "trace": traces,
            "frobenius_norm": [float(block.norm()) for block in blocks.values()],
            "share": [trace / (sum(traces) or 1.0) for trace in traces],
        }
        return to_frame("Kernel.to_pandas", columns)

    def __repr__(self) -> str:
        return f"Kernel({self.shape[0]} x {self.shape[1]}, {len(self.layers)} layers, P={self.num_params})"


def _trace(block: Tensor) -> Tensor:
    """Sum over the entries of a sample, or of an output of it, with itself; of two sets up to the shorter one's end."""
    each = block.diagonal(dim1=0, dim2=1)
    return each.diagonal(dim1=0, dim2=1).sum() if block.dim() == 4 else each.sum()


class _Blocks(Mapping[str, Tensor]):
    """Blocks by name, computed on first access and kept."""

    def __init__(self, names: tuple[str, ...], compute: Callable[[str], Tensor], known: dict[str, Tensor]) -> None:
        self._names = names
        self._compute = compute
        self._known = known

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._known:
            self._known[name] = self._compute(name)
        return self._known[name]

    def __repr__(self) -> str:
        first, more = ", ".join(self._names[:MOST_NAMED]), len(self) - MOST_NAMED
        return f"blocks of {first}{f' and {more} more' if more > 0 else ''}"[:LONGEST]

    def __getstate__(self) -> dict[str, Any]:
        return {"_names": self._names, "_compute": None, "_known": dict(self)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def class_labels(y: Batch, rows: int) -> Tensor | None:
    """Targets as classes of the rows: whole numbers, one a row."""
    whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex())
    return y.detach().clone() if whole and y.shape == (rows,) else None
