"""The three Fisher matrices: by enumeration of targets, per sample and per token, and their relations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import sample_targets
from tests.cases import CASES, build
from tests.compare import assert_different, assert_same
from tests.thinned import thinned

LIKELIHOODS: dict[str, tuple[nn.Module, str]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), "labels"),
    "cross-entropy, sum": (nn.CrossEntropyLoss(reduction="sum"), "labels"),
    "cross-entropy, probabilities": (nn.CrossEntropyLoss(), "probabilities"),
    "log-probabilities": (nn.NLLLoss(), "labels"),
    "bits": (nn.BCEWithLogitsLoss(), "bits"),
    "bits, sum": (nn.BCEWithLogitsLoss(reduction="sum"), "bits"),
    "squared": (nn.MSELoss(), "numbers"),
    "squared, sum": (nn.MSELoss(reduction="sum"), "numbers"),
    "counts": (nn.PoissonNLLLoss(), "counts"),
    "counts, full, sum": (nn.PoissonNLLLoss(full=True, reduction="sum"), "counts"),
}


def problem(name: str, positions: tuple[int, ...] = (), n: int = 3, c: int = 3) -> tuple[Any, Any, Tensor, Tensor]:
    """A tanh network with outputs (n, c, *positions), and targets of the loss's kind."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 3).double(), nn.Linear(3, c).double()

        def forward(self, x: Tensor) -> Tensor:
            z = self.last(torch.tanh(self.first(x))).movedim(-1, 1)
            return z.log_softmax(1) if name == "log-probabilities" else z

    loss_fn, kind = LIKELIHOODS[name]
    shape = (n, c, *positions)
    y = {
        "labels": lambda: torch.randint(c, (n, *positions)),
        "probabilities": lambda: torch.rand(shape, dtype=torch.float64).softmax(1),
        "bits": lambda: torch.rand(shape, dtype=torch.float64).round(),
        "numbers": lambda: torch.randn(shape, dtype=torch.float64),
        "counts": lambda: torch.poisson(torch.ones(shape, dtype=torch.float64)),
    }[kind]()
    return Net(), loss_fn, torch.randn(n, *positions, 2, dtype=torch.float64), y


@pytest.mark.parametrize(("name", "positions"), thinned(list(LIKELIHOODS), [(), (4,), (2, 2)]))
def test_true_fisher_is_the_sum_over_targets(name: str, positions: tuple[int, ...]) -> None:
    """S1-84: the expectation over targets drawn from the model, by a sum over all of them."""
    model, loss_fn, x, y = problem(name, positions)
    op = pb.Fisher(model, loss_fn, (x, y))
    assert_same(op.to_dense(), reference.dense_fisher(model, loss_fn, x, y), 1e-9)


def test_terms_are_independent() -> None:
    """The reference leaves cross terms out; here every labelling of two positions is gone through."""
    model, loss_fn, x, _ = problem("cross-entropy", (2,), n=1)
    log_p = model(x).log_softmax(1).detach()
    total = torch.zeros(())
    for labels in itertools.product(range(3), repeat=2):
        y = torch.tensor([labels])
        g = reference.gradient_matrix(model, loss_fn, x, y)[0]
        probability = (log_p[0, labels[0], 0] + log_p[0, labels[1], 1]).exp()
        total = total + probability * torch.outer(g, g)
    assert_same(pb.Fisher(model, loss_fn, (x, y)).to_dense(), total, 1e-10)


@pytest.mark.parametrize("name", thinned([n for n in LIKELIHOODS if n != "log-probabilities"]))
@given(positions=st.sampled_from([(), (2,), (2, 3)]), n=st.integers(1, 4), c=st.integers(1, 3))
def test_true_fisher_is_gauss_newton_at_the_stated_scale(name: str, positions: tuple[int, ...], n: int, c: int) -> None:
    """S1-86, S2-48: equal for sums and squared errors; 1 / m of it where a loss is a mean over m terms."""
    model, loss_fn, x, y = problem(name, positions, n, c)
    terms = y[0].numel() // (c if "probabilities" in name else 1)
    scale = terms if loss_fn.reduction == "mean" and "squared" not in name else 1
    fisher = pb.Fisher(model, loss_fn, (x, y)).to_dense()
    gauss_newton = pb.GaussNewton(model, loss_fn, (x, y)).to_dense()
    assert_same(scale * fisher, gauss_newton, 1e-9, scale=float(gauss_newton.abs().max()) + 1e-12)


def test_log_probabilities_are_those_of_the_scores() -> None:
    """NLLLoss on log-probabilities has the Fisher matrix of cross-entropy on scores, and no Gauss-Newton matrix."""
    model, loss_fn, x, y = problem("log-probabilities")
    scores = nn.Sequential(model.first, nn.Tanh(), model.last)
    expected = pb.GaussNewton(scores, nn.CrossEntropyLoss(), (x, y)).to_dense()
    assert_same(pb.Fisher(model, loss_fn, (x, y)).to_dense(), expected, 1e-10)
    assert pb.GaussNewton(model, loss_fn, (x, y)).to_dense().abs().max() == 0
    with pytest.raises(pb.UnsupportedError, match="log-probabilities .* as outputs for NLLLoss, got outputs whose exp"):
        pb.Fisher(scores, loss_fn, (x, y)).to_dense()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_positions(reduction: str) -> None:
    """Per sample the mean runs over the positions that count; per token they are the samples, wherever they are."""
    case = next(c for c in CASES if c.name == "tokens")
    model, _, x, y = build(case, 4)
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    y[0, 1:] = -100
    for per in ("sample", "token"):
        for kind in ("true", "empirical"):
            op = pb.Fisher(model, loss_fn, (x, y), kind=kind, per=per)  # type: ignore[arg-type]
            parts = pb.Fisher(model, loss_fn, [(x[:1], y[:1]), (x[1:], y[1:])], kind=kind, per=per)  # type: ignore[arg-type]
            assert op.num_samples == (4 if per == "sample" else int((y != -100).sum()))
            if kind == "true":
                expected = reference.dense_fisher(model, loss_fn, x, y, per=per)  # type: ignore[arg-type]
            elif per == "sample":
                expected = reference.dense_empirical_fisher(model, loss_fn, x, y)
            else:
                expected = by_token(model, x, y)
            assert_same(op.to_dense(), expected, 1e-9)
            assert_same(parts.to_dense(), expected, 1e-9)
    if reduction == "mean":
        assert_different(
            pb.Fisher(model, loss_fn, (x, y)).to_dense(), pb.Fisher(model, loss_fn, (x, y), per="token").to_dense(), 0.1
        )


def by_token(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean of g g^T over single positions that count."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    products = []
    for i, t in (y != -100).nonzero().tolist():
        loss = F.cross_entropy(model(x[i : i + 1])[:, :, t], y[i : i + 1, t])
        g = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        flat = torch.cat([part.reshape(-1) for part in g])
        products.append(torch.outer(flat, flat))
    return torch.stack(products).mean(0)


def test_per_token_without_positions() -> None:
    model, _, x, y = problem("squared", (2,))
    with pytest.raises(pb.UnsupportedError, match="`per='token'` with nn.CrossEntropyLoss or a callable"):
        pb.Fisher(model, nn.MSELoss(), (x, y), per="token")
    model, loss_fn, x, y = problem("cross-entropy", (2,))
    with pytest.raises(pb.InputError, match="Fisher: expected positions that count, got all at `ignore_index`"):
        pb.Fisher(model, loss_fn, (x, torch.full_like(y, -100)), per="token")
    each = pb.Fisher(model, lambda z, t: F.cross_entropy(z, t, reduction="none"), (x, y), kind="empirical", per="token")
    assert_same(each.to_dense(), by_token(model, x, y), 1e-10)


@pytest.mark.parametrize("name", thinned(list(LIKELIHOODS)))
def test_sampled_fisher(name: str) -> None:
    """One draw: the empirical Fisher of the drawn targets. Many: the true one, within their spread."""
    model, loss_fn, x, y = problem(name, (2,) if "cross" in name else ())
    once = pb.Fisher(model, loss_fn, (x, y), kind="sampled", seed=3)
    drawn = sample_targets(loss_fn, model(x).detach(), y, torch.Generator().manual_seed(3))
    expected = reference.dense_empirical_fisher(model, loss_fn, x, drawn)
    assert_same(once.to_dense(), expected, 1e-10)
    assert torch.equal(once.to_dense(), once.to_dense())  # the draws stay
    other = pb.Fisher(model, loss_fn, (x, y), kind="sampled", seed=4)
    assert_different(other.to_dense(), once.to_dense(), 1e-3)
    S, exact = 200, pb.Fisher(model, loss_fn, (x, y)).to_dense()
    many = pb.Fisher(model, loss_fn, (x, y), kind="sampled", num_samples=S).to_dense()
    spread = pb.Fisher(model, loss_fn, (x, y), kind="sampled", num_samples=1)
    singles = torch.stack([set_seed(spread, s).to_dense().diagonal() for s in range(80)]).std(0) / S**0.5
    assert ((many - exact).diagonal().abs() <= 6 * singles + 1e-12).all()


def set_seed(op: Any, seed: int) -> Any:
    op.seed, op._kept = seed, None
    return op


def test_ignored_positions_are_not_drawn() -> None:
    model, loss_fn, x, y = problem("cross-entropy", (4,))
    y[:, 1] = -100
    drawn = sample_targets(loss_fn, model(x).detach(), y, torch.Generator().manual_seed(0))
    assert torch.equal(drawn == -100, y == -100)
    per_token = pb.Fisher(model, loss_fn, (x, y), kind="sampled", per="token", seed=0)
    assert_same(per_token.to_dense(), by_token(model, x, drawn), 1e-10)


def test_a_perfect_fit_has_no_empirical_fisher() -> None:
    model, _, x, _ = problem("squared")
    data = x, model(x).detach()
    assert pb.Fisher(model, nn.MSELoss(), data, kind="empirical").to_dense().abs().max() < 1e-25
    assert pb.Fisher(model, nn.MSELoss(), data).to_dense().abs().max() > 0.1


def test_errors() -> None:
    model, loss_fn, x, y = problem("cross-entropy")
    with pytest.raises(pb.InputError, match="Fisher: expected `kind` to be one of 'true', 'sampled', 'empirical'"):
        pb.Fisher(model, loss_fn, (x, y), kind="exact")  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="Fisher: expected `per` to be one of 'sample', 'token'"):
        pb.Fisher(model, loss_fn, (x, y), per="batch")  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="Fisher: expected `num_samples` above 0, got 0"):
        pb.Fisher(model, loss_fn, (x, y), kind="sampled", num_samples=0)
    for loss, got in (
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "CrossEntropyLoss with weight"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "CrossEntropyLoss with label_smoothing"),
        (nn.MSELoss(reduction="none"), "MSELoss with reduction='none'"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "BCEWithLogitsLoss with pos_weight"),
        (nn.PoissonNLLLoss(log_input=False), "PoissonNLLLoss"),
        (nn.HuberLoss(), "HuberLoss"),
        (F.cross_entropy, "cross_entropy"),
    ):
        with pytest.raises(
            pb.UnsupportedError, match=f"Fisher: expected a loss that is a neg.*, got {got}. Use one of"
        ):
            pb.Fisher(model, loss, (x, y))


def test_batches_draw_anew() -> None:
    """Two batches of the same sample get labels of their own: a third class is drawn, and the rank is two, not one."""
    model = nn.Linear(1, 3, bias=False).double()
    nn.init.zeros_(model.weight)  # three classes as likely as each other
    batch = (torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]))
    ranks = set()
    for seed in range(8):  # one stream for both would give rank one eight times
        F = pb.Fisher(model, nn.CrossEntropyLoss(), [batch, batch], kind="sampled", seed=seed).to_dense()
        ranks.add(int(torch.linalg.matrix_rank(F)))
    assert 2 in ranks
