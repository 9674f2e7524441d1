"""Which transformers of 32 layers learn a text: norms before branches, branches times 1/√L (Noci et al. 2022).

What "Signal propagation in transformers" (arXiv:2206.03126) predicts of training. With the norm behind the sum and
branches as they are drawn all tokens are one after a few layers: the network can learn how frequent characters are and
nothing else. Branches times 1/√L keep tokens apart, and so does a norm before the branch, where branches weigh less and
less against the sum.

    norm last: x ← norm(x + branch(x))      norm first: x ← x + branch(norm(x))
    cures: none, or every branch times 1/√L (``pb.initialise``, the same draw of the weights)

A character of Python's own help texts is to be told from those before it, by ``nn.TransformerEncoderLayer`` with a
causal mask, Adam, the same batches for all. A network that knows the frequencies alone ends at their entropy. Losses
are means over the last tenth of the steps, shown with the standard error over seeds.

Of the checklist: S1-68 and S1-71.
"""

from __future__ import annotations

import math
from pydoc_data import topics

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import measure
from pullback.charts.chart import PALETTE

LENGTH, BATCH, CHARACTERS = 16, 16, 40_000
KINDS = {"norm last": (False, False), "norm last, 1/√L": (False, True), "norm first": (True, False),
         "norm first, 1/√L": (True, True)}  # fmt: skip
NEVER, CURED = "tokens are one: frequencies are all it can learn", "tokens stay apart"


def build(page: Page) -> None:
    """Fill the page."""
    depth, width, steps, seeds = page.pick(small=(10, 16, 30, 1), full=(32, 32, 160, 3))
    rate = page.pick(small=1e-3, full=3e-4)
    page.set(seed=0, layers=depth, width=width, steps=steps, learning_rate=rate, networks=seeds)
    tokens = text()
    at_the_start(page, tokens, depth, width)
    learning(page, tokens, (depth, width), (steps, rate), seeds)


def at_the_start(page: Page, tokens: Tensor, depth: int, width: int) -> None:
    """Cosines of tokens behind each layer, before any training."""
    drawn = []
    for place, (name, (first, scaled)) in enumerate(KINDS.items()):
        found = cosine_by_layer(network(tokens, (depth, width), first, scaled, 0), tokens)
        quantity = f"{name}: cosine of two tokens behind the last layer"
        if name == "norm last":
            page.at_least(quantity, 0.9, found[-1], source="one")
        else:
            page.at_most(quantity, 0.9, found[-1], source=CURED)
        drawn.append(Curve(name, range(1, depth + 1), found, "line", PALETTE[place]))
    reading = "Where all tokens have become one, nothing of what comes before is left."
    page.draw(curves("cosines", "Cosine of two tokens at the start", reading, drawn, x="layer", y="cosine"))


def learning(page: Page, tokens: Tensor, sizes: tuple[int, int], training: tuple[int, float], seeds: int) -> None:
    """Losses of all kinds and seeds."""
    shares = torch.bincount(tokens).double() / len(tokens)
    entropy = float(-(shares * shares.log())[shares > 0].sum())
    losses = {}
    for name, (first, scaled) in KINDS.items():
        losses[name] = torch.tensor([
            trained(network(tokens, sizes, first, scaled, seed), tokens, *training, seed) for seed in range(seeds)
        ])  # fmt: skip
    verdicts(page, losses, entropy)
    draw(page, losses, entropy)


def network(tokens: Tensor, sizes: tuple[int, int], first: bool, scaled: bool, seed: int) -> Reader:
    """The critical draw, with its factors or without."""
    model = Reader(int(tokens.max()) + 1, *sizes, first=first, seed=seed)
    made = pb.initialise(model, x=torch.zeros(2, LENGTH, dtype=torch.long), seed=seed, report=True)
    if not scaled:
        with torch.no_grad():
            for name, factor in made.branches.items():
                model.get_submodule(name).weight.div_(factor)
    return model


def text() -> Tensor:
    """Characters as numbers."""
    whole = "".join(topics.topics[name] for name in sorted(topics.topics)).lower()[:CHARACTERS]
    known = sorted(set(whole))
    return torch.tensor([known.index(character) for character in whole])


class Reader(nn.Module):
    """Logits of the next character, (N, T, C)."""

    def __init__(self, characters: int, depth: int, width: int, *, first: bool, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.places = nn.Embedding(characters, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True, norm_first=first)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), -math.inf).triu(1))
        for each in self.layers.layers:  # copies of one layer, drawn anew
            nn.init.xavier_uniform_(each.self_attn.in_proj_weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Of tokens (N, T)."""
        x = self.table(tokens) + self.places.weight
        return self.head(self.layers(x, self.mask))


def cosine_by_layer(model: Reader, tokens: Tensor) -> list[float]:
    """Of two tokens behind each layer, four samples."""
    some = tokens[: 4 * LENGTH].unflatten(0, (4, LENGTH))
    return measure.rank_collapse(model, some, spectrum=False).cosine.value.tolist()


def trained(model: Reader, tokens: Tensor, steps: int, rate: float, seed: int) -> list[float]:
    """Loss at every step."""
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    make, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH - 1, (BATCH,), generator=make)
        window = tokens[starts[:, None] + torch.arange(LENGTH + 1)]
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def ends(losses: Tensor) -> Tensor:
    """Mean over the last tenth of the steps, by seed."""
    return losses[:, -(losses.shape[1] // 10) :].mean(1)


def verdicts(page: Page, losses: dict[str, Tensor], entropy: float) -> None:
    """The order of the cures, in every seed."""
    last = {name: each[:, -(each.shape[1] // 10) :].mean(1) for name, each in losses.items()}  # by seed
    for name in list(KINDS)[1:]:
        better = float((last["norm last"] - last[name]).min())
        page.at_least(f"{name}: loss below that of norm last, least of the seeds", 0.0, better, source=CURED)
    if page.preset == "full":
        above = float(last["norm last"].min()) - entropy
        page.at_least("norm last: loss over the entropy of the frequencies", -0.05, above, source=NEVER)
        for name in list(KINDS)[1:]:
            gain = entropy - float(last[name].max())
            page.at_least(f"{name}: loss below that entropy, least of the seeds", 0.0, gain, source=CURED)
        for name in ("norm last, 1/√L", "norm first, 1/√L"):
            better = float((last["norm first"] - last[name]).min())
            page.at_least(f"{name}: loss below that of norm first, least of the seeds", 0.0, better, source=CURED)
    rows = [[name, *(float(each) for each in last[name])] for name in KINDS]
    header = ("kind", *(f"loss, seed {seed}" for seed in range(len(rows[0]) - 1)))
    page.facts(f"Where they end; the entropy of the frequencies is {entropy:.3f}", header, rows)


def draw(page: Page, losses: dict[str, Tensor], entropy: float) -> None:
    """Losses while training, means over twentieths of the steps."""
    size = next(iter(losses.values())).shape[1] // 20
    drawn = []
    for place, (name, each) in enumerate(losses.items()):
        means = each.unflatten(1, (-1, size)).mean(2)
        steps = [size * (k + 1) for k in range(means.shape[1])]
        error = (means.std(0) / len(means) ** 0.5).tolist() if len(means) > 1 else None
        drawn.append(Curve(name, steps, means.mean(0).tolist(), "line", PALETTE[place], error))
    drawn.append(Curve("entropy of the frequencies", [steps[0], steps[-1]], [entropy] * 2, "plain", PALETTE[5]))
    reading = "Below the line of the frequencies a network has seen what comes before."
    page.draw(curves("losses", "Loss while training", reading, drawn, x="step", y="loss"))


if __name__ == "__main__":
    run(build)
