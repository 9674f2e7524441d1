"""``Fisher``: the second moment of the loss's gradients, with targets from the model or from the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pullback._checks import check_option, check_positive, input_error
from pullback._rng import make_generator
from pullback.functional import LossFunction, sample_targets, token_readout
from pullback.functional.batch import Batch
from pullback.functional.batches import Data
from pullback.functional.likelihood import Per, check_normalised, known_likelihood
from pullback.functional.target_checks import logits_of
from pullback.operators.curvature.linearised import LinearisedOperator, Middle, scaled

Kind = Literal["true", "sampled", "empirical"]


class Fisher(LinearisedOperator):
    """Fisher matrix (P, P): (1/N) sum over i of E[g_i g_i^T], g_i the gradient of sample i's own loss.

    kind="true": the expectation over targets drawn from the model's own prediction, in closed form: J^T E[s s^T] J
    with s the loss's slope in the outputs. "sampled": the mean over ``num_samples`` drawn targets, an unbiased
    estimate of it. "empirical": the targets of the data, without expectation, G^T G / N; it is neither the
    Fisher matrix nor the Hessian, and vanishes where every sample is fitted (Kunstner et al. 2019).

    Scale against ``GaussNewton``: equal for ``CrossEntropyLoss`` on (N, C) and ``BCEWithLogitsLoss`` and
    ``PoissonNLLLoss`` on one output, or with reduction "sum" on several; where a sample's loss is a mean over m
    terms (positions that count, outputs) the gradients carry 1/m twice and the Hessian once: Fisher = GaussNewton / m
    (sample by sample). ``MSELoss``: equal for both reductions, the normal distribution having the variance that makes
    the loss its negative log-likelihood, 1/2 for "sum" and C/2 for "mean" (with variance 1: 2 and 2/C times more).
    ``NLLLoss``: that of the model whose outputs are the class scores before the log_softmax.

    Args:
        model: as for ``Hessian``.
        loss_fn: as for ``Hessian``; "true" and "sampled" need a loss that is a negative log-likelihood.
        data: as for ``Hessian``.
        kind: "true", "sampled" or "empirical".
        per: "sample": N samples, each with its own loss (a mean or sum over its positions). "token": every position
            is a sample of its own, N counts the positions that are not at ``ignore_index``.
        num_samples: targets drawn for every sample, for "sampled".
        seed: of the generator they are drawn from; each product uses the same draws while the weights stay.
        params: as for ``Hessian``.

    Raises:
        InputError: as ``Hessian``; an unknown kind.
        UnsupportedError: as ``Hessian``; a loss without a distribution; ``per="token"`` without positions.

    Cost: as ``GaussNewton``; for "sampled" the losses of ``num_samples`` times N rows. G is never formed.

    References: Martens (2020), arXiv:1412.1193; Kunstner, Hennig and Balles (2019), arXiv:1905.12558.

    Example:
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
        >>> x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
        >>> F = Fisher(model, torch.nn.CrossEntropyLoss(), (x, y))
        >>> bool(torch.allclose(F.to_dense(), reference.dense_fisher(model, torch.nn.CrossEntropyLoss(), x, y)))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Data,
        *,
        kind: Kind = "true",
        per: Per = "sample",
        num_samples: int = 1,
        seed: int = 0,
        params: Iterable[str] | None = None,
    ) -> None:
        check_option("Fisher", "kind", kind, ("true", "sampled", "empirical"))
        check_option("Fisher", "per", per, ("sample", "token"))
        check_positive("Fisher", "num_samples", num_samples)
        self.kind, self.per, self.seed, self.num_draws = kind, per, seed, num_samples
        if kind != "empirical":
            self._family = known_likelihood(loss_fn, "Fisher")
        self._by_token = token_readout(loss_fn) if per == "token" else None
        super().__init__(model, loss_fn, data, params=params)

    def _losses(self, outputs: Any, y: Batch) -> Tensor:
        if self._by_token is None:
            return super()._losses(outputs, y)
        return self._by_token.values(outputs, y, self._where).flatten()

    def _size(self, losses: Tensor, y: Batch) -> int:
        ignored = getattr(self.loss_fn, "ignore_index", None)
        if self.per == "sample" or ignored is None or y.is_floating_point():
            return len(losses)
        return int((y != ignored).sum())

    def _first_look(self, watched: dict[str, Tensor]) -> None:
        super()._first_look(watched)
        if self.num_samples == 0:
            raise input_error("Fisher", "positions that count", "all at `ignore_index`", "Check the targets")

    def _read(self, outputs: Any, losses: Tensor, y: Batch, index: int) -> tuple[list[Tensor], Middle]:
        if self.kind == "empirical":
            return [losses], scaled(1 / self.num_samples)
        z = logits_of(outputs)
        if self._family.kind == "classes":
            check_normalised(z, self._where)
        if self.kind == "sampled":
            generator = make_generator(self.seed + index, self.device)
            draws = [sample_targets(self.loss_fn, z.detach(), y, generator) for _ in range(self.num_draws)]
            rows = torch.stack([self._losses(outputs, drawn) for drawn in draws])
            return [rows], scaled(1 / (self.num_draws * self.num_samples))
        fixed = z.detach()
        c = self._family.factors(self.loss_fn, fixed, y, self.per)

        def middle(change: Any, batched: bool) -> list[Tensor | None]:
            return [None if t is None else self._family.expected(fixed, c, t) / self.num_samples for t in change]

        return [z], middle
