"""The needed pairs of blocks of all rows as one flat list, for kernels whose grid is the length of that list.

A TPU works off the steps of a grid one after the other, and fetches the blocks of the next step meanwhile. A grid over
all pairs would fetch those too that no query needs. So the grid is the list, whose length the data decide, and each
entry says which blocks come next.
"""

import dataclasses

import jax
import jax.numpy as jnp

from transfusion.errors import UsageError
from transfusion.kernels.plan import NONE, PARTIAL
from transfusion.sequence.arrays import Array, Int

FIRST, LAST, MASKED = 1, 2, 4  # flags of an entry
FLAGS, NUMBER = 3, 14  # bits of the flags, and of the number of a block
MOST = 2**17  # entries: they lie in scalar memory, of which a chip has 1 MiB


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visits:
    """The needed pairs of blocks, sorted by the outer block, so that what is summed for it stays in registers.

    Attributes:
      entries: int32 [visits], one integer each, because scalar memory is small: the outer block, the inner one, and the
        flags `FIRST` and `LAST` of its outer block, and `MASKED` where some pair of tokens may be forbidden. Blocks are
        numbered over all rows. Behind the needed pairs lies what no kernel reads.
      count: int32 [1], how many entries are needed.
    """

    entries: Int[Array, "visits"]
    count: Int[Array, "1"]


def outer(entry: jax.Array) -> jax.Array:
    """The number of the block for which the kernel sums."""
    return jax.lax.shift_right_logical(entry, jnp.int32(FLAGS + NUMBER))


def inner(entry: jax.Array) -> jax.Array:
    """The number of the other block."""
    return jax.lax.shift_right_logical(entry, jnp.int32(FLAGS)) & (2**NUMBER - 1)


def visits(kinds: Int[Array, "B n m"]) -> Visits:
    """Lists the pairs that are not `NONE`; the second axis of `kinds` is the outer block.

    A block that needs nothing has one masked entry, as its zeros must be written too.

    Raises:
      UsageError: if there are more pairs than scalar memory holds, or more blocks than an entry can number.
    """
    rows, n, m = kinds.shape
    if rows * n * m > MOST or rows * max(n, m) > 2**NUMBER:
        raise UsageError(
            f"{rows} rows with {n} x {m} pairs of blocks are too many for one device, which holds {MOST} pairs and "
            f"{2**NUMBER} blocks: split the rows, or their tokens, over more devices"
        )
    needed = kinds != NONE
    needed = needed.at[:, :, 0].set(needed[:, :, 0] | ~needed.any(-1))
    place = jnp.cumsum(needed, -1)
    first, last = place == 1, place == place[..., -1:]
    row = jax.lax.broadcasted_iota(jnp.int32, kinds.shape, 0)
    block = row * n + jax.lax.broadcasted_iota(jnp.int32, kinds.shape, 1)
    other = row * m + jax.lax.broadcasted_iota(jnp.int32, kinds.shape, 2)
    flags = FIRST * first + LAST * last + MASKED * (kinds >= PARTIAL)
    entry = (block << (FLAGS + NUMBER)) | (other << FLAGS) | flags
    # An entry grows with the number of its outer block, then with that of its inner one: sorting keeps their order.
    entries = jnp.sort(jnp.where(needed, entry, jnp.iinfo(jnp.int32).max).ravel())
    return Visits(entries.astype(jnp.int32), needed.sum(dtype=jnp.int32)[None])
