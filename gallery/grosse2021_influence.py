"""How a minimum answers to its training data (Grosse 2021, section 5.1, figures 4 and 5).

Claim of figure 4: raising λ in g(w) + λw moves both minima of g to the left, the flatter one further. Claims of figure
5, a small tanh network on points in two clusters and one between them: the linearised response to a changed label is
0 before the first iteration of conjugate gradients and settles within 50; a point within a cluster has little effect
there and more between the clusters; the point between the clusters has an outsized effect between them.

The response Jacobian of w* = argmin J(w, θ) is -(∇²J)⁻¹ ∂²J/∂w∂θ (equation 18). Here θ are the labels t, J is the mean
of (f(x_i) - t_i)²/2 plus decay/2 |w|², and -(A + decay)⁻¹ ∂²J/∂w∂t r is found by conjugate gradients with A either the
Hessian of the mean or its Gauss-Newton matrix; the predictions move by the network's Jacobian times that.

The lecture solves with Gauss-Newton plus a small damping. That is the response of the linearised network, which is that
of training again where the fit leaves no residuals. Here it is right for the outlier, which the network fits, and wrong
for the point within a cluster; the Hessian is right for both. The lecture's sums carry no 1/N, so its damping is N
times the one here. Its data are not published; here they are drawn.
"""

from __future__ import annotations

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb

CLOSED, FIGURE = "closed form", "figure 5"
COUNT, OUTLIER = 10, 20  # points in a cluster; the place of the one between them
WIDTH, DECAY, NOISE, STEP = 20, 1e-4, 0.1, 1e-2
MOVE = 1.0  # how far a label is moved in the drawing
GAP, REACH = 0.9, 0.5  # |x| below the first is between the clusters; within the second of ±1.5 is a cluster


def build(page: Page) -> None:
    """Fill the page."""
    page.set(seed=0, width=WIDTH, decay=DECAY, noise=NOISE, label_change=STEP, drawn_change=MOVE)
    figure_4(page)
    figure_5(page)


def slanted(w: Tensor, slope: Tensor) -> Tensor:
    """g(w) + λw with g'(w) = 8 (w + 1) (w - 1) (w - 2): minima at -1 and 2, the right one flatter."""
    return (2 * w**4 - 16 * w**3 / 3 - 4 * w**2 + 16 * w + slope * w).sum()


def figure_4(page: Page) -> None:
    """One weight, one hyper-parameter."""
    zero, one, three = (torch.tensor([v], dtype=torch.float64) for v in (0.0, 1.0, 3.0))
    responses, moved = [], []
    for name, at, response, after in (("left", -1.0, -1 / 48, -1.059513), ("right", 2.0, -1 / 24, 1.843700)):
        w = torch.tensor([at], dtype=torch.float64)
        found = pb.cost_response(slanted, w, zero, one, tol=1e-14).change
        page.row(f"dw/dλ at the {name} minimum", response, found, 1e-12, source=f"{CLOSED} -1/g''")
        minimum = pb.reference.minimise(lambda v: slanted(v, three), w)
        page.row(f"{name} minimum at λ = 3", after, minimum, 1e-6, source="roots of g' + 3")
        page.at_most(
            f"{name} minimum's move from λ = 0 to 3",
            0,
            minimum - w,
            source="figure 4: to the left; follows from the row above",
        )
        responses.append(float(found))
        moved.append(float(minimum))
    source = "g'' = 48 and 24; follows from the rows above"
    page.row("flatter over sharper response", 2, responses[1] / responses[0], 1e-12, source=source)
    grid = torch.linspace(-1.6, 2.6, 106, dtype=torch.float64)
    heights = {lam: [float(slanted(w[None], torch.tensor(lam))) for w in grid] for lam in (0.0, 3.0)}
    points = [float(slanted(torch.tensor([w]), torch.tensor(lam))) for lam, w in zip((3.0, 3.0), moved, strict=True)]
    page.draw(
        curves(
            "slanted",
            "g(w) + λw (figure 4)",
            "Both minima move to the left as λ grows, the flatter one on the right further.",
            [
                Curve("λ = 0", grid.tolist(), heights[0.0]),
                Curve("λ = 3", grid.tolist(), heights[3.0]),
                Curve("minima at λ = 3", moved, points, "points", "#000000"),
            ],
            x="w",
            y="cost",
            summary=(f"Minima at -1 and 2, and for λ = 3 at {moved[0]:.6f} and {moved[1]:.6f}.",),
        )
    )


class Problem:
    """The data, and the network at its minimum."""

    def __init__(self) -> None:
        make = torch.Generator().manual_seed(0)
        noise = torch.randn(2 * COUNT, generator=make, dtype=torch.float64)
        centres = torch.tensor([-1.5, 1.5], dtype=torch.float64).repeat_interleave(COUNT)
        self.x = torch.cat([centres + 0.3 * noise, torch.zeros(1, dtype=torch.float64)]).unsqueeze(1)
        errors = NOISE * torch.randn(2 * COUNT + 1, 1, generator=make, dtype=torch.float64)
        self.y = torch.sin(1.5 * self.x) + errors
        self.y[OUTLIER] = 0.6
        self.model = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).double()
        with torch.no_grad():
            for layer in (self.model[0], self.model[2]):
                layer.weight.normal_(std=1.5 / layer.in_features**0.5, generator=make)
                layer.bias.normal_(std=0.7, generator=make)
        self.slope = self.train(self.y)
        self.member = int(self.x[:COUNT, 0].argsort()[COUNT // 2])  # the middle of the left cluster

    def outputs(self, x: Tensor) -> Tensor:
        """Predictions (Q,) at x (Q, 1)."""
        with torch.no_grad():
            return self.model(x)[:, 0]

    def train(self, y: Tensor) -> float:
        """To the minimum nearest to where the network is; the size of the cost's gradient there."""
        view = pb.ModelView.of(self.model)

        def cost(w: Tensor) -> Tensor:
            return loss_fn(view(self.x, view.unflatten(w)), y).mean() + DECAY / 2 * w.square().sum()

        w = pb.reference.minimise(cost, view.flatten(view.parameters), max_steps=2000)
        self.model.load_state_dict(view.unflatten(w))
        return float(torch.func.grad(cost)(w).norm())

    def trained_again(self, i: int, queries: Tensor) -> Tensor:
        """What predictions change by when the label of sample i is raised by ``STEP`` and the network trained on."""
        before, state = self.outputs(queries), {k: v.clone() for k, v in self.model.state_dict().items()}
        self.train(self.y + STEP * self.unit(i))
        change = self.outputs(queries) - before
        self.model.load_state_dict(state)
        return change

    def response(self, i: int, iterations: int, matrix: str = "hessian") -> pb.Response:
        """To a label of sample i raised by one."""
        settings = {"damping": DECAY, "tol": 0.0, "max_iters": iterations}
        return pb.response(
            self.model, loss_fn, (self.x, self.y), self.unit(i), wrt="targets", matrix=matrix, **settings
        )

    def unit(self, i: int) -> Tensor:
        """The direction of one label."""
        return torch.eye(len(self.y), dtype=torch.float64)[i].unsqueeze(1)


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error, one number per sample (N,)."""
    return (outputs - targets).square().sum(1) / 2


def figure_5(page: Page) -> None:
    """Predictions after a label has been moved, by the number of iterations."""
    problem = Problem()
    grid = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64).unsqueeze(1)
    gap = grid[:, 0].abs() < GAP
    clusters = (grid[:, 0].abs() - 1.5).abs() < REACH
    page.at_most("gradient norm of the cost at the fit", 1e-9, problem.slope, source="a minimum is asked for")
    page.draw(
        curves(
            "fit",
            "The fit (figure 5, a)",
            "Two clusters and one point between them; the network at the minimum of its cost.",
            [
                Curve("fit", grid[:, 0].tolist(), problem.outputs(grid).tolist(), colour="#444444"),
                Curve("data", problem.x[:, 0].tolist(), problem.y[:, 0].tolist(), "points", "#0072B2"),
            ],
            x="x",
            y="prediction",
            height=420,
        )
    )
    effects = {}
    for name, i in (("cluster point", problem.member), ("outlier", OUTLIER)):
        none = problem.response(i, 0).outputs(grid)
        page.row(f"{name}: change of the fit after 0 iterations", 0, none.abs().max(), 0, source=FIGURE)
        again = problem.trained_again(i, grid) / STEP
        for matrix in ("hessian", "gauss_newton"):
            found = problem.response(i, 50, matrix).outputs(grid)[:, 0]
            error = float((found - again).abs().max() / again.abs().max())
            far = matrix == "gauss_newton" and i == problem.member
            known = "the fit leaves residuals there, so that G is not the Hessian" if far else ""
            quantity = f"{name}: 50 iterations, {matrix.replace('_', '-')}, off training again by"
            page.at_most(quantity, 0.1, error, source="a label change of 0.01", not_reproduced=known)
        effects[name] = problem.response(i, 50).outputs(grid)[:, 0].abs()
        predictions(page, problem, i, name, grid)
    member, outlier = effects["cluster point"], effects["outlier"]
    ratio = outlier[gap].max() / member[gap].max()
    page.at_least("outlier over cluster point, between the clusters", 1, ratio, source=f"{FIGURE}: outsized")
    spread = member[gap].max() / member[clusters].max()
    page.at_least("cluster point: between over within the clusters", 1, spread, source=f"{FIGURE}: unreliable between")
    slight = f'{FIGURE}: "slight", taken as a quarter'
    page.at_most("cluster point: within the clusters, a label moved by 1", 0.25, member[clusters].max(), source=slight)
    exact = pb.leave_one_out(problem.model, loss_fn, (problem.x, problem.y), damping=DECAY, tol=1e-10, changes=False)
    leverage = exact.leverage
    page.row("largest leverage is the outlier's", OUTLIER, int(leverage.argmax()), 0, source=FIGURE)


def predictions(page: Page, problem: Problem, i: int, name: str, grid: Tensor) -> None:
    """One panel of figure 5."""
    x, fit = grid[:, 0].tolist(), problem.outputs(grid)
    shown = page.pick(small=(1, 2, 4, 8, 50), full=(1, 2, 3, 4, 6, 8, 12, 16, 25, 50))
    drawn = [Curve("0 iterations: the fit", x, fit.tolist(), colour="#444444")]
    for place, k in enumerate(shown):
        change = problem.response(i, k).outputs(grid)[:, 0]
        red = place / max(1, len(shown) - 1)
        colour = f"rgb({round(120 + 100 * red)}, {round(170 * (1 - red))}, {round(220 * (1 - red))})"
        drawn.append(
            Curve("1 iteration" if k == 1 else f"{k} iterations", x, (fit + MOVE * change).tolist(), colour=colour)
        )
    again = fit + MOVE * problem.trained_again(i, grid) / STEP
    drawn.append(Curve("training again, extended", x, again.tolist(), "dash"))
    drawn.append(Curve("data", problem.x[:, 0].tolist(), problem.y[:, 0].tolist(), "points", "#0072B2"))
    at, before = float(problem.x[i]), float(problem.y[i])
    drawn.append(Curve("label moved from", [at], [before], "points", "#009E73"))
    drawn.append(Curve("label moved to", [at], [before + MOVE], "points", "#C42B1C"))
    change = problem.response(i, 50).outputs(grid)[:, 0].abs()
    place = float(grid[int(change.argmax()), 0])
    page.draw(
        curves(
            name.replace(" ", "-"),
            f"Response to the label of the {name} (figure 5, {'b' if name.startswith('c') else 'c'})",
            "Linearised predictions after the label has been moved from green to red, by iterations of conjugate "
            "gradients with the Hessian; the dashed line extends what training again does to a change of 0.01.",
            drawn,
            x="x",
            y="prediction",
            height=420,
            summary=(f"The largest change is {float(change.max()):.3f} a unit of the label, at x = {place:.2f}.",),
        )
    )


if __name__ == "__main__":
    run(build)
