"""``Quadratic``: 1/2 x^T A x + b^T x + c, on which every trajectory is known exactly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count, check_option, check_rate, input_error
from pullback.dynamics.quadratic.function import NAME, QuadraticFunction
from pullback.dynamics.quadratic.methods import Regime, followed, recursion, regime, roots
from pullback.dynamics.quadratic.noisy_limit import covariance_of, settled
from pullback.dynamics.quadratic.settings import MOMENTUM, Method, Optimum, Settings, fastest, settings_of
from pullback.dynamics.quadratic.values import check_momentum, symmetric, values


class Quadratic(QuadraticFunction):
    """The function 1/2 x^T A x + b^T x + c, and how methods of descent move on it, exactly.

    Args:
        A: a symmetric matrix (d, d), of any signs; an operator of this package, which is made dense (d products); or
            eigenvalues alone, (d,), for a diagonal matrix.
        b: (d,); 0 if left out.
        c: the value at x = 0.

    Attributes:
        eigenvalues: of A, (d,), ascending, or in the order given. Those of a matrix that are below d roundings of
            the largest one are 0.
        eigenvectors: of A, columns, (d, d).
        b: (d,).
        c: number.

    All is computed in float64 and answered in the dtype of A.

    Raises:
        InputError: a matrix that is not square, not symmetric or not finite; vectors of another length.

    Cost: one eigendecomposition; none for eigenvalues alone.

    Example:
        >>> problem = Quadratic(torch.tensor([100.0, 1.0], dtype=torch.float64))
        >>> problem.stability_limit()
        0.02
        >>> problem.trajectory("gradient_descent", [1.0, 1.0], 2, lr=0.02)[-1]
        tensor([1.0000, 0.9604], dtype=torch.float64)
        >>> problem.regimes(lr=0.02)
        ('critical', 'monotone')
        >>> problem.optimal("heavy_ball").rate < problem.optimal("gradient_descent").rate
        True
    """

    def trajectory(
        self,
        method: Method,
        x0: Any,
        steps: int,
        *,
        lr: float | None = None,
        momentum: float | None = None,
        damping: float | None = None,
        metric: Any = None,
    ) -> Tensor:
        """Where a method is after 0, 1, ..., ``steps`` steps, exactly: by powers of its matrix, not step by step.

        With g = A x + b:

        - "gradient_descent": x - lr g.
        - "heavy_ball" (Polyak 1964): p = momentum p - lr g; x + p.
        - "nesterov" (1983): the same with g at x + momentum p.
        - "newton": x - lr A^-1 g; goes to the stationary point, be it a saddle.
        - "damped_newton": x - lr (A + damping)^-1 g; still drawn to a saddle unless damping is above the most negative
          curvature.
        - "truncated_newton": Newton where curvature is positive, no step elsewhere.
        - "saddle_free_newton" (Dauphin et al. 2014): x - lr (|A| + damping)^-1 g.
        - "natural_gradient": x - lr (F + damping)^-1 g with F = ``metric``; A itself if left out, as is the Fisher
          information of the model whose log-likelihood this is.

        Args:
            method: one of the above.
            x0: starts, (d,) or (..., d).
            steps: how many.
            lr: learning rate. Left out: that of ``optimal``; 1 for methods that divide by curvature.
            momentum: of "heavy_ball" and "nesterov"; left out together with lr: that of ``optimal``.
            damping: of the methods that divide by curvature, but for "newton"; 0 if left out.
            metric: symmetric, positive definite (d, d), of "natural_gradient".

        Returns:
            (..., steps + 1, d). What grows beyond the largest number is inf.

        Raises:
            InputError: settings a method does not have; a rate that is not positive; momentum outside [0, 1); a
                direction that cannot be divided by; a start of another length or not finite.

        Cost: log2(steps) products of 3 x 3 matrices a direction.
        """
        where = f"{NAME}.trajectory"
        settings = self._settings(method, lr, momentum, damping, where)
        start = self._vector(x0, "x0", where)
        steps = check_count(where, "steps", steps, 0)
        if metric is not None:
            return self._in_metric(method, start, steps, settings, metric)
        t, m, step = recursion(method, self._h, settings, where)
        y = followed(t, m, -step * self._shift, self._turned(start) - self._centre, steps).transpose(-1, -2)
        return self._back(y + self._centre).to(self.dtype)

    def rates(
        self, method: Method, *, lr: float | None = None, momentum: float | None = None, damping: float | None = None
    ) -> Tensor:
        """Factor a step by which the distance along each eigenvector shrinks (or grows) in the end, (d,).

        Raises:
            InputError: as ``trajectory``.
        """
        where = f"{NAME}.rates"
        t, m, _ = recursion(method, self._h, self._settings(method, lr, momentum, damping, where), where)
        return roots(t, m)[0].to(self.dtype)

    def regimes(self, lr: float, momentum: float = 0.0, method: Method = "heavy_ball") -> tuple[Regime, ...]:
        """What each eigendirection does under gradient descent, with momentum or without.

        "monotone" and "oscillating" come to rest (without momentum: lr h up to 1, and between 1 and 2), "critical"
        keeps its distance (lr h = 2), "divergent" does not, "escaping" leaves along negative curvature, "still" has
        none.

        Raises:
            InputError: as ``trajectory``.
        """
        where = f"{NAME}.regimes"
        t, m, _ = recursion(method, self._h, self._settings(method, lr, momentum, None, where), where)
        modulus, smooth = roots(t, m)
        told = zip(self._h.tolist(), modulus.tolist(), smooth.tolist(), strict=True)
        return tuple(regime(h, size, positive) for h, size, positive in told)

    def stability_limit(self, momentum: float = 0.0, method: Method = "heavy_ball") -> float:
        """Largest learning rate at which no direction of positive curvature grows; inf where there is none.

        2 (1 + momentum) / h of the largest curvature h for "heavy_ball" (and gradient descent, without momentum);
        2 (1 + momentum) / ((1 + 2 momentum) h) for "nesterov".

        Raises:
            InputError: a method without a learning rate of its own; momentum outside [0, 1).
        """
        where = f"{NAME}.stability_limit"
        check_option(where, "method", method, ("gradient_descent", *MOMENTUM))
        check_momentum(where, momentum)
        h = float(self._h.max())
        if h <= 0:
            return math.inf
        bound = 2 * (1 + momentum)
        return bound / h if method != "nesterov" else bound / ((1 + 2 * momentum) * h)

    def optimal(self, method: Method) -> Optimum:
        """The learning rate and momentum with the fastest slowest direction, and its rate.

        With L and l the largest and smallest curvature, k = L / l: gradient descent 2 / (L + l), rate
        (k - 1) / (k + 1); heavy ball (Polyak 1964) 4 / (sqrt L + sqrt l)^2, momentum the square of its rate,
        (sqrt k - 1) / (sqrt k + 1); Nesterov (Lessard, Recht, Packard 2016, table 1) 4 / (3 L + l), rate
        1 - 2 / sqrt(3 k + 1). Methods that divide by curvature arrive in one step.

        Raises:
            InputError: curvature that is not positive everywhere.
        """
        return fastest(method, float(self._h.min()), float(self._h.max()), f"{NAME}.optimal")

    def stationary_covariance(self, lr: float, noise_covariance: Any, momentum: float = 0.0) -> Tensor:
        """Covariance in which descent with noisy gradients settles, (d, d), around the minimiser.

        Of p <- momentum p - lr (A x + b + e), x <- x + p, with e drawn anew at each step, of mean 0 and covariance C.
        Without momentum a direction of curvature h settles at lr C / (h (2 - lr h)). Gaussian noise makes the
        distribution Gaussian.

        Args:
            lr: learning rate.
            noise_covariance: C: one variance for all coordinates, (d,) or (d, d).
            momentum: of the heavy ball.

        Raises:
            InputError: curvature that is not positive everywhere, or a rate at which the variance grows for ever; a
                covariance of another shape or with negative variances.

        Cost: a system of 4 x 4 for each pair of directions.
        """
        where = f"{NAME}.stationary_covariance"
        C = covariance_of(noise_covariance, len(self._h), where)
        inner = C if self._Q is None else self._Q.T @ C @ self._Q
        check_rate(where, "lr", lr)
        covariance = settled(self._h, inner, Settings(lr, momentum), self.stability_limit(momentum), where)
        return (covariance if self._Q is None else self._Q @ covariance @ self._Q.T).to(self.dtype)

    def _settings(
        self, method: str, lr: float | None, momentum: float | None, damping: float | None, where: str
    ) -> Settings:
        """All settings of a method, checked; a rate and momentum that are left out are the best ones."""
        if method in ("gradient_descent", *MOMENTUM) and lr is None and momentum is None:
            lr, momentum, _ = fastest(method, float(self._h.min()), float(self._h.max()), where)
        return settings_of(method, lr, momentum, damping, where)

    def _in_metric(self, method: str, start: Tensor, steps: int, settings: Settings, metric: Any) -> Tensor:
        """The natural gradient in a metric: gradient descent in coordinates in which that is the identity."""
        where = f"{NAME}.trajectory"
        if method != "natural_gradient":
            raise input_error(where, f'no metric with "{method}"', "one", 'Use "natural_gradient"')
        F = values(metric, "metric", where)
        if F.shape != (len(self._h), len(self._h)):
            got = f"{tuple(F.shape)}"
            raise input_error(
                where, f"a metric {(len(self._h), len(self._h))}", got, "Pass one row and column a coordinate"
            )
        F = symmetric(F, where) + settings.damping * torch.eye(len(F), dtype=torch.float64)
        root, failed = torch.linalg.cholesky_ex(F)
        if failed:
            got = "eigenvalues that are not"
            raise input_error(where, "a metric whose eigenvalues are positive", got, "Raise `damping`")
        inverse = torch.linalg.solve_triangular(root, torch.eye(len(F), dtype=torch.float64), upper=False)
        A = self._back(torch.diag(self._h)) if self._Q is None else (self._Q * self._h) @ self._Q.T
        A = inverse @ A @ inverse.T
        inner = Quadratic((A + A.T) / 2, inverse @ self._b, self.c)
        path = inner.trajectory("gradient_descent", start @ root, steps, lr=settings.lr)
        return (path @ inverse).to(self.dtype)


def check_quadratic(where: str, problem: object) -> None:
    """Refuse what is no ``Quadratic``.

    Raises:
        InputError: it is none.
    """
    if not isinstance(problem, Quadratic):
        got = f"{problem!r}" if isinstance(problem, str) else type(problem).__name__
        raise input_error(where, "`problem` to be a Quadratic", got, "Pass Quadratic(A), with A its matrix")
