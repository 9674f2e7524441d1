"""Models and losses whose samples depend on each other, most of them without touching the first: all calls refuse them.

Each maker returns (model, loss, x, y) in float64 for a number of samples, at least 6, as those of ``tests/cases.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import Made

Mix = Callable[[Tensor], Tensor]


class Mixed(nn.Module):
    """A small network with ``mix`` between its layers, on the samples' features (N, 4)."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.inner, self.outer, self.mix = nn.Linear(4, 4), nn.Linear(4, 3), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.mix(torch.tanh(self.inner(x))))


class Recurrent(nn.Module):
    """``batch_first`` left out: the layer runs along the samples, so that all but the first depend on others."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = kind(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0].mean(1))


class Causal(nn.Module):
    """Attention with a causal mask along the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(len(x), dtype=x.dtype)
        return self.head(self.body(x, src_mask=mask, is_causal=True).mean(1))


class Tokens(nn.Module):
    """Integers in, mixed after their look-up."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.table, self.head, self.mix = nn.Embedding(9, 4), nn.Linear(4, 3), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.table(x).mean(1))))


def middle(mix: Mix) -> Mix:
    """The same among all samples but the first and the last."""
    return lambda h: torch.cat([h[:1], mix(h[1:-1]), h[-1:]]) if len(h) > 2 else h


def last(mix: Mix) -> Mix:
    """Only the last sample sees the others."""
    return lambda h: torch.cat([h[:-1], mix(h)[-1:]])


def centred(h: Tensor) -> Tensor:
    return h - h.mean(0)


def mean_gradients(h: Tensor) -> Tensor:
    """Values are those of single samples, gradients are not."""
    return h - h.mean(0) + h.mean(0).detach()


def gradients_only(h: Tensor) -> Tensor:
    """The same, for all but the last sample."""
    return h + h.cumsum(0) - h.cumsum(0).detach()


def values_only(h: Tensor) -> Tensor:
    """No gradient passes from sample to sample, but values do."""
    return h - h.mean(0).detach()


def exchanged(h: Tensor) -> Tensor:
    """The second and the third sample change places."""
    return h if len(h) < 4 else h[[0, 2, 1, *range(3, len(h))]]


def before(h: Tensor) -> Tensor:
    """Each sample and the one before it."""
    return h + F.pad(h, (0, 0, 1, 0))[:-1]


def running_mean(h: Tensor) -> Tensor:
    return h.cumsum(0) / torch.arange(1, len(h) + 1).to(h).unsqueeze(1)


def _running_loss(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none").cumsum(0)


def _contrastive(z: Tensor, y: Tensor) -> Tensor:
    return (z @ z.T).tril().square().sum(1)


_MIXES: dict[str, Mix] = {
    "cumsum": lambda h: h.cumsum(0),
    "running_mean": running_mean,
    "before": before,
    "centred": centred,
    "mean_gradients": mean_gradients,
    "gradients_only": gradients_only,
    "values_only": values_only,
    "last_of_all": last(centred),
    "middle_reversed": middle(lambda h: h.flip(0)),
    "middle_centred": middle(centred),
    "middle_gradients_only": middle(gradients_only),
    "middle_values_only": middle(values_only),
    "exchanged": exchanged,
}


def _on_points(model: Callable[[], nn.Module], loss_fn: Callable[..., Tensor], *shape: int) -> Callable[[int], Made]:
    return lambda n: (model(), loss_fn, torch.randn(n, *shape), torch.arange(n) % 3)


def _on_tokens(mix: Mix) -> Callable[[int], Made]:
    return lambda n: (Tokens(mix), nn.CrossEntropyLoss(), torch.randint(9, (n, 5)), torch.arange(n) % 3)


_MAKERS: dict[str, Callable[[int], Made]] = {
    **{name: _on_points(lambda mix=mix: Mixed(mix), nn.CrossEntropyLoss(), 4) for name, mix in _MIXES.items()},
    **{
        f"tokens_{name}": _on_tokens(_MIXES[name])
        for name in ("cumsum", "gradients_only", "middle_reversed", "middle_gradients_only")
    },
    **{
        kind.__name__: _on_points(lambda kind=kind: Recurrent(kind), nn.CrossEntropyLoss(), 5, 4)
        for kind in (nn.RNN, nn.GRU, nn.LSTM)
    },
    "causal": _on_points(Causal, nn.CrossEntropyLoss(), 5, 4),
    "running_loss": _on_points(lambda: nn.Linear(4, 3), _running_loss, 4),
    "contrastive": _on_points(lambda: nn.Linear(4, 3), _contrastive, 4),
}

COUPLED = tuple(_MAKERS)
COUPLED_BY_LOSS = ("running_loss", "contrastive")  # the outputs are those of single samples


def build_coupled(name: str, n: int = 6) -> Made:
    """The model (eval mode), loss and data of a name."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model, loss_fn, x, y = _MAKERS[name](n)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval(), loss_fn, x, y
