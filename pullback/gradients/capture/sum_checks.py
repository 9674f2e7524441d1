"""The checks every call makes on itself: samples by definition, sums of rows, sums of kernels.

1. No parameter has a gradient outside its recorded uses (``Capture.escaped``); those that do go to the fallback.
2. For the first sample, the last, and the one between them that looks most as if it depended on others (see
   ``sample_axis``), every parameter's rows equal the gradient of that sample alone in a batch of one, taken by plain
   autograd, which is the definition. It fails if samples are coupled, if the model is random, or if a rule is wrong,
   by more than the gradient moves when the parameters are rounded.
3. Per parameter, the rows sum to the ordinary gradient (of a fixed combination of the outputs, if there are several).
   For weights a layer is linear in, one number of that gradient, along a direction of signs, is taken from the
   recorded tensors instead: it finds the same errors and saves the third of a training step the gradient costs.
4. Per layer, ``u^T K u = |sum of u_c g_ic|^2``, which covers the making of the kernel. Contractions over outputs
   compare the entries between the first and the last sample with the inner products of their rows instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pullback._checks import self_check_error, unsupported
from pullback.functional.agreement import first_above, norms, tolerance
from pullback.gradients.capture.captured import Captured, undefined
from pullback.gradients.capture.passes import direction
from pullback.gradients.rows.factor import Factor

SUMS = "summed gradient"  # the kind of check 3


@dataclass
class SumChecks:
    """Checks 3 and 4, gathered over all layers and evaluated in one comparison at the end.

    Errors are relative to a ``bound``, the most a sum of rows can be, sqrt(count sum of |g|^2), because the sum
    itself may cancel to nothing. A hundredth of all bounds of a kind together is allowed everywhere: where a gradient
    is zero but for rounding (a key's bias under softmax), its own bound is no more than rounding either.
    """

    where: str
    dtype: torch.dtype
    names: list[str] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    bounds: list[Tensor] = field(default_factory=list)
    parts: list[tuple[str, Factor]] = field(default_factory=list)  # layers and their rows, to name those at fault
    alone: set[str] = field(default_factory=set)  # of the names: sums of single samples' own gradients
    origins: dict[int, Captured] = field(default_factory=dict)  # place of an error in a sum of rows -> whose rows

    def add_totals(self, factor: Factor, captured: Captured, totals: dict[str, Tensor], bound: Tensor) -> None:
        """Per parameter: summed rows against the ordinary gradient, or one number of it where only that was formed."""
        for name, total in totals.items():
            expected = captured.ordinary.get(name)
            if name in captured.probes:
                u, v = direction(factor.shapes[name], total)
                along = factor.piece_order(name, torch.outer(u, v).view(factor.shapes[name]))
                difference = (total * along).sum(dtype=torch.float64) - captured.probes[name].to(total.device)
                if expected is not None:
                    difference -= (factor.piece_order(name, expected) * along).sum(dtype=torch.float64)
                error = difference.abs()
            else:
                error = norms([total if expected is None else total - factor.piece_order(name, expected)])[0]
            self.origins[len(self.names)] = captured
            self._add(f"{SUMS} of `{name}`", error, bound)
            if factor.forms == ("fallback",):
                self.alone.add(self.names[-1])

    def add_rows(self, factor: Factor, captured: Captured, rows: dict[str, Tensor], bound: Tensor) -> None:
        """The same of sums that are shaped like the parameters."""
        self.add_totals(factor, captured, {n: factor.piece_order(n, row) for n, row in rows.items()}, bound)

    def add_kernel(self, layer: str, found: Tensor, expected: Tensor, bound: Tensor) -> None:
        """Per layer: ``u^T K u`` against the inner product of the two summed gradients (one, if K is symmetric)."""
        self._add(f"summed kernel of `{layer}`", (found - expected).abs(), bound)

    def add_entries(self, layer: str, found: Tensor, expected: Tensor, bound: Tensor, block: Tensor) -> None:
        """Per layer: some entries of the kernel against inner products of rows, and none beyond the dtype's range."""
        error = (found.double() - expected.double()).abs().max()
        self._add(f"kernel entries of `{layer}`", error.where(torch.isfinite(block).all(), torch.inf), bound)

    def _add(self, name: str, error: Tensor, bound: Tensor) -> None:
        self.names.append(name)
        self.errors.append(error.double())
        self.bounds.append(bound.double())

    def evaluate(self) -> None:
        """Raise for the first check that fails."""
        if not self.errors:
            return
        errors, bounds = torch.stack(self.errors), torch.stack(self.bounds)
        kinds = [name.partition(" of ")[0] for name in self.names]
        for kind in set(kinds):
            own = torch.tensor([kind == other for other in kinds], device=bounds.device)
            bounds = torch.where(own, bounds + 0.01 * bounds[own].norm(), bounds)
        products = torch.tensor([kind != SUMS for kind in kinds], device=bounds.device)
        allowed = tolerance(self.dtype) * bounds.where(~products | torch.isfinite(bounds), torch.nan)
        place = first_above(errors, allowed)
        if place is not None and self._out_of_range(_square(errors[place], bounds[place], kinds[place])) is None:
            allowed = self._of_cancelled(errors, allowed)
            place = first_above(errors, allowed)
        if place is not None:
            name, error, kind = self.names[place], float(errors[place]), kinds[place]
            if kind == SUMS and not math.isfinite(error):
                raise self._error(name, error, float(allowed[place]))
            beyond = self._out_of_range(_square(errors[place], bounds[place], kind))
            raise beyond or self._error(name, error, float(allowed[place]))

    def _of_cancelled(self, errors: Tensor, allowed: Tensor) -> Tensor:
        """What is allowed; where sums of rows are beyond that, at least what rounding leaves of sums that are zero."""
        allowed = allowed.clone()
        places = [i for i in (~(errors <= allowed)).nonzero().flatten().tolist() if i in self.origins]
        for captured in {id(self.origins[i]): self.origins[i] for i in places}.values():
            least = math.hypot(*(floor() for floor in captured.floors))
            own = [i for i in places if self.origins[i] is captured]
            allowed[own] = allowed[own].clamp(min=least)
        return allowed

    def _out_of_range(self, square: float) -> Exception | None:
        """The error for inner products beyond the range of the dtype they are summed in, of which ``square`` is one."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        range_ = torch.finfo(dtype)
        if range_.tiny / range_.eps <= square < float("inf"):
            return None
        size = "above" if square > 1 else "below"
        end = range_.max if square > 1 else range_.tiny
        beyond = [] if math.isfinite(square) else [f"`{name}`" for name, factor in self.parts if _overflows(factor)]
        return unsupported(
            self.where,
            f"gradients whose inner products {dtype} can hold",
            f"some {size} {end:.1e}" + (f" in {', '.join(dict.fromkeys(beyond))}" if beyond else ""),
            f"Multiply the loss by a {'smaller' if square > 1 else 'larger'} factor (inner products change by its "
            "square), or convert model and data with .double()",
        )

    def _error(self, name: str, error: float, allowed: float) -> Exception:
        if not error < float("inf"):
            return undefined(f"the {name}", self.dtype, self.where)
        got = f"a difference of {error:.2e} where rounding explains {allowed:.2e}"
        if name in self.alone:
            return unsupported(
                self.where,
                f"the {name} over samples alone to agree with the gradient of their batch",
                got,
                "Call model.eval(), pass batch_first=True to layers that would take (T, N, ...), and remove operations "
                "that mix samples or draw random numbers",
            )
        return self_check_error(
            self.where,
            f"the {name} to agree with the ordinary gradient",
            got,
            "Please report this model; meanwhile leave that part out with `params=`",
        )


def _square(error: Tensor, bound: Tensor, kind: str) -> float:
    """The size of the inner products a check is about; infinite where they overflow, as products of finite rows do."""
    if not (torch.isfinite(bound) and torch.isfinite(error)):
        return math.inf
    return float(torch.maximum(bound, error)) ** (2 if kind == SUMS else 1)


def _overflows(factor: Factor) -> bool:
    return not bool(torch.isfinite(factor.squared_norms()).all())


def squared_size(factors: Iterable[Factor]) -> Tensor:
    """``sum_ic |g_ic|^2`` of all rows, in float64; also where the squares are too small for the rows' own dtype."""
    factors = list(factors)
    like, limit = factors[0].like, torch.finfo(factors[0].like.dtype)
    total = sum(
        (f.squared_norms().sum(dtype=torch.float64) for f in factors), start=like.new_zeros((), dtype=torch.float64)
    )
    if float(total) > limit.tiny / limit.eps:
        return total
    rows = (row for f in factors for i in range(f.num_samples) for row in f.rows(slice(i, i + 1)).values())
    return sum((norms([row])[0].square() for row in rows), start=torch.zeros_like(total))


def checked_sums(captured: Captured, where: str) -> tuple[dict[str, Tensor], float]:
    """The sums of the rows, compared with the ordinary gradient, by parameter; and ``sum_ic |g_ic|^2``."""
    checks = SumChecks(where, captured.dtype)
    sums: dict[str, Tensor] = {}
    squares: list[Tensor] = []
    for factor in captured.factors:
        rows, lengths = factor.total_and_squares(captured.combination)
        squares.append(lengths.sum(dtype=torch.float64))
        bound = (captured.num_samples * captured.num_outputs * squares[-1].clamp(min=0)).sqrt()
        checks.add_rows(factor, captured, rows, bound)
        sums |= rows
    checks.evaluate()
    total, limit = float(torch.stack(squares).sum()), torch.finfo(captured.factors[0].like.dtype)
    return sums, total if total > limit.tiny / limit.eps else float(squared_size(captured.factors))


def summed(captured: Captured, where: str) -> Captured:
    """The capture with the sums of its rows, compared with the ordinary gradient, in place of that gradient."""
    return replace(captured, ordinary=checked_sums(captured, where)[0], probes={})
