"""Rules of a user's own layers: ``register_rule``."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pullback as pb
from pullback import reference
from pullback.gradients.rules.user import REGISTERED
from tests.compare import assert_same
from tests.kernels.test_tangent import contracted

CE = nn.CrossEntropyLoss()


class Sine(nn.Module):
    """y_p = sum_d x_d sin(W_pd), for inputs of any rank."""

    def __init__(self, d: int, p: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(p, d, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...d,pd->...p", x, self.weight.sin())


def sine_rule(module: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    N, C = gradient.shape[:2]
    inputs, back = x.reshape(N, -1, x.shape[-1]), gradient.reshape(N, C, -1, gradient.shape[-1])
    return {"weight": torch.einsum("nctp,ntd->ncpd", back, inputs) * module.weight.cos()}


@pytest.fixture
def _sine() -> Iterator[None]:
    with pb.register_rule(Sine, sine_rule):
        yield


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5).double(), Sine(5, 6), nn.Tanh(), Sine(6, 3))


def data(n: int = 5, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *(shape or (4,)), dtype=torch.float64), torch.arange(n) % 3


def rules(kernel: pb.Kernel) -> dict[str, str]:
    """Parameter -> rule."""
    return {name: layer.rule for layer in kernel.plan.layers for name in layer.parameters}


def assert_exact(model: nn.Module, x: Any, y: Tensor, loss_fn: Any = CE) -> pb.Kernel:
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, reference.total_kernel(model, loss_fn, x, y))
    for name, g in reference.per_sample_gradients(model, loss_fn, x, y).items():
        assert_same(kernel.parameters[name], g.flatten(1) @ g.flatten(1).T, scale=float(kernel.total.abs().max()))
    return kernel


@pytest.mark.usefixtures("_sine")
@pytest.mark.parametrize("n", [1, 2, 5])
def test_lands_on_its_rule(n: int) -> None:
    kernel = assert_exact(mlp(), *data(n))
    assert rules(kernel) == {
        "0.weight": "linear",
        "0.bias": "linear",
        "1.weight": "registered Sine",
        "3.weight": "registered Sine",
    }


def test_without_the_rule_it_is_exact_too() -> None:
    assert "registered Sine" not in rules(assert_exact(mlp(), *data())).values()


@pytest.mark.usefixtures("_sine")
def test_between_two_sets() -> None:
    model, (x, y) = mlp(), data(7)
    kernel = pb.backward_kernel(model, CE, x[:3], y[:3], x2=x[3:], y2=y[3:])
    assert_same(kernel.total, reference.total_kernel(model, CE, x, y)[:3, 3:])


@pytest.mark.usefixtures("_sine")
@pytest.mark.parametrize("contract", ["full", "trace", "diagonal", "sum"])
def test_several_outputs(contract: str) -> None:
    model, (x, _) = mlp(), data(4)
    kernel = pb.tangent_kernel(model, x, contract=contract)
    assert_same(kernel.total, contracted(reference.tangent_kernel(model, x), contract))
    assert rules(kernel)["1.weight"] == "registered Sine"


@pytest.mark.usefixtures("_sine")
def test_other_calls_see_it() -> None:
    model, (x, y) = mlp(), data(6)
    g = reference.gradient_matrix(model, CE, x, y)
    assert_same(pb.GradientMatrix(model, CE, x, y).to_dense(), g)
    assert "registered Sine" in {layer.rule for layer in pb.plan_kernel(model, CE, x, y).layers}
    only = pb.backward_kernel(model, CE, x, y, params=["3"])
    assert rules(only) == {"3.weight": "registered Sine"}
    assert_same(only.total, g[:, -18:] @ g[:, -18:].T)
    model[1].requires_grad_(False)
    assert "1.weight" not in rules(assert_exact(model, x, y))


class Merged(nn.Module):
    """Positions merged with samples on the way in, and still in the layer after."""

    def __init__(self) -> None:
        super().__init__()
        self.sine, self.last = Sine(4, 5), nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.sine(x.reshape(-1, 4)).tanh()).view(len(x), -1, 3).mean(1)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_positions(shape: tuple[int, ...], n: int) -> None:
    """The rule gets all axes; where positions are merged with samples it gets them split."""
    seen: list[tuple[torch.Size, torch.Size]] = []

    def watching(module: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        seen.append((x.shape, gradient.shape))
        return sine_rule(module, x, gradient)

    x, y = data(n, *shape)
    with pb.register_rule(Sine, watching):
        merged = assert_exact(Merged(), x, y)
        apart = assert_exact(nn.Sequential(Sine(4, 3), nn.Tanh(), nn.Flatten()), x, y)
    assert rules(merged) == {"sine.weight": "registered Sine", "last.weight": "linear", "last.bias": "linear"}
    assert rules(apart) == {"0.weight": "registered Sine"}
    positions = x[0, ..., 0].numel()
    assert seen == [((n, positions, 4), (n, 1, positions, 5)), ((n, *shape), (n, 1, *shape[:-1], 3))]


@pytest.mark.usefixtures("_sine")
def test_reused() -> None:
    """Rows of both uses are added, also where one use is no layer of that type."""
    sine = Sine(4, 4)
    twice = nn.Sequential(sine, nn.Tanh(), sine)
    assert rules(assert_exact(twice, *data())) == {"0.weight": "registered Sine"}

    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sine, self.linear = Sine(4, 4), nn.Linear(4, 4, bias=False).double()
            self.linear.weight = self.sine.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.sine(x).tanh())

    assert rules(assert_exact(Elsewhere(), *data())) == {"sine.weight": "registered Sine + linear"}


class Gated(nn.Module):
    """Several inputs, one of them shared by all samples, child layers, a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4).double()
        self.scale = nn.Parameter(torch.randn(4, dtype=torch.float64))

    def forward(
        self, hidden: Tensor, mask: Tensor, *, gate: Tensor | None = None, power: float = 1.0
    ) -> tuple[Tensor, None, Tensor]:
        mixed = torch.einsum("ts,nsd->ntd", mask, self.inner(hidden)) * self.scale
        mixed = mixed if gate is None else mixed * gate
        return mixed * power, None, mixed.detach()


def gated_rule(module: Any, x: dict[str, Any], gradient: Tensor) -> dict[str, Tensor]:
    back = gradient * x["power"]
    back = back if x["gate"] is None else back * x["gate"].unsqueeze(1)
    inner, back_inner = module.inner(x["hidden"]), torch.einsum("ts,nctd->ncsd", x["mask"], back * module.scale)
    return {
        "scale": torch.einsum("nctd,ts,nsd->ncd", back, x["mask"], inner),
        "inner.weight": torch.einsum("ncsp,nsd->ncpd", back_inner, x["hidden"]),
        "inner.bias": back_inner.sum(2),
    }


class Body(nn.Module):
    """As transformer models are built: keyword inputs, blocks of blocks, an output object with logits."""

    def __init__(self, *, gate: bool) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(2, 4).double(), gate
        self.layers = nn.ModuleList([Gated() for _ in range(2)])
        self.queries = nn.Parameter(torch.randn(1, 3, 4, dtype=torch.float64))
        self.head = nn.Linear(4, 3).double()

    def forward(self, input_ids: Tensor, scales: Tensor) -> Any:
        mask = torch.tril(torch.ones(3, 3, dtype=torch.float64))
        hidden = self.embed(input_ids)
        gate = self.queries.expand(len(hidden), 3, 4) if self.gate else scales.unsqueeze(2)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden, mask, gate=gate, power=0.5)[0])
        hidden = hidden + self.layers[0](hidden=gate.expand(-1, 3, 4), mask=mask)[0]
        return SimpleNamespace(logits=self.head(hidden.mean(1)))


def loss_of_logits(outputs: Any, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits, y, reduction="none")


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_several_inputs(n: int, gate: bool) -> None:
    """By name, with defaults; parameters that reach the layer as inputs keep their rows; N = T is no trap."""
    x, y = data(n, 3, 2)
    model = Body(gate=gate)
    batch = {"input_ids": x, "scales": torch.rand(n, 3, dtype=torch.float64)}
    with pb.register_rule(Gated, gated_rule):
        kernel = assert_exact(model, batch, y, loss_of_logits)
    found = rules(kernel)
    assert {found[n] for n in found if n.startswith("layers.")} == {"registered Gated"}
    if gate:
        assert found["queries"] != "vmap fallback"


def test_layers_within_layers() -> None:
    """A registered layer within a registered layer is part of it."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sine = Sine(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.sine(x)

    def outer(module: Any, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        return {"sine.weight": 2 * sine_rule(module.sine, x, gradient)["weight"]}

    with pb.register_rule(Sine, sine_rule), pb.register_rule(Outer, outer):
        assert rules(assert_exact(nn.Sequential(Outer()), *data())) == {"0.sine.weight": "registered Outer"}


def test_a_layer_of_parameters_only() -> None:
    """Its output holds no samples: it is derived from parameters like any other."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, dtype=torch.float64))

        def forward(self) -> Tensor:
            return self.table.sin()

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.head = Positions(), nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.positions())

    with pb.register_rule(Positions, lambda module, x, gradient: {}):
        assert "registered" not in rules(assert_exact(Shifted(), *data()))["positions.table"]


@pytest.mark.usefixtures("_sine")
def test_half_precision_is_widened() -> None:
    seen: list[torch.dtype] = []

    def watching(module: Any, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        seen.extend([x.dtype, gradient.dtype, module.weight.dtype])
        return sine_rule(module, x, gradient)

    model, (x, y) = mlp(), data()
    with pb.register_rule(Sine, watching):
        kernel = pb.backward_kernel(model.to(torch.bfloat16), CE, x.to(torch.bfloat16), y)
    assert set(seen) == {torch.float32}
    exact = reference.total_kernel(model.double(), CE, x.to(torch.bfloat16).double(), y)
    assert_same(kernel.total, exact, 0.1)
    assert model[1].weight.dtype == torch.float64


def test_under_autocast() -> None:
    model, (x, y) = mlp().float(), data()
    with pb.register_rule(Sine, sine_rule), torch.autocast("cpu", dtype=torch.bfloat16):
        kernel = pb.backward_kernel(model, CE, x.float(), y)
    assert_same(kernel.total, reference.total_kernel(model.double(), CE, x, y), 0.1)


def test_within_a_memory_limit() -> None:
    """Several passes and batches, each with the rule."""
    model, (x, y) = mlp(), data(6)
    with pb.register_rule(Sine, sine_rule):
        free = pb.backward_kernel(model, CE, x, y)
        tight = pb.backward_kernel(model, CE, x, y, memory_limit=int(0.85 * free.plan.peak_bytes))
    assert len(tight.plan.passes) > 1 or tight.plan.batch < 6
    assert_same(tight.total, free.total, 1e-12)
    assert "registered Sine" in rules(tight).values()


@pytest.mark.usefixtures("_sine")
def test_in_an_activation_checkpoint() -> None:
    """What the checkpoint computes anew is the layer as it is, without aliases."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Sine(4, 5), nn.Sequential(Sine(5, 5), nn.Tanh(), nn.Linear(5, 3).double())

        def forward(self, x: Tensor) -> Tensor:
            hidden = checkpoint(self.first, x, use_reentrant=False)
            return checkpoint(self.last, hidden, use_reentrant=False)

    found = rules(assert_exact(Checkpointed(), *data()))
    assert (found["first.weight"], found["last.0.weight"]) == ("registered Sine", "registered Sine")


def test_a_wrong_rule_is_found() -> None:
    """Mutations: rows of all samples too large; rows of samples that are not checked one by one."""

    def scaled(module: Any, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        return {"weight": sine_rule(module, x, gradient)["weight"] * 1.001}

    def inner(module: Any, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        rows = sine_rule(module, x, gradient)["weight"]
        rows[1] *= 1.001
        return {"weight": rows}

    with (
        pb.register_rule(Sine, scaled),
        pytest.raises(pb.UnsupportedError, match="for sample 0 and parameter `1.weight`"),
    ):
        pb.backward_kernel(mlp(), CE, *data())
    with pb.register_rule(Sine, inner), pytest.raises(pb.SelfCheckError, match="summed gradient of `1.weight`"):
        pb.backward_kernel(mlp(), CE, *data())


def test_names_and_shapes() -> None:
    model, (x, y) = mlp(), data()
    begin = "backward_kernel, rule of `Sine` for layer `[13]`: expected "
    for returned, message in (
        (None, "a dict of rows, got NoneType. Return {parameter name: rows}"),
        ({"w": x}, "parameters among weight, got 'w'. Use existing parameters"),
        ({}, r"rows of `weight` of shape \(N, C, \*shape\) = \(\d, 1, \d, \d\), got none. Correct the rule"),
        ({"weight": x}, r"rows of `weight` of shape .*, got shape \(5, 4\). Correct the rule"),
        ({"weight": 1.0}, r"rows of `weight` of shape .*, got float. Correct the rule"),
    ):
        with pb.register_rule(Sine, lambda *_: returned), pytest.raises(pb.InputError, match=begin + message):  # noqa: B023
            pb.backward_kernel(model, CE, x, y)


def test_errors_of_the_rule_name_the_layer() -> None:
    def broken(module: Any, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        return {"weight": module.missing}

    with pb.register_rule(Sine, broken), pytest.raises(AttributeError, match="missing") as caught:
        pb.backward_kernel(mlp(), CE, *data())
    assert caught.value.__notes__ == ["in backward_kernel, rule of `Sine` for layer `1`"]


def test_layers_no_rule_can_describe() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * self.gain, x + self.gain

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            return sum(self.two(x[:, :3]), start=torch.zeros(3))

    x, y = data()
    with (
        pb.register_rule(Two, lambda *_: {}),
        pytest.raises(
            pb.UnsupportedError,
            match="layer `two`: expected a layer whose output holds one tensor with a gradient, got 2",
        ),
    ):
        pb.backward_kernel(Pair(), CE, x, y)

    class SequenceFirst(nn.Module):
        def __init__(self, *, after: bool) -> None:
            super().__init__()
            self.sine, self.after = Sine(4, 3) if after else Transposed(4, 3), after

        def forward(self, x: Tensor) -> Tensor:
            return self.sine(x.transpose(0, 1) if self.after else x).mean(0)

    class Transposed(Sine):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).transpose(0, 1)

    with pb.register_rule(Sine, sine_rule), pb.register_rule(Transposed, sine_rule):
        for positions in (2, 5):
            for after, kind in ((True, "an input"), (False, "an output")):
                begin = rf"{kind} with the samples along its first axis, got shape \({positions}, 5, \d\) for 5 samples"
                with pytest.raises(pb.UnsupportedError, match=begin):
                    pb.backward_kernel(SequenceFirst(after=after), CE, *data(5, positions, 4))


def test_batch_norm_and_dropout_inside_are_refused() -> None:
    class Noisy(Sine):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    with pb.register_rule(Noisy, sine_rule):
        with pytest.raises(pb.UnsupportedError, match="dropout in train mode"):
            pb.backward_kernel(Noisy(4, 3), CE, *data())
        assert rules(assert_exact(Noisy(4, 3).eval(), *data())) == {"weight": "registered Noisy"}


def test_nothing_is_disturbed() -> None:
    """Forward methods, parameters and hooks are as before, also after an error inside the layer or the rule."""
    model, (x, y) = mlp(), data()
    model[1].forward = own = model[1].forward  # a forward method set on the layer itself is kept
    calls: list[int] = []
    model[1].register_forward_hook(lambda *_: calls.append(1))

    def state() -> tuple[Any, ...]:
        return (
            vars(model[1]).get("forward"),
            "forward" in vars(model[3]),
            [id(p) for p in model.parameters()],
            len(model[1]._forward_hooks),
            [p.grad for p in model.parameters()],
        )

    before = state()
    assert before[0] is own
    with pb.register_rule(Sine, sine_rule):
        pb.backward_kernel(model, CE, x, y)
        assert calls  # hooks of the layer run as they do without a rule
        assert state() == before
        with pytest.raises(RuntimeError):
            pb.backward_kernel(model, CE, x[:, :3], y)  # fails before the layer
        assert state() == before
        wide = nn.Sequential(Sine(5, 6), nn.Tanh())
        with pytest.raises(RuntimeError):
            pb.backward_kernel(wide, CE, x, y)  # fails inside it
        assert "forward" not in vars(wide[0])
        assert isinstance(wide[0].weight, nn.Parameter)
    with pb.register_rule(Sine, lambda *_: {}), pytest.raises(pb.InputError):
        pb.backward_kernel(model, CE, x, y)
    assert state() == before


def test_registering() -> None:
    """Later rules replace earlier ones, handles take them back in any order, subclasses are not meant."""
    first, second = pb.register_rule(Sine, sine_rule), pb.register_rule(Sine, lambda *_: {})
    model, (x, y) = mlp(), data()
    with pytest.raises(pb.InputError, match="got none"):
        pb.backward_kernel(model, CE, x, y)
    second.remove()
    second.remove()
    assert rules(assert_exact(model, x, y))["1.weight"] == "registered Sine"
    third = pb.register_rule(Sine, lambda *_: {})
    first.remove()
    with pytest.raises(pb.InputError, match="got none"):
        pb.backward_kernel(model, CE, x, y)
    third.remove()
    assert Sine not in REGISTERED

    class Other(Sine):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    with pb.register_rule(Sine, sine_rule):
        assert_exact(Other(4, 3), x, y)
    with pytest.raises(ZeroDivisionError), pb.register_rule(Sine, sine_rule):
        _ = 1 / 0
    assert Sine not in REGISTERED


def test_bad_registrations() -> None:
    for given, got in ((Sine(2, 2), "an instance of Sine"), (dict, "<class 'dict'>"), ("Sine", "'Sine'")):
        with pytest.raises(
            pb.InputError, match=f"register_rule: expected a class of modules, got {got}. Pass the layer"
        ):
            pb.register_rule(given, sine_rule)
    with pytest.raises(pb.InputError, match=r"a function `rule\(module, x, gradient\)`, got {}"):
        pb.register_rule(Sine, {})
