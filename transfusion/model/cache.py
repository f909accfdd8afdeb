"""Keys and values kept between calls of a trunk, and attention over them and over new tokens.

Shape letters: B rows, N new tokens, S slots of the cache, H heads, G key-value heads, K head size.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.kernels.kernel import Layout
from transfusion.model.attention import Backend, heads_first
from transfusion.sequence.masks import Metadata

Pair = tuple[jax.Array, jax.Array]
"""Keys and values of one layer: of a cache [B G, S, K] each, of new tokens [B, N, G, K]."""
Stacks = tuple[jax.Array, ...]
"""Keys or values of a trunk's layers, in order: stacks [n, B G, S, K] of n layers each."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of every layer of every trunk, by the trunk's name, with the metadata [B, S] of their tokens.

    Cross-attention reads those of a context (`TransformerConfig.cross`). Rows and heads are one axis, because only then
    does XLA:CPU write a token without copying all others.

    A trunk's layers lie in one stack for a scan, or in a stack each for an unrolled trunk in a loop, because XLA:CPU
    copies a layer of a larger stack in order to read it. A trunk takes them divided in any way, and gives them back
    divided in the same way.
    """

    k: Mapping[str, Stacks]
    v: Mapping[str, Stacks]
    metadata: Metadata

    def apart(self, trunk: str) -> "KeyValues":
        """Returns the same keys and values with a stack for each layer of one trunk."""

        def split(table: Mapping[str, Stacks]) -> dict[str, Stacks]:
            return {**table, trunk: tuple(x[i : i + 1] for x in table[trunk] for i in range(len(x)))}

        return KeyValues(split(self.k), split(self.v), self.metadata)

    def grown(self, room: int) -> "KeyValues":
        """Returns the same keys and values with `room` more slots, which are padding."""

        def pad(x: jax.Array, axis: int) -> jax.Array:
            return jnp.pad(x, [(0, room if i == axis else 0) for i in range(x.ndim)])

        k, v = jax.tree.map(lambda x: pad(x, 2), (self.k, self.v))
        return KeyValues(k, v, jax.tree.map(lambda x: pad(x, 1), self.metadata))

    def with_rows(self, other: "KeyValues", rows: jax.Array) -> "KeyValues":
        """Replaces the rows with the numbers `rows` int32 [A] by those of another cache; others are left out."""

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            groups = new.shape[1] // len(rows)
            at = (rows[:, None] * groups + jnp.arange(groups)[None]).reshape(-1)
            return old.at[:, at].set(new, mode="drop")

        k, v = jax.tree.map(put, (self.k, self.v), (other.k, other.v))
        metadata = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), self.metadata, other.metadata)
        return KeyValues(k, v, metadata)

    def shrunk(self, slots: int) -> "KeyValues":
        """Returns the first `slots` slots."""
        k, v = jax.tree.map(lambda x: x[:, :, :slots], (self.k, self.v))
        return KeyValues(k, v, jax.tree.map(lambda x: x[:, :slots], self.metadata))

    def of_rows(self, change: Callable[..., jax.Array], *others: "KeyValues") -> "KeyValues":
        """Applies a function of arrays [B, ...] to all arrays of this cache, and of others that are divided like it.

        It gets keys and values as [B, layers, G, S, K].
        """
        rows = self.metadata.order.shape[0]

        def of(*stacks: jax.Array) -> jax.Array:
            x = change(*(jnp.moveaxis(x.reshape(len(x), -1, x.shape[1] // rows, *x.shape[2:]), 1, 0) for x in stacks))
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(len(x), -1, *x.shape[3:])

        k, v = jax.tree.map(of, (self.k, self.v), *((other.k, other.v) for other in others))
        return KeyValues(k, v, jax.tree.map(change, self.metadata, *(other.metadata for other in others)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CachedLayer:
    """One layer of a cache: its number int32 [] in the stacks of keys and values [n, B G, S, K] that hold it.

    The stacks themselves are handed from layer to layer, because a loop writes only into an array that it carries
    without copying it.
    """

    k: jax.Array
    v: jax.Array
    number: jax.Array | int

    @property
    def pair(self) -> Pair:
        return self.k[self.number], self.v[self.number]

    def written(self, new: Pair, at: jax.Array) -> "CachedLayer":
        """Writes new tokens to the slots `at` int32 [B, N]; all of them must exist."""
        at = jnp.repeat(at, new[0].shape[2], axis=0)
        row = jnp.arange(len(at))[:, None]
        k, v = (
            x.at[self.number, row, at].set(y, mode="promise_in_bounds")
            for x, y in zip((self.k, self.v), merged(new), strict=True)
        )
        return CachedLayer(k, v, self.number)


def merged(new: Pair) -> Pair:
    """Gives new tokens' keys and values the shape that a cache has: [B G, N, K] each."""
    k, v = (heads_first(x).reshape(-1, x.shape[1], x.shape[3]) for x in new)
    return k, v


def write_metadata(cached: Metadata, new: Metadata, at: jax.Array) -> Metadata:
    """Writes the metadata of new tokens into that of a cache."""
    row = jnp.arange(len(at))[:, None]
    return jax.tree.map(lambda old, x: old.at[row, at].set(x, mode="promise_in_bounds"), cached, new)


def attention_over(
    queries: Metadata,
    keys: Metadata | None,
    cache: KeyValues | None,
    may: np.ndarray | None,
    backend: Callable[[Layout], Backend],
    layout: Layout,
) -> Callable[[jax.Array, Pair | None, CachedLayer | None], jax.Array]:
    """Makes one layer's attention, a function of (q [B, N, H, K], new, cached), and once what all layers share.

    Args:
      queries: metadata [B, N].
      keys: metadata of new tokens that are not in the cache; None: there are none, or they have been written.
      cache: its metadata holds what has been written; None: there is none.
      may: see `transfusion.sequence.masks.see`.
      backend: finds the row of `transfusion.model.attention.BACKENDS`.
      layout: of the queries and of `keys`.
    """
    chosen = backend(layout)
    if cache is None:
        plan = chosen.plan(queries, keys, may, layout)
        return lambda q, new, cached: chosen.attend(q, *new, plan)
    of_cache = dataclasses.replace(layout, k=cache.metadata.order.shape[1:], shares=1)
    plans = [chosen.plan_read(queries, cache.metadata, may, of_cache)]
    if keys is not None:
        plans.append(chosen.plan_read(queries, keys, may, layout))

    def attend(q: jax.Array, new: Pair | None, cached: CachedLayer) -> jax.Array:
        parts = [tuple(x.reshape(len(q), -1, *x.shape[1:]) for x in cached.pair)]
        if keys is not None:
            parts.append(tuple(map(heads_first, new)))
        return chosen.read(q, parts, plans)

    return attend
