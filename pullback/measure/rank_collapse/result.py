"""``RankCollapse``: what ``rank_collapse`` measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pullback._results import Shown
from pullback.measure.networks.profile import Profile


@dataclass(frozen=True)
class Tokens(Shown):
    """Tokens X (T, D) at L places, each number a ``Profile`` (L,): a mean over inputs, and over seeds.

    Attributes:
        residual: |X - 1 x^T| in the composite norm sqrt(|.|_1 |.|_inf), x the mean of the tokens.
        relative_residual: the same over |X|.
        frobenius_residual: in the norm of Frobenius.
        relative_frobenius_residual: likewise.
        cosine: mean over all pairs of two tokens.
        stable_rank: |X|_F^2 / |X|_2^2; nan with ``spectrum=False``.
        effective_rank: (sum s^2)^2 / sum s^4 of the singular values s; 1 where tokens differ in length alone.
        log_relative_residual: natural logarithm of the relative residual, no less than that of the floor; e to the mean
            is the geometric mean.
    """

    residual: Profile
    relative_residual: Profile
    frobenius_residual: Profile
    relative_frobenius_residual: Profile
    cosine: Profile
    stable_rank: Profile
    effective_rank: Profile
    log_relative_residual: Profile


@dataclass(frozen=True)
class AttentionHeads(Shown):
    """Attention of the H heads of a layer, each number a ``Profile`` (H,).

    Padded tokens are in none of them. P (T, S) is a head's attention matrix, before dropout; V its values.

    Attributes:
        heads: name of the module that called, and the number of the head; of all calls in the layer, in their order.
        entropy: of the rows of P, in nats, mean over rows.
        relative_entropy: the same over the logarithm of how many keys a row may attend to, mean over rows that may
            attend to two or more.
        first_token: share of attention on the first token, mean over rows: large for a sink.
        stable_rank: |P|_F^2 / |P|_2^2; nan with ``spectrum=False``.
        effective_rank: (sum s^2)^2 / sum s^4 of its singular values s; 1 where all rows are equal; nan likewise.
        skew: share of sum s^2 in the largest quarter of the singular values; nan likewise.
        cosine: mean over pairs of tokens of the head's outputs P V.
        relative_residual: of the head's outputs, in the composite norm.
        score_gradient: what share of a gradient reaches the scores, and by them queries and keys, relative to that of
            the values: root of sum_ij P_ij^2 |v_j - o_i|^2 over sum_ij P_ij^2 mean |v|^2, o = P V; 0 at rank one.
        singular_values: of P, descending, (H, K), K that of the longest sample, others with zeros there; None with
            ``spectrum=False``.
        cumulative: share of sum s^2 in the k largest, (H, K), 1 at the end; None likewise.
    """

    heads: tuple[str, ...]
    entropy: Profile
    relative_entropy: Profile
    first_token: Profile
    stable_rank: Profile
    effective_rank: Profile
    skew: Profile
    cosine: Profile
    relative_residual: Profile
    score_gradient: Profile
    singular_values: Profile | None
    cumulative: Profile | None


@dataclass(frozen=True)
class RankCollapse(Tokens):
    """Tokens behind each of L layers, and the attention within: one entry a layer, in the order of the forward pass.

    Attributes:
        layers: names of the modules whose outputs are X; from the second call on with its number, "block#2".
        attention: ``AttentionHeads`` of each layer.
        start: ``Tokens`` before the first layer, (1,); None where they are not handed to it as they are measured.
        unread: attention that could not be read, name -> why. It is in no other entry, as other attention of its layer
            may be.
        floor: relative residual below which there is nothing but rounding, by the dtype and the width: sqrt(D) eps.
        num_inputs: samples.
        num_seeds: networks that were drawn; 1 for a model. With several, standard errors are over them; else over the
            samples, nan for a single one.
    """

    layers: tuple[str, ...]
    attention: tuple[AttentionHeads, ...]
    start: Tokens | None
    unread: dict[str, str]
    floor: float
    num_inputs: int
    num_seeds: int

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Layers at the floor: their tokens are one, as far as the dtype tells."""
        reached = self.relative_residual.value <= self.floor
        return tuple(name for name, at in zip(self.layers, reached.tolist(), strict=True) if at)

    def __str__(self) -> str:
        """A line a layer, and what could not be read."""
        lines = []
        for place, (layer, heads) in enumerate(zip(self.layers, self.attention, strict=True)):
            numbers = ", ".join(
                f"{words} {float(profile.value[place]):.3g}{_error(float(profile.stderr[place]))}"
                for words, profile in (
                    ("relative residual", self.relative_residual), ("cosine of tokens", self.cosine),
                    ("effective rank", self.effective_rank),
                )
            )  # fmt: skip
            entropy = heads.relative_entropy.value
            spread = f"{float(entropy.min()):.2f} to {float(entropy.max()):.2f}" if len(entropy) else "not seen"
            one = "; its tokens are one" if layer in self.collapsed else ""
            lines.append(f"{layer}: {numbers}; entropy of {len(entropy)} heads over its largest {spread}{one}")
        lines += [f"{name}: not read, {why}" for name, why in self.unread.items()]
        return "\n".join(lines)


def _error(stderr: float) -> str:
    return f" +- {stderr:.1g}" if math.isfinite(stderr) else ""
