"""What a call hands to a model and to a loss: copies, in the containers they came in. The caller's data stay."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.functional import ModelView, num_samples, take
from pullback.functional.batch import copied, filled, joined, plain, tensors
from tests.entry_points import EVERYWHERE, ON_TENSORS, Entry
from tests.thinned import thinned

CALLS = {**EVERYWHERE, **ON_TENSORS}
UNSEEN = (
    "backward_kernel",
    "kernel_to_store",
    "Hessian",
    "GaussNewton",
    "unit_activity",
    "self_influence",
    "smoothness",
)


class Writes(nn.Module):
    """A first layer that writes to its input."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.1)
        x[:, 0] = 0.0
        return F.leaky_relu(x, 0.1, inplace=True)


class WritesUnseen(Writes):
    """Also in ways that autograd does not notice, so that nothing can be differentiated in its input."""

    def forward(self, x: Tensor) -> Tensor:
        x.detach().numpy().__imul__(2.0)
        x.data.mul_(0.5)
        return super().forward(x)


class Reads(nn.Module):
    """The same without a trace."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=x.dtype)
        return F.leaky_relu((x - 0.1) * kept, 0.1)


def writing_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs.mul_(0.5)
    targets.neg_().add_(1)  # the other class
    return F.cross_entropy(outputs, targets, reduction="none")


def reading_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(0.5 * outputs, 1 - targets, reduction="none")


def net(first: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Sequential(first, nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)).double().eval()


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A tensor the user owns, a part of it that is x, and the same of the targets."""
    torch.manual_seed(2)
    owned, labels = torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 2
    return owned, owned[2:8, 1:5], labels, labels[2:8]


def results(entry: Entry, *given: Any) -> tuple[Tensor, ...]:
    found = entry(*given)
    return found if isinstance(found, tuple) else (found,)


def assert_all_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "first"), [*((name, Writes()) for name in CALLS), *((name, WritesUnseen()) for name in UNSEEN)]
)
def test_what_a_model_and_a_loss_write_to_stays_as_it_was(name: str, first: nn.Module) -> None:
    owned, x, labels, y = data()
    before, versions = (owned.clone(), labels.clone()), (owned._version, labels._version)
    found = results(CALLS[name], net(first), writing_loss, x, y)
    assert torch.equal(owned, before[0])
    assert torch.equal(labels, before[1])
    assert (owned._version, labels._version) == versions
    assert_all_equal(found, results(CALLS[name], net(Reads()), reading_loss, x, y))


def assert_same_within_inference_mode(name: str) -> None:
    _, x, _, y = data()
    model, loss_fn = net(nn.Identity()), nn.CrossEntropyLoss()
    expected = results(CALLS[name], model, loss_fn, x, y)
    with torch.inference_mode():
        found = results(CALLS[name], model, loss_fn, x.clone(), y.clone())
    assert_all_equal(found, expected)
    assert not any(p.is_inference() for p in model.parameters())


@pytest.mark.parametrize("name", thinned(tuple(CALLS)))
def test_calls_within_inference_mode(name: str) -> None:
    """Data made there, as in a framework's validation loop: the numbers that come out elsewhere."""
    assert_same_within_inference_mode(name)


@pytest.mark.parametrize("name", ["kernel_to_store", "backward_kernel"])
def test_threads_compute_in_the_mode_of_their_caller(name: str) -> None:
    """What several threads make side by side is written to tensors that were made in inference mode."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert_same_within_inference_mode(name)
    finally:
        torch.set_num_threads(before)


class Unpacks(nn.Module):
    """Takes one mapping, or a tuple that holds one."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, batch: Any, flag: bool = True) -> Tensor:
        inner = batch["inner"][0] if "inner" in batch else batch
        left = inner.data["a"] if isinstance(inner, UserDict) else inner["a"]
        return self.body(torch.cat([left, inner["b"]], 1))


class ByKeyword(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.body(torch.cat([a, b], 1))


class Kwargs(ByKeyword):
    def forward(self, **inputs: Tensor) -> Tensor:
        return super().forward(inputs["a"], inputs["b"])


class Plain(dict[str, Any]):
    """A dict of a kind torch's tree functions do not know."""


FORMS: dict[str, tuple[type[nn.Module], Any]] = {
    "one dict": (Unpacks, lambda a, b: {"a": a, "b": b}),
    "one dict in a tuple": (Unpacks, lambda a, b: ({"a": a, "b": b},)),
    "a tokenizer's": (Unpacks, lambda a, b: UserDict(a=a, b=b)),
    "a tokenizer's in a tuple": (Unpacks, lambda a, b: (UserDict(a=a, b=b), True)),
    "a tokenizer's inside a dict": (Unpacks, lambda a, b: {"inner": (UserDict(a=a, b=b),)}),
    "another kind of dict": (Unpacks, lambda a, b: [Plain(a=a, b=b)]),
    "by keyword": (ByKeyword, lambda a, b: OrderedDict(b=b, a=a)),
    "by keyword, of a tokenizer's": (ByKeyword, lambda a, b: UserDict(a=a, b=b)),
    "by any keyword": (Kwargs, lambda a, b: {"a": a, "b": b}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_inputs(form: str) -> None:
    kind, make = FORMS[form]
    model, (_, x, _, y) = net(nn.Identity()), data()
    given = make(x[:, :1], x[:, 1:])
    assert num_samples(given) == 6
    view = ModelView.of(kind(model))
    torch.testing.assert_close(view(given), model(x))
    torch.testing.assert_close(view(take(given, [3, 1])), model(x[[3, 1]]))
    kernel = pb.backward_kernel(kind(model), nn.CrossEntropyLoss(), given, y).total
    torch.testing.assert_close(kernel, pb.reference.total_kernel(model, nn.CrossEntropyLoss(), x, y))


@pytest.mark.parametrize("name", thinned(tuple(EVERYWHERE)))
def test_one_dict_and_a_tokenizer_s_batch_in_a_tuple(name: str) -> None:
    _, x, _, y = data()
    model = net(nn.Identity())
    expected = results(
        EVERYWHERE[name], Unpacks(net(nn.Identity())), nn.CrossEntropyLoss(), ({"a": x[:, :1], "b": x[:, 1:]},), y
    )
    for given in ({"a": x[:, :1], "b": x[:, 1:]}, (UserDict(a=x[:, :1], b=x[:, 1:]),)):
        model = Unpacks(net(nn.Identity()))
        assert_all_equal(results(EVERYWHERE[name], model, nn.CrossEntropyLoss(), given, y), expected)


class WritingModule(nn.Module):
    """A loss of a user's own with a reduction, applied sample by sample."""

    reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return writing_loss(outputs, targets).mean()


@pytest.mark.parametrize(
    "name", ["backward_kernel", "Hessian", "GaussNewton", "curvature_spectrum", "self_influence dual"]
)
def test_a_loss_module_that_writes(name: str) -> None:
    _, x, labels, y = data()
    found = results(CALLS[name], net(nn.Identity()), WritingModule(), x, y)
    assert torch.equal(labels, torch.arange(9) % 2)
    assert_all_equal(found, results(CALLS[name], net(nn.Identity()), reading_loss, x, y))


class Centring(nn.Module):
    """A loss that keeps a running mean of outputs, as in self-distillation."""

    reduction = "mean"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(2, dtype=torch.float64))
        self.last: Tensor | None = None

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.centre.mul_(0.9).add_(outputs.detach().mean(0))
        self.last = outputs
        return F.cross_entropy(outputs - self.centre, targets)


@pytest.mark.parametrize("name", ["backward_kernel", "Hessian", "sharpness", "leave_one_out"])
def test_a_loss_with_buffers_of_its_own_keeps_them(name: str) -> None:
    _, x, _, y = data()
    loss_fn = Centring()
    home, version = loss_fn.centre, loss_fn.centre._version
    found = results(CALLS[name], net(nn.Identity()), loss_fn, x, y)
    assert loss_fn.centre is home
    assert (home._version, loss_fn.last) == (version, None)
    reads = lambda z, t: F.cross_entropy(z - z.detach(), t, reduction="none")
    assert_all_equal(found, results(CALLS[name], net(nn.Identity()), reads, x, y))


def test_a_loss_of_tokens_that_writes() -> None:
    model, x, y = nn.Linear(3, 2).double(), torch.randn(4, 2, 3, dtype=torch.float64), torch.rand(4, 2, 2).double()
    before = y.clone()

    def writes(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mul_(0.5).sub_(targets.neg_()).square().sum(2)

    def reads(outputs: Tensor, targets: Tensor) -> Tensor:
        return (0.5 * outputs + targets).square().sum(2)

    found, expected = (pb.backward_kernel(model, loss, x, y, per="token").total for loss in (writes, reads))
    torch.testing.assert_close(found, expected)
    assert torch.equal(y, before)


def test_inputs_with_gradients_keep_none() -> None:
    x, y = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.arange(5) % 2
    model, loss_fn = net(nn.ReLU(inplace=True)), nn.CrossEntropyLoss()
    expected = pb.reference.total_kernel(model, loss_fn, x.detach(), y)
    torch.testing.assert_close(pb.backward_kernel(model, loss_fn, x, y).total, expected)
    pb.Jacobian(model, x, wrt="input").to_dense()
    pb.Hessian(model, loss_fn, (x, y)) @ torch.ones(37, dtype=torch.float64)
    assert x.grad is None


class WritesToBoth(nn.Module):
    """Writes to tensors and to the mapping they come in."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(nn.Identity())

    def forward(self, a: Any, b: Tensor | None = None) -> Tensor:
        if b is None:
            a, b = a.pop("left"), a.pop("more")[0]
        a.add_(b)
        b.zero_()
        return self.body(a)


@pytest.mark.parametrize("form", ["tuple", "dict", "one mapping", "one tensor twice"])
@pytest.mark.parametrize("name", ["backward_kernel", "Hessian", "query_influence", "Jacobian inputs"])
def test_several_inputs_that_are_written_to(name: str, form: str) -> None:
    _, a, _, y = data()
    b = a if form == "one tensor twice" else a.flip(0)
    x: Any = {"tuple": (a, b), "dict": {"a": a, "b": b}, "one mapping": {"left": a, "more": (b,)}}.get(form, (a, a))
    before = a.clone(), b.clone()

    class Reading(WritesToBoth):
        def forward(self, a: Any, b: Tensor | None = None) -> Tensor:
            return self.body(a["left"] + a["more"][0] if b is None else a + b)

    found = results(CALLS[name], WritesToBoth(), nn.CrossEntropyLoss(), x, y)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    assert_all_equal(found, results(CALLS[name], Reading(), nn.CrossEntropyLoss(), x, y))


class Pair(NamedTuple):
    a: Tensor
    b: Any


def test_containers_are_new_and_of_the_kind_they_were() -> None:
    t = torch.arange(3.0)
    batch = (Pair(t, [UserDict(t=t, n=1), Plain(t=t)]), {"t": t, "more": OrderedDict(t=t)}, "text")
    copy = copied(batch)
    assert len(tensors(batch)) == 5
    assert isinstance(copy[0], Pair)
    assert [type(part) for part in copy[0].b] == [UserDict, Plain]
    assert type(copy[1]["more"]) is OrderedDict
    assert len({id(leaf) for leaf in tensors(copy)}) == 5  # as samples alone have no tensor in common either
    assert tensors(copy)[0] is not t
    copy[1]["new"], copy[0].b[0]["t"] = 1, None
    assert "new" not in batch[1]
    assert batch[0].b[0]["t"] is t
    assert type(plain(batch)[0].b[0]) is dict
    assert [float(leaf[0]) for leaf in tensors(filled(batch, [t + i for i in range(5)]))] == [0, 1, 2, 3, 4]
    assert joined([batch, batch])[0].b[0]["t"].tolist() == [0, 1, 2, 0, 1, 2]
    assert joined([batch, batch])[0].b[0]["n"] == 1


def test_layouts_are_kept() -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert copied(x).is_contiguous(memory_format=torch.channels_last)
    leaf = torch.ones(2, requires_grad=True)
    assert copied(leaf).grad_fn is not None  # in the graph, and not a leaf that cannot be written to


def test_rows_are_those_of_the_data_at_the_time() -> None:
    """A loop may fill the same tensor again before a layer's block is asked for."""
    _, x, _, y = data()
    model, loss_fn = net(nn.Identity()), nn.CrossEntropyLoss()
    expected = pb.backward_kernel(model, loss_fn, x, y).parameters["0.1.weight"]
    kernel, rows = pb.backward_kernel(model, loss_fn, x, y), pb.GradientMatrix(model, loss_fn, x, y)
    dense = rows.to_dense()
    x.zero_()
    assert torch.equal(kernel.parameters["0.1.weight"], expected)
    assert torch.equal(rows.to_dense(), dense)


def test_blocks_made_when_asked_for_are_not_those_of_other_weights_or_data() -> None:
    model, loss_fn = nn.Sequential(nn.Embedding(3, 40, max_norm=0.5), nn.Flatten(), nn.Linear(80, 2)), nn.MSELoss()
    tokens, y = torch.randint(3, (60, 2)), torch.randn(60, 2)
    kernel = pb.backward_kernel(model, loss_fn, tokens, y, memory_limit=2**30)
    expected = pb.backward_kernel(model, loss_fn, tokens, y).parameters["2.weight"]
    for _ in range(2):  # nothing has changed, though the table was rescaled and put back
        torch.testing.assert_close(kernel.parameters["2.weight"], expected)
    tokens[0] = (tokens[0] + 1) % 3
    with pytest.raises(pb.InputError, match=r"block of `2\.bias`: expected the model and data .* got other weights"):
        kernel.parameters["2.bias"]


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), WritesUnseen()])
def test_a_watched_training_ends_in_the_same_weights(first: nn.Module, tmp_path: Path) -> None:
    def trained(watch: bool) -> Tensor:
        model, (_, x, _, y) = net(first), data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = pb.Monitor(model, writing_loss, tmp_path, optimizer=optimizer, every=1) if watch else None
        for _ in range(4):
            optimizer.zero_grad()
            loss = writing_loss(model(x.clone()), y.clone()).mean()
            loss.backward()
            optimizer.step()
            if monitor:
                monitor.step(x, y, loss=loss)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(watch=False), trained(watch=True))


def test_parameters_and_buffers_made_within_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 2)
    with pytest.raises(pb.UnsupportedError, match=r"Hessian: expected parameters that a graph can hold, got `weight`"):
        pb.Hessian(model, nn.CrossEntropyLoss(), (torch.randn(3, 4), torch.tensor([0, 1, 0])))
    norm = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    _, x, _, y = data()
    expected = pb.reference.total_kernel(norm, nn.CrossEntropyLoss(), x, y)
    with torch.inference_mode():
        norm[0].running_mean = norm[0].running_mean.clone()
    made = norm[0].running_mean
    for name in ("Hessian", "backward_kernel", "Jacobian inputs"):
        CALLS[name](norm, nn.CrossEntropyLoss(), x, y)
        assert norm[0].running_mean is made
    torch.testing.assert_close(pb.backward_kernel(norm, nn.CrossEntropyLoss(), x, y).total, expected)
