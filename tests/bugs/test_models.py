"""Models that crashed, or were refused for a wrong reason: now exact, and a fallback the plan names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from tests.compare import assert_same
from tests.thinned import thinned


class WithWeight(nn.Module):
    """A linear layer and one more parameter, used as a function says."""

    def __init__(self, use: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.use = nn.Linear(4, 3), use
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.use(torch.tanh(self.first(x)), self.weight, self.bias)


USES = {
    "x @ rows": lambda x, w, b: x @ w[1:],
    "x @ rows and x @ w.T": lambda x, w, b: x @ w[1:] + x @ w.T[:, :3] + F.linear(x, w)[:, 1:],
    "first rows": lambda x, w, b: x[:, :2] @ w[:2],
    "rows @ x": lambda x, w, b: (w[1:3] @ x.unsqueeze(2)).squeeze(2),
    "linear with rows": lambda x, w, b: F.linear(x, w[1:], b[1:]),
    "linear with other rows": lambda x, w, b: F.linear(x, w[1:], b[:3]),
    "addmm with rows": lambda x, w, b: torch.addmm(b[1:], x, w[1:]),
    "addmm with other rows": lambda x, w, b: torch.addmm(b[:3], x, w[1:]),
    "a vector as the weight": lambda x, w, b: F.linear(x, w[0]).unsqueeze(1) * x,
    "the vector itself": lambda x, w, b: F.linear(F.pad(x, (0, 1)), b).unsqueeze(1) * x,
    "sample by sample": lambda x, w, b: torch.stack([F.linear(row, w, b) for row in x]),
}


@pytest.mark.parametrize(("use", "form"), thinned(tuple(USES), [None, "ghost", "materialise"]))
def test_parts_of_a_weight(use: str, form: str | None) -> None:
    """Rows of a parameter were taken for outputs where they are inputs; vectors and lone samples failed in a check."""
    model = WithWeight(USES[use]).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    y, loss = torch.randn_like(model(x)).detach(), nn.MSELoss()
    forms = {}
    if form is not None:
        plan = pb.plan_kernel(model, loss, x, y)
        forms = {n: form for a in plan.layers if a.form in ("ghost", "materialise") for n in a.parameters}
    kernel = pb.backward_kernel(model, loss, x, y, forms=forms)
    assert_same(kernel.total, pb.reference.total_kernel(model, loss, x, y))
    assert_same(pb.tangent_kernel(model, x, contract="full").total, pb.reference.tangent_kernel(model, x))
    assert pb.check_gradients(model, loss, x, y).ok


class Physics(nn.Module):
    """A network with its own derivative among its outputs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "vmap":
            return torch.func.vmap(self.body)(x)
        if self.how == "func.grad":
            slope = torch.func.vmap(torch.func.grad(lambda z: self.body(z).sum()))(x)
            return self.body(x) + slope
        x = x.detach().requires_grad_()
        values = self.body(x)
        (slope,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        return values + slope


@pytest.mark.parametrize("how", ["vmap", "func.grad", "autograd.grad"])
def test_models_that_differentiate_themselves(how: str) -> None:
    """Second derivatives went past the recorded calls: the model was said to mix samples."""
    model, x = Physics(how).double(), torch.randn(5, 2, dtype=torch.float64)
    y, loss = torch.randn_like(model(x)).detach(), nn.MSELoss()
    kernel = pb.backward_kernel(model, loss, x, y)
    assert_same(kernel.total, pb.reference.total_kernel(model, loss, x, y))
    assert "fallback" in {layer.form for layer in kernel.plan.layers}
    assert_same(pb.tangent_kernel(model, x, contract="full").total, pb.reference.tangent_kernel(model, x))
    limited = pb.backward_kernel(model, loss, x, y, memory_limit=2 * kernel.plan.peak_bytes + 2**16)
    assert_same(limited.total, kernel.total)


def test_train_mode_is_refused_in_models_that_differentiate_themselves() -> None:
    model = nn.Sequential(Physics("autograd.grad"), nn.Dropout(0.5)).double().train()
    with pytest.raises(pb.UnsupportedError, match="got dropout in train mode. Call model.eval"):
        pb.backward_kernel(model, nn.MSELoss(), torch.randn(3, 2).double(), torch.randn(3, 2).double())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_part_compiled_by_torchscript() -> None:
    """Its outputs were taken for tensors computed from parameters alone."""
    part = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.Tanh()))
    model = nn.Sequential(part, nn.Linear(5, 3)).double()
    x, y, loss = torch.randn(4, 4).double(), torch.arange(4) % 3, nn.CrossEntropyLoss()
    kernel = pb.backward_kernel(model, loss, x, y)
    assert_same(kernel.total, pb.reference.total_kernel(model, loss, x, y))
    forms = {name: layer.form for layer in kernel.plan.layers for name in layer.parameters}
    assert forms["0.0.weight"] == forms["0.0.bias"] == "fallback"
    assert forms["1.weight"] != "fallback"


@pytest.mark.parametrize("kind", ["decay", "second pass"])
def test_a_loss_that_holds_parameters(kind: str) -> None:
    """vmap saw only the model's own use of them."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, y, reduction="none")
        if kind == "decay":
            return each + model[0].weight.square().sum()
        return each + (model(outputs[:, [0, 0, 1, 2]]) - outputs).square().sum(1)

    x, y = torch.randn(5, 4).double(), torch.arange(5) % 3
    kernel = pb.backward_kernel(model, loss, x, y)
    assert_same(kernel.total, pb.reference.total_kernel(model, loss, x, y))
    assert "fallback" in {layer.form for layer in kernel.plan.layers}


def test_tables_with_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3)).double()
    x, y, loss = torch.randint(7, (4, 3)), torch.arange(4) % 3, nn.CrossEntropyLoss()
    assert_same(pb.backward_kernel(model, loss, x, y).total, pb.reference.total_kernel(model, loss, x, y))
    assert_same(pb.tangent_kernel(model, x, contract="full").total, pb.reference.tangent_kernel(model, x))
    assert pb.check_gradients(model, loss, x, y).ok


@pytest.mark.parametrize("kind", ["pruned", "adapter"])
def test_as_many_samples_as_features(kind: str) -> None:
    """A mask or a frozen weight with N rows was taken for data of the samples, its parameters left to the fallback."""

    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Parameter(torch.randn(5, 4), requires_grad=kind == "pruned")
            self.register_buffer("mask", (torch.rand(5, 4) > 0.4).double())
            self.left, self.right = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.frozen * self.mask if kind == "pruned" else self.frozen + self.left @ self.right
            return F.linear(x, weight)

    model, loss = Merged().double(), nn.CrossEntropyLoss()
    for n in (4, 5, 6):
        x, y = torch.randn(n, 4).double(), torch.arange(n) % 5
        kernel = pb.backward_kernel(model, loss, x, y)
        assert_same(kernel.total, pb.reference.total_kernel(model, loss, x, y))
        assert "fallback" not in {layer.form for layer in kernel.plan.layers}


@pytest.mark.parametrize("bag", [False, True])
def test_gradients_divided_by_counts_are_refused(bag: bool) -> None:
    """They were asked to be reported as an error of a rule."""
    table = (nn.EmbeddingBag if bag else nn.Embedding)(7, 4, scale_grad_by_freq=True)
    model = nn.Sequential(table, nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = torch.randint(7, (4, 3)), torch.arange(4) % 3
    model(x)
    text = "counts of tokens in the batch .* in layer `0`. Set scale_grad_by_freq=False on that layer"
    with pytest.raises(pb.UnsupportedError, match=text):
        pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y)
    table.weight.requires_grad_(False)
    assert pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y).shape == (4, 4)


def test_layers_of_different_dtypes() -> None:
    """Products of float32 and float64 rows failed inside torch."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 5), nn.LayerNorm(5).double(), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x.float()).double()))

    model, x, y, loss = Mixed(), torch.randn(6, 4), torch.arange(6) % 3, nn.CrossEntropyLoss()
    expected = pb.reference.total_kernel(model, loss, x, y)
    assert_same(pb.backward_kernel(model, loss, x, y).total, expected, 1e-6)
    assert_same(pb.tangent_kernel(model, x, contract="full").total, pb.reference.tangent_kernel(model, x), 1e-6)
    G = pb.GradientMatrix(model, loss, x, y)
    assert_same(G.to_dense(), pb.reference.gradient_matrix(model, loss, x, y), 1e-6)
    assert_same(G @ (G.T @ torch.ones(6).double()), expected @ torch.ones(6).double(), 1e-6)


class Remembers(nn.Module):
    """Sets a buffer that was empty."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.register_buffer("seen", None)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.mean()
        return self.body(x)


@pytest.mark.parametrize("fails", [False, True])
def test_state_that_a_forward_pass_writes(fails: bool) -> None:
    """Rows of a table with `max_norm` stayed rescaled, an empty buffer stayed filled."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        if fails:
            raise ZeroDivisionError
        return F.cross_entropy(z, y, reduction="none")

    table = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3)).double()
    before, y = table[0].weight.detach().clone(), torch.arange(4) % 3
    for model, x in (
        (table, torch.randint(7, (4, 3))),
        (remembers := Remembers().double(), torch.randn(4, 4).double()),
    ):
        if fails:
            with pytest.raises(ZeroDivisionError):
                pb.backward_kernel(model, loss, x, y)
        else:
            found = pb.backward_kernel(model, loss, x, y).total
            assert torch.equal(table[0].weight, before)
            assert_same(found, pb.reference.total_kernel(model, loss, x, y))
            remembers.seen = None
            with torch.no_grad():
                table[0].weight.copy_(before)
    assert remembers.seen is None
    assert torch.equal(table[0].weight, before)


def test_deberta_to_a_store(tmp_path: object) -> None:
    """Blocks of one sample are written down in another way than the plan, made from two, expects."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 17, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    config = transformers.DebertaV2Config(
        **sizes, num_attention_heads=2, max_position_embeddings=16, relative_attention=True, pos_att_type=["p2c", "c2p"]
    )
    model = transformers.DebertaV2ForSequenceClassification(config).double().eval()
    ids = torch.randint(1, 17, (3, 5))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    x, y, loss = {"input_ids": ids, "attention_mask": mask}, torch.arange(3) % 2, nn.CrossEntropyLoss()
    store = pb.kernel_to_store(model, loss, (x, y), f"{tmp_path}/store", tile=2, progress=False)
    assert_same(store.to_dense(), pb.reference.total_kernel(model, loss, x, y))


class Routed(nn.Module):
    """Samples take one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = x.sum(1) > 0
        h = torch.zeros_like(x)
        if chosen.any():
            h[chosen] = self.left(x[chosen]).tanh()
        if not chosen.all():
            h[~chosen] = self.right(x[~chosen]).sin()
        return self.head(h)


def test_routed_samples(tmp_path: object) -> None:
    """In memory by the fallback; a store says what to leave out, and does without it."""
    model, loss, y = Routed().double(), nn.CrossEntropyLoss(), torch.tensor([0, 1, 2, 0])
    x = torch.randn(4, 4).double().abs() * torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
    kernel = pb.backward_kernel(model, loss, x, y)
    assert_same(kernel.total, pb.reference.total_kernel(model, loss, x, y))
    with pytest.raises(pb.InputError, match="leave out by `params=` the layers that only some samples reach"):
        pb.kernel_to_store(model, loss, (x, y), f"{tmp_path}/all", tile=2, progress=False)
    store = pb.kernel_to_store(model, loss, (x, y), f"{tmp_path}/head", tile=2, params=["head"], progress=False)
    assert_same(store.to_dense(), kernel.layers["head"])


class Kinked(nn.Module):
    """A unit within a batch's rounding of its kink: alone it falls on the other side."""

    def __init__(self, coupling: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.coupling = nn.Linear(2, 2, bias=False), nn.Linear(2, 2), coupling
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        z = z + (3e-8 if len(z) > 1 else -3e-8)  # as sums in another order would
        return self.second(F.relu(z)) * (1 + self.coupling * (len(z) > 1))


def test_a_unit_at_its_kink_is_not_taken_for_coupling() -> None:
    """A jump of the gradient that rounding the parameters brings too; a ResNet-18 in float32 had one on one sample."""
    x, y, loss = torch.tensor([[0.5, 0.5], [1.0, 0.3], [0.2, 0.9]]), torch.arange(3) % 2, nn.CrossEntropyLoss()
    torch.manual_seed(0)
    model = Kinked()
    values = model(x)
    g = torch.autograd.grad(loss(values[:1], y[:1]), model.first.weight)[0]
    alone = torch.autograd.grad(loss(model(x[:1]), y[:1]), model.first.weight)[0]
    assert (g - alone).norm() > 0.1 * g.norm(), "no jump"
    torch.testing.assert_close(
        pb.backward_kernel(model, loss, x, y, params=["first"]).total[0, 0], g.square().sum(), rtol=1e-5, atol=0
    )
    assert pb.check_gradients(model, loss, x, y).ok
    with pytest.raises(pb.UnsupportedError, match="do not depend on the rest of the batch"):
        pb.backward_kernel(Kinked(coupling=0.5), loss, x + 0.1 * torch.eye(3, 2), y)


class WithState(nn.Module):
    """Returns the state of its one recurrent layer too, (1, N, H): of one sample that looks like samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h, (state, _) = self.body(x)
        return self.head(h[:, -1]), state


def test_outputs_without_an_axis_of_samples() -> None:
    torch.manual_seed(0)
    model, x, y = WithState().double(), torch.randn(4, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    loss_fn = lambda z, t: nn.functional.cross_entropy(z[0], t, reduction="none")
    with torch.enable_grad():
        slopes = torch.autograd.grad(loss_fn(model(x), y).mean(), list(model.parameters()), create_graph=True)
        flat = torch.cat([s.flatten() for s in slopes])
        rows = [torch.autograd.grad(each, list(model.parameters()), retain_graph=True) for each in flat]
    expected = torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])
    assert_same(pb.Hessian(model, loss_fn, (x, y)).to_dense(), expected, 1e-9)


def test_layer_jacobians_beside_hooks_on_gradients() -> None:
    """torch.func does not know the hook's function; samples are differentiated one by one."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(5, 4)
    known = pb.layer_jacobians(model, x)
    model[0].register_full_backward_hook(lambda *_: None)
    for found, expected in zip(pb.layer_jacobians(model, x), known, strict=True):
        assert_same(found, expected, 1e-6)
    constant = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    constant[1].forward = lambda h: h.detach().cos()
    constant[1].register_full_backward_hook(lambda *_: None)
    assert not pb.layer_jacobians(constant, x)[1].any()


class Spectral(nn.Module):
    """Frequencies times complex gains, whose two parts are the parameter; or the same in real numbers."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shift, self.gains, self.out = (
            nn.Parameter(torch.randn(3)),
            nn.Parameter(torch.randn(3, 2)),
            nn.Linear(4, 3),
        )
        self.real = real

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(x)
        if self.real:
            (a, b), (c, d) = torch.view_as_real(found).unbind(-1), self.gains.unbind(-1)
            a = a + self.shift
            found = torch.view_as_complex(torch.stack([a * c - b * d, a * d + b * c], -1))
        else:
            found = (found + self.shift) * torch.view_as_complex(self.gains)
        return self.out(torch.fft.irfft(found, n=4).tanh())


SPECTRAL: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "kernel": lambda m, x, y: pb.backward_kernel(m, nn.CrossEntropyLoss(), x, y).total,
    "tangent": lambda m, x, y: pb.tangent_kernel(m, x).total,
    "hessian": lambda m, x, y: pb.Hessian(m, nn.CrossEntropyLoss(), (x, y)).to_dense(),
    "gauss_newton": lambda m, x, y: pb.GaussNewton(m, nn.CrossEntropyLoss(), (x, y)) @ torch.ones(24).double(),
    "jacobian": lambda m, x, y: pb.Jacobian(m, x) @ torch.ones(24).double(),
    "sharpness": lambda m, x, y: pb.sharpness(m, nn.CrossEntropyLoss(), (x, y), tol=1e-9).hessian.values,
}


@pytest.mark.parametrize("name", SPECTRAL)
def test_parameters_that_are_viewed_as_complex_numbers(name: str) -> None:
    """Rules are for real numbers, and torch takes pairs from even places alone."""
    x, y = torch.randn(5, 4).double(), torch.arange(5) % 3
    found, expected = (SPECTRAL[name](Spectral(real).double(), x, y) for real in (False, True))
    assert_same(found, expected, 1e-9)
