"""Probes in real loops: what they say of cases whose answer is known."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.kernels import KernelSeries
from pullback.measure import internal_covariate_shift, rank_collapse
from pullback.measure.rank_collapse import may_attend
from pullback.monitor import PROBES, snapshot
from pullback.monitor.probes import Observation, chosen_probes, effective_lr
from pullback.monitor.snapshot import Snapshot
from pullback.operators.curvature import base

CE = nn.CrossEntropyLoss()


def observe(model: nn.Module, x: Any, y: Tensor, probe: str, **known: Any) -> dict[str, Any]:
    """What a probe says of a model in eval mode."""
    loss_fn = known.pop("loss_fn", CE)
    optimizer = known.pop("optimizer", None)
    model.eval()
    seen = Observation(model, loss_fn, x, y, optimizer, None, KernelSeries(model, loss_fn).rows, **known)
    return PROBES[probe](seen, dear=True).values


def separable(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes, each around a point of its own."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return 3 * torch.eye(3, 6)[y] + 0.3 * torch.randn(n, 6, generator=generator), y


def network(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(sizes[:-1])]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def test_noise_scale_where_there_is_signal() -> None:
    """All of one class: the mean gradient stands far above the noise."""
    x, _ = separable()
    y = torch.zeros(60, dtype=torch.long)
    found = observe(network(6, 12, 3), x, y, "noise", batch_size=512)
    G = pb.reference.gradient_matrix(network(6, 12, 3).double(), CE, x.double(), y)
    variance = float(G.var(0).sum())
    expected = variance / (float(G.mean(0).square().sum()) - variance / 60)
    assert found["noise_scale"] == pytest.approx(expected, rel=1e-4)
    assert 0 < found["noise_scale_stderr"] < found["noise_scale"]
    assert (found["batch_size"], found["num_samples"]) == (512, 60)


def test_the_checks_of_a_curvature_are_made_once_and_again_where_the_model_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer that takes another's place, and a hook, may mix samples, which the checks made before have not seen."""
    checked: list[int] = []
    real = base.check_own_samples
    monkeypatch.setattr(base, "check_own_samples", lambda *given: (checked.append(1), real(*given)))
    x, y = separable(40)
    model, memory = network(6, 5, 3), {}
    first = observe(model, x, y, "sharpness", memory=memory)
    assert observe(model, x, y, "sharpness", memory=memory) == first
    assert len(checked) == 1
    model[0] = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    observe(model, x, y, "sharpness", memory=memory)
    assert len(checked) == 2
    model[0].register_forward_hook(lambda module, given, out: out - out.mean(0))
    with pytest.raises(pb.UnsupportedError, match="treat every sample on its own"):
        observe(model, x, y, "sharpness", memory=memory)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_updates_are_those_of_the_last_step(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    """Whatever optimiser, with a schedule that changes the rate between its step and the measurement."""
    x, y = separable()
    model = network(6, 12, 3)
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1)  # type: ignore[call-arg]
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    expected = []
    with pb.Monitor(model, CE, tmp_path / "run", optimizer=optimizer, every=3, budget=None, probes="light") as monitor:
        for step in range(1, 7):
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            optimizer.zero_grad()
            CE(model(x), y).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 3 == 0:
                now = dict(model.named_parameters())
                layers = {n.rpartition(".")[0] for n in now}
                join = {
                    layer: [
                        torch.cat([t[n].detach().flatten() for n in t if n.startswith(layer + ".")])
                        for t in (before, now)
                    ]
                    for layer in layers
                }
                expected.append({layer: float((b - a).norm() / a.norm()) for layer, (a, b) in join.items()})
            monitor.step(x, y)
        monitor.measure(x, y)  # no step was made since
    steps, ratios = pb.load_run(tmp_path / "run").series("updates", "ratio")
    assert steps == [3, 6]
    for found, wanted in zip(ratios, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)


def test_no_update_where_the_weights_before_are_not_known(tmp_path: Path) -> None:
    x, y = separable()
    model = network(6, 12, 3)
    with pb.Monitor(model, CE, tmp_path / "run", every=1, probes="light") as monitor:
        for step in (1, 2, 5, 6):
            with torch.no_grad():
                model[1].weight.mul_(1.5)
            monitor.step(x, y, step=step)
    found = pb.load_run(tmp_path / "run").series("updates", "ratio")
    assert found[0] == [2, 6]  # step 1 has none before it, and before step 5 the weights of step 4 were not seen
    assert found[1][0]["0.0"] == 0
    assert not [r for r in pb.load_run(tmp_path / "run").records if r.error]


def test_updates_of_large_layers_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within four standard errors of the whole, in a sixteenth of the memory."""
    model = nn.Linear(200, 100)
    then = model.weight.detach().clone()
    monkeypatch.setattr(snapshot, "MOST_ENTRIES", 1250)
    before = Snapshot.of(model)
    with torch.no_grad():
        model.weight += 0.01 * torch.randn(100, 200, generator=torch.Generator().manual_seed(0))
    ratio, stderr = before.ratios(model)["(model)"]
    weights = [torch.cat([w.flatten(), model.bias.detach()]) for w in (then, model.weight.detach())]
    exact = float((weights[1] - weights[0]).norm() / weights[0].norm())
    assert 0 < stderr < 0.05 * exact
    assert abs(ratio - exact) < 4 * stderr
    assert sum(len(v) for v in before.values.values()) == 1250 + 100


def test_a_sampled_parameter_counts_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of equal size, so that a sample knows them: 20,000 that move by a hundredth, 100 by a half."""
    model = nn.Linear(200, 100)
    with torch.no_grad():
        model.weight.fill_(-2.0)
        model.bias.fill_(2.0)
    monkeypatch.setattr(snapshot, "MOST_ENTRIES", 1250)
    before = Snapshot.of(model)
    with torch.no_grad():
        model.weight.mul_(1.01)
        model.bias.mul_(0.5)
    exact = ((20_000 * 0.01**2 + 100 * 0.5**2) / 20_100) ** 0.5
    assert before.ratios(model)["(model)"][0] == pytest.approx(exact, rel=1e-4)


def test_the_standard_error_of_a_sampled_update_is_that_of_other_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half nor double: the spread over 300 draws is known to 4 percent."""
    generator = torch.Generator().manual_seed(0)
    then = nn.Parameter(torch.randn(60, 50, generator=generator))
    step = 0.01 * torch.randn(60, 50, generator=generator)
    monkeypatch.setattr(snapshot, "MOST_ENTRIES", 300)
    ratios, errors = [], []
    for seed in range(300):
        model = nn.Linear(50, 60, bias=False)
        model.weight = nn.Parameter(then.detach().clone())
        monkeypatch.setattr(snapshot, "make_generator", lambda _, seed=seed: torch.Generator().manual_seed(seed))
        before = Snapshot.of(model)
        with torch.no_grad():
            model.weight.add_(step)
        ratio, stderr = before.ratios(model)["(model)"]
        ratios.append(ratio)
        errors.append(stderr)
    spread = float(torch.tensor(ratios).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.2)


def test_equal_gradients_alone_are_no_copies() -> None:
    """Units that are dead on all samples: gradients of one class are then equal, whatever the inputs."""
    x, y = separable(12)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    x[9], y[9] = x[3], y[3]
    suspects = observe(model, x, y, "samples")["suspects"]
    assert [index for index, _, reason in suspects if reason == "duplicate"] == [9]


def test_a_snapshot_that_fails_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Snapshot, "of", full)
    x, y = separable()
    with pb.Monitor(network(6, 12, 3), CE, tmp_path / "run", every=1, probes="light") as monitor:
        monitor.step(x, y)
        monitor.step(x, y)
    run = pb.load_run(tmp_path / "run")
    assert {r.error for r in run.records if r.error} == {"MemoryError: no room"}
    assert len(list(run.of("loss"))) == 2


def test_suspects_are_found() -> None:
    """A wrong label, a copy and a sample far out, in a network that has learnt the rest."""
    x, y = separable()
    model = network(6, 12, 3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    y = y.clone()
    y[7] = (y[7] + 1) % 3
    x[20], y[20] = x[5], y[5]
    x[30:33], y[30:33] = x[40], y[40]
    found = observe(model, x, y, "samples")
    assert found["copies"] == [4, 2]
    suspects = found["suspects"]
    assert suspects[0][::2] == [7, "label"]
    assert [index for index, _, reason in suspects if reason == "label"] == [7]
    assert [index for index, _, reason in suspects if reason == "duplicate"] == [20, 31, 32, 40]
    assert next(index for index, _, reason in suspects if reason == "outlier") == 7


def test_samples_of_a_regression_have_no_class() -> None:
    x, _ = separable()
    found = observe(network(6, 4, 1), x, torch.randn(60, 1), "samples", loss_fn=nn.MSELoss())
    assert set(found) == {"kernel_norm", "losses", "num_samples", "suspects", "num_suspects"}
    assert set(observe(network(6, 4, 1), x, torch.randn(60, 1), "classes", loss_fn=nn.MSELoss())) == {"layer_cosine"}


def test_a_class_of_one_sample_is_left_out() -> None:
    x, y = separable(8)
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    found = observe(network(6, 4, 3), x, y, "classes")
    assert found["labels"] == [0, 1]
    assert [len(row) for row in found["cosine"]] == [2, 2]
    assert observe(network(6, 4, 3), x, y, "samples")["mean_cosine_to_own_class"][7] is None


def test_inputs_of_unequal_scale() -> None:
    x = torch.tensor([[100.0, 0.0, 5.0], [102.0, 2.0, 5.0], [100.0, 0.0, 5.0], [102.0, 20.0, 5.0]])
    found = observe(nn.Linear(3, 2), x, torch.tensor([0, 1, 0, 1]), "inputs")
    assert found["constant_features"] == 1
    assert found["num_features"] == 3
    assert found["largest_abs"] == 102
    assert found["largest_mean_over_std"] == pytest.approx(101)
    assert found["std_ratio"] == pytest.approx(float(x[:, 1].std(correction=0)))
    tokens = torch.tensor([[1, 2], [3, 0]])
    model = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 2))
    assert observe(model, tokens, torch.tensor([0, 1]), "inputs") == {}


def test_samples_of_the_batch_that_are_there_several_times() -> None:
    """Equal inputs with equal targets, wherever they stand; of the loop's whole batch."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    for copy, of in ((4, 1), (7, 1), (9, 2), (11, 0)):
        x[copy], y[copy] = x[of], y[of]
    y[11] = (y[0] + 1) % 3  # the same inputs, another target
    found = observe(nn.Linear(5, 3), x[:3], y[:3], "inputs", whole=(x, y))
    assert (found["copies"], found["copied"], found["num_samples"]) == ([3, 2], [4, 7, 9], 12)
    numbers = observe(nn.Linear(5, 2), x, torch.stack([y, -y], 1).double(), "inputs")
    assert numbers["copies"] == [3, 2]
    assert "copies" not in observe(nn.Linear(5, 3), torch.randn(12, 5), y, "inputs")


def test_values_of_a_statistic() -> None:
    """A convolution's channel has one a position, a linear layer's one a sample."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4), nn.BatchNorm1d(4)
    )
    found = observe(model, torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0]), "batch_norm", batch_size=16)
    assert found == {"batch_size": 16, "smallest_count": {"1": 16 * 36, "5": 16}}
    assert observe(network(6, 4, 3), *separable(), "batch_norm") == {}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_tangent_drift_is_of_fixed_samples(tmp_path: Path) -> None:
    """Other batches come by; the samples stay those of the first, also where the loop writes over them."""
    x, y = separable()
    model = network(6, 12, 3)
    first = x[:32].clone()
    before = pb.tangent_kernel(model, first).total
    with pb.Monitor(model, CE, tmp_path / "run", every=1, budget=None, probes=["tangent"]) as monitor:
        monitor.step(x, y)
        x += 1
        with torch.no_grad():
            model[1].weight *= 1.3
        monitor.step(x, y)
    after = pb.tangent_kernel(model, first).total
    drift = pb.load_run(tmp_path / "run").series("tangent", "drift")[1]
    assert drift == [0.0, pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)]


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop"])
def test_both_ends_of_the_curvature_and_the_optimiser_s_limit(kind: str) -> None:
    """Each end within its residual of the dense Hessian's; what belongs to other optimisers is absent."""
    x, y = separable(40)
    model = network(6, 5, 3).double()
    x = x.double()
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)
    for _ in range(2):
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    found = observe(model, x, y, "sharpness", optimizer=optimizer)
    exact = torch.linalg.eigvalsh(pb.reference.dense_hessian(model, CE, x, y))
    for name, value in (("hessian", exact[-1]), ("smallest", exact[0])):
        assert abs(found[name] - float(value)) <= found[f"{name}_residual"] + 1e-9
    assert float(exact[0]) < -1e-3
    adam = {"preconditioned", "preconditioned_residual", "preconditioned_limit"}
    assert set(found) & (adam | {"momentum"}) == {"SGD": {"momentum"}, "Adam": adam, "RMSprop": set()}[kind]
    assert found["limit"] == pytest.approx({"SGD": 38.0}.get(kind, 20.0))
    if kind == "Adam":
        assert found["preconditioned_limit"] == pytest.approx(380.0)


def test_tangent_kernel_of_many_outputs_is_that_of_their_sum() -> None:
    """A backward pass for every output of a language model would never end."""
    x, y = separable()
    model = network(6, 4, 200)
    memory: dict[str, Any] = {}
    observe(model, x, y, "tangent", memory=memory)
    before = pb.tangent_kernel(model, x[:32], contract="sum").total
    with torch.no_grad():
        model[1].weight *= 1.5
    found = observe(model, x, y, "tangent", memory=memory)
    after = pb.tangent_kernel(model, x[:32], contract="sum").total
    assert found["contract"] == "sum"
    assert found["drift"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)


def test_tangent_remembers_its_largest_drift_and_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-26: the weights go away and come back; entries of large parameters are sampled, within their errors."""
    x, y = separable()
    model = network(6, 30, 3)
    start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    for most in (2**16, 50):
        monkeypatch.setattr(snapshot, "MOST_ENTRIES", most)
        memory: dict[str, Any] = {}
        assert observe(model, x, y, "tangent", memory=memory)["delta_k"] == 0
        torch.manual_seed(1)
        change = [0.1 * torch.randn_like(p) for p in model.parameters()]
        with torch.no_grad():
            for p, d in zip(model.parameters(), change, strict=True):
                p += d
        there = observe(model, x, y, "tangent", memory=memory)
        moved = float((torch.cat([p.detach().flatten() for p in model.parameters()]) - start).norm())
        assert ("distance_error" in there) == (most == 50)
        assert abs(there["distance"] - moved) <= 4 * there.get("distance_error", 0.0) + 1e-6
        with torch.no_grad():
            for p, d in zip(model.parameters(), change, strict=True):
                p -= d
        back = observe(model, x, y, "tangent", memory=memory)
        assert there["drift"] == there["delta_k"] == back["delta_k"] > 0.01
        assert back["drift"] < 1e-5


@pytest.mark.parametrize("scale", [1.0, 32.0])
def test_tangent_s_pl_ratio_is_of_the_kept_samples(scale: float) -> None:
    """S4-10: |dL/dw|^2 / (2 L) of the loss the optimiser descends, and no gradients are left."""
    x, y = separable()
    model = network(6, 4, 3)
    memory: dict[str, Any] = {}
    observe(model, x, y, "tangent", memory=memory, scale=scale)
    found = observe(model, x + 1, y, "tangent", memory=memory, scale=scale)
    loss = scale * CE(model(x[:32]), y[:32])
    square = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters())))
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found["pl"] == pytest.approx(square / (2 * float(loss.detach())), rel=1e-4)
    assert all(p.grad is None for p in model.parameters())
    assert "pl" not in observe(
        nn.Linear(6, 1), x, torch.zeros(60, 1), "tangent", loss_fn=lambda z, t: -z.square().sum(1)
    )


def test_tangent_has_no_condition_that_is_rounding() -> None:
    """Two equal samples: the smallest eigenvalue is 0 up to rounding."""
    x, y = torch.ones(2, 6), torch.tensor([0, 1])
    found = observe(network(6, 4, 3), x, y, "tangent")
    assert "condition" not in found
    assert found["smallest"] < 1e-5


def test_effective_rates_before_a_normalisation() -> None:
    """lr / |w|^2 for SGD, lr / |w| for Adam; the equilibrium from the gradient in train mode, where w . grad = 0."""
    x, y = separable()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.2, weight_decay=0.01)
    found = observe(model, x, y, "effective_lr", optimizer=optimizer)
    assert found["invariant"] == {"0": True, "3": False}
    w = model[0].weight
    norm = float(w.detach().norm())
    assert found["norm"]["0"] == pytest.approx(norm, rel=1e-6)
    assert found["effective"] == {"0": pytest.approx(0.2 / norm**2, rel=1e-5)}
    slope = torch.autograd.grad(CE(model.train()(x), y), w)[0]
    assert abs(float((slope * w).sum().detach())) < 1e-3 * float(slope.norm()) * norm
    fourth = (0.2 * norm * float(slope.norm())) ** 2 / (1 - (1 - 0.002) ** 2)
    assert found["equilibrium"] == {"0": pytest.approx(fourth**0.25, rel=1e-4)}
    adam = observe(model, x, y, "effective_lr", optimizer=torch.optim.Adam(model.parameters(), 0.2))
    assert adam["effective"] == {"0": pytest.approx(0.2 / norm, rel=1e-5)}
    assert "equilibrium" not in adam
    wild = torch.optim.SGD(model.parameters(), 200.0, weight_decay=0.01)  # decay alone turns the weights round
    assert "equilibrium" not in observe(model, x, y, "effective_lr", optimizer=wild)

    def flat(scores: Tensor, labels: Tensor) -> Tensor:
        return 0 * scores.sum(1)

    assert observe(model, x, y, "effective_lr", optimizer=optimizer, loss_fn=flat)["equilibrium"] == {}
    assert set(observe(model, x, y, "effective_lr")) == {"norm", "invariant"}


@pytest.mark.parametrize(
    ("y", "counts"),
    [
        (torch.tensor([0, 2, 2, 5]), {"0": 1, "2": 2, "5": 1}),
        (torch.tensor([[0], [2], [2], [5]]), {"0": 1, "2": 2, "5": 1}),
        (torch.tensor([1.0, 0.0, 1.0, 1.0]), {"0": 1, "1": 3}),
        (torch.tensor([True, False, True, True]), {"0": 1, "1": 3}),
        (torch.tensor([[1.0], [0.0], [1.0], [1.0]]), {"0": 1, "1": 3}),
        (torch.tensor([1.0, 0.5, 1.0, 1.0]), None),
        (torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]]), None),
    ],
)
def test_what_counts_as_classes(y: Tensor, counts: dict[str, int] | None) -> None:
    """One a sample, of whole numbers, flags, or numbers that are all 0 or 1."""
    found = observe(network(4, 3, 1), torch.randn(4, 4), y, "targets", loss_fn=nn.MSELoss())
    assert found.get("counts") == counts
    assert found.get("num_samples") == (4 if counts or y.is_floating_point() else None)


def test_equilibrium_of_a_network_with_dropout() -> None:
    """Batch norm alone is in train mode: masks are not part of the loss that is looked at."""
    x, y = separable()
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.7), nn.Linear(8, 3)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.2, weight_decay=0.01)
    found = observe(model, x, y, "effective_lr", optimizer=optimizer)["equilibrium"]
    assert not any(module.training for module in model.modules())
    without = nn.Sequential(*(each for each in layers if not isinstance(each, nn.Dropout)))
    optimizer = torch.optim.SGD(without.parameters(), 0.2, weight_decay=0.01)
    assert found == {
        "0": pytest.approx(observe(without, x, y, "effective_lr", optimizer=optimizer)["equilibrium"]["0"])
    }


def test_shift_is_zero_for_the_first_layer_and_at_no_rate() -> None:
    """S1-35, and with the batch's own statistics where batch norm is in the way; running ones stay."""
    x, y = separable()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    before = model[1].running_mean.clone()
    found = observe(model, x, y, "shift", optimizer=torch.optim.SGD(model.parameters(), 0.5))
    model.train()[3].eval()
    expected = internal_covariate_shift(model, CE, x, y, 0.5)
    assert found["change"]["0"] == 0
    assert found["change"]["4"] == pytest.approx(float(expected.shift[-1] / expected.norm[-1]), rel=1e-5)
    assert torch.equal(model[1].running_mean, before)
    still = observe(model, x, y, "shift", optimizer=torch.optim.SGD(model.parameters(), 0.0))
    assert set(still["change"].values()) == {0.0}
    assert observe(model, x, y, "shift") == {}


def test_adam_s_first_step_is_as_long_whatever_the_loss_is_multiplied_by() -> None:
    """A plain step is longer by the factor: that of the rate times it."""
    x, y = separable()
    model = network(6, 8, 3)
    adam, plain = torch.optim.Adam(model.parameters(), 0.01), torch.optim.SGD(model.parameters(), 0.1)
    longer = torch.optim.SGD(model.parameters(), 0.8)
    changes = [
        observe(model, x, y, "shift", optimizer=optimizer, scale=scale)["change"]
        for optimizer, scale in ((adam, 8.0), (adam, 1.0), (plain, 8.0), (longer, 1.0))
    ]
    assert changes[0] == pytest.approx(changes[1], rel=1e-5)
    assert changes[2] == pytest.approx(changes[3], rel=1e-5)
    assert changes[2] != pytest.approx(changes[0], rel=1e-2)


def test_jacobians_of_what_is_no_chain_or_too_large_are_left_out() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.linear(2 * x)

    x, y = separable()
    assert observe(Fork(), x, y, "jacobian") == {}
    wide = nn.Sequential(nn.Linear(6, 3000), nn.ReLU(), nn.Linear(3000, 3000), nn.ReLU(), nn.Linear(3000, 3))
    assert observe(wide, x, y, "jacobian") == {}


def test_initialisation_is_measured_once_before_the_first_step(tmp_path: Path) -> None:
    """Of the starting weights, also where a run goes on; with normalisation chi is not the network's."""
    x, y = separable()
    model = network(6, 30, 30, 3)
    sigma = float(model[0][0].weight.detach().square().mean().sqrt()) * 6**0.5
    for resume in (0, 2):
        with pb.Monitor(
            model, CE, tmp_path / "run", every=1, probes=["loss", "initialisation"], resume=resume
        ) as monitor:
            with torch.no_grad():
                model[0][0].weight *= 3
            monitor.step(x, y)
            monitor.step(x, y)
    steps, sigmas = pb.load_run(tmp_path / "run").series("initialisation", "sigma_w")
    assert steps == [0]
    assert sigmas[0]["0.0"] == pytest.approx(sigma, rel=1e-5)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    assert set(observe(model, x, y, "initialisation")) == {"sigma_w", "sigma_b"}
    assert observe(nn.Linear(6, 3), x, y, "initialisation") == {}


def test_targets_are_counted_or_measured() -> None:
    model = nn.Linear(3, 1)

    def of(y: Any) -> dict[str, Any]:
        return observe(model, torch.zeros(4, 3), y, "targets")

    expected = {"counts": {"0": 1, "7": 3}, "num_samples": 4}
    assert of(torch.tensor([7, 7, 0, 7])) == expected
    assert of(torch.tensor([[7], [7], [0], [7]])) == expected
    binary = {"counts": {"0": 1, "1": 3}, "num_samples": 4}
    assert of(torch.tensor([[1.0], [1.0], [0.0], [1.0]])) == binary
    assert of(torch.tensor([True, True, False, True])) == binary
    found = of(torch.tensor([[1.0, -10.0], [3.0, -30.0], [1.0, -10.0], [3.0, -30.0]]))
    assert found == {
        "mean": -9.0, "largest_mean": -20.0, "std": pytest.approx((101 / 2) ** 0.5), "sample_mean": -9.0,
        "sample_std": pytest.approx(4.5 * (4 / 3) ** 0.5), "num_samples": 4,
    }  # fmt: skip
    assert of(torch.zeros(4, 6, dtype=torch.long)) == {}  # tokens
    assert of({"a": torch.zeros(4), "b": torch.zeros(4)}) == {}
    assert observe(model, torch.zeros(300, 3), torch.arange(300), "targets") == {}  # a vocabulary


def test_decay_is_told_from_a_step_of_the_gradient(tmp_path: Path) -> None:
    """The cosine between a step and minus the weights, whichever optimizer makes it."""
    x, y = separable()
    for decay, optimizer_kind, least, most in (
        (0.0, torch.optim.SGD, -0.5, 0.5),
        (500.0, torch.optim.SGD, 0.99, 1.0),
        (0.0, torch.optim.AdamW, -0.5, 0.5),
        (50.0, torch.optim.AdamW, 0.9, 1.0),
    ):
        model = network(6, 12, 3)
        optimizer = optimizer_kind(model.parameters(), lr=1e-3, weight_decay=decay)
        folder = tmp_path / f"{optimizer_kind.__name__}{decay}"
        norms = []
        with pb.Monitor(model, CE, folder, optimizer=optimizer, every=1, probes=["updates"], budget=None) as monitor:
            for _ in range(3):
                norms.append(float(torch.cat([p.detach().flatten() for p in model.parameters()]).norm()))
                optimizer.zero_grad()
                CE(model(x), y).backward()
                optimizer.step()
                monitor.step(x, y)
        run = pb.load_run(folder)
        assert all(least <= cosine <= most + 1e-9 for cosine in run.series("updates", "shrink")[1]), decay
        assert run.series("updates", "norm")[1][-1] == pytest.approx(norms[-1], rel=1e-6)


def test_what_is_described_of_parameters_that_do_not_train(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.LSTM(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].bias.requires_grad_(False)
    held = [*model[0].parameters(), *model[2].parameters(), model[4].weight]
    optimizer = torch.optim.SGD([{"params": held[:2]}, {"params": held[2:], "weight_decay": 0.3}], 0.1)
    with pb.Monitor(model, CE, tmp_path / "run", optimizer=optimizer):
        pass
    meta = pb.load_run(tmp_path / "run").meta
    assert meta["model"]["frozen"] == meta["model"]["frozen_behind"] == ["0.bias"]
    assert meta["model"]["modules"] == {"Sequential": 1, "Linear": 3, "ReLU": 1, "LSTM": 1}
    assert meta["optimizer"]["left_out"] == ["3.weight", "3.bias", "4.bias"]
    assert meta["optimizer"]["weight_decay"] == 0.3


def test_inputs_far_from_all_others_are_looked_for_in_every_measurement(tmp_path: Path) -> None:
    """Also between the turns of what is dear, and of many features by some of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(40_000, 2))
    with pb.Monitor(model, CE, tmp_path / "run", every=1, budget=None, probes=["inputs"]) as monitor:
        for step in range(1, 5):
            x = torch.randn(10, 1, 40_000)
            x[step] *= 50 if step > 2 else 1
            monitor.step(x, torch.arange(10) % 2)
    records = list(pb.load_run(tmp_path / "run").of("inputs"))
    assert [r.step for r in records] == [1, 2, 3, 4]
    assert [[place for place, _ in r.values.get("far_samples", [])] for r in records] == [[], [], [3], [4]]
    assert ["largest_abs" in r.values for r in records] == [True, False, False, False]


def test_inputs_and_targets_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """They cost no pass, so a budget takes no sample of them."""
    x, y = separable(60)
    model = network(6, 4, 3)
    with pb.Monitor(model, CE, tmp_path / "run", max_samples=2, probes=["loss", "targets", "inputs"]) as monitor:
        monitor.measure(x, y)
    run = pb.load_run(tmp_path / "run")
    assert run.series("targets", "counts")[1] == [{"0": 20, "1": 20, "2": 20}]
    assert run.series("inputs", "largest_abs")[1] == [pytest.approx(float(x.abs().max()))]


def test_what_looking_for_invariance_costs() -> None:
    """Two passes a layer while there may be one to find; a gradient's where it is found or cannot be."""
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    normed = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    layers = 2, 3
    for model, count in zip((plain, normed), layers, strict=True):
        seen: Any = SimpleNamespace(model=model, parameters=["a"], memory={})
        looking = effective_lr.work(seen)
        assert (looking.sample, looking.most) == (2.0 + 2 * count, 32)
        for groups, settled in (({"0": ("0.weight",)}, True), ({"0": ()}, model is plain)):
            seen.memory["effective_lr"] = ["a"], groups
            found = effective_lr.work(seen)
            assert found.sample == (1.0 if settled else 2.0 + 2 * count)
        seen.memory["effective_lr"] = ["b"], {"0": ("0.weight",)}  # of other parameters
        assert effective_lr.work(seen).sample == 2.0 + 2 * count


def test_a_kernel_that_is_refused_is_refused_to_every_probe() -> None:
    """In the same words, and tried only once."""
    tried = []

    def refused(*_: Any) -> Any:
        tried.append(1)
        raise pb.UnsupportedError("kernels: expected layers with rules, got none. Use others.")

    x, y = separable(6)
    seen = Observation(network(6, 4, 3).eval(), CE, x, y, None, None, refused)
    for _ in range(3):
        with pytest.raises(
            pb.UnsupportedError, match=r"^kernels: expected layers with rules, got none\. Use others\.$"
        ):
            seen.kernel  # noqa: B018
    assert tried == [1]


def test_attention_of_a_few_samples(tmp_path: Path) -> None:
    """As ``measure.rank_collapse`` has it, of the first four samples; in the preset only of models that may attend."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))
    x, y = torch.randn(6, 5, 8), torch.arange(6) % 3
    found = observe(model, x, y, "attention")
    known = rank_collapse(model, x[:4], spectrum=False)
    assert set(found) == {
        "cosine", "relative_residual", "effective_rank", "entropy", "first_token", "score_gradient",
        "start", "floor",
    }  # fmt: skip
    for name in ("cosine", "relative_residual", "effective_rank"):
        assert found[name] == pytest.approx(
            dict(zip(known.layers, getattr(known, name).value.tolist(), strict=True)), rel=1e-4
        )
    entropies = [float(each.relative_entropy.value.mean()) for each in known.attention]
    heads = dict(zip(known.layers, entropies, strict=True))
    assert found["entropy"] == pytest.approx(heads, rel=1e-4)
    assert known.start is not None
    assert found["start"] == pytest.approx(float(known.start.relative_residual.value), rel=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pb.Monitor(model, CE, tmp_path / "run", optimizer=optimizer, every=2) as monitor:
        monitor.step(x, y)
    assert len(list(pb.load_run(tmp_path / "run").of("attention"))) == 1


class Scores(nn.Module):
    """Its name says nothing; its code does."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


@pytest.mark.parametrize(("model", "attends"), [
    (network(6, 12, 3), False),
    (nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)), False),
    (nn.LSTM(3, 4), False),
    (Scores(), True),
    (nn.TransformerEncoderLayer(8, 2, 8), True),
    (torch.nn.DataParallel(nn.Sequential(nn.Linear(3, 3), Scores())), True),
])  # fmt: skip
def test_which_models_may_attend(model: nn.Module, attends: bool) -> None:
    assert may_attend(model) is attends
    names = {probe.name for probe in chosen_probes("standard", model, "Monitor")}
    assert ("attention" in names) is attends


class Centred(nn.Linear):
    """Mixes samples: none has a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z - z.mean(0)


@pytest.mark.parametrize(("probe", "model", "told", "kept"), [
    ("gradients", Centred(6, 3), "part of gradients .*samples whose gradients do not", {"mean_gradient_norm"}),
    ("attention", network(6, 12, 3), "attention .*expected a model with attention, got none", None),
    ("initialisation", nn.Linear(6, 3), "initialisation .*expected calls of activations, got none", None),
])  # fmt: skip
def test_what_a_probe_asked_for_by_name_leaves_out_is_said(
    tmp_path: Path, probe: str, model: nn.Module, told: str, kept: set[str] | None
) -> None:
    """Once in a warning, and in the record."""
    with (
        pytest.warns(UserWarning, match=f"Monitor: not measured: {told}"),
        pb.Monitor(model, CE, tmp_path / "run", every=1, probes=[probe]) as monitor,
    ):
        monitor.step(*separable(12))
    run = pb.load_run(tmp_path / "run")
    assert [each.probe for each in run.records if each.error] == [probe]
    assert [set(each.values) for each in run.of(probe)] == ([] if kept is None else [kept])


def test_attention_has_nothing_of_other_models() -> None:
    x, y = separable()
    assert observe(network(6, 12, 3), x, y, "attention") == {}
    head = nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(6, 3))
    assert observe(head, x.unsqueeze(1), y, "attention") == {}  # of one token
