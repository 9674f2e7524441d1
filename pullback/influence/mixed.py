"""Mixed second derivatives of the mean loss: in the parameters once, and once in what is to be perturbed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pullback._checks import check_option, input_error
from pullback.functional import LossFunction, ModelView, undisturbed
from pullback.functional.batch import Batch, mapped, num_samples, tensors
from pullback.functional.batches import Batches, Data
from pullback.functional.differentiable import differentiable
from pullback.functional.losses import check_finite, unchecked_loss
from pullback.functional.refused import refuse_random_and_coupled
from pullback.functional.target_checks import check_targets
from pullback.operators.operator import Operator
from pullback.operators.own_samples import check_own_samples, output_values

Perturbed = Literal["targets", "inputs", "weights", "labels"]


class MixedDerivative(Operator):
    """Mixed second derivative (P, M) of the mean per-sample loss in the parameters w and a perturbation theta.

    The cost is J(w, theta) = 1/N sum_i L_i, N the samples of the training data, and the matrix d^2 J / dw dtheta. What
    theta is:

    - "targets": the targets themselves, M = N times the numbers in one target. They must be real.
    - "inputs": the real numbers in the inputs, M = N times those of one sample.
    - "weights": one weight a sample, J = 1/N sum_i s_i L_i, M = N: column i is g_i / N. A direction of -1 removes the
      sample, of +1 counts it twice (or adds it, for ``points`` outside the data).
    - "labels": one number a sample that leads from its label (0) to ``labels`` (1): column i is
      (g_i with the other label - g_i) / N, M = N. For class labels, and for changes that are not small.

    Args:
        model: any module in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample, (N,).
        data: the perturbed samples: one pair ``(x, y)``, or an iterable of pairs that can be walked through again.
        wrt: what is perturbed.
        labels: other targets of the same shape, one batch each as ``data`` has them; for "labels" only.
        count: N, where the perturbed samples are not the training data; None takes their own number.
        params: names of parameters or modules; None for all trainable ones.

    Attributes:
        theta_shape: shape of a direction: (N, *shape of one sample's numbers), which ``@`` takes flattened.

    Raises:
        InputError: integers where derivatives are asked for; missing or needless ``labels``; unfit data.
        UnsupportedError: batch norm or dropout in train mode, a model or loss that mixes samples.

    Cost: for each batch and column one gradient with its graph and one backward pass through it, in both directions.

    References: Grosse (2021), Taylor approximations, section 5.1.

    Example:
        >>> x, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> B = MixedDerivative(model, nn.MSELoss(), (x, y), "targets")  # loss (x w - y)^2
        >>> bool(torch.allclose(B.to_dense(), -2 * x.T / 5))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Data,
        wrt: Perturbed = "weights",
        *,
        labels: Batch | Iterable[Batch] | None = None,
        count: int | None = None,
        params: Iterable[str] | None = None,
    ) -> None:
        where = "MixedDerivative"
        check_option(where, "wrt", wrt, get_args(Perturbed))
        self.view = ModelView.of(model, params, where)
        refuse_random_and_coupled(self.view.model, where)
        self.loss_fn, self.wrt = loss_fn, wrt
        self._batches = Batches(data, where)
        self._counts = [mark.count for mark in self._batches.marks]
        self._labels = self._other_labels(labels)
        shapes = set()
        with undisturbed(model), differentiable():
            for (x, y), other in zip(self._batches, self._labels, strict=True):
                with torch.no_grad():
                    outputs = self.view(x)
                    for targets in (y, other)[: 1 if other is None else 2]:
                        check_targets(loss_fn, outputs, targets, where)
                        check_finite(unchecked_loss(loss_fn, outputs, targets, where), where)
                shapes.add(self._theta(x, y)[1])
                every = dict(self.view.model.named_parameters())
                check_own_samples(self._values, self.view.parameters, every, x, y, num_samples(x), where)
        if len(shapes) > 1:
            got = f"shapes {sorted(shapes)}"
            raise input_error(where, "perturbed samples of one shape in all batches", got, "Pass one batch at a time")
        self.theta_shape = (sum(self._counts), *shapes.pop())
        self._total = count or sum(self._counts)
        first = next(iter(self.view.parameters.values()))
        super().__init__((self.view.num_params, torch.Size(self.theta_shape).numel()), first.dtype, first.device)

    def _other_labels(self, labels: Batch | Iterable[Batch] | None) -> list[Batch]:
        """The targets samples would change to, batch by batch; None for each where labels are not what changes."""
        where = "MixedDerivative"
        if (labels is None) == (self.wrt == "labels"):
            expected = "other targets in `labels`" if labels is None else f"no `labels` for wrt={self.wrt!r}"
            remedy = "Pass the labels the samples would change to" if labels is None else "Use wrt='labels'"
            raise input_error(where, expected, "None" if labels is None else "some", remedy)
        others = [labels] if self._batches.alone else list(self._counts if labels is None else labels)
        sizes = self._counts if labels is None else [num_samples(y, where, "labels") for y in others]
        if sizes != self._counts:
            expected = f"`labels` in batches of {self._counts} samples"
            raise input_error(where, expected, f"{sizes}", "Give every sample a label, batch by batch as in `data`")
        return [None] * len(sizes) if labels is None else others

    def _theta(self, x: Batch, y: Batch) -> tuple[Tensor, tuple[int, ...]]:
        """What is perturbed, (B, D) at its present value, and the shape of one sample's part."""
        if self.wrt in ("weights", "labels"):
            count = num_samples(y, "MixedDerivative", "y")
            like = next(iter(self.view.parameters.values()))
            value = 1.0 if self.wrt == "weights" else 0.0
            return torch.full((count, 1), value, dtype=like.dtype, device=like.device), ()
        leaves = [leaf for leaf in tensors(y if self.wrt == "targets" else x) if leaf.is_floating_point()]
        if not leaves:
            remedy = "Use wrt='labels' or wrt='weights'" if self.wrt == "targets" else "Use wrt='weights'"
            raise input_error("MixedDerivative", f"real numbers in the {self.wrt}", "integers", remedy)
        flat = torch.cat([leaf.detach().flatten(1) if leaf.dim() > 1 else leaf.detach()[:, None] for leaf in leaves], 1)
        return flat, tuple(leaves[0].shape[1:]) if len(leaves) == 1 else (flat.shape[1],)

    def _cost(self, x: Batch, y: Batch, other: Batch, theta: Tensor) -> Tensor:
        """This batch's part of J(w, theta)."""
        if self.wrt == "inputs":
            x = _with_numbers(x, theta)
        elif self.wrt == "targets":
            y = _with_numbers(y, theta)
        outputs = self.view(x)
        losses = unchecked_loss(self.loss_fn, outputs, y, "MixedDerivative")
        if self.wrt == "weights":
            losses = theta[:, 0] * losses
        elif self.wrt == "labels":
            losses = losses + theta[:, 0] * (unchecked_loss(self.loss_fn, outputs, other, "MixedDerivative") - losses)
        return losses.sum() / self._total

    def _values(self, x: Batch, y: Batch, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Outputs and losses by sample, (N, ...) each: of the model as it is, or at other parameters."""
        outputs, count = self.view(x, parameters), num_samples(x)
        losses = unchecked_loss(self.loss_fn, outputs, y, "MixedDerivative")
        return {"loss": losses.reshape(count, -1), **output_values(outputs, count)}

    def _graphs(self) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        """Theta (B, D), the parameters, and the cost as a function of both, batch by batch."""
        for (x, y), other in zip(self._batches, self._labels, strict=True):
            theta = self._theta(x, y)[0].requires_grad_()
            yield theta, list(self.view.parameters.values()), self._cost(x, y, other, theta)

    def _matmat(self, matrix: Tensor) -> Tensor:
        """d/dw <dJ/dtheta, r> for every column r: the scalar is formed first, so that two backward passes suffice."""
        result = matrix.new_zeros(self.shape[0], matrix.shape[1])
        rows = matrix.unflatten(0, (sum(self._counts), -1)).split(self._counts)  # (B, D, K) a batch
        with self._evaluated():
            for directions, (theta, parameters, cost) in zip(rows, self._graphs(), strict=True):
                slope = _derivative(cost, [theta], None)[0]
                columns = [_derivative(slope, parameters, r) for r in directions.unbind(2)]
                result += torch.stack([torch.cat([c.reshape(-1) for c in column]) for column in columns], 1)
        return result

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        """d/dtheta <dJ/dw, u> for every column u."""
        parts = []
        with self._evaluated():
            for theta, parameters, cost in self._graphs():
                slope = torch.cat([g.reshape(-1) for g in _derivative(cost, parameters, None)])
                columns = [_derivative(slope, [theta], u)[0].reshape(-1) for u in matrix.T]
                parts.append(torch.stack(columns, 1))
        return torch.cat(parts)

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """The model left as it was, gradients on, and fused operations in forms that have a second derivative."""
        with undisturbed(self.view.model), differentiable(), torch.enable_grad():
            yield


def _with_numbers(batch: Batch, numbers: Tensor) -> Batch:
    """The batch with its real tensors replaced by the columns of ``numbers`` (B, D)."""
    sizes = [leaf[0].numel() for leaf in tensors(batch) if leaf.is_floating_point()]
    pieces = iter(numbers.split(sizes, dim=1))
    return mapped(
        lambda leaf: next(pieces).reshape(leaf.shape).to(leaf.dtype) if leaf.is_floating_point() else leaf, batch
    )


def _derivative(value: Tensor, inputs: list[Tensor], vector: Tensor | None) -> list[Tensor]:
    """Gradients of <value, vector>, kept differentiable for a scalar's first derivative; zero where independent."""
    if not value.requires_grad:
        return [torch.zeros_like(i) for i in inputs]
    derivatives = torch.autograd.grad(
        value,
        inputs,
        None if vector is None else vector.reshape(value.shape),
        create_graph=vector is None,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return [g.detach() for g in derivatives] if vector is not None else list(derivatives)
