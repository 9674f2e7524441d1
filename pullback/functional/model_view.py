"""A model as a function of its named trainable parameters: tied ones once, frozen ones left out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pullback._checks import PullbackError, check_names, input_error, unsupported
from pullback._results import Shown
from pullback.functional.batch import Batch, copied, tensors
from pullback.functional.stand_in import stand_in
from pullback.functional.unwrap import refuse_sharded, unwrap
from pullback.functional.walk import every_parameter_of

PLAIN = {Tensor, nn.Parameter, type(None)}  # types of tensors that are there
ROOT_LAYER = "(model)"  # the layer name of parameters that belong to the outermost module itself


@dataclass(frozen=True)
class ModelView(Shown):
    """The trainable parameters of a model, by name and in the model's own order.

    Attributes:
        model: the module, without wrappers.
        parameters: those that are trained, each under its first name.
        frozen: names of those that are not.
        tied: further names of shared parameters, and the names they are kept under.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> view = ModelView.of(model)
        >>> view.num_params, view.layers["0"]
        (11, ('0.weight', '0.bias'))
        >>> flat = view.flatten(view.parameters)
        >>> all((view.unflatten(flat)[k] == p).all() for k, p in view.parameters.items())
        True
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    frozen: tuple[str, ...]
    tied: dict[str, str]  # further name of a shared parameter -> the name it is kept under

    @classmethod
    def of(cls, model: nn.Module, params: Iterable[str] | None = None, where: str = "ModelView") -> ModelView:
        """Collect the parameters of ``model``.

        Args:
            model: any ``nn.Module``.
            params: names of parameters, or of modules whose parameters are meant; None takes all trainable ones.
            where: the caller's name, for errors.
        """
        check_module(model, where)
        model = unwrap(model)
        refuse_sharded(model, where)
        every_name = every_parameter_of(model)  # one walk: a monitor makes many views
        first_name: dict[int, str] = {}
        tied = {name: first for name, p in every_name.items() if (first := first_name.setdefault(id(p), name)) != name}
        own = {name: p for name, p in every_name.items() if name not in tied}
        trainable = {name: p for name, p in own.items() if p.requires_grad}
        if params is not None:
            trainable = _select(trainable, every_name, tied, names_in(params, where), where)
        if not trainable:
            raise input_error(where, "a model with trainable parameters", "none", "Set requires_grad on some")
        if (one := next((name for name, p in trainable.items() if p.is_complex()), None)) is not None:
            raise unsupported(
                where,
                "real parameters",
                f"{trainable[one].dtype} in `{one}`",
                "Keep its real and imaginary parts as a parameter and use torch.view_as_complex, or leave it out with "
                "`params=`",
            )
        if (made := next((name for name, p in trainable.items() if p.is_inference()), None)) is not None:
            raise unsupported(
                where,
                "parameters that a graph can hold",
                f"`{made}` made under torch.inference_mode()",
                "Build or load the model outside of it; torch.no_grad() does no harm",
            )
        frozen = tuple(name for name, p in own.items() if not p.requires_grad)
        return cls(model, trainable, frozen, tied)

    @cached_property
    def num_params(self) -> int:
        """P, the number of trainable numbers covered; shared ones count once."""
        return sum(p.numel() for p in self.parameters.values())

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Module name -> the names of the parameters that module owns."""
        layers: dict[str, list[str]] = {}
        for name in self.parameters:
            layers.setdefault(layer_of(name), []).append(name)
        return {layer: tuple(names) for layer, names in layers.items()}

    def restricted(self, names: Iterable[str]) -> ModelView:
        """The same model with only some of the parameters."""
        wanted = set(names)
        return replace(self, parameters={n: p for n, p in self.parameters.items() if n in wanted})

    def __call__(self, x: Batch, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """Outputs of the model, which sees copies of ``x``; with ``parameters`` those stand in for the model's own.

        ``x``: a tensor, handed over alone; a tuple or list, in order; a mapping, by keyword, or whole if the forward
        method knows none of its keys and takes one argument.
        """
        if parameters is None:
            return evaluate(self.model, x)
        with stand_in(self.model, parameters, "ModelView"):
            return evaluate(self.model, x)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Dict of tensors shaped like the parameters -> one vector (P,)."""
        return torch.cat([tensors[name].reshape(-1) for name in self.parameters])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Vector (P,) -> dict of tensors shaped like the parameters."""
        pieces = vector.split([p.numel() for p in self.parameters.values()])
        return {n: even(v, p.shape).view(p.shape) for (n, p), v in zip(self.parameters.items(), pieces, strict=True)}


def even(piece: Tensor, shape: torch.Size) -> Tensor:
    """A part of a vector for a tensor of this shape; copied where that may stand for real and imaginary parts.

    ``torch.view_as_complex`` does not take what begins at an odd place.
    """
    return piece.clone() if shape[-1:] == (2,) else piece


def check_is_module(model: Any, where: str) -> None:
    """Refuse what is no module."""
    if not isinstance(model, nn.Module):
        raise input_error(where, "`model` to be an nn.Module", type(model).__name__, "Pass the model itself")


def check_module(model: Any, where: str) -> None:
    """Refuse what is no module, and one whose lazy layers have no parameters yet."""
    check_is_module(model, where)
    held = [own for part in model.modules() for own in (part._parameters, part._buffers)]
    if {type(tensor) for own in held for tensor in own.values()} <= PLAIN:  # a fifth of what a walk by names takes
        return
    tensors = chain(model.named_parameters(), model.named_buffers())
    if (unmade := next((name for name, tensor in tensors if is_lazy(tensor)), None)) is not None:
        got = f"`{unmade}` without a shape, of a lazy layer"
        raise input_error(where, "a model whose parameters are there", got, "Call the model on one batch first")


def evaluate(model: nn.Module, x: Batch) -> Any:
    """What a model returns for a batch. It is handed copies, since its first layer may write to what it is given."""
    return called(model, copied(x))


def called(model: nn.Module, x: Batch) -> Any:
    """What a model returns for a batch that may be written to.

    A tensor is handed over alone, a tuple or list in order, a mapping by keyword: or as it is, if the forward method
    does not take its keys but takes one argument. ``(x,)`` says that a mapping, or a list, is that one argument.
    What the model itself raises passes through, with a note that says so.
    """
    try:
        if isinstance(x, Mapping):
            return model(**x) if _by_keyword(model, x) else model(x)
        return model(*x) if isinstance(x, tuple | list) else model(x)
    except Exception as error:
        if not isinstance(error, PullbackError):
            given = ", ".join(f"{tuple(t.shape)} {str(t.dtype)[6:]}" for t in tensors(x))
            note = (
                f"Raised by the model in its forward pass, called with {given or type(x).__name__}: try model(x) alone."
            )
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
        raise


def _by_keyword(model: nn.Module, x: Mapping[Any, Any]) -> bool:
    """Whether the keys of a mapping are names of the model's inputs, as far as it tells."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code has none
        return True
    known = any(key in signature.parameters for key in x)
    return known or _binds(signature, (), x) or not _binds(signature, (x,), {})


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[Any, Any]) -> bool:
    """Whether arguments fit a signature."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def layer_of(parameter: str) -> str:
    """Name of the module that owns a parameter: ``'blocks.0.fc.weight' -> 'blocks.0.fc'``."""
    return parameter.rpartition(".")[0] or ROOT_LAYER


def names_in(params: Iterable[str], where: str) -> list[str]:
    """The names in ``params``; a lone text would be read letter by letter."""
    names = [] if isinstance(params, str) else list(params)
    if not names:
        got = repr(params) if isinstance(params, str) else "none"
        raise input_error(where, "`params` to be a list of names", got, "Pass a list with at least one name, or None")
    return names


def _select(
    trainable: dict[str, nn.Parameter],
    every: dict[str, nn.Parameter],
    tied: dict[str, str],
    asked: list[str],
    where: str,
) -> dict[str, nn.Parameter]:
    """Keep the asked parameters; a module's name stands for all parameters below it."""
    modules = (n.rsplit(".", depth)[0] for n in every for depth in range(1, n.count(".") + 1))
    known = dict.fromkeys([*every, *(layer_of(n) for n in every), *modules])
    check_names(where, "parameters or modules", asked, known)
    names = {name for name in every for a in asked if name == a or name.startswith(a + ".") or layer_of(name) == a}
    kept = {tied.get(name, name) for name in names}
    if still := sorted(kept - set(trainable)):
        raise input_error(where, "trainable parameters", f"frozen {', '.join(still)}", "Set requires_grad on them")
    return {name: p for name, p in trainable.items() if name in kept}
