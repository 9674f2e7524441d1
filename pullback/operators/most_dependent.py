"""Which sample of a batch looks most as if it depended on another; of integers, by what tables make of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pullback.functional.agreement import row_norms, sample_weights, tolerance


def most_dependent(values: Tensor, sources: list[Tensor], dtype: torch.dtype) -> int:
    """The sample that looks most as if it depended on another; the middle one if none does by more than rounding.

    Args:
        values: one number a sample, (N,), with its graph, which is kept.
        sources: what they are differentiated in, (N, ...) each.
        dtype: what they were computed in.
    """
    count = len(values)
    if not sources or not values.requires_grad or count < 3:
        return count // 2
    weighted = sample_weights(count, values) * values
    shares = [
        row_norms(b / sample_weights(count, b).view(-1, *[1] * (b.dim() - 1)) - a)
        / (tolerance(dtype) * row_norms(a) + torch.finfo(torch.float64).tiny)
        for a, b in zip(_derivatives(values, sources), _derivatives(weighted, sources), strict=True)
        if a is not None and b is not None
    ]
    share = torch.stack(shares).amax(0).nan_to_num(nan=torch.inf) if shares else torch.zeros(1, device="cpu")
    return _depending_on(int(share.argmax()), weighted, sources) if float(share.max()) > 1 else count // 2


def _depending_on(sample: int, weighted: Tensor, sources: list[Tensor]) -> int:
    """Which of the others has the largest derivative in one sample's inputs.

    That this sample's derivatives change with the weights of the others says that one of those depends on it, not
    which: it is found by halves, in log2(N) pairs of passes that only models under suspicion pay for.
    """
    rest = torch.tensor([i for i in range(len(weighted)) if i != sample], device=weighted.device)
    while len(rest) > 1:
        halves = rest.tensor_split(2)
        each = [_derivatives(weighted[half], sources) for half in halves]
        sizes = [torch.stack([row_norms(g)[sample] for g in found if g is not None]).norm() for found in each]
        rest = halves[int(sizes[1] > sizes[0])]
    return int(rest)


def _derivatives(values: Tensor, sources: list[Tensor]) -> list[Tensor | None]:
    """Of the sum of some values, whose graph is kept."""
    return list(torch.autograd.grad(values.sum(), sources, retain_graph=True, allow_unused=True))


class Lookups(TorchFunctionMode):
    """Collects what tables make of the integers in a batch: the first tensors of such samples with a derivative.

    And the dtypes of everything that is computed.
    """

    def __init__(self, inputs: list[Tensor], count: int) -> None:
        super().__init__()
        self._inputs, self._count = [t for t in inputs if not t.is_floating_point()], count
        self.found: list[Tensor] = []
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.dtypes.add(output.dtype)
            if func is Tensor.clone and any(args[0] is t for t in self._inputs):  # what the model is handed
                self._inputs.append(output)
        if func in (F.embedding, F.embedding_bag) and isinstance(output, Tensor) and output.requires_grad:
            index = args[0] if args else (kwargs or {})["input"]
            if self._holds_samples(index) and len(output) == self._count:
                self.found.append(output)
        return output

    def _holds_samples(self, index: Tensor) -> bool:
        """Whether the first axis of an index is that of the samples; one that was put in another order is not known."""
        return any((index is t or index._base is t) and index.stride()[:1] == t.stride()[:1] for t in self._inputs)
