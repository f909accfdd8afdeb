"""Keys and values kept between calls of a trunk, and attention over them and over new tokens.

Shape letters: B rows, N new tokens, S slots of the cache, H heads, G key-value heads, K head size.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.attention import BACKENDS, heads_first, joined_attention
from transfusion.sequence.masks import Metadata, see

Pair = tuple[jax.Array, jax.Array]
"""Keys and values of one layer: of a cache [B G, S, K] each, of new tokens [B, N, G, K]."""
Layers = jax.Array | tuple[jax.Array, ...]
"""A trunk's layers in order: one array [layers, B G, S, K], or for each layer an array [B G, S, K]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of every layer of every trunk, by the trunk's name, with the metadata [B, S] of their tokens.

    Cross-attention reads those of a context (`TransformerConfig.cross`). Rows and heads are one axis, because only then
    does XLA:CPU write a token without copying all others. The layers are one array for a scan, or an array each for an
    unrolled trunk in a loop, which writes them in place. A trunk takes both forms, and returns the form it was given.
    """

    k: Mapping[str, Layers]
    v: Mapping[str, Layers]
    metadata: Metadata

    def by_layer(self) -> "KeyValues":
        """Returns the same keys and values with an array for each layer."""
        k, v = ({trunk: tuple(layers) for trunk, layers in table.items()} for table in (self.k, self.v))
        return KeyValues(k, v, self.metadata)

    def grown(self, room: int) -> "KeyValues":
        """Returns the same keys and values with `room` more slots, which are padding."""

        def pad(x: jax.Array, axis: int) -> jax.Array:
            return jnp.pad(x, [(0, room if i == axis else 0) for i in range(x.ndim)])

        k, v = jax.tree.map(lambda x: pad(x, x.ndim - 2), (self.k, self.v))
        return KeyValues(k, v, jax.tree.map(lambda x: pad(x, 1), self.metadata))


def stacked(layers: Layers) -> jax.Array:
    """Stacks all layers into one array; `tuple(layers)` is the reverse."""
    return jnp.stack(layers) if isinstance(layers, tuple) else layers


def merged(new: Pair) -> Pair:
    """Gives new tokens' keys and values the shape that a cache has: [B G, N, K] each."""
    k, v = (heads_first(x).reshape(-1, x.shape[1], x.shape[3]) for x in new)
    return k, v


def write_layer(cached: Pair, new: Pair, at: jax.Array) -> Pair:
    """Writes new tokens into one layer of a cache, at the slots `at` int32 [B, N]; all of them must exist."""
    at = jnp.repeat(at, new[0].shape[2], axis=0)
    row = jnp.arange(len(at))[:, None]
    k, v = (x.at[row, at].set(y, mode="promise_in_bounds") for x, y in zip(cached, merged(new), strict=True))
    return k, v


def write_metadata(cached: Metadata, new: Metadata, at: jax.Array) -> Metadata:
    """Writes the metadata of new tokens into that of a cache."""
    row = jnp.arange(len(at))[:, None]
    return jax.tree.map(lambda old, x: old.at[row, at].set(x, mode="promise_in_bounds"), cached, new)


def attention_over(
    queries: Metadata, keys: Metadata | None, cache: KeyValues | None, may: np.ndarray | None, backend: str
) -> Callable[[jax.Array, Pair | None, Pair | None], jax.Array]:
    """Makes one layer's attention, a function of (q [B, N, H, K], new, cached), and once what all layers share.

    Args:
      queries: metadata [B, N].
      keys: metadata of new tokens that are not in the cache; None: there are none, or they have been written.
      cache: its metadata holds what has been written; None: there is none.
      may: see `transfusion.sequence.masks.see`.
      backend: of attention without a cache, a key of `transfusion.model.attention.BACKENDS`.
    """
    if cache is None:
        chosen = BACKENDS[backend]
        plan = chosen.plan(queries, keys, may)
        return lambda q, new, cached: chosen.attend(q, *new, plan)
    sees_cache = see(queries, cache.metadata, may)
    sees_new = None if keys is None else see(queries, keys, may)

    def attend(q: jax.Array, new: Pair | None, cached: Pair | None) -> jax.Array:
        parts = [(*(x.reshape(len(q), -1, *x.shape[1:]) for x in cached), sees_cache)]
        if sees_new is not None:
            parts.append((*map(heads_first, new), sees_new))
        return joined_attention(q, parts)

    return attend
