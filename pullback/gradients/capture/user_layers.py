"""Layers with a rule of the user's: the whole forward method is one recorded call.

While a model is captured, the ``forward`` of every layer of a registered type is wrapped. The layer's parameters are
replaced by aliases for the duration of the call, so that the gradient that arrives at the output belongs to this use,
and nothing inside is recorded. What the rule returns is checked for names and shapes here and, like the rows of any
other rule, for its numbers by the checks every kernel call makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pullback._checks import check_names, input_error, unsupported
from pullback.functional.plain_calls import plain_arguments
from pullback.functional.refused import refuse
from pullback.functional.stand_in import stand_in
from pullback.gradients.capture.recorder import Recorder
from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.factor import DenseFactor
from pullback.gradients.rules.registry import Arguments, Call, Rule
from pullback.gradients.rules.user import REGISTERED, UserRule


@contextmanager
def user_layers(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Run layers of registered types as one recorded call each while the block lasts."""
    inside = _Unrecorded(recorder)
    with ExitStack() as stack:
        for name, module in model.named_modules() if REGISTERED else ():
            if entries := REGISTERED.get(type(module)):  # the last one is in force
                stack.enter_context(_wrapped(_Layer(inside, name, module, entries[-1].rule)))
        yield


class _Unrecorded(TorchFunctionMode):
    """Active inside a registered layer: what is refused still is, and no call is recorded."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.busy = False  # in a layer: registered layers within it are part of it

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        refuse(func, args, kwargs, lambda: self.recorder.layers, self.recorder.where)
        args, kwargs = plain_arguments(func, args, kwargs)
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)


class _Layer:
    """One layer of a registered type during one capture.

    Args:
        inside: the mode that is active in it.
        name: of the layer in the model.
        module: the layer.
        rule: the user's.
    """

    def __init__(self, inside: _Unrecorded, name: str, module: nn.Module, rule: UserRule) -> None:
        self.inside, self.recorder = inside, inside.recorder
        self.name, self.module, self.rule = name, module, rule
        self.original = module.forward
        self.signature = inspect.signature(module.forward)
        self.parameters = dict(module.named_parameters())
        self.trained = {name: p for name, p in self.parameters.items() if id(p) in self.recorder.names}
        self.where = f"{self.recorder.where}, rule of `{type(module).__name__}` for layer `{name}`"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward method as one recorded call."""
        if not self.trained or self.inside.busy or not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        leaves, layout = tree_flatten(dict(bound.arguments))
        inputs = {f"input {k}": leaf for k, leaf in enumerate(leaves)}
        given = {key: leaf for key, leaf in inputs.items() if isinstance(leaf, Tensor)}
        samples = {key for key, leaf in given.items() if self.recorder.holds_samples(leaf)}
        data = next((key for key in inputs if key in samples), None) or next(
            (key for key, leaf in inputs.items() if self.recorder.per_sample(leaf)), None
        )
        if data is None:  # the layer sees parameters only: its output is derived from them
            return self.original(*args, **kwargs)
        shared = {key for key, leaf in inputs.items() if key not in samples | {data} and self._is_shared(leaf)}
        inputs |= {key: self.recorder.copy(inputs[key]) for key in inputs if key in shared}
        returned: list[Any] = []

        def call(**arguments: Any) -> Any:
            given = tree_unflatten([arguments[key] for key in inputs], layout)
            returned.append(self._run(given, {name: arguments[name] for name in self.trained}))
            return self._differentiable(returned[0])

        def build(made: Call) -> DenseFactor:
            self._check_layout(made, made.arguments[data], output.shape)
            x = tree_unflatten([self._samples_first(made, key, data) for key in inputs], layout)
            return self._factor(made, x)

        rule = Rule(f"registered {type(self.module).__name__}", (), tuple(self.trained), data, build)
        output = self.recorder.ruled(rule, call, inputs | self.trained, set(self.trained), data)
        outputs = tree_map(lambda leaf: output if _is_differentiable(leaf) else leaf, returned[0])
        self.recorder.mark(leaf for leaf in tree_flatten(outputs)[0] if isinstance(leaf, Tensor))
        return outputs

    def _is_shared(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.requires_grad and self.recorder.reaches(leaf)

    def _run(self, given: Arguments, aliases: dict[str, Tensor]) -> Any:
        """What the original returns with other tensors in place of the parameters."""
        bound = inspect.BoundArguments(self.signature, given)
        self.inside.busy = True
        try:
            with stand_in(self.module, aliases, self.where), self.inside:
                return self.original(*bound.args, **bound.kwargs)
        finally:
            self.inside.busy = False

    def _differentiable(self, returned: Any) -> Tensor:
        """The one tensor of the output the gradient arrives in."""
        tensors_of = [t for t in tree_flatten(returned)[0] if _is_differentiable(t)]
        if len(tensors_of) != 1:
            raise unsupported(
                self.where,
                "a layer whose output holds one tensor with a gradient",
                f"{len(tensors_of)}",
                "Register a rule for a part of the layer, or none",
            )
        return tensors_of[0]

    def _check_layout(self, made: Call, data: Tensor, output_shape: torch.Size) -> None:
        """Samples along the first axis, of the input that holds them and of the output."""
        N, alone = len(made.gradient), (made.samples(data).shape[1:], made.gradient.shape[2:])
        for what, shape, one in zip(("an input", "an output"), (data.shape, output_shape), alone, strict=True):
            if not one or N * one[0] != shape[0]:
                raise unsupported(
                    self.where,
                    f"{what} with the samples along its first axis",
                    f"shape {tuple(shape)} for {N} samples",
                    "Transpose around the layer, or register no rule for it",
                )

    def _samples_first(self, made: Call, key: str, data: str) -> Any:
        """An input as the rule gets it; where samples and positions share the first axis, as in ``data``, split."""
        leaf, count = made.arguments[key], len(made.gradient)
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.dim() and len(leaf) == len(made.arguments[data]) != count:
            leaf = leaf.unflatten(0, (count, -1))
        return full_precision(leaf)

    def _factor(self, made: Call, x: dict[str, Any]) -> DenseFactor:
        """The rule's rows, named as in the model, after the checks of names and shapes."""
        gradient = full_precision(made.gradient)  # (N, C, *output of a batch of one)
        N, C = gradient.shape[:2]
        gradient = gradient.squeeze(2) if gradient.shape[2] == 1 else gradient
        values = {name: full_precision(made.arguments[name]) for name in self.trained}
        with stand_in(self.module, values, self.where):
            try:
                rows = self.rule(self.module, next(iter(x.values())) if len(x) == 1 else x, gradient)
            except Exception as error:
                error.add_note(f"in {self.where}")
                raise
        if not isinstance(rows, Mapping):
            raise input_error(self.where, "a dict of rows", type(rows).__name__, "Return {parameter name: rows}")
        check_names(self.where, "parameters", rows, list(self.parameters))
        for name, p in self.trained.items():
            row, shape = rows.get(name), (N, C, *p.shape)
            if not isinstance(row, Tensor) or row.shape != shape:
                got = f"shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
                got = "none" if row is None else got
                raise input_error(
                    self.where, f"rows of `{name}` of shape (N, C, *shape) = {shape}", got, "Correct the rule"
                )
        return DenseFactor({made.names[name]: rows[name].detach().to(gradient.dtype) for name in self.trained})


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


@contextmanager
def _wrapped(layer: _Layer) -> Iterator[None]:
    """The layer's forward method replaced while the block lasts."""
    own = vars(layer.module)
    before = own.get("forward")
    layer.module.forward = layer.forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before
