"""What newer probes measure, once more by loops over single gradients, in float64."""

from __future__ import annotations

import copy
import itertools
import math
from statistics import median, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from pullback import reference
from pullback.modules import MLP

CE = nn.CrossEntropyLoss()


def earlier_model() -> nn.Module:
    """The model of the measurement before."""
    torch.manual_seed(1)
    return MLP([6, 12, 12, 3]).double()


def noise(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    def signal(gradients: Tensor) -> float:
        variance = float(gradients.var(0).sum())
        return (float(gradients.mean(0).square().sum()) - variance / len(gradients)) / variance

    G = reference.gradient_matrix(m, CE, x, y)
    n = len(G)
    left = [signal(torch.cat([G[:i], G[i + 1 :]])) for i in range(n)]
    spread = math.sqrt((n - 1) / n * sum((s - sum(left) / n) ** 2 for s in left))
    return {
        "signal_to_noise": signal(G),
        "signal_to_noise_stderr": spread,
        "batch_size": 64,
        "num_samples": n,
    }


def updates(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    ratio = {}
    before = dict(earlier_model().named_modules())
    for name, module in m.named_modules():
        if isinstance(module, nn.Linear):
            now, then = (
                torch.cat([p.detach().flatten() for p in each.parameters()]) for each in (module, before[name])
            )
            ratio[name] = float((now - then).norm() / then.norm())
    now, then = (torch.cat([p.detach().flatten() for p in each.parameters()]) for each in (m, earlier_model()))
    return {
        "ratio": ratio,
        "median": median(ratio.values()),
        "norm": float(then.norm()),
        "shrink": float(-(now - then) @ then / ((now - then).norm() * then.norm())),
    }


def targets(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    found = y.tolist()
    return {"counts": {str(label): found.count(label) for label in (0, 1, 2)}, "num_samples": len(found)}


def constant_loss(y: Tensor) -> float:
    """The least mean loss of one vector of scores for all samples, by descent."""
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = CE(scores.expand(len(y), 3), y)
        loss.backward()
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return float(closure().detach())


def classes(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    G = reference.gradient_matrix(m, CE, x, y)
    pairs: dict[tuple[int, int], list[float]] = {}
    for i, j in itertools.permutations(range(len(G)), 2):
        pairs.setdefault((int(y[i]), int(y[j])), []).append(cosine(G[i], G[j]))
    mean = {key: sum(each) / len(each) for key, each in pairs.items()}
    within = [c for (a, b), each in pairs.items() if a == b for c in each]
    between = [c for (a, b), each in pairs.items() if a != b for c in each]
    a, b = min((key for key in mean if key[0] != key[1]), key=lambda key: mean[key])
    layers = {}
    for name, rows in reference.layer_gradient_matrices(m, CE, x, y).items():
        each = [cosine(rows[i], rows[j]) for i, j in itertools.combinations(range(len(rows)), 2)]
        layers[name] = sum(each) / len(each)
    return {
        "cosine": [[mean[a, b] for b in range(3)] for a in range(3)],
        "labels": [0, 1, 2],
        "within": sum(within) / len(within),
        "between": sum(between) / len(between),
        "worst": [*sorted((a, b)), mean[a, b]],
        "layer_cosine": layers,
    }


def activations(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {name: {} for name in ("effective_rank", "width", "dead", "saturated", "kind")}
    h = x
    for place, layer in enumerate(m.layers[:-1]):
        u = layer.linear(h).detach()
        h = u.clamp(min=0)
        off = [[float(value) <= 0 for value in row] for row in u]
        name = f"layers.{place}.linear"
        second = sum(torch.outer(row, row) for row in h)
        eigenvalues = torch.linalg.eigvalsh(second)
        found["effective_rank"][name] = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
        found["width"][name] = u.shape[1]
        found["dead"][name] = sum(all(column) for column in zip(*off, strict=True)) / u.shape[1]
        found["saturated"][name] = sum(map(sum, off)) / u.numel()
        found["kind"][name] = "relu"
    kinds = found.pop("kind")
    assert set(kinds.values()) == {"relu"}
    return found


def inputs(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    columns = x.T.tolist()
    stds = [pstdev(column) for column in columns]
    means = [abs(sum(column) / len(column)) for column in columns]
    return {
        "largest_mean_over_std": max(mean / std for mean, std in zip(means, stds, strict=True)),
        "std_ratio": max(stds) / min(stds),
        "largest_abs": max(abs(value) for column in columns for value in column),
        "num_features": 6,
        "constant_features": 0,
        "furthest_sample": _furthest(x),
    }


def _furthest(x: Tensor) -> float:
    middle = [sorted(column)[(len(column) - 1) // 2] for column in x.T.tolist()]
    away = [math.dist(row, middle) for row in x.tolist()]
    return max(away) / sorted(away)[(len(away) - 1) // 2]


def samples(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    own = []
    for i in range(len(k)):
        mates = [j for j in range(len(k)) if j != i and y[j] == y[i]]
        own.append(sum(float(k[i, j] / (k[i, i] * k[j, j]).sqrt()) for j in mates) / len(mates))
    return {
        "mean_cosine_to_own_class": own,
        "kernel_norm": [float(k[i, i].sqrt()) for i in range(len(k))],
        "losses": [float(CE(m(x[i : i + 1]), y[i : i + 1]).detach()) for i in range(len(k))],
        "num_samples": len(k),
    }


def labels(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    places = [
        1 + sum(score > row[label] for score in row) for row, label in zip(m(x).tolist(), y.tolist(), strict=True)
    ]
    return {
        "num_classes": m(x).shape[1],
        "num_samples": len(places),
        "label_ranks": {str(place): places.count(place) for place in sorted(set(places))},
    }


def tangent(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    x, y = x[:32], y[:32]
    then, now = (torch.einsum("ijcc->ij", reference.tangent_kernel(each, x)) for each in (earlier_model(), m))
    H = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    same = torch.tensor([[float(a == b) for b in y] for a in y], dtype=x.dtype)

    def centred_cosine(a: Tensor, b: Tensor) -> float:
        a, b = H @ a @ H, H @ b @ H
        return float((a * b).sum() / (a.norm() * b.norm()))

    return {
        "drift": float((now - then).norm() / then.norm()),
        "cka": centred_cosine(then, now),
        "label_alignment": centred_cosine(now, same),
        "effective_rank": float(now.trace() ** 2 / now.square().sum()),
        "delta_k": float((now - then).norm() / then.norm()),
        "smallest": float(torch.linalg.eigvalsh(now)[0]),
        "condition": float(torch.linalg.cond(now)),
        "distance": math.sqrt(
            sum(
                float((a - b).detach().square().sum())
                for a, b in zip(m.parameters(), earlier_model().parameters(), strict=True)
            )
        ),
        "since": 0,
        "contract": "trace",
    }


def effective_lr(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    norm = {
        name: math.sqrt(sum(float(w) ** 2 for w in module.weight.detach().flatten()))
        for name, module in m.named_modules()
        if isinstance(module, nn.Linear)
    }
    return {"norm": norm, "invariant": dict.fromkeys(norm, False), "weight_decay": 0}


def shift(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Copies of the model in which the layers before have made a step of Adam, one after another."""
    linears = [name for name, module in m.named_modules() if isinstance(module, nn.Linear)]

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        found = torch.autograd.grad(CE(model(x), y), list(model.parameters()))
        by_name = dict(zip([name for name, _ in model.named_parameters()], found, strict=True))
        return {
            name: torch.cat([by_name[f"{name}.{part}"].flatten() for part in ("weight", "bias")]) for name in linears
        }

    stepped = copy.deepcopy(m)
    optimizer = torch.optim.Adam(stepped.parameters(), 1e-2)
    CE(stepped(x), y).backward()
    optimizer.step()
    mixed, change, cosine = copy.deepcopy(m), {}, {}
    g = gradients(m)
    for name in linears:
        other = gradients(mixed)[name]
        change[name] = float((g[name] - other).norm() / g[name].norm())
        cosine[name] = float(g[name] @ other / (g[name].norm() * other.norm()))
        mixed.get_submodule(name).load_state_dict(stepped.get_submodule(name).state_dict())
    return {"change": change, "cosine": cosine}


def jacobian(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Layer by layer D W with D the ReLU's slopes, for the first four samples."""
    singular: dict[str, list[float]] = {}
    ends = []
    for h in x[:4]:
        whole = torch.eye(6, dtype=x.dtype)
        for place, layer in enumerate(m.layers, start=1):
            linear = getattr(layer, "linear", layer)
            u = linear(h).detach()
            J = linear.weight.detach() if place == 3 else (u > 0).to(x.dtype).unsqueeze(1) * linear.weight.detach()
            singular.setdefault(str(place), []).extend(torch.linalg.svdvals(J).tolist())
            whole, h = J @ whole, u.clamp(min=0)
        ends.append(float(whole.square().sum()) / 3)
    return {
        "mean_square": {place: sum(s * s for s in each) / len(each) for place, each in singular.items()},
        "largest": {place: max(each) for place, each in singular.items()},
        "smallest": {place: min(each) for place, each in singular.items()},
        "end_to_end_mean_square": sum(ends) / 4,
    }


def initialisation(k: Tensor, m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """chi of ReLU is sigma_w^2 / 2, critical at sqrt(2)."""
    linears = {name: module for name, module in m.named_modules() if isinstance(module, nn.Linear)}
    sigma_w = {
        n: math.sqrt(module.in_features * float(module.weight.detach().square().mean()))
        for n, module in linears.items()
    }
    hidden = list(linears)[:-1]
    return {
        "sigma_w": sigma_w,
        "sigma_b": {n: math.sqrt(float(module.bias.detach().square().mean())) for n, module in linears.items()},
        "chi": {n: sigma_w[n] ** 2 / 2 for n in hidden},
        "chi_product": math.prod(sigma_w[n] ** 2 / 2 for n in hidden),
        "critical_sigma_w": dict.fromkeys(hidden, math.sqrt(2)),
    }
