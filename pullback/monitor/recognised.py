"""What a loop hands over, in the form that measurements take: a model's inputs, targets of samples, their losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import PullbackError, input_error
from pullback.functional import LossFunction, check_batch, num_samples, take, undisturbed
from pullback.functional.batch import Batch, copied, mapped, tensors
from pullback.functional.losses import as_module
from pullback.functional.unwrap import unwrap, without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.kernels import KernelSeries
from pullback.monitor.called import Calls, by_rows, folded, is_unfolded, takes_whole
from pullback.monitor.output import Output
from pullback.monitor.own_loss import LABELS, OwnLoss, own_loss, stated_loss
from pullback.monitor.readings import read
from pullback.monitor.recent import FEW
from pullback.monitor.reduction import BroadcastError, Reduction

MOST_SAMPLES, FEW_SAMPLES = 16, 4  # by whose losses the batch's is recognised; of batches of one sample or two
where = "Monitor"


def chosen_loss(loss_fn: Any) -> LossFunction:
    """The loss a monitor is given, as a module where it is one of torch's functions; None for the model's own.

    Raises:
        InputError: what can be seen without data to be no loss of outputs and targets.
    """
    if loss_fn is None:
        return stated_loss
    remedy = "Pass a function of (outputs, targets) that returns one loss per sample, or a module like nn.MSELoss()"
    if isinstance(loss_fn, type) or not callable(loss_fn):
        got = f"the class {loss_fn.__name__}" if isinstance(loss_fn, type) else repr(loss_fn)
        remedy = f"Pass {loss_fn.__name__}()" if isinstance(loss_fn, type) else remedy
        raise input_error(where, "`loss_fn` as a loss that can be called", got, remedy)
    try:
        signature = inspect.signature(loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn)
    except (TypeError, ValueError):  # code without a signature
        return as_module(loss_fn)
    try:
        signature.bind(None, None)
    except TypeError as error:
        name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        raise input_error(where, "a `loss_fn` of (outputs, targets)", f"{name}{signature}", remedy) from error
    return as_module(loss_fn)


def refused(error: PullbackError) -> Callable[..., Any]:
    """In place of a loss that cannot be read: whoever asks for it is told why."""

    def refuse(*_: Any) -> Any:
        raise type(error)(str(error))

    return refuse


@dataclass(frozen=True)
class Recognised:
    """How the loop's batches are read.

    Attributes:
        loss_fn: one loss per sample, of the model's outputs and the targets as they are here.
        reduction: how the loop's loss is made of them.
        captures: gradient rows of that loss; of one object for as long as it is read so.
        whole: whether x as a whole is the model's one argument.
        labels: where the targets are: "" as they were given, else their key or place among the inputs.
        merged: of every tensor of the targets, whether the loop has positions as rows, (N T, ...).
        unfolded: whether the model returns them so.
        certain: whether the batch could tell a mean from a sum.
    """

    loss_fn: LossFunction
    reduction: Reduction
    captures: Callable[[Batch, Batch], Captured]
    whole: bool
    labels: Any
    merged: tuple[bool, ...]
    unfolded: bool
    certain: bool

    def data(self, x: Batch, y: Batch) -> tuple[Batch, Batch]:
        """Inputs as the model takes them, and targets with the samples along their first axis."""
        return (x,) if self.whole else x, _targets(x, y, self.labels, self.merged)

    def scale(self, batch_size: int) -> float:
        """What the loop's optimizer descends, in means over samples."""
        return float(batch_size) if self.reduction == "sum" else 1.0


class Recogniser:
    """Looks at the first batch of a run, and again where batches come in another form or told too little.

    Args:
        model: the model being trained.
        loss_fn: as of ``chosen_loss``.

    Attributes:
        passes: that the last look at a batch took.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        self.model, self.loss_fn = unwrap(model), loss_fn  # a replica's own forward pass talks to the others
        self._said: str | None = None  # the reduction that stands in the record
        self._found: tuple[Any, Recognised] | None = None
        self.passes = 0.0

    def __call__(self, x: Batch, y: Batch, batch_size: int) -> Recognised:
        """How a batch is read, of which the loop has so many samples at a time.

        Raises:
            InputError: it cannot be; the error has the remedy.

        Cost: where it is looked for, one forward pass of at most ``MOST_SAMPLES`` samples.
        """
        self.passes = self.loss_fn.taken() if isinstance(self.loss_fn, OwnLoss) else 0.0
        form = _form(x), _form(y)
        if self._found is not None and self._found[0] == form and self._found[1].certain:
            return self._found[1]
        call = Calls(self.model)
        try:
            read_as = recognised(call, self.loss_fn, x, y, _looked_at(batch_size))
        finally:
            self.passes += call.passes
        if self._found is not None and _alike(read_as, self._found[1]):
            read_as = replace(read_as, captures=self._found[1].captures)  # what they have proved stands
        self._found = form, read_as
        return read_as

    def targets(self, x: Batch, y: Batch) -> Batch:
        """The targets of a batch: as handed over or, once it is known that they are among the inputs, those."""
        if y is not None or self._found is None or self._found[1].labels == "":
            return y
        try:
            return x[self._found[1].labels]
        except (KeyError, IndexError, TypeError):  # a batch of another form
            return None

    def expected(self, samples: int, batch_size: int) -> float:
        """Passes that the next batch is likely to take, of so many samples, where the loop has so many at a time."""
        known = self._found is not None and self._found[1].certain
        return 0.0 if known else Calls.of(min(2, samples), min(_looked_at(batch_size), samples), 1)

    def said(self, output: Output, step: int, x: Batch, y: Batch, batch_size: int) -> Recognised:
        """How a batch is read, recorded where it is new; where it cannot be, every probe that needs a loss says why."""
        try:
            read_as = self(x, y, batch_size)
        except PullbackError as error:
            if isinstance(error, BroadcastError):
                output.values(step, "targets_broadcast", error.shapes)
            return Recognised(refused(error), "mean", refused(error), False, "", (), False, False)
        if read_as.certain and read_as.reduction != (self._said or _said_before(output)):
            output.values(step, "loss_form", {"reduction": read_as.reduction, "batch_size": batch_size})
        self._said = read_as.reduction if read_as.certain else self._said
        return read_as


def _said_before(output: Output) -> str | None:
    """What the record of a training that was resumed says."""
    earlier = output.writer.earlier
    records = [] if earlier is None else [*earlier.of("loss_form")]
    return records[-1].values["reduction"] if records else None


def _form(batch: Batch) -> list[Any]:
    return [(leaf.dim(), leaf.dtype, leaf.device) for leaf in tensors(batch)]


def _alike(a: Recognised, b: Recognised) -> bool:
    same = "whole", "labels", "merged", "unfolded"
    return type(a.loss_fn) is type(b.loss_fn) and all(getattr(a, name) == getattr(b, name) for name in same)


def _looked_at(batch_size: int) -> int:
    return MOST_SAMPLES if batch_size >= FEW else FEW_SAMPLES


def recognised(call: Calls, loss_fn: LossFunction, x: Batch, y: Batch, most: int = MOST_SAMPLES) -> Recognised:
    """How a batch of the loop is read, by at most so many of its samples; see ``Recogniser``."""
    model = call.model
    if not tensors(x):
        num_samples(x)  # says what is wrong with it
    count = num_samples(x)
    with undisturbed(model, training=False):
        whole, labels = takes_whole(call, x), ""
        merged = _merged(y, count)
        few = slice(0, min(count, most))
        inputs = take((x,) if whole else x, few)
        targets = copied(take(_targets(x, y, labels, merged), few))  # those of inference mode enter no graph
        check_batch(where, inputs, targets)
        outputs = call(inputs)
        rows = min(count, most)
        unfolded = is_unfolded(call, inputs, outputs, rows)
        if unfolded:
            outputs = folded(outputs, rows)
        try:
            flags = (*(unfolded and leaf.dim() > 1 for leaf in tensors(outputs)), *merged)
            with without_autocast():
                loss, reduction = read(loss_fn, mapped(_in_full, outputs), targets, flags)
        except BroadcastError:
            raise
        except Exception as error:
            own = own_loss(call, loss_fn, inputs, outputs, _candidates(x, y, few, merged))
            if own is None:
                raise error from None
            loss, reduction, labels = own
            merged = merged if labels == "" else ()
    certain = rows > 1
    return Recognised(loss, reduction, KernelSeries(model, loss).rows, whole, labels, merged, unfolded, certain)


def _in_full(tensor: Tensor) -> Tensor:
    """Half precision would hide whether a loss is a mean."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _merged(y: Batch, count: int) -> tuple[bool, ...]:
    """Which of the targets have k rows a sample, k above one.

    Raises:
        InputError: rows that belong to no sample.
    """
    found = [] if tensors(y) else [False]  # of what stands for them
    for leaf in tensors(y):
        rows = len(leaf) if leaf.dim() else 0
        if not rows or rows % count:
            got = f"{count} and {rows} samples"
            raise input_error(where, "`x` and `y` of the same length", got, "Pass one target per sample")
        found.append(rows > count)
    return tuple(found)


def _targets(x: Batch, y: Batch, labels: Any, merged: tuple[bool, ...]) -> Batch:
    count = num_samples(x)
    y = y if labels == "" else x[labels]
    if not all(leaf.dim() for leaf in tensors(y)) or not tensors(y):  # none: one number a sample, which no loss reads
        return {"none": torch.zeros(count, device=tensors(x)[0].device)}
    flags = iter(merged)
    return mapped(lambda t: by_rows(t, count) if next(flags, False) else t, y)


def _candidates(x: Batch, y: Batch, few: slice, merged: tuple[bool, ...]) -> Iterator[tuple[Any, Tensor]]:
    """Where the labels of the model's own loss may be: handed over as such, or among its inputs."""
    if isinstance(y, Tensor) and not any(merged):
        yield "", copied(y[few])
    keys: list[Any] = [key for key in LABELS if key in x] if isinstance(x, Mapping) else []
    keys = [*range(1, len(x))] if isinstance(x, tuple | list) else keys
    yield from ((key, copied(x[key][few])) for key in keys if isinstance(x[key], Tensor))
