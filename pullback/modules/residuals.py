"""Which layers end a residual branch: sums x + f(x), as a forward pass makes them, and how deep their stream is.

Every tensor carries the calls it comes from, and those of which it holds the result unchanged but for what was added
to it. So the second operand of a sum is a branch of the first if it comes from something the first still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations

# calls that mix tokens by weights that depend on them
ATTENTION = frozenset({
    "multi_head_attention_forward", "scaled_dot_product_attention", "softmax", "_native_multi_head_attention",
})  # fmt: skip
SUMS = frozenset({"add", "iadd", "isub", "radd", "rsub", "sub", "subtract"})
PRODUCTS_OF_TWO = frozenset({"div", "divide", "idiv", "imul", "mul", "multiply", "rmul", "rtruediv", "truediv"})
LIKE = frozenset({"expand_as", "reshape_as", "to", "type_as", "view_as"})  # take no numbers of a second tensor


@dataclass(frozen=True)
class Trail:
    """Of one tensor. Sets of calls are bits of whole numbers, which join fast.

    Attributes:
        seen: calls it comes from, its own with them.
        same: those whose result it holds, but for what was added on the way.
        ends: calls of layers it is a multiple of, entry by entry: no activation or normalisation since.
        stream: the number of the stream of residual sums it belongs to.
        statistic: whether it is a size, to divide by.
    """

    seen: int = 0
    same: int = 0
    ends: frozenset[int] = frozenset()
    stream: int | None = None
    statistic: bool = False


@dataclass(frozen=True)
class Branch:
    """What is added to a stream.

    Attributes:
        ends: calls of layers that scale it as a whole; empty where there are none.
        attends: whether attention is in it.
        stream: number of the stream.
    """

    ends: frozenset[int]
    attends: bool
    stream: int


@dataclass
class Residuals:
    """All branches of a forward pass, in the order of their sums."""

    branches: list[Branch] = field(default_factory=list)
    _calls: int = 0
    _layers: int = 0
    _attention: int = 0
    _streams: int = 0

    def start(self) -> Trail:
        """A tensor that comes from nothing."""
        own = self._new()
        return Trail(own, own)

    def step(self, name: str, given: Sequence[Trail], kind: str, calls: range = range(0)) -> Trail:
        """The result of a call.

        Args:
            name: of the function.
            given: trails of the tensors it takes that samples reach, in order.
            kind: "layer", "bend" (an activation, a normalisation, a share), "size" (a statistic), or "plain".
            calls: numbers of the layers' calls that this is.
        """
        own = self._new()
        given = given[:1] if name in LIKE else given
        seen = own
        for each in given:
            seen |= each.seen
        stream = next((each.stream for each in given if each.stream is not None), None)
        self._attention |= own if name in ATTENTION else 0
        if kind == "layer":
            self._layers |= own
            return Trail(seen, own, frozenset(calls))
        if name == "scaled_dot_product_attention":
            values = given[min(2, len(given) - 1)]  # fewer where symbols name one tensor once
            return Trail(seen, own, values.ends)
        if kind in ("bend", "size"):
            return Trail(seen, own, stream=stream, statistic=kind == "size")
        ends = frozenset[int]().union(*(each.ends for each in given))
        if len(given) == 1:
            return Trail(seen, given[0].same | own, ends, stream, given[0].statistic)
        if name in PRODUCTS_OF_TWO and any(each.statistic for each in given):
            return Trail(seen, own, stream=stream)
        if name in SUMS and len(given) == 2:
            for base, added in permutations(given):
                if base.same & added.seen and added.seen & ~base.seen & self._layers | self._attends(base, added):
                    return self._summed(base, added, Trail(seen, base.same | own, ends))
        return Trail(seen, own, ends, stream)

    def _summed(self, base: Trail, added: Trail, made: Trail) -> Trail:
        stream = base.stream
        if stream is None:
            stream, self._streams = self._streams, self._streams + 1
        self.branches.append(Branch(added.ends, bool(self._attends(base, added)), stream))
        return Trail(made.seen, made.same, made.ends, stream)

    def _attends(self, base: Trail, added: Trail) -> int:
        return added.seen & ~base.seen & self._attention

    def _new(self) -> int:
        self._calls += 1
        return 1 << self._calls


def depth_of(branches: Sequence[Branch]) -> int:
    """Layers of a stream, L: runs of attention branches that others part, or all branches where there are no others."""
    attends = [each.attends for each in branches]
    if all(attends):
        return len(attends)
    return sum(now and not before for before, now in zip([False, *attends], attends, strict=False))
