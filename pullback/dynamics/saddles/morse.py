"""``morse_coordinates``: in which a function is a sum of squares with signs, exactly, around a critical point."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback._checks import check_count, input_error
from pullback.dynamics.landscapes import as_landscape
from pullback.dynamics.quadratic.values import values
from pullback.dynamics.saddles.points import critical_point

ITERATIONS = 60
SETTLED = 1e-10


def morse_coordinates(landscape: Any, point: Any, x: Any, *, nodes: int = 20) -> tuple[Tensor, Tensor]:
    """Coordinates y in which f(x) = f(p) + sum of s_i y_i^2, s_i = -1 or 1, around a critical point p (Morse lemma).

    With d = x - p, Taylor's remainder f(x) - f(p) = d^T S d is exact for S = the mean of (1 - t) H(p + t d) over t.
    With S_0 = H(p) / 2 = Q diag(l) Q^T and R the principal root of S_0^-1 S, S = R^T S_0 R, so y = |l|^(1/2) Q^T R d.

    Args:
        landscape: a name, a ``Landscape``, a ``Quadratic``, or a function (..., d) -> (...), twice differentiable.
        point: p, (d,), without slope and with a Hessian that has no zero eigenvalue.
        x: places, (..., d).
        nodes: of Gauss' rule on the way from p to x; exact for polynomials of degree up to 2 ``nodes``.

    Returns:
        y (..., d), and the signs (d,), as many of them -1 as the Morse index.

    Raises:
        InputError: a slope at p; a degenerate point; a place so far away that S_0^-1 S has no principal root.

    Cost: ``nodes`` Hessians a place.

    References: Milnor (1963), Morse Theory, lemma 2.2; here by a root in place of one coordinate after the other.

    Example:
        >>> x = torch.tensor([0.3, -0.2], dtype=torch.float64)
        >>> y, signs = morse_coordinates("double_well", [0.0, 1.0], [0.2, 0.9])
        >>> signs.tolist()
        [-1.0, 1.0]
        >>> from pullback import dynamics
        >>> well = dynamics.landscape("double_well")
        >>> at = torch.tensor([[0.0, 1.0], [0.2, 0.9]], dtype=torch.float64)
        >>> bool(torch.isclose(well(at[1]) - well(at[0]), (signs * y**2).sum()))
        True
    """
    where = "morse_coordinates"
    nodes = check_count(where, "nodes", nodes, 1)
    world = as_landscape(landscape, where)
    critical = critical_point(world, point)
    if critical.kind.zero:
        got = f"{critical.kind.zero} zero eigenvalues"
        raise input_error(where, "a critical point without zero eigenvalues", got, "Take another point")
    places = values(x, "x", where).to(critical.x.dtype)
    if places.dim() == 0 or places.shape[-1] != len(critical.x):
        expected = f"`x` with {len(critical.x)} coordinates last"
        raise input_error(where, expected, f"shape {tuple(places.shape)}", "Pass one number a coordinate")
    hessian = torch.func.jacrev(torch.func.grad(world.function))
    S0 = hessian(critical.x) / 2
    half, Q = torch.linalg.eigh((S0 + S0.T) / 2)
    d = (places - critical.x).reshape(-1, len(critical.x))
    R = _root(torch.linalg.solve(S0, _remainder(hessian, critical.x, d, nodes)), where)
    y = half.abs().sqrt() * ((R @ d[..., None])[..., 0] @ Q)
    return y.reshape(places.shape), half.sign()


def _remainder(hessian: Any, point: Tensor, d: Tensor, nodes: int) -> Tensor:
    """The mean of (1 - t) H(p + t d) over t in [0, 1], (B, n, n)."""
    at, weights = (torch.as_tensor(each, dtype=d.dtype) for each in np.polynomial.legendre.leggauss(nodes))
    t, w = (at + 1) / 2, weights / 2
    H = torch.func.vmap(torch.func.vmap(hessian))(point + t[None, :, None] * d[:, None, :])
    return torch.einsum("t,btij->bij", w * (1 - t), H)


def _root(B: Tensor, where: str) -> Tensor:
    """Principal square roots of matrices (B, n, n), by the iteration of Denman and Beavers.

    Raises:
        InputError: one has none.
    """
    Y, Z = B, torch.eye(B.shape[-1], dtype=B.dtype).expand_as(B)
    for _ in range(ITERATIONS):
        inverse, info = torch.linalg.inv_ex(torch.stack([Y, Z]))
        if bool(info.any()):
            break
        Y, Z = (Y + inverse[1]) / 2, (Z + inverse[0]) / 2
    size = B.flatten(1).norm(dim=1).clamp(min=1)
    if not bool(((Y @ Y - B).flatten(1).norm(dim=1) <= SETTLED * size).all()):
        remedy = "Pass places nearer to the point"
        raise input_error(where, "places where the curvature still is like that at the point", "some where not", remedy)
    return Y
