"""The blocks that each block needs, as runs of neighbours: memory for them grows as the tokens, not as their pairs.

The tokens of a document follow one another in every slice of a row. So a block of queries needs few runs of key blocks:
in each slice those between the beginning of its first document and its last query, of which some at the ends are
`PARTIAL`. The same holds for the queries of key blocks. A list of the needed blocks would be as long as a row.

Shape letters: B rows, n outer blocks, which need others, m inner blocks, R runs.
"""

import dataclasses

import jax
import jax.numpy as jnp

from transfusion.kernels.plan import FULL, NONE, PARTIAL, Plan, kinds
from transfusion.sequence.arrays import Array, Int
from transfusion.sequence.masks import NEVER

MOST = 16
"""The runs of a block (R), a power of two. Blocks that need more compute all blocks from the last run on, masked."""
PAIRS = 2**16
"""How many pairs of blocks of a row are looked at together, so that long rows need no memory for all of them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Runs:
    """For each outer block the inner blocks that it needs, in the order in which a kernel visits them.

    The kernel counts its steps. At `step` it visits the block `step + sum(jumps where step >= at)`, see `block_at`.

    Attributes:
      at: int32 [B, n, R], the step at which each run begins: those of full blocks, then those of partial ones; `NEVER`
        behind the last run.
      jumps: int32 [B, n, R].
      counts: int32 [B, n, 2], how many blocks are full, and how many are visited.
    """

    at: Int[Array, "B n R"]
    jumps: Int[Array, "B n R"]
    counts: Int[Array, "B n 2"]


def block_at(step: Array, at: Int[Array, "R"], jumps: Int[Array, "R"]) -> Array:
    """The block that an outer block with these runs visits at a step."""
    return step + jnp.sum(jnp.where(step >= at, jumps, 0))


def of_queries(plan: Plan) -> Runs:
    """The key blocks of each query block."""

    def find(order: Array, of: Array) -> Runs:
        return runs(kinds(order, of, plan.first, plan.last, plan.q.size, plan.k.size))

    return _in_parts(find, plan.q.blocks, plan.k.blocks, (plan.order, -1), (plan.of, 0))


def of_keys(plan: Plan) -> Runs:
    """The query blocks of each key block."""

    def find(first: Array, last: Array) -> Runs:
        return runs(kinds(plan.order, plan.of, first, last, plan.q.size, plan.k.size).swapaxes(1, 2))

    return _in_parts(find, plan.k.blocks, plan.q.blocks, (plan.first, NEVER), (plan.last, -2))


def _in_parts(find, outer: int, inner: int, *arrays: tuple[Array, int]) -> Runs:
    """Finds the runs of some of the outer blocks after the other; `arrays` are what belongs to these, and its padding.

    Their last axis goes over the blocks, or over the tokens of blocks.
    """
    together = max(PAIRS // inner, 1)
    if outer <= together:
        return find(*(x for x, _ in arrays))
    parts = -(-outer // together)

    def apart(x: Array, value: int) -> Array:
        missing = (parts * together - outer) * (x.shape[-1] // outer)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=value)
        return jnp.moveaxis(x.reshape(*x.shape[:-1], parts, -1), -2, 0)

    found = jax.lax.map(lambda part: find(*part), tuple(apart(*one) for one in arrays))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, x.shape[-1])[:, :outer], found)


def runs(kinds: Int[Array, "B n m"]) -> Runs:
    """Joins the needed second blocks of each first one to runs of the same kind."""
    place = jax.lax.broadcasted_iota(jnp.int32, kinds.shape, 2)
    number = _numbers(kinds)
    end = jnp.where(kinds != NONE, place, -1).max(-1, keepdims=True)
    rest = (number[..., -1:] > MOST) & (number >= MOST) & (place <= end)
    kinds = jnp.where(rest, PARTIAL, kinds)
    number = jnp.where(kinds != NONE, _numbers(kinds), 0)

    mine = number[..., None] == jnp.arange(1, MOST + 1)[None, None, None]
    begins, lengths = jnp.where(mine, place[..., None], NEVER).min(2), mine.sum(2)
    full = (mine & (kinds == FULL)[..., None]).any(2)
    counts = jnp.stack([jnp.where(full, lengths, 0).sum(-1), lengths.sum(-1)], -1)

    sorting = jnp.argsort(jnp.where(lengths == 0, 2, ~full), axis=-1, stable=True)
    begins, lengths = (jnp.take_along_axis(x, sorting, -1) for x in (begins, lengths))
    at = jnp.cumsum(lengths, -1) - lengths
    ahead = begins - at
    jumps = jnp.diff(ahead, axis=-1, prepend=jnp.zeros_like(ahead[..., :1]))
    there = lengths > 0
    found = jnp.where(there, at, NEVER), jnp.where(there, jumps, 0), counts
    return Runs(*(x.astype(jnp.int32) for x in found))


def _numbers(kinds: Int[Array, "B n m"]) -> Int[Array, "B n m"]:
    """How many runs have begun up to each block."""
    before = jnp.pad(kinds[..., :-1], [(0, 0), (0, 0), (1, 0)], constant_values=NONE)
    return jnp.cumsum((kinds != NONE) & (kinds != before), -1)
