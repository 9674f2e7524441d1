"""Rules for a user's own layers, by type; ``user_layers`` puts them to use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from pullback._checks import input_error

UserRule = Callable[[nn.Module, Any, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class RegisteredRule:
    """A rule in force until ``remove()`` is called or, in a ``with`` statement, until the block ends."""

    module_type: type[nn.Module]
    rule: UserRule

    def remove(self) -> None:
        """Take the rule back; an earlier one for the same type is in force again. Removing twice is no error."""
        entries = REGISTERED.get(self.module_type, [])
        if self in entries:
            entries.remove(self)
        if not entries:
            REGISTERED.pop(self.module_type, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


REGISTERED: dict[type[nn.Module], list[RegisteredRule]] = {}  # by exact type; the last one is in force


def register_rule(module_type: type[nn.Module], rule: UserRule) -> RegisteredRule:
    """Teach every kernel the gradient rows of a layer of your own.

    Kernels are exact without this: a layer no rule covers is recorded by the functions it calls, and what those
    leave over goes to a fallback the plan reports. A rule is for layers whose rows are written down faster. A wrong
    one is found: no kernel is returned whose rows contradict autograd. ``check_gradients`` shows by how much.

    Args:
        module_type: the layer's class. Subclasses are not meant: they may compute something else.
        rule: ``rule(module, x, gradient)`` to a dict from each of the module's parameter names (as in its
            ``named_parameters()``) to that parameter's rows (N, C, *shape). N counts samples and C the scalars that
            are differentiated (1 for losses). ``x`` is the argument of ``forward``, a tensor (N, ...); if ``forward``
            takes several, a dict from their names to what was passed, defaults included. ``gradient`` (N, C, ...) is
            the derivative of each scalar in the module's output. A layer that sees T positions merged with the
            samples, (N T, ...), has them split again, (N, T, ...). Half precision is widened to float32, in the
            module's parameters too. Rows of frozen parameters may be left out.

    Returns:
        A handle; its ``remove()`` takes the rule back, and as a context manager it does so by itself. A later rule
        for the same type replaces an earlier one until then.

    Raises:
        InputError: not a class of modules, or a rule that cannot be called. From a kernel call: names or shapes of
            rows that do not fit.
        UnsupportedError: from a kernel call: a layer that returns several differentiable tensors, or does not have
            its samples along the first axis.

    Cost: whatever the rule costs, and its rows: N C numbers for every number of the parameters.

    Example:
        >>> import torch
        >>> import pullback as pb
        >>> class Sine(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
        ...     def forward(self, x):
        ...         return x @ self.weight.sin().T
        >>> def rule(module, x, gradient):
        ...     return {"weight": torch.einsum("ncp,nd->ncpd", gradient, x) * module.weight.cos()}
        >>> model, loss_fn = nn.Sequential(Sine(), nn.Tanh()), nn.CrossEntropyLoss()
        >>> x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
        >>> with pb.register_rule(Sine, rule):
        ...     kernel = pb.backward_kernel(model, loss_fn, x, y)
        >>> kernel.plan.layers[0].rule
        'registered Sine'
        >>> bool(torch.allclose(kernel.total, pb.reference.total_kernel(model, loss_fn, x, y)))
        True
    """
    where = "register_rule"
    given: tuple[object, object] = module_type, rule
    if not (isinstance(given[0], type) and issubclass(given[0], nn.Module)):
        got = f"an instance of {type(given[0]).__name__}" if isinstance(given[0], nn.Module) else repr(given[0])
        raise input_error(where, "a class of modules", got, "Pass the layer's class")
    if not callable(given[1]):
        raise input_error(where, "a function `rule(module, x, gradient)`", repr(rule), "Pass the function itself")
    entry = RegisteredRule(module_type, rule)
    REGISTERED.setdefault(module_type, []).append(entry)
    return entry
