"""Other tensors in place of a module's own: everywhere they are used, and gone afterwards whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import pullback as pb
from pullback.functional import ModelView
from pullback.functional.stand_in import stand_in
from pullback.functional.unwrap import eager
from pullback.runs import load_run
from tests.cases import CASES, build
from tests.entry_points import EVERYWHERE


class Aliased(nn.Module):
    """One layer as an attribute, in a Sequential, a ModuleList, a ModuleDict, and its weight in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Sequential(self.first, nn.Tanh())
        self.several = nn.ModuleList([self.first, nn.LayerNorm(4)])
        self.named = nn.ModuleDict({"body": self.body})
        self.weights = [self.first.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.several[1](self.named["body"](self.several[0](self.first(x)))) @ self.weights[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(4, 4, batch_first=True)
        self.again = self.body

    def forward(self, x: Tensor) -> Tensor:
        return self.again(x[:, None])[0][:, 0]


class FeatureExtractor(nn.Module):
    """A backbone, and its layers once more under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
        self.layer0, self.layer2 = self.backbone[0], self.backbone[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(torch.tanh(self.layer0(x)))


def twice(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), layer)


def normalised() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return nn.Sequential(norm, nn.Linear(4, 4), norm)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def old_weight_norm() -> nn.Module:
    return twice(torch.nn.utils.weight_norm(nn.Linear(4, 4)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "aliased": Aliased,
    "recurrent": Recurrent,
    "extractor": FeatureExtractor,
    "sequential": lambda: twice(nn.Linear(4, 4)),
    "weight norm": lambda: twice(parametrizations.weight_norm(nn.Linear(4, 4))),
    "old weight norm": old_weight_norm,
    "orthogonal": lambda: twice(parametrizations.orthogonal(nn.Linear(4, 4))),
    "spectral norm": lambda: twice(parametrizations.spectral_norm(nn.Linear(4, 4))),
    "batch norm": normalised,
    "data parallel inside": lambda: twice(nn.DataParallel(nn.Linear(4, 4))),
    "wrapped": lambda: nn.DataParallel(Aliased()),
    "compiled inside": lambda: twice(torch.compile(nn.Linear(4, 4), backend="eager")),
}
FORWARD = set(MODELS) - {"recurrent", "weight norm", "old weight norm"}  # torch has their forward derivatives not


@pytest.fixture(name="model")
def _model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    model = MODELS[request.param]().double().eval()
    with eager():  # as within every call of the package
        yield model


def inside(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every tensor of a model under every name: which it is, and its version."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: (id(tensor), tensor._version) for name, tensor in named}


def written(view: ModelView, x: Tensor, values: dict[str, Tensor]) -> Tensor:
    """Outputs with the values written into the parameters, which are then put back: the other way."""
    before = {name: p.detach().clone() for name, p in view.parameters.items()}
    with torch.no_grad():
        for name, p in view.parameters.items():
            p.copy_(values[name])
        outputs = view.model(x)
        for name, p in view.parameters.items():
            p.copy_(before[name])
        view.model(x)  # what is remembered of a forward pass is that of the own weights again
    return outputs


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_values_stand_in_everywhere_and_nothing_stays(model: nn.Module) -> None:
    view, x = ModelView.of(model), torch.randn(3, 4, dtype=torch.float64)
    moved = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in view.parameters.items()}
    expected, own = written(view, x, moved), view.model(x).detach()
    before = inside(model)
    for _ in range(2):
        torch.testing.assert_close(view(x, moved), expected, rtol=0, atol=1e-12)
        assert inside(model) == before
    with pytest.raises(RuntimeError, match="shape|running_mean|input_size"):
        view(x[:, :2], moved)
    assert inside(model) == before
    assert torch.equal(view.model(x), own)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, on first use
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of older torch, whose vmap loops over matrix_exp
@pytest.mark.parametrize("model", sorted(FORWARD), indirect=True)
def test_transformations_pass_through(model: nn.Module) -> None:
    view, x = ModelView.of(model), torch.randn(3, 4, dtype=torch.float64)
    at = {k: p.detach() for k, p in view.parameters.items()}
    along = {k: torch.randn_like(p) for k, p in at.items()}
    h = 1e-6

    def shifted(t: float | Tensor) -> Tensor:
        return view(x, {k: at[k] + t * along[k] for k in at})

    slope = (written(view, x, {k: at[k] + h * along[k] for k in at}) -
             written(view, x, {k: at[k] - h * along[k] for k in at})) / (2 * h)  # fmt: skip
    before = inside(model)
    torch.testing.assert_close(torch.func.jvp(lambda p: view(x, p), (at,), (along,))[1], slope, rtol=1e-6, atol=1e-7)
    both = torch.func.vmap(shifted)(torch.tensor([h, -h], dtype=torch.float64))
    torch.testing.assert_close((both[0] - both[1]) / (2 * h), slope, rtol=1e-6, atol=1e-7)
    gradient: Any = torch.func.grad(lambda p: view(x, p).square().sum())(at)
    parameters = list(view.parameters.values())
    loop = torch.autograd.grad(view.model(x).square().sum(), parameters)
    for found, expected in zip(gradient.values(), loop, strict=True):
        torch.testing.assert_close(found, expected)
    assert inside(model) == before


def test_buffers_and_further_names_of_parameters_stand_in_too() -> None:
    model = nn.Sequential(norm := nn.BatchNorm1d(2), norm).double().eval()
    x, mean = torch.randn(3, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    expected = norm(x)
    with stand_in(model, {"1.running_mean": mean, "1.weight": 2 * norm.weight}):
        assert model[0].running_mean is mean
        torch.testing.assert_close(norm(x), 2 * (expected - 1 / (1 + norm.eps) ** 0.5))
    assert norm.running_mean is not mean


def test_a_weight_that_is_remembered_is_computed_anew() -> None:
    model = parametrizations.weight_norm(nn.Linear(2, 1))
    view, x = ModelView.of(model), torch.randn(3, 2)
    moved = {name: p.detach() + 1 for name, p in view.parameters.items()}
    expected = view(x, moved)
    with parametrize.cached():
        own = model(x)
        assert torch.equal(view(x, moved), expected)
        assert torch.equal(model(x), own)


def test_names_that_do_not_fit_are_refused() -> None:
    model = nn.Sequential(layer := nn.Linear(2, 2), layer)
    view, x, w = ModelView.of(model), torch.randn(3, 2), torch.zeros(2, 2)
    with pytest.raises(pb.InputError, match=r"ModelView: expected parameters or buffers among .*, got '2\.weight'"):
        view(x, {"2.weight": w})
    with pytest.raises(pb.InputError, match=r"one tensor for the shared `1\.weight`, got two"):
        view(x, {"0.weight": w, "1.weight": w + 1})
    assert torch.equal(view(x, {"0.weight": w, "1.weight": w}), view(x, {"0.weight": w}))


class Fallback(nn.Module):
    """A layer under two names, and one that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3)
        self.stack = nn.Sequential(self.encoder, nn.Tanh())
        self.head = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stack(x)
        return self.head(h, h)


class Once(nn.Module):
    """The case "aliased" with every layer under one name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.head = model.body[0], model.body[2], model.head

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.head(torch.tanh(self.second(h)), h)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["plain", "wrapped"])
@pytest.mark.parametrize(
    "name", ["backward_kernel limit", "curvature_spectrum", "sharpness", "smoothness", "internal_covariate_shift"]
)
def test_calls_see_one_layer_and_leave_it(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, loss_fn, x, y = build(next(case for case in CASES if case.name == "aliased"), 6)
    before = inside(model)
    found = EVERYWHERE[name](wrap(model), loss_fn, x, y)
    assert inside(model) == before
    torch.testing.assert_close(found, EVERYWHERE[name](Once(model), loss_fn, x, y), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("asked", ["first", "body.0", "body.0.weight"])
def test_further_names_choose_the_one_layer(asked: str) -> None:
    model, loss_fn, x, y = build(next(case for case in CASES if case.name == "aliased"), 4)
    kernel = pb.backward_kernel(model, loss_fn, x, y, params=[asked])
    rows = pb.reference.per_sample_gradients(model, loss_fn, x, y)
    wanted = ["first.weight"] if asked.endswith("weight") else ["first.weight", "first.bias"]
    expected = sum(rows[name].flatten(1) @ rows[name].flatten(1).T for name in wanted)
    torch.testing.assert_close(kernel.total, expected)


def test_linearize_answers_the_same_every_time() -> None:
    model, x = Fallback().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    f_lin, view = pb.linearize(model), ModelView.of(model)
    with torch.no_grad():
        for p in f_lin.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ids = [id(p) for p in f_lin.parameters()]
    change = torch.cat([(p - q).reshape(-1) for p, q in zip(f_lin.parameters(), view.parameters.values(), strict=True)])
    expected = model(x) + pb.reference.output_gradients(model, x) @ change
    for _ in range(3):
        torch.testing.assert_close(f_lin(x), expected)
        assert [id(p) for p in f_lin.parameters()] == ids


def test_a_watched_layer_with_two_names_goes_on_learning(tmp_path: Any) -> None:
    """Every probe there is, beside the same training unwatched: equal to the bit."""

    def trained(watch: bool) -> Tensor:
        torch.manual_seed(0)
        model = Fallback().double()
        own = model.encoder.weight
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 2
        optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
        monitor = pb.Monitor(
            model, loss_fn, tmp_path / "run", optimizer=optimizer, every=2, probes="full", budget=None
        ) if watch else None  # fmt: skip
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            if monitor:
                monitor.step(x, y, loss=loss)
        assert model.encoder.weight is own
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(watch=False), trained(watch=True))
    assert [r.error for r in load_run(tmp_path / "run").records if r.error] == []
