"""The matrices of curvature, each made by its operator and held to its dense form.

Figure 6 of Grosse's lecture "Taylor approximations" (2021), the summary of the matrices of the course and of how they
hang together, drawn here as a table that runs: every operator on one small network, its distance from the dense
matrix of ``pullback.reference``, which goes another way (loops over ``torch.autograd``), and the relations as numbers.

With z_i = f(w, x_i) the outputs of sample i, J_i their derivative in the weights, L the loss, H_i = ∇²L the output
Hessian at z_i, r_i = ∇L the slope, g_i = J_iᵀ r_i the gradient of sample i, and means over N samples:

    Hessian H = G + mean Σ_a r_ia ∇²z_ia
    Gauss-Newton G = mean J_iᵀ H_i J_i, classical: mean J_iᵀ J_i
    Fisher F = mean E[g gᵀ] over targets of the model, empirical: over those of the data, mean g_i g_iᵀ
    pullback of an output metric M: mean J_iᵀ M_i J_i
    kernels: tangent Θ_ij = J_i J_jᵀ, backward K_ij = g_iᵀ g_j = r_iᵀ Θ_ij r_j

The network is a tanh MLP with three classes and softmax cross-entropy, as drawn at random, in float64. The lecture's
figure names no numbers: the paper's column holds what a relation says.
"""

from __future__ import annotations

from typing import Any

import torch
from kit.charts import Curve, curves, matrix
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import reference

EXACT = 1e-12  # relative, for matrices made in two ways in float64


def build(page: Page) -> None:
    """Fill the page."""
    num_samples, sizes = page.pick(small=(12, [4, 5, 3]), full=(40, [8, 8, 3]))
    page.set(seed=0, samples=num_samples, layers=str(sizes), loss="softmax cross-entropy")
    model = pb.modules.MLP(sizes, "tanh", init="gaussian", sigma_w=1.5, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_samples, sizes[0], dtype=torch.float64, generator=generator)
    y = torch.randint(3, (num_samples,), generator=generator)
    found = against_dense_forms(page, model, nn.CrossEntropyLoss(), x, y)
    relations(page, model, nn.CrossEntropyLoss(), x, y, found)
    of_the_output(page)
    draw(page, found)


def against_dense_forms(page: Page, model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Hold every operator to its dense form. Returns the matrices by name."""
    found, rows = {}, []
    made = [*of_derivatives(model, loss_fn, x, y), *of_curvature(model, loss_fn, x, y)]
    for name, formula, call, fast, dense in made:
        entries = fast if isinstance(fast, Tensor) else fast.to_dense()
        found[name] = entries
        page.at_most(f"{name} against its dense form, relative", EXACT, relative(entries, dense), source=formula)
        square = entries.shape[0] == entries.shape[1]
        symmetric = square and torch.allclose(entries, entries.T, atol=1e-14)
        ends = torch.linalg.eigvalsh(entries)[[0, -1]].tolist() if symmetric else [None, None]
        shape = f"{entries.shape[0]} x {entries.shape[1]}"
        rows.append([name, formula, f"pb.{call}", shape, "yes" if symmetric else "no", *ends])
    header = ("matrix", "definition", "call", "shape", "symmetric", "smallest eigenvalue", "largest eigenvalue")
    page.facts("The matrices of figure 6, of one network", header, rows)
    return found


Made = tuple[
    str, str, str, Any, Tensor
]  # name, definition, call, operator, and the dense form by the reference's loops


def of_derivatives(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> list[Made]:
    """Derivatives of outputs and of the loss in them, gradients, and the kernels made of these."""
    per_output = reference.output_gradients(model, x)  # (N, C, P)
    inputs = torch.block_diag(*reference.input_gradients(model, x))
    output_hessian = torch.block_diag(*pb.functional.output_hessian(loss_fn, model(x).detach(), y))
    expected = torch.block_diag(*reference_output_hessians(model, loss_fn, x, y))
    call = "functional.output_hessian(loss_fn, z, y)"
    return [
        ("Jacobian", "J", "Jacobian(model, x)", pb.Jacobian(model, x), per_output.flatten(0, 1)),
        ("input Jacobian", "∂z/∂x", 'Jacobian(model, x, "input")', pb.Jacobian(model, x, "input"), inputs),
        ("output Hessian", "H_z", call, output_hessian, expected),
        ("gradients", "rows g_iᵀ", "GradientMatrix(model, loss_fn, x, y)", pb.GradientMatrix(model, loss_fn, x, y),
         reference.gradient_matrix(model, loss_fn, x, y)),
        ("backward kernel", "K = g_iᵀg_j", "backward_kernel(model, loss_fn, x, y)",
         pb.backward_kernel(model, loss_fn, x, y).total, reference.total_kernel(model, loss_fn, x, y)),
        ("tangent kernel", "Θ = tr J_iJ_jᵀ", "tangent_kernel(model, x)", pb.tangent_kernel(model, x).total,
         torch.einsum("icp,jcp->ij", per_output, per_output)),
    ]  # fmt: skip


def of_curvature(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> list[Made]:
    """Matrices between weights."""
    data, per_output = (x, y), reference.output_gradients(model, x)  # (N, C, P)
    metric = reference_output_hessians(model, loss_fn, x, y)
    return [
        ("Hessian", "H", "Hessian(model, loss_fn, data)", pb.Hessian(model, loss_fn, data),
         reference.dense_hessian(model, loss_fn, x, y)),
        ("Gauss-Newton", "G = mean JᵀH_zJ", "GaussNewton(model, loss_fn, data)", pb.GaussNewton(model, loss_fn, data),
         reference.dense_gauss_newton(model, loss_fn, x, y)),
        ("classical Gauss-Newton", "mean JᵀJ", "GaussNewton(…, classical=True)",
         pb.GaussNewton(model, loss_fn, data, classical=True),
         reference.dense_gauss_newton(model, loss_fn, x, y, classical=True)),
        ("Fisher", "F = mean E[g gᵀ]", 'Fisher(…, kind="true")', pb.Fisher(model, loss_fn, data, kind="true"),
         reference.dense_fisher(model, loss_fn, x, y)),
        ("empirical Fisher", "mean g_i g_iᵀ", 'Fisher(…, kind="empirical")',
         pb.Fisher(model, loss_fn, data, kind="empirical"), reference.dense_empirical_fisher(model, loss_fn, x, y)),
        ("pullback metric", "mean JᵀMJ, M = H_z", "pullback_metric(model, x, M)", pb.pullback_metric(model, x, metric),
         torch.einsum("icp,icd,idq->pq", per_output, metric, per_output) / len(x)),
    ]  # fmt: skip


def relations(page: Page, model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, found: dict[str, Tensor]) -> None:
    """What the arrows of the figure say, as numbers."""
    count, (hessian, gauss_newton) = len(x), (found["Hessian"], found["Gauss-Newton"])
    product = found["Jacobian"].T @ found["output Hessian"] @ found["Jacobian"] / count
    page.at_most("JᵀH_zJ / N against G, relative", EXACT, relative(product, gauss_newton), source="equation 14")
    page.at_most("F against G, relative", EXACT, relative(found["Fisher"], gauss_newton), source="lecture 3")
    page.at_most(
        "pullback of H_z against G, relative",
        EXACT,
        relative(found["pullback metric"], gauss_newton),
        source="figure 6",
    )
    identity = pb.pullback_metric(model, x, torch.eye(3, dtype=x.dtype)).to_dense()
    classical = found["classical Gauss-Newton"]
    page.at_most("pullback of I against classical G, relative", EXACT, relative(identity, classical), source="figure 6")
    second = second_term(model, loss_fn, x, y)
    page.at_most(
        "mean Σ r ∇²z against H - G, relative", EXACT, relative(hessian - gauss_newton, second), source="equation 13"
    )
    smallest = {name: float(torch.linalg.eigvalsh(each)[0]) for name, each in found.items() if name in SEMIDEFINITE}
    page.at_least(
        "smallest eigenvalue of G, F, empirical Fisher, JᵀJ",
        -1e-14,
        min(smallest.values()),
        source="the loss is convex: by construction, none has one",
    )
    page.at_most("smallest eigenvalue of H", -1e-3, torch.linalg.eigvalsh(hessian)[0], source="no optimum: indefinite")
    apart = relative(found["empirical Fisher"], found["Fisher"])
    page.at_least("empirical against true Fisher, relative", 0.1, apart, source="they are not the same matrix")
    traces = torch.tensor(
        [float(pb.Fisher(model, loss_fn, (x, y), kind="sampled", seed=s).to_dense().trace()) for s in range(100)]
    )
    z_score = (traces.mean() - found["Fisher"].trace()) / (traces.std() / len(traces) ** 0.5)
    page.at_most("sampled Fisher, 100 seeds: |mean trace - true| / stderr", 3, z_score.abs(), source="unbiased")
    kernel = found["backward kernel"]
    same = top_values(kernel / count, count), top_values(found["empirical Fisher"], count)
    page.at_most("eigenvalues of K / N against those of EF, relative", EXACT, relative(*same), source="G Gᵀ and GᵀG")
    outer = found["Jacobian"] @ found["Jacobian"].T / count
    rank = min(classical.shape[0], outer.shape[0])
    same = top_values(outer, rank), top_values(classical, rank)
    page.at_most("eigenvalues of J Jᵀ against those of JᵀJ, relative", EXACT, relative(*same), source="J Jᵀ and JᵀJ")
    slopes = model(x).detach().softmax(1) - nn.functional.one_hot(y, 3)
    full = pb.tangent_kernel(model, x, contract="full").total  # (N, N, C, C)
    sandwich = torch.einsum("ic,ijcd,jd->ij", slopes, full, slopes)
    page.at_most("rᵀ Θ r against K, relative", EXACT, relative(sandwich, kernel), source="g_i = J_iᵀ r_i")


SEMIDEFINITE = ("Gauss-Newton", "Fisher", "empirical Fisher", "classical Gauss-Newton")


def of_the_output(page: Page) -> None:
    """The output Hessian of softmax cross-entropy at logits (1, 0, -1)."""
    logits = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    (found,) = pb.functional.output_hessian(nn.CrossEntropyLoss(), logits, torch.tensor([0]))
    for place, value in enumerate((0.0, 0.11855330012513701, 0.37090364198445835)):
        here = torch.linalg.eigvalsh(found)[place]
        page.row(f"eigenvalue {place + 1} of H_z at (1, 0, -1)", value, here, 1e-12, source="diag p - p pᵀ")


def reference_output_hessians(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """H_z of each sample (N, C, C), by differentiating the loss twice."""
    hessians = [
        torch.autograd.functional.hessian(
            lambda z, i=i: loss_fn(z[None], y[i : i + 1]), model(x[i : i + 1])[0].detach()
        )
        for i in range(len(x))
    ]
    return torch.stack(hessians)


def second_term(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(1/N) sum over samples and outputs of the slope of the loss times the second derivative of the output."""
    view = pb.ModelView.of(model)
    flat = view.flatten({name: parameter.detach() for name, parameter in view.parameters.items()})
    total = torch.zeros(len(flat), len(flat), dtype=flat.dtype)
    for i in range(len(x)):
        outputs = model(x[i : i + 1]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss_fn(outputs, y[i : i + 1]), outputs)
        second = reference.dense_second_derivative(lambda w, i=i: view(x[i : i + 1], view.unflatten(w)), flat)
        total += torch.einsum("c,cpq->pq", slope[0], second)
    return total / len(x)


def relative(found: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of the second."""
    return float((found - expected).norm() / expected.norm())


def top_values(symmetric: Tensor, count: int) -> Tensor:
    """The largest eigenvalues, descending."""
    return torch.linalg.eigvalsh(symmetric).flip(0)[:count]


def draw(page: Page, found: dict[str, Tensor]) -> None:
    """The matrices as images, and their eigenvalues."""
    for name, reading in (
        ("Hessian", "Rows and columns are the weights, layer by layer."),
        ("Gauss-Newton", "The same blocks as the Hessian's, without the second derivatives of the network."),
        ("empirical Fisher", "The data's own targets in place of the model's: the same order of size, another matrix."),
        ("backward kernel", "Rows and columns are samples: which gradients pull the same way."),
    ):
        page.draw(matrix(name.replace(" ", "-").lower(), name, reading, found[name].tolist()))
    names = ("Hessian", "Gauss-Newton", "classical Gauss-Newton", "empirical Fisher")
    lines = []
    for name in names:
        values = torch.linalg.eigvalsh(found[name]).flip(0)
        lines.append(Curve(name, range(1, len(values) + 1), values.tolist()))
    reading = "Sorted from the largest. Only the Hessian has eigenvalues below zero."
    page.draw(curves("spectra", "Eigenvalues", reading, lines, x="rank", y="eigenvalue"))


if __name__ == "__main__":
    run(build)
