"""Ways to the spectrum of a curvature matrix A = B^T B / N, what each costs, by measured rates, and which is taken.

n = N r rows of B, r values a sample; P parameters. Passes are counted from the layers' sizes, seen on two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pullback._checks import input_error, unsupported
from pullback._results import Shown
from pullback.gradients.rows.contract import Products
from pullback.gradients.rows.factor import Factor
from pullback.kernels.plan.make import seconds_of
from pullback.kernels.plan.rates import Rates

Form = Literal["dense", "products", "parameters", "operator"]

EIGH = 12.0  # operations of an eigendecomposition, in n^3 (measured: tridiagonal form, its eigenvectors, back)
PASSES = 4.0  # forward passes a product with the operator costs: J v, and J^T u with its weights' part
STEPS, STEPS_EACH = 60, 3  # Lanczos steps: some, and for each pair
HELD, HELD_EACH = 40, 3  # vectors Lanczos holds


@dataclass(frozen=True)
class Route(Shown):
    """A way to the spectrum.

    Args:
        method: "gram" or "lanczos", as the caller says it.
        form: "dense": the (n, n) Gram matrix, formed. "products": Lanczos on the Gram matrix, which is not formed.
            "parameters": the (P, P) matrix from the rows, where P <= n. "operator": Lanczos on the curvature operator.
        seconds: estimated time.
        num_bytes: estimated bytes beyond the model and the data.
    """

    method: Literal["gram", "lanczos"]
    form: Form
    seconds: float
    num_bytes: int

    def __str__(self) -> str:
        words = {
            "dense": "the Gram matrix of the samples",
            "products": "Lanczos on products of the samples' Gram matrix",
            "parameters": "the matrix itself, from its rows",
            "operator": "Lanczos on the operator",
        }[self.form]
        return f"{words}: {self.seconds:.2g} s, {self.num_bytes / 2**20:.0f} MB"


@dataclass(frozen=True)
class Sizes:
    """What a spectrum is asked of.

    Args:
        num_samples: N.
        num_values: r, rows of a sample.
        num_params: P.
        k: pairs asked for; None for all.
        vectors: whether eigenvectors are formed.
        smallest: the smallest non-zero ones are asked for, which are found among all.
        element: bytes of a number.
    """

    num_samples: int
    num_values: int
    num_params: int
    k: int | None
    vectors: bool
    smallest: bool
    element: int

    @property
    def num_rows(self) -> int:
        """How many rows B has, n."""
        return self.num_samples * self.num_values

    @property
    def all_wanted(self) -> bool:
        """Whether all eigenvalues are needed."""
        return self.k is None or self.smallest

    @property
    def num_pairs(self) -> int:
        """Pairs returned at most."""
        most = min(self.num_rows, self.num_params)
        return most if self.k is None else min(self.k, most)

    @property
    def num_steps(self) -> int:
        """Lanczos steps to expect."""
        return STEPS + STEPS_EACH * self.num_pairs


def routes(factors: Sequence[Factor], sizes: Sizes, rates: Rates) -> list[Route]:
    """Every way there is, cheapest first.

    Args:
        factors: of some samples with one value each, for the layers' sizes.
        sizes: what is asked.
        rates: of the machine.
    """
    N, n, r, P, k = sizes.num_samples, sizes.num_rows, sizes.num_values, sizes.num_params, sizes.num_pairs
    e, steps = sizes.element, sizes.num_steps
    through = product = made = 0.0  # of all layers, each made in its cheapest form
    numbers = 0
    asked = Products.of(N, None, r)
    for f in factors:
        through += f.forward_flops(N)
        numbers += f.held(N, r)
        product += f.product_flops(N, r)
        made += min(seconds_of(f.work(form, asked), rates) for form in f.forms)
    forward, held = through / rates.gemm, numbers * e
    capture = forward * (3 + r)  # a pass for the outputs, one to record, a backward pass for every value, checks
    pairs = 3 * k * product / rates.gemm if sizes.vectors else 0.0
    formed = P * k * e if sizes.vectors else 0
    ways = []
    solved = EIGH * n**3 / rates.gemm if sizes.all_wanted else steps * n**2 / rates.stream
    ways.append(Route("gram", "dense", capture + made + solved + pairs, held + 4 * n**2 * e + 2 * formed))
    if not sizes.all_wanted:
        inner, each = map(sum, zip(*(f.gram_product_flops(N, r) for f in factors), strict=True))
        seconds = capture + (inner + steps * each) / rates.gemm + steps * 4 * n * (HELD + HELD_EACH * k) / rates.stream
        size = held + (HELD + HELD_EACH * k) * n * e + 2 * formed
        ways.append(Route("gram", "products", seconds + pairs, int(size)))
    if n >= P:
        seconds = capture + n * P / rates.stream + (n * P**2 + EIGH * P**3) / rates.gemm
        ways.append(Route("gram", "parameters", seconds, held + (n * P + 4 * P**2) * e))
    if not sizes.all_wanted:
        seconds = forward * PASSES * steps + steps * 4 * P * (HELD + HELD_EACH * k) / rates.stream
        size = 2 * (HELD + HELD_EACH * k) * P * e + 3 * held // max(1, r)
    else:
        seconds, size = forward * PASSES * P + EIGH * P**3 / rates.gemm, 4 * P**2 * e + 3 * held // max(1, r)
    ways.append(Route("lanczos", "operator", seconds, int(size)))
    return sorted(ways, key=lambda route: route.seconds)


def chosen(
    ways: list[Route], method: str, obstacle: str | None, memory_limit: int | None, where: str
) -> tuple[Route, str]:
    """The cheapest way that is allowed, and the reason in words."""
    if method == "gram" and obstacle:
        raise unsupported(where, "rows of the matrix for method='gram'", obstacle, "Use method='lanczos'")
    allowed = [way for way in ways if method in ("auto", way.method) and not (obstacle and way.method == "gram")]
    fitting = [way for way in allowed if memory_limit is None or way.num_bytes <= memory_limit]
    if not fitting:
        least = min(way.num_bytes for way in allowed)
        raise input_error(
            where,
            f"a `memory_limit` of at least {least} bytes",
            str(memory_limit),
            "Raise the limit, ask for fewer pairs, or pass vectors=False",
        )
    best = fitting[0]
    others = [str(way) for way in ways if way is not best]
    if method != "auto":
        return best, f"as asked; {best}"
    if obstacle:
        return best, f"{best}; no Gram matrix: {obstacle}"
    return best, f"{best}; {'; '.join(others)}"
