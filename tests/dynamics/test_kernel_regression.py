"""Kernel regression: leave-one-out against fits that do leave out, the ridge it picks, and kernels of networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb

F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=F64)


def fits(kernel: Tensor, y: Tensor, ridge: float) -> Tensor:
    """What a fit without sample i says of it, one fit a sample; kernel (N, N, C, C), y (N, C)."""
    n, C = y.shape
    found = []
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        K = kernel[rest][:, rest].permute(0, 2, 1, 3).reshape((n - 1) * C, -1)
        solved = torch.linalg.solve(K + ridge * torch.eye(len(K), dtype=F64), y[rest].reshape(-1))
        found.append(kernel[i][rest].permute(1, 0, 2).reshape(C, -1) @ solved)
    return torch.stack(found)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("ridge", [0.05, 3.0])
def test_leaving_out_is_a_fit_of_its_own(full: bool, ridge: float) -> None:
    J, y = drawn(7, 2, 9), drawn(7, 2)
    J2 = drawn(3, 2, 9)
    kernel, cross = (torch.einsum("icp,jep->ijce", a, J) for a in (J, J2))
    if not full:
        eye = torch.eye(2, dtype=F64)
        kernel, cross = (k[:, :, :1, :1] * eye for k in (kernel, cross))
    given = (kernel, cross) if full else (kernel[:, :, 0, 0], cross[:, :, 0, 0])
    found = pb.kernel_regression(given[0], y, cross=given[1], ridge=ridge)
    assert isinstance(found, pb.KernelRegression)
    torch.testing.assert_close(found.left_out, fits(kernel, y, ridge))
    assert found.loo_error == pytest.approx(float((found.left_out - y).square().mean()))
    matrix = kernel.permute(0, 2, 1, 3).reshape(14, 14)
    solved = torch.linalg.solve(matrix + ridge * torch.eye(14, dtype=F64), y.reshape(-1))
    torch.testing.assert_close(found.coefficients, solved.reshape(7, 2))
    torch.testing.assert_close(found.train, (matrix @ solved).reshape(7, 2))
    torch.testing.assert_close(found.test, (cross.permute(0, 2, 1, 3).reshape(6, 14) @ solved).reshape(3, 2))
    hat = torch.linalg.solve(matrix + ridge * torch.eye(14, dtype=F64), matrix)
    assert found.degrees == pytest.approx(float(hat.trace()) / (1 if full else 2))


def test_the_ridge_with_the_least_error_is_found() -> None:
    x = torch.linspace(-2, 2, 40, dtype=F64)
    kernel = torch.exp(-((x[:, None] - x) ** 2) / 0.5)
    y = torch.sin(2 * x) + 0.3 * drawn(40)
    found = pb.kernel_regression(kernel, y)
    others = [
        pb.kernel_regression(kernel, y, ridge=found.ridge * factor).loo_error for factor in (0.01, 0.8, 1.25, 100)
    ]
    assert found.loo_error < min(others)
    assert 1e-3 < found.ridge < 10


def test_a_constant_kernel_and_zeros() -> None:
    found = pb.kernel_regression(torch.zeros(3, 3, dtype=F64), torch.ones(3, dtype=F64))
    assert found.train.tolist() == [0, 0, 0]
    assert found.loo_error == 1


@pytest.mark.slow  # a training on the digits
def test_kernels_before_and_after_training_on_the_digits() -> None:
    """The exact tangent kernel, that of infinite width and the after kernel: the last knows what was learned."""
    data = pb.functional.load_digits(seed=0)
    x, y = data.x_train[:200].flatten(1).double(), data.y_train[:200]
    x2, y2 = data.x_test[:300].flatten(1).double(), data.y_test[:300]
    targets = nn.functional.one_hot(y, 10).double() - 0.1
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    scores = {}

    def score(name: str, kernel: Any, cross: Any) -> None:
        found = pb.kernel_regression(kernel, targets, cross=cross)
        assert found.test is not None
        scores[name] = float((found.test.argmax(1) == y2).double().mean())
        left = float((found.left_out.argmax(1) == y).double().mean())
        assert abs(left - scores[name]) < 0.08  # leave-one-out tells the test score: 3 standard errors of 200 samples

    score("tangent", pb.tangent_kernel(model, x), pb.tangent_kernel(model, x2, x2=x))
    ntk, cross = (pb.theory.infinite_width_kernels("relu", 1, 2**0.5, 0.1, a.numpy(), x.numpy())[1] for a in (x, x2))
    score("infinite width", ntk, cross)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    score("after", pb.tangent_kernel(model, x), pb.tangent_kernel(model, x2, x2=x))
    assert min(scores.values()) > 0.85, scores


ONES = torch.ones(2, dtype=F64)
EYE = torch.eye(2, dtype=F64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pb.kernel_regression(EYE, ONES, ridge=-1.0), r"expected a finite `ridge` of at least 0, got -1.0"),
        (lambda: pb.kernel_regression(EYE, ONES, ridge="auto"), r"'leave_one_out' .* as `ridge`, got 'auto'"),
        (lambda: pb.kernel_regression(EYE[:1, :1], ONES[:1]), r"'leave_one_out' of several samples .*, got one sample"),
        (
            lambda: pb.kernel_regression(torch.ones(2, 2, dtype=F64), ONES, ridge=0.0),
            r"expected a `ridge` above the kernel's rounding, .*, got 0 beside a smallest eigenvalue of",
        ),
        (lambda: pb.kernel_regression(-EYE, ONES), r"kernel_regression: expected a positive semi-definite `kernel`"),
        (lambda: pb.kernel_regression(EYE, torch.ones(3)), r"expected `targets` \(2, ...\), got shape \(3,\)"),
        (lambda: pb.kernel_regression(EYE, ONES, cross=torch.ones(2, 3)), r"expected `cross` \(M, 2\), got shape"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
