"""Torch's functions, layers and losses as rows of the sweep over all products: tiny shapes, one sample at a time.

A row is the shape of one sample and a function of samples (N, *shape) that treats each on its own. Layers are made
anew for every use, with parameters drawn from a seed, and count as functions of their input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
Row = tuple[tuple[int, ...], Function]
L = torch.linalg


def _positive(x: Tensor) -> Tensor:
    """Symmetric positive definite matrices."""
    return x @ x.mT + 3 * torch.eye(x.shape[-1], dtype=x.dtype)


def _layer(make: Callable[[], nn.Module], pick: Callable[[Any], Tensor] = lambda out: out) -> Function:
    """A layer in eval mode with parameters drawn from a seed, made on first use."""
    made: list[nn.Module] = []

    def of(x: Tensor) -> Tensor:
        if not made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made.append(make().to(torch.float64).eval().requires_grad_(False))
        return pick(made[0](x))

    return of


def _attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, 2 * x, x.sin())


def _over(f: Callable[..., object], *picked: int) -> Function:
    """Along the features; of several results the first."""

    def of(x: Tensor) -> Tensor:
        found = f(x, dim=1)
        return found[picked[0]] if picked else found  # type: ignore[index,return-value]

    return of


def _inside(f: Function) -> Function:
    """At numbers from 0.2 to 0.8, where all of the functions are defined."""
    return lambda x: f(0.5 + 0.3 * x.tanh())


# fmt: off
ACTIVATIONS = [
    "celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "relu", "relu6",
    "selu", "silu", "softplus", "softshrink", "softsign", "tanhshrink", "hardshrink",
]
ELEMENTWISE = [
    "abs", "acos", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "digamma", "erf", "erfc", "erfinv", "exp",
    "exp2", "expm1", "floor", "frac", "i0", "lgamma", "log", "log10", "log1p", "log2", "logit", "neg", "reciprocal",
    "rsqrt", "sigmoid", "sign", "sin", "sinc", "sinh", "sqrt", "square", "tan", "tanh", "trunc",
]
SPECIAL = ["entr", "erfcx", "i0e", "i1", "i1e", "log_ndtr", "ndtr", "ndtri", "psi"]
PICKED = ["cummax", "cummin", "max", "min", "median", "nanmedian", "sort", "mode"]
REDUCED = [
    "logcumsumexp", "logsumexp", "amax", "amin", "mean", "std", "var", "sum", "nansum", "cumsum", "cumprod", "prod",
]
# fmt: on

ROWS: dict[str, Row] = {
    **{name: ((4,), getattr(F, name)) for name in ACTIVATIONS},
    **{name: ((3,), _inside(getattr(torch, name))) for name in ELEMENTWISE},
    **{name: ((3,), _inside(getattr(torch.special, name))) for name in SPECIAL},
    **{f"{name} of": ((4,), _over(getattr(torch, name), 0)) for name in PICKED},
    **{f"{name} over": ((4,), _over(getattr(torch, name))) for name in REDUCED},
    "acosh": ((3,), lambda x: torch.acosh(1.5 + x.square())),
    "aten.hardsigmoid": ((4,), torch.ops.aten.hardsigmoid),
    "hardsigmoid in place": ((4,), lambda x: F.hardsigmoid(x * 1, inplace=True)),
    "gelu tanh": ((4,), lambda x: F.gelu(x, approximate="tanh")),
    "glu": ((4,), F.glu),
    "sinc at zero": ((4,), lambda x: torch.sinc(x * x.new_tensor([0.0, 1e-9, 1.0, 0.1]))),
    "softmax": ((4,), lambda x: F.softmax(x, 1)),
    "log_softmax": ((4,), lambda x: F.log_softmax(x, 1)),
    "zeta": ((3,), lambda x: torch.special.zeta(x.new_tensor(2.0), 1.5 + x.square())),
    "gammainc": ((3,), lambda x: torch.special.gammainc(x.new_tensor(1.5), 0.5 + x.square())),
    "polygamma": ((3,), lambda x: torch.polygamma(1, 1.5 + x.square())),
    "xlogy": ((3,), lambda x: torch.xlogy(x, 1.5 + x.square())),
    "atan2": ((4,), lambda x: torch.atan2(x[:, :2], x[:, 2:])),
    "logaddexp": ((4,), lambda x: torch.logaddexp(x[:, :2], x[:, 2:])),
    "pow": ((4,), lambda x: x[:, :2].abs() ** x[:, 2:]),
    "cdist": ((5, 2), lambda x: torch.cdist(x[:, :3], x[:, 3:])),
    "cdist p=1": ((5, 2), lambda x: torch.cdist(x[:, :3], x[:, 3:], p=1)),
    "cdist p=1.5": ((5, 2), lambda x: torch.cdist(x[:, :3], x[:, 3:], p=1.5)),
    "cdist p=3": ((5, 2), lambda x: torch.cdist(x[:, :3], x[:, 3:], p=3)),
    "cdist p=inf": ((5, 2), lambda x: torch.cdist(x[:, :3], x[:, 3:], p=torch.inf)),
    "cdist of itself": ((3, 2), lambda x: torch.cdist(x, x).square()),
    "pdist": ((3, 2), lambda x: torch.stack([F.pdist(rows) for rows in x])),
    "pairwise_distance": ((6,), lambda x: F.pairwise_distance(x[:, :3], x[:, 3:], keepdim=True)),
    "cosine_similarity": ((6,), lambda x: F.cosine_similarity(x[:, :3], x[:, 3:]).unsqueeze(1)),
    "normalize": ((3,), F.normalize),
    "norm p=1.5": ((4,), lambda x: L.vector_norm(x, 1.5, dim=1, keepdim=True)),
    "norm p=inf": ((4,), lambda x: L.vector_norm(x, torch.inf, dim=1, keepdim=True)),
    "nuclear norm": ((3, 3), lambda x: L.matrix_norm(x, "nuc").unsqueeze(1)),
    "spectral norm": ((3, 3), lambda x: L.matrix_norm(x, 2).unsqueeze(1)),
    "det 1": ((1, 1), lambda x: torch.det(x).unsqueeze(1)),
    "det 2": ((2, 2), lambda x: torch.det(x).unsqueeze(1)),
    "det 3": ((3, 3), lambda x: L.det(x).unsqueeze(1)),
    "det 4": ((4, 4), lambda x: x.det().unsqueeze(1)),
    "slogdet": ((3, 3), lambda x: torch.stack(list(torch.slogdet(x)), 1)),
    "logdet": ((3, 3), lambda x: torch.logdet(_positive(x)).unsqueeze(1)),
    "inverse": ((3, 3), lambda x: torch.inverse(_positive(x))),
    "pinv": ((3, 2), L.pinv),
    "solve": ((3, 3), lambda x: L.solve(_positive(x), x.sin())),
    "solve right": ((3, 3), lambda x: L.solve(_positive(x), x[:, :2].sin(), left=False)),
    "cholesky": ((3, 3), lambda x: L.cholesky(_positive(x))),
    "cholesky_inverse": ((3, 3), lambda x: torch.cholesky_inverse(L.cholesky(_positive(x)))),
    "cholesky_solve": ((3, 3), lambda x: torch.cholesky_solve(x, L.cholesky(_positive(x)))),
    "svdvals": ((3, 3), L.svdvals),
    "eigvalsh": ((3, 3), lambda x: L.eigvalsh(x + x.mT)),
    "qr": ((3, 3), lambda x: L.qr(_positive(x))[1]),
    "lu": ((3, 3), lambda x: L.lu(x)[2]),
    "householder_product": ((3, 3), lambda x: L.householder_product(x[..., :2], x[:, 0, :2])),
    "matrix_exp": ((2, 2), torch.matrix_exp),
    "prod with a zero": ((4,), lambda x: (x * x.new_tensor([1, 0, 1, 1])).prod(1, keepdim=True)),
    "prod with zeros": ((4,), lambda x: (x * x.new_tensor([1, 0, 0, 1])).prod(1, keepdim=True)),
    "cumprod with a zero": ((4,), lambda x: (x * x.new_tensor([1, 0, 1, 1])).cumprod(1)),
    "clamp": ((4,), lambda x: x.clamp(-0.5, 0.5)),
    "topk": ((4,), lambda x: x.topk(2)[0]),
    "max_pool1d": ((1, 4), lambda x: F.max_pool1d(x, 2)),
    "max_pool2d": ((1, 4, 2), lambda x: F.max_pool2d(x, 2)),
    "max_unpool1d": ((1, 4), lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)),
    "avg_pool2d": ((1, 4, 2), lambda x: F.avg_pool2d(x, 2)),
    "lp_pool1d": ((1, 4), lambda x: F.lp_pool1d(x, 2, 2)),
    "adaptive_avg_pool1d": ((1, 5), lambda x: F.adaptive_avg_pool1d(x, 3)),
    "adaptive_max_pool2d": ((1, 3, 3), lambda x: F.adaptive_max_pool2d(x, 2)),
    "pad reflect": ((1, 4), lambda x: F.pad(x, (1, 1), mode="reflect")),
    "pad replicate": ((1, 2, 2), lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate")),
    "pad circular": ((1, 4), lambda x: F.pad(x, (1, 1), mode="circular")),
    "interpolate bilinear": ((1, 2, 2), lambda x: F.interpolate(x, size=3, mode="bilinear")),
    "interpolate bicubic": ((1, 2, 2), lambda x: F.interpolate(x, size=3, mode="bicubic")),
    "grid_sample": ((2, 2, 2), lambda x: F.grid_sample(_image(x), 0.4 * x.tanh(), align_corners=False)),
    "unfold": ((1, 3, 3), lambda x: F.unfold(x, 2)),
    "pixel_shuffle": ((4, 1, 1), lambda x: F.pixel_shuffle(x, 2)),
    "scatter_reduce sum": ((4,), lambda x: _scattered(x, "sum")),
    "scatter_reduce amax": ((4,), lambda x: _scattered(x, "amax")),
    "scatter_reduce prod": ((4,), lambda x: _scattered(x, "prod")),
    "layer_norm": ((4,), _layer(lambda: nn.LayerNorm(4))),
    "rms_norm": ((4,), _layer(lambda: nn.RMSNorm(4))),
    "group_norm": ((4, 2), _layer(lambda: nn.GroupNorm(2, 4))),
    "instance_norm": ((2, 3), _layer(lambda: nn.InstanceNorm1d(2, affine=True))),
    "batch_norm": ((3,), _layer(lambda: nn.BatchNorm1d(3))),
    "local_response_norm": ((3, 2), lambda x: F.local_response_norm(x, 2)),
    "conv2d": ((1, 3, 3), _layer(lambda: nn.Conv2d(1, 2, 2))),
    "conv_transpose1d": ((2, 3), _layer(lambda: nn.ConvTranspose1d(2, 1, 2))),
    "bilinear": ((3,), lambda x: F.bilinear(x, x.sin(), torch.ones(2, 3, 3, dtype=x.dtype).cumsum(1).sin())),
    "attention": ((1, 3, 2), _attention),
    "attention masked": ((1, 3, 2), lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "multihead attention": ((3, 2), _layer(lambda: _Self())),
    "transformer layer": ((2, 2), _layer(lambda: nn.TransformerEncoderLayer(2, 1, 3, batch_first=True))),
    "rnn": ((3, 2), _layer(lambda: nn.RNN(2, 2, batch_first=True), lambda out: out[0])),
    "gru": ((3, 2), _layer(lambda: nn.GRU(2, 2, batch_first=True), lambda out: out[0])),
    "lstm": ((3, 2), _layer(lambda: nn.LSTM(2, 2, batch_first=True), lambda out: out[0])),
    "bag weights": (
        (4,),
        lambda x: F.embedding_bag(_TOKENS.expand(len(x), -1), _TABLE, per_sample_weights=x, mode="sum"),
    ),
    "weight_norm": ((3, 3), lambda x: torch.stack([torch._weight_norm(m[:2], m[:2, :1].sin() + 2, 0) for m in x])),
    "weight_norm dim 1": ((3, 3), lambda x: torch.stack([torch._weight_norm(m[:2], m[2:].sin() + 2, 1) for m in x])),
    "rotation": ((3, 3), lambda x: _rotated(x)),
    "fft": ((4,), lambda x: torch.fft.rfft(x).abs()),
}
_TOKENS = torch.tensor([0, 1, 1, 2])
_TABLE = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)

# what torch cannot differentiate forward, or not rightly: refused by name in these products, right in all others
FORWARD = frozenset({"zeta", "gammainc"})
# the gradients of these torch cannot differentiate forward; the functions themselves before 2.15 neither
GRADIENT_FORWARD = frozenset({"grid_sample"})
FORWARD |= GRADIENT_FORWARD if torch.__version__ < "2.15" else frozenset()
REFUSED = frozenset({"scatter_reduce prod"})


def _image(x: Tensor) -> Tensor:
    return torch.arange(9, dtype=x.dtype).sin().view(1, 1, 3, 3).expand(len(x), -1, -1, -1)


def _scattered(x: Tensor, reduce: str) -> Tensor:
    index = torch.tensor([[0, 1, 0, 1]]).expand(len(x), -1)
    return torch.scatter_reduce(x.new_ones(len(x), 2), 1, index, x, reduce, include_self=False)


class _Self(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, x, x, need_weights=False)[0]


def _rotated(x: Tensor) -> Tensor:
    """The exponential of a skew-symmetric matrix, as orthogonal parametrisations make weights, times ones."""
    skew = x.tril(-1) - x.tril(-1).mT
    return torch.matrix_exp(skew) @ torch.ones(3, 1, dtype=x.dtype)
