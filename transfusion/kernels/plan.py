"""Which pairs of blocks a row needs: found once per forward pass, for all layers.

Shape letters: B rows, L tokens, n query blocks, m key blocks, T tokens of a block, C classes of query streams.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.sequence.arrays import Array, Int, Shaped
from transfusion.sequence.masks import NEVER, Intervals

FULL, PARTIAL, NONE = 0, 1, 2
"""Kinds of pairs of blocks: every query sees every key, some may, none does."""
GROUP = 4


@dataclasses.dataclass(frozen=True)
class Cut:
    """How rows are cut into blocks. No block has tokens of two slices; the last one of a slice is filled up.

    A slice has the tokens of one stream. Blocks of two streams would need the keys of both: up to 1.4 times as many.

    Attributes:
      slices: how many tokens each slice of the row has, in the order in which they lie.
      size: tokens of a block (T).
    """

    slices: tuple[int, ...]
    size: int

    @property
    def length(self) -> int:
        """Tokens of a row (L)."""
        return sum(self.slices)

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return len(self.starts)

    @property
    def starts(self) -> np.ndarray:
        """The first token of each block, int32 [n]."""
        begins = np.cumsum((0, *self.slices))[:-1]
        parts = [begin + np.arange(0, n, self.size) for begin, n in zip(begins, self.slices, strict=True)]
        return np.concatenate(parts).astype(np.int32)

    @property
    def counts(self) -> np.ndarray:
        """How many tokens of its slice each block has, int32 [n]: T of all but the last one of a slice."""
        parts = [np.minimum(n - np.arange(0, n, self.size), self.size) for n in self.slices]
        return np.concatenate(parts).astype(np.int32)

    def start_of(self, block: Array) -> Array:
        """The first token of a block whose number is known in a kernel only."""
        fills, blocks = [-n % self.size for n in self.slices], [-(-n // self.size) for n in self.slices]
        missing = sum(
            # A product, because Pallas' lowering to Triton cannot choose between two constants.
            fill * jnp.asarray(block >= before, jnp.int32)
            for before, fill in zip(np.cumsum(blocks)[:-1].tolist(), fills[:-1], strict=True)
            if fill
        )
        return block * self.size - missing

    def filled(self, x: Shaped[Array, "B L *rest"], value: int = 0) -> Shaped[Array, "B nT *rest"]:
        """The tokens [B, L, ...] with every slice filled up with `value` to whole blocks: [B, n T, ...]."""
        parts = jnp.split(x, np.cumsum(self.slices)[:-1], axis=1)
        fill = [(0, 0)] * x.ndim
        rest = [-n % self.size for n in self.slices]
        parts = [
            jnp.pad(p, [fill[0], (0, r), *fill[2:]], constant_values=value) for p, r in zip(parts, rest, strict=True)
        ]
        return jnp.concatenate(parts, 1)

    def emptied(self, x: Shaped[Array, "B nT *rest"]) -> Shaped[Array, "B L *rest"]:
        """Undoes `filled`."""
        filled = np.cumsum([n + -n % self.size for n in self.slices])[:-1]
        parts = jnp.split(x, filled, axis=1)
        return jnp.concatenate([part[:, :n] for part, n in zip(parts, self.slices, strict=True)], 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel needs of the tokens, in blocks.

    Attributes:
      order: int32 [B, n T] of queries, -1 of padding and of what fills slices up.
      of: int32 [B, n], the class of each query block.
      first, last: int32 [B, m T] and [B, C, m T] of keys, see `transfusion.sequence.masks.Intervals`.
      q, k: how queries and keys are cut.
    """

    order: Int[Array, "B nT"]
    of: Int[Array, "B n"]
    first: Int[Array, "B mT"]
    last: Int[Array, "B C mT"]
    q: Cut = dataclasses.field(metadata={"static": True})
    k: Cut = dataclasses.field(metadata={"static": True})

    @property
    def kinds(self) -> Int[Array, "B n m"]:
        """The kind of each pair of blocks: `FULL`, `PARTIAL` or `NONE`."""
        return kinds(self.order, self.of, self.first, self.last, self.q.size, self.k.size)


def plan(tokens: Intervals, q: Cut, k: Cut) -> Plan:
    """Cuts the tokens into blocks.

    Args:
      tokens: the rule.
      q, k: how queries and keys are cut. The queries of a slice must be of one class.
    """
    order = q.filled(tokens.order, -1)
    first = k.filled(tokens.first, NEVER)
    last = jnp.moveaxis(k.filled(jnp.moveaxis(tokens.last, 1, 2), -2), 2, 1)
    of = tokens.of[:, q.starts]
    return Plan(order, of, first, last, q, k)


def kinds(
    order: Int[Array, "B nT"],
    of: Int[Array, "B n"],
    first: Int[Array, "B mT"],
    last: Int[Array, "B C mT"],
    tq: int,
    tk: int,
) -> Int[Array, "B n m"]:
    """The kind of each pair of blocks: never `NONE` where a pair is allowed, never `FULL` where one is not.

    Every key is compared with the extremes of `GROUP` queries, and every query with those of `GROUP` keys. The extremes
    of whole blocks would keep blocks whose intervals fall between the documents or images of the other block.
    """
    queries = order.reshape(len(order), -1, tq)
    low, high = _groups(jnp.where(queries < 0, NEVER, queries)).min(-1), _groups(queries).max(-1)
    first = first.reshape(len(first), -1, tk)

    def compare(ends: Array) -> tuple[Array, Array]:
        """Whether a block's queries may see some of the keys, and whether they see all; `ends` is `last` of a class."""
        ends = ends.reshape(first.shape)
        some = _overlap(
            low[:, :, None, :, None], high[:, :, None, :, None], first[:, None, :, None], ends[:, None, :, None]
        )
        begin, end = _groups(first).min(-1)[:, None, ..., None], _groups(ends).max(-1)[:, None, ..., None]
        one = queries[:, :, None, None, :]
        some &= _overlap(jnp.where(one < 0, NEVER, one), one, begin, end)
        full = first.max(-1)[:, None] <= queries.min(-1)[..., None]
        return some, full & (ends.min(-1)[:, None] >= queries.max(-1)[..., None])

    some, full = compare(last[:, 0])
    for number in range(1, last.shape[1]):
        mine = (of == number)[..., None]
        some, full = (
            jnp.where(mine, new, old) for new, old in zip(compare(last[:, number]), (some, full), strict=True)
        )
    return jnp.where(full, FULL, jnp.where(some, PARTIAL, NONE)).astype(jnp.int32)


def _groups(x: Array) -> Array:
    """Blocks [B, n, T] in groups, [B, n, T / g, g]."""
    return x.reshape(*x.shape[:2], -1, math.gcd(x.shape[2], GROUP))


def _overlap(low: Array, high: Array, first: Array, last: Array) -> Array:
    """Whether any of the intervals overlap: [B, n, m, groups, tokens] that are broadcast -> [B, n, m].

    Compilers reduce the last axis while they compare, so that [B, n, m, groups] is the largest array in memory."""
    return ((first <= high) & (last >= low)).any(-1).any(-1)
