"""Self-stabilisation of a network at the edge of stability, predicted and measured (Damian et al. 2023).

Claims of arXiv:2209.15594: gradient descent at rate η moves about a constrained trajectory θ†, which descends as far as
it can where the sharpness S, the largest eigenvalue of the Hessian, stays at 2/η and the slope along its eigenvector u
is 0. With x = u·(θ - θ†), v the rest of θ - θ†, and ∇S⊥ the slope of the sharpness across u,

    x ← -(1 + η y) x,   v ← P (I - η H) P v + η ∇S⊥ (δ² - x²) / 2,   y = ∇S⊥·v,   δ² = 2α/β,

P across u, α = -∇L·∇S, β = |∇S⊥|²: the sharpness is 2/η + y + x u·∇S. Where H does not matter and α and β stay as
they are, that is y ← y + η (α - β x²/2). Both are started when x, which grows from next to nothing once the sharpness
is above 2/η, has reached δ/10, or where the sharpness first reaches 2/η and the network is pushed to x = δ/2 there,
which spares it the climb; from where it is then they are told nothing of it. The first knows the constrained
trajectory, the second the constants of the start alone. A prediction holds until it is off by a quarter
of the largest distance of the sharpness from 2/η in the time watched, or of the largest |x|.

The paper trains on CIFAR-10; here it is 100 of the digits that ship with scikit-learn, of 4 x 4 pixels, a
tanh network and squared errors. Distances are those of the network that is trained, not of an expansion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from kit.charts import Curve, curves
from kit.claims import HEADER, decide, table
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb

HIDDEN, SAMPLES, OFF, LONGEST = 8, 100, 0.25, 1500


class Loss:
    """Half of the mean squared error of a tanh network as a function of its weights in one vector, (P,) to a number."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.start = nn.utils.parameters_to_vector(model.parameters()).detach()
        self.shapes = [p.shape for p in model.parameters()]

    def __call__(self, w: Tensor) -> Tensor:
        """At w."""
        parts = [p.view(shape) for p, shape in zip(w.split([s.numel() for s in self.shapes]), self.shapes, strict=True)]
        signal = self.x
        for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            signal = torch.tanh(signal @ weight.T + bias)
        return half_square(signal @ parts[-2].T + parts[-1], self.y).mean()

    def slope(self, w: Tensor) -> Tensor:
        """(P,)."""
        w = w.detach().requires_grad_()
        return torch.autograd.grad(self(w), w)[0]


class Bend:
    """The Hessian at w, as products; its graph is made once."""

    def __init__(self, loss: Loss, w: Tensor) -> None:
        self.w, self.shape, self.dtype, self.device = w.detach().requires_grad_(), (len(w), len(w)), w.dtype, w.device
        (self.graph,) = torch.autograd.grad(loss(self.w), self.w, create_graph=True)

    def __matmul__(self, other: Tensor) -> Tensor:
        """With (P,) or (P, K)."""
        columns = other[:, None] if other.ndim == 1 else other
        found = [torch.autograd.grad(self.graph, self.w, each, retain_graph=True)[0] for each in columns.T]
        return torch.stack(found, 1).view(other.shape)

    def curvature_slope(self, u: Tensor) -> Tensor:
        """The slope of u^T H u with u held, (P,)."""
        (product,) = torch.autograd.grad(self.graph, self.w, u, create_graph=True)
        return torch.autograd.grad(product @ u, self.w, retain_graph=True)[0]


@dataclass(frozen=True)
class Turn:
    """What is known at a place: weights, slope and Hessian of the loss, its top pair, and the sharpness' slope."""

    w: Tensor  # (P,)
    slope: Tensor  # (P,)
    hessian: Bend  # (P, P)
    sharpness: float
    u: Tensor  # (P,)
    sharpening: Tensor  # the slope of the sharpness, (P,)

    @property
    def across(self) -> Tensor:
        """The slope of the sharpness across u."""
        return self.sharpening - (self.sharpening @ self.u) * self.u

    @property
    def alpha(self) -> float:
        """How fast descent sharpens."""
        return -float(self.slope @ self.sharpening)

    @property
    def delta_squared(self) -> float:
        """x² at which the sharpness stays."""
        return 2 * self.alpha / float(self.across.square().sum())


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half of the squared error, (N,)."""
    return ((outputs - targets) ** 2).sum(1) / 2


def problem(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A tanh network, images (N, 16) and classes as unit vectors."""
    data = pb.functional.load_digits(0)
    images = data.x_train[:SAMPLES].double().reshape(SAMPLES, 1, 8, 8)
    x, y = nn.functional.avg_pool2d(images, 2).flatten(1), nn.functional.one_hot(data.y_train[:SAMPLES], 10).double()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(16, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10))
        return nn.Sequential(*layers).double().eval(), x, y


def at(loss: Loss, w: Tensor, before: Tensor | None = None, tol: float = 1e-4) -> Turn:
    """Everything at w; u has the sign that agrees with the one before."""
    bend = Bend(loss, w)
    top = pb.eigenvalues(bend, 1, tol=tol, start=before)
    u = top.vectors[:, 0]
    u = u if before is None or float(u @ before) >= 0 else -u
    return Turn(w, bend.graph.detach(), bend, float(top.values[0]), u, bend.curvature_slope(u))


def onto_stable(loss: Loss, w: Tensor, limit: float, before: Tensor, rounds: int) -> Turn:
    """The next point where the sharpness is at most its limit and the slope along u is 0, by Newton's method."""
    found = at(loss, w, before)
    for _ in range(rounds):
        w = found.w - (found.slope @ found.u) / found.sharpness * found.u
        excess = max(0.0, found.sharpness - limit)
        found = at(loss, w - excess * found.across / found.across.square().sum(), before)
    return found


def build(page: Page) -> None:
    """Fill the page."""
    ways = page.pick(small=((0.2, True),), full=((0.2, False), (0.25, False), (0.2, True), (0.25, True)))
    seeds, steps = page.pick(small=(1, 6), full=(5, 60))
    page.set(
        seed=0,
        ways=[named(*way) for way in ways],
        seeds=seeds,
        steps=steps,
        samples=SAMPLES,
        hidden=(HIDDEN, HIDDEN),
        activation="tanh",
    )
    curvatures(page)
    found = {way: [watched(seed, way, steps) for seed in range(seeds)] for way in ways}
    one_step(page, [each for runs in found.values() for each in runs])
    if steps >= 40:  # a turn of the oscillation
        verdicts(page, found)
    for way in (ways[0], ways[-1]) if len(ways) > 1 else ways:
        drawn(page, way, found[way][0])


def curvatures(page: Page) -> None:
    """The sharpness and its slope, by other routes."""
    model, x, y = problem(0)
    loss = Loss(model, x, y)
    here = at(loss, loss.start, tol=1e-8)
    known = pb.eigenvalues(pb.Hessian(model, half_square, (x, y)), 1, tol=1e-8)
    page.row("sharpness at the start", float(known.values[0]), here.sharpness, 1e-6, relative=True, computed=True,
             source="Lanczos on Hessian products")  # fmt: skip
    step = 1e-4 * here.sharpening / here.sharpening.norm()
    known_slope = (
        at(loss, loss.start + step, tol=1e-8).sharpness - at(loss, loss.start - step, tol=1e-8).sharpness
    ) / 2e-4
    page.row("|∇S| at the start", known_slope, float(here.sharpening.norm()), 1e-5, relative=True, computed=True,
             source="differences of the sharpness")  # fmt: skip


Course = dict[str, Tensor]


Way = tuple[float, bool]  # the rate, and whether the network is pushed


def named(lr: float, pushed: bool) -> str:
    """In words."""
    return f"η = {lr:g}, {'pushed' if pushed else 'left alone'}"


def watched(seed: int, way: Way, steps: int) -> Course:
    """A training from where its oscillation is seen, beside both predictions; each (steps + 1,)."""
    (lr, pushed), loss = way, Loss(*problem(seed))
    turn, limit = until_seen(loss, lr, pushed), 2 / lr
    w, mark = turn.w, onto_stable(loss, turn.w, limit, turn.u, 4)
    off = w - mark.w
    full = (float(off @ mark.u), off - (off @ mark.u) * mark.u)
    simple = (full[0], turn.sharpness - limit - full[0] * float(mark.u @ mark.sharpening))
    alpha, beta = mark.alpha, float(mark.across.square().sum())
    rows = []
    for _ in range(steps + 1):
        here, off = at(loss, w, mark.u), w - mark.w
        tilt = float(mark.u @ mark.sharpening)
        x_full, v = full
        y_full = float(mark.across @ v)
        rows.append([here.sharpness, float(off @ mark.u), float(mark.across @ off), limit + y_full + x_full * tilt,
                     x_full, limit + simple[1] + simple[0] * tilt, simple[0], math.sqrt(max(0.0, mark.delta_squared)),
                     float(loss(w)), float(loss(mark.w))])  # fmt: skip
        following = onto_stable(loss, mark.w - lr * mark.slope, limit, mark.u, 1)
        v = v - (v @ mark.u) * mark.u
        v = v - lr * (mark.hessian @ v) + lr * mark.across * (mark.delta_squared - x_full * x_full) / 2
        full = (-(1 + lr * y_full) * x_full, v - (v @ following.u) * following.u)
        simple = (-(1 + lr * simple[1]) * simple[0], simple[1] + lr * (alpha - beta * simple[0] * simple[0] / 2))
        w, mark = w - lr * here.slope, following
    names = ("sharpness", "x", "y", "predicted sharpness", "predicted x", "sharpness by constants", "x by constants",
             "delta", "loss", "constrained loss")  # fmt: skip
    return dict(zip(names, torch.tensor(rows, dtype=torch.float64).T, strict=True)) | {"lr": torch.tensor(lr)}


def until_seen(loss: Loss, lr: float, pushed: bool) -> Turn:
    """Gradient descent until x is δ/10, looked at more often from δ/1000 on; or until the limit, and a push."""
    w, u, mark = loss.start.clone(), None, 0
    for step in range(LONGEST):
        slope = loss.slope(w)
        if step == mark:
            turn = at(loss, w, u)
            u, share = turn.u, (float(slope @ turn.u) / turn.sharpness) ** 2 / max(turn.delta_squared, 1e-12)
            if pushed and turn.sharpness > 2 / lr and turn.delta_squared > 0:
                x = float(slope @ u) / turn.sharpness
                return at(loss, w + (turn.delta_squared**0.5 / 2 - x) * u, u)
            if turn.sharpness > 2 / lr and share > 1e-2:
                return turn
            mark = step + (3 if share > 1e-6 and turn.sharpness > 1.9 / lr else 20)
        w = w - lr * slope
    message = f"expected a sharpness above 2 / {lr:g} within {LONGEST} steps, got less. Raise the rate."
    raise pb.SelfCheckError(message)


def one_step(page: Page, runs: list[Course]) -> None:
    """What a step does to x, wherever the network is: -(1 + η (S - 2/η)) to leading order."""
    errors = []
    for run_ in runs:
        lr, x = float(run_["lr"]), run_["x"]
        told = -(1 + lr * run_["y"][:-1]) * x[:-1]
        errors.append(((x[1:] - told).abs() / x.abs().max())[:6].max())
    page.at_most("x after a step less -(1 + η y) x, of the largest |x|, six steps, largest of all", 0.1,
                 float(torch.stack(errors).max()), source="lemma of section 4")  # fmt: skip


def time_held(run_: Course, names: tuple[str, str]) -> float:
    """Steps for which a prediction of sharpness and |x| is within a share of the largest distances."""
    reach = (run_["sharpness"] - 2 / float(run_["lr"])).abs().max()
    off = (run_[names[0]] - run_["sharpness"]).abs() > OFF * reach
    off |= (run_[names[1]].abs() - run_["x"].abs()).abs() > OFF * run_["x"].abs().max()
    off |= ~(run_[names[0]].isfinite() & run_[names[1]].isfinite())
    return float(off.double().argmax()) if bool(off.any()) else float(len(off) - 1)


FULL, SIMPLE = ("predicted sharpness", "predicted x"), ("sharpness by constants", "x by constants")


def verdicts(page: Page, found: dict[Way, list[Course]]) -> None:
    """How long predictions hold, and the averages the equations have."""
    by = {named(*way): runs for way, runs in found.items()}
    of = lambda make: {name: torch.tensor([make(each) for each in runs]) for name, runs in by.items()}
    full, simple = of(lambda r: time_held(r, FULL)), of(lambda r: time_held(r, SIMPLE))
    rows = [
        [name, *(f"{float(v.mean()):.3g} ± {float(v.std() / len(v) ** 0.5):.2g}" for v in (
            full[name], simple[name],
            torch.tensor([float(r["sharpness"].mean() * r["lr"] / 2) for r in runs]),
            torch.tensor([float(r["x"].square().mean() / r["delta"].square().mean()) for r in runs]),
            torch.tensor([float(r["delta"].mean()) for r in runs]),
        ))]
        for name, runs in by.items()
    ]  # fmt: skip
    page.facts("Measured, mean ± standard error over seeds", (
        "way", "steps the equations hold", "steps they hold with constants", "mean sharpness over 2/η",
        "mean x² over mean δ²", "mean δ"), rows)  # fmt: skip
    claims = [
        decide("the equations hold for more than 10 steps (steps - 10)", {k: v - 10 for k, v in full.items()}),
        decide("the equations hold for more than 20 steps (steps - 20)", {k: v - 20 for k, v in full.items()}),
        decide("with the constants of the start they hold for more than 5", {k: v - 5 for k, v in simple.items()}),
        decide("they hold longer along the constrained trajectory than with constants (steps)",
               {k: v - simple[k] for k, v in full.items()}),
        decide("the oscillation grows above δ (largest |x| over δ, less 1)",
               of(lambda r: float(r["x"].abs().max() / r["delta"].mean()) - 1)),
        decide("the sharpness is held to a tenth of 2/η in its mean (0.1 less the relative distance)",
               of(lambda r: 0.1 - abs(float(r["sharpness"].mean() * r["lr"] / 2 - 1)))),
        decide("the sharpness falls below 2/η again, as predicted (2/η less its least, relative)",
               of(lambda r: 1 - float(r["sharpness"].min() * r["lr"] / 2))),
        decide("the equations say how far down (0.3 less the error, over the largest distance)", of(depth)),
        decide("the loss is that of the constrained trajectory and x²/η (ln of how much nearer)",
               of(nearer)),
    ]  # fmt: skip
    page.facts("Claims, decided over seeds", HEADER, table(claims))


def depth(run_: Course) -> float:
    """What is left of three tenths of the largest distance after the error of the least sharpness."""
    reach = float((run_["sharpness"] - 2 / float(run_["lr"])).abs().max())
    return 0.3 - abs(float(run_["sharpness"].min() - run_[FULL[0]].min())) / reach


def nearer(run_: Course) -> float:
    """Ln of |loss less that of the constrained trajectory| over what x²/η leaves of it, both in the mean."""
    rest = run_["loss"] - run_["constrained loss"]
    left = rest - run_["x"].square() / float(run_["lr"])
    return math.log(float(rest.abs().mean() / left.abs().mean()))


def drawn(page: Page, way: Way, run_: Course) -> None:
    """One seed: sharpness and oscillation."""
    steps = list(range(len(run_["x"])))
    limit = 2 / way[0]
    for key, title, reading, names in (
        ("sharpness", "Sharpness", "Measured, and predicted from its first step on; dashed is 2/η.",
         ("sharpness", *(name for name in (FULL[0], SIMPLE[0])))),
        ("oscillation", "Oscillation along the top eigenvector", "Its size |x|; dashed is δ, at which sharpness stays.",
         ("x", FULL[1], SIMPLE[1])),
    ):  # fmt: skip
        kinds = zip(("measured", "equations", "equations with constants"), names, strict=True)
        top = 3 * float(run_[names[0]].abs().max())  # a prediction that has left is not followed
        lines = [Curve(kind, *clipped(steps, run_[name].abs(), top), "plain") for kind, name in kinds]
        reference = [limit] * len(steps) if key == "sharpness" else run_["delta"].tolist()
        lines.append(Curve("2/η" if key == "sharpness" else "δ", steps, reference, "dash"))
        page.draw(
            curves(
                f"{key}-{way[0]:g}".replace(".", "-"),
                f"{title}, {named(*way)}, seed 0",
                reading,
                lines,
                x="step",
                y="S" if limit in reference else "|x|",
            )
        )


def clipped(steps: list[int], values: Tensor, top: float) -> tuple[list[int], list[float]]:
    """A curve up to where it first leaves the figure."""
    gone = ~(values <= top)
    end = int(gone.double().argmax()) if bool(gone.any()) else len(steps)
    return steps[:end], values[:end].tolist()


if __name__ == "__main__":
    run(build)
