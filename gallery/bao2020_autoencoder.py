"""A regularised linear autoencoder learns its components slowly, and curvature says how slowly.

Bao et al. (2020), "Regularized linear autoencoders recover the principal components, eventually"; figures 1 and 2 and
the printed numbers of section 4.3 of Grosse's lecture "Taylor approximations" (2021). Claim: gradient descent reaches
nearly the least cost in few steps, but needs very many to turn the hidden units into the principal components, since
the cost bends thousands of times less along rotations of the latent space than along its scale.

The cost of encoder W1 (K, D) and decoder W2 (D, K) over data X (N, D), with N = 1000, D = 20, K = 10, is

    J = 1/(2N) Σ_i |W2 W1 x_i - x_i|² + 1/2 Σ_k l_k (|row k of W1|² + |column k of W2|²)

for penalties l from 0 to half the tenth variance s_10. With a_k = 1 - l_k/s_k and U the principal components it is
least at W1 = P a^½ Uᵀ and W2 = U a^½ P, for any signs P. Curvature in a direction v is the Rayleigh quotient
vᵀHv / vᵀv with the Hessian H.

The lecture calls this optimum unique up to signs. With its own data it is not: l_1 = 0 leaves the scale between row 1
of W1 and column 1 of W2 free, and the last coordinate of the data is 0 throughout, which leaves W1[0, 19] free. So the
Hessian has two zero eigenvalues. Its "nearly 4 orders of magnitude" between the two curvatures are 3.5. The lecture
does not give the learning rate of figure 1; here it is 0.3, below the largest stable one, 0.96.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from kit.charts import Curve, contours, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb

LEARNING_RATE = 0.3
PRINTED, CLOSED, RERUN = "printed in the lecture, float32", "closed form", "a run of the same recipe in NumPy, float64"


class Autoencoder(nn.Module):
    """Reconstructions (B, D), and in one more column the penalty, the same for every sample."""

    def __init__(self, encoder: Tensor, decoder: Tensor, penalties: Tensor) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Parameter(encoder.clone()), nn.Parameter(decoder.clone())
        self.register_buffer("penalties", penalties)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D + 1)."""
        penalty = (self.penalties[:, None] * self.encoder**2).sum() + (self.penalties * self.decoder**2).sum()
        return torch.cat([x @ self.encoder.T @ self.decoder.T, (penalty / 2).expand(len(x), 1)], dim=1)


def loss_fn(outputs: Tensor, x: Tensor) -> Tensor:
    """The cost, one number per sample (N,)."""
    return ((outputs[:, :-1] - x) ** 2).sum(1) / 2 + outputs[:, -1]


class Problem:
    """The lecture's data and start, from NumPy's seed 0, with what principal component analysis says."""

    def __init__(self, num_hidden: int) -> None:
        generator = np.random.RandomState(0)  # the lecture's own generator
        x = generator.normal(0, np.sqrt(np.linspace(1, 0, 20)), size=(1000, 20))
        encoder = generator.normal(0, 0.1, size=(10, 20))
        decoder = generator.normal(0, 0.1, size=(20, 10))
        variances, directions = np.linalg.eigh(x.T @ x / len(x))
        self.x, self.start = torch.tensor(x), (torch.tensor(encoder), torch.tensor(decoder))
        self.all_variances = torch.tensor(variances[::-1].copy())
        self.variances = self.all_variances[:num_hidden]  # s_k
        self.components = torch.tensor(directions[:, ::-1][:, :num_hidden].copy())  # U, (D, K)
        self.penalties = torch.linspace(0, float(self.variances[-1]) / 2, num_hidden, dtype=torch.float64)  # l_k
        self.shrinkage = 1 - self.penalties / self.variances  # a_k
        self.optimum = self.shrinkage.sqrt()[:, None] * self.components.T, self.components * self.shrinkage.sqrt()

    def model(self, weights: tuple[Tensor, Tensor]) -> Autoencoder:
        """The network with the given encoder and decoder."""
        return Autoencoder(*weights, self.penalties)

    def cost(self, weights: tuple[Tensor, Tensor]) -> float:
        """J at the given weights."""
        with torch.no_grad():
            return loss_fn(self.model(weights)(self.x), self.x).mean().item()


def build(page: Page) -> None:
    """Fill the page."""
    problem = Problem(10)
    page.set(seed=0, samples=1000, learning_rate=LEARNING_RATE, steps=page.pick(small=10_000, full=100_000))
    optimal = data_and_optimum(page, problem)
    curvature(page, problem)
    training(page, problem, optimal, page.settings["steps"])
    landscape(page, Problem(2))


def data_and_optimum(page: Page, problem: Problem) -> float:
    """The recipe is the lecture's, and equation 12 is its minimum."""
    s, lam, a = problem.variances, problem.penalties, problem.shrinkage  # s_k, l_k, a_k
    page.row("largest variance s_1", 1.0391819425794462, s[0], 1e-12, source=RERUN)
    page.row("tenth variance s_10", 0.5065570472356923, s[9], 1e-12, source=RERUN)
    page.row("largest penalty l_10", 0.25327852361784614, lam[9], 1e-12, source=RERUN)
    page.row("cost at the start", 5.281338968661541, problem.cost(problem.start), 1e-12, source=RERUN)
    least = (lam - lam**2 / (2 * s)).sum() + problem.all_variances[10:].sum() / 2
    optimal = problem.cost(problem.optimum)
    page.row("cost at the optimum", 2.21509826983, optimal, 5e-12, source=RERUN)
    page.row("cost at the optimum, by formula", float(least), optimal, 1e-12, source="sum (l - l²/2s) + rest/2")
    model = problem.model(problem.optimum)
    gradient = torch.autograd.grad(loss_fn(model(problem.x), problem.x).mean(), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    page.at_most("gradient norm at the optimum", 1e-13, norm, source="equation 12")
    encoder, decoder = problem.optimum
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)), dtype=torch.float64)
    apart = max(abs(problem.cost((p[:, None] * encoder, decoder * p)) - optimal) for p in signs)
    page.at_most("cost apart among the 2^10 choices of signs", 1e-12, apart, source="the signs P of equation 12")
    mixing = torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(10)
    before = problem.x @ encoder.T @ decoder.T
    after = problem.x @ (mixing @ encoder).T @ (decoder @ torch.linalg.inv(mixing)).T
    page.at_most("reconstructions moved by (A W1, W2 A⁻¹)", 1e-12, (after - before).abs().max(), source="section 4.3")
    page.row("units shrunk, 0 < a_k < 1", 9, int(((a > 0) & (a < 1)).sum()), 0, source="all but the first: l_1 = 0")
    return optimal


def curvature(page: Page, problem: Problem) -> None:
    """The Rayleigh quotients the lecture prints, and the whole spectrum behind them."""
    hessian = pb.Hessian(problem.model(problem.optimum), loss_fn, (problem.x, problem.x))
    encoder, decoder = problem.optimum

    def rescaled(gamma: Tensor) -> Tensor:
        return torch.cat([(gamma * encoder).flatten(), (gamma * decoder).flatten()])

    def rotated(theta: Tensor) -> Tensor:
        turn = block_rotation(theta, 10)
        return torch.cat([(turn @ encoder).flatten(), (decoder @ turn.T).flatten()])

    one = torch.ones(1, dtype=torch.float64)
    s, lam, a = problem.variances, problem.penalties, problem.shrinkage  # s_k, l_k, a_k
    scaling = pb.rayleigh_quotient(hessian, pb.jvp(rescaled, one, one))
    closed = float(2 * (a**2 * s).sum() / a.sum())
    page.row("Rayleigh quotient, scaling", 1.3586808, scaling, 5e-6, source=PRINTED)
    page.row("Rayleigh quotient, scaling", closed, scaling, 1e-12, source=f"{CLOSED} 2 sum a² s / sum a")
    rotation = pb.rayleigh_quotient(hessian, pb.jvp(rotated, 0 * one, one))
    closed = float((lam[1] - lam[0]) * (a[0] - a[1]) / (a[0] + a[1]))
    page.row("Rayleigh quotient, rotation of units 1 and 2", 0.00041926137, rotation, 5e-7, source=PRINTED)
    page.row("Rayleigh quotient, rotation", closed, rotation, 1e-12, source=f"{CLOSED} (l2 - l1)(a1 - a2)/(a1 + a2)")
    page.row("scaling over rotation", 3240, scaling / rotation, 1, source="ratio of two rows above")
    reason = "the lecture's own two numbers are 3.5 orders of magnitude apart"
    orders = math.log10(scaling / rotation)
    page.row(
        "orders of magnitude between them", 4, orders, 0.1, source='"nearly 4"; of the row above', not_reproduced=reason
    )
    top = pb.eigenvalues(hessian, 1, tol=1e-9, seed=0)
    page.row("largest eigenvalue, Lanczos", 2.0783638851589052, top.values[0], 1e-8, source=RERUN)
    spectrum = torch.linalg.eigvalsh(hessian.to_dense())
    page.row("largest eigenvalue, dense", 2.0783638851589052, spectrum[-1], 1e-12, source=RERUN)
    page.row("smallest eigenvalue that is not zero", 1.628337197070018e-05, spectrum[2], 1e-12, source=RERUN)
    page.row("zero eigenvalues (below 1e-12)", 2, int((spectrum.abs() < 1e-12).sum()), 0, source="l_1 = 0; s_20 = 0")
    found = [float(each) for each in spectrum[2:].flip(0)]
    page.draw(
        curves(
            "spectrum",
            "Eigenvalues of the Hessian at the optimum",
            "Sorted from the largest; the two zeros are left out. The lines are the two curvatures the lecture prints.",
            [
                Curve("eigenvalues", range(1, 399), found),
                Curve("scaling", [1, 398], [scaling] * 2, "dash", "#D55E00"),
                Curve("rotation", [1, 398], [rotation] * 2, "dash", "#009E73"),
            ],
            x="rank",
            y="eigenvalue",
            log_y=True,
        )
    )


def block_rotation(theta: Tensor, size: int) -> Tensor:
    """Rotation of the first two of ``size`` coordinates."""
    matrix = torch.eye(size, dtype=torch.float64)
    c, s = torch.cos(theta).reshape(()), torch.sin(theta).reshape(())
    corner = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    return torch.cat([torch.cat([corner, matrix[:2, 2:]], 1), matrix[2:]], 0)


def training(page: Page, problem: Problem, optimal: float, num_steps: int) -> None:
    """Figure 1: the cost falls at once, the angles for a very long time."""
    model = problem.model(problem.start)
    weights = list(model.parameters())
    marks = sorted({round(10 ** (k / 20)) for k in range(round(20 * math.log10(num_steps)) + 1)})
    gaps, angles = {0: problem.cost(problem.start) - optimal}, {0: angles_of(problem, model)}
    for step in range(1, num_steps + 1):
        gradient = torch.autograd.grad(loss_fn(model(problem.x), problem.x).mean(), weights)
        with torch.no_grad():
            for weight, g in zip(weights, gradient, strict=True):
                weight -= LEARNING_RATE * g
        if step in marks:
            gaps[step] = problem.cost((model.encoder.detach(), model.decoder.detach())) - optimal
            angles[step] = angles_of(problem, model)
    printed = {1000: 0.00706522999731618, 10_000: 0.0007770229107251225, 100_000: 5.910133338948853e-05}
    slow = {1000: 10, 10_000: 9, 100_000: 3}
    for step in (s for s in printed if s <= num_steps):
        page.row(f"cost above the optimum, step {step:,}", printed[step], gaps[step], 1e-6, relative=True, source=RERUN)
        off = sum(angle > 30 for angle in angles[step])
        page.row(f"components off by more than 30°, step {step:,}", slow[step], off, 0, source=RERUN)
    page.at_most("part of the first gap left at step 1,000", 0.01, gaps[1000] / gaps[0], source="figure 1, top left")
    free = abs(float(model.encoder.detach()[0, 19] - problem.start[0][0, 19]))
    page.row("movement of W1[0, 19], which is free", 0, free, 0, source="s_20 = 0 and l_1 = 0")
    steps = [step for step in marks if step in gaps]
    cost = [
        Curve("cost", steps, [gaps[s] + optimal for s in steps]),
        Curve("optimal", steps, [optimal] * len(steps), "dash"),
    ]
    page.draw(
        curves(
            "cost",
            "Cost while training (figure 1, top)",
            "The dashed line is the least cost there is; both panels of the figure in one, on a logarithmic axis.",
            cost,
            x="step",
            y="cost",
            log_x=True,
        )
    )
    lines = [Curve(f"PC {k + 1}", steps, [angles[s][k] for s in steps], colour=component_colour(k)) for k in range(10)]
    page.draw(
        curves(
            "angles",
            "Angle between each encoder row and its component (figure 1, bottom)",
            "Red is the component of the largest variance, green of the smallest. At 0 a component has been learned.",
            lines,
            x="step",
            y="angle in degrees",
            log_x=True,
            y_range=(0, 92),
            summary=[
                f"Step {s:,}: {sum(a > 30 for a in angles[s])} of 10 are off by more than 30°."
                for s in slow
                if s in angles
            ],
        )
    )


def angles_of(problem: Problem, model: Autoencoder) -> list[float]:
    """Angle in degrees between each row of the encoder and its principal component."""
    rows = model.encoder.detach()
    cosines = (rows * problem.components.T).sum(1).abs() / rows.norm(dim=1)
    sines = (rows - (rows * problem.components.T).sum(1, keepdim=True) * problem.components.T).norm(dim=1)
    return torch.rad2deg(torch.atan2(sines, cosines * rows.norm(dim=1))).tolist()  # exact for small angles too


def component_colour(place: int) -> str:
    """From red, the largest component, to green, the smallest."""
    red, green = (196, 43, 28), (0, 148, 100)
    mixed = (round(r + (g - r) * place / 9) for r, g in zip(red, green, strict=True))
    return "#" + "".join(f"{each:02x}" for each in mixed)


def landscape(page: Page, problem: Problem) -> None:
    """Figure 2: the narrow valley for two hidden units, W1 = g Q(t) a^(1/2) U^T and W2 = W1^T."""
    base = problem.optimum[0]

    def height(gamma: float, theta: float) -> float:
        encoder = gamma * block_rotation(torch.tensor(theta, dtype=torch.float64), 2) @ base
        return problem.cost((encoder, encoder.T.contiguous()))

    for gamma, theta, name, value in (
        (1, 0, "0", 4.301606377284582),
        (1, math.pi / 2, "π/2", 4.54123453556813),
        (0, 0, "0", 4.941011427716078),
        (1.5, 0.3, "0.3", 5.347763086615332),
    ):
        page.row(f"height at γ = {gamma}, θ = {name}", value, height(gamma, theta), 1e-12, source=f"{RERUN}, K = 2")
    size = page.pick(small=41, full=61)
    places = [3 * k / (size - 1) - 1.5 for k in range(size)]
    heights = [[height(math.hypot(u, v), math.atan2(v, u)) for u in places] for v in places]
    metric = float(2 * problem.shrinkage.sum())
    step = 1e-3
    moved = block_rotation(torch.tensor(step, dtype=torch.float64), 2) @ base - base
    page.row(
        "|dW|² / dθ² at γ = 1", metric, 2 * float((moved**2).sum()) / step**2, 1e-5, source="2 (a1 + a2): isometric"
    )
    page.draw(
        contours(
            "valley",
            "The cost for two hidden units (figure 2)",
            "Distance from the middle is the scale γ of the weights, the angle is their rotation θ; at γ = 1 and θ = 0 "
            "or π the cost is least.",
            ("γ cos θ", places),
            ("γ sin θ", places),
            ("cost", heights),
            top=6.0,
            points=[Curve("optimum", [1, -1], [0, 0], "points", "#ffffff")],
            summary=(
                f"Along the circle γ = 1 the cost rises by {height(1, math.pi / 2) - height(1, 0):.3g}, along the "
                f"radius to the middle by {height(0, 0) - height(1, 0):.3g}.",
            ),
        )
    )


if __name__ == "__main__":
    run(build)
