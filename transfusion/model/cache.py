"""Keys and values kept between calls of a trunk, and attention over them and over new tokens.

Shape letters: B rows, N new tokens, S slots of the cache, H heads, G key-value heads, K head size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.attention import BACKENDS, heads_first, joined_attention
from transfusion.sequence.masks import Metadata, see

Pair = tuple[jax.Array, jax.Array]
"""Keys and values of one layer: of a cache [B G, S, K] each, of new tokens [B, N, G, K]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of every layer: [layers, B G, S, K] each, with the metadata [B, S] of their tokens; those of a
    context (`TransformerConfig.cross`) are what cross-attention reads.

    Rows and heads are one axis, for only so does XLA:CPU write a token without a copy of all others. A tuple of layers
    may stand in place of each array (see `split`). Of a model with further trunks `k` and `v` are dicts, by the trunk's
    name.
    """

    k: Any
    v: Any
    metadata: Metadata

    def split(self) -> "KeyValues":
        """With a tuple of layers in place of each array: an unrolled trunk in a loop writes these where they lie."""
        k, v = (jax.tree.map(tuple, x, is_leaf=lambda x: isinstance(x, tuple)) for x in (self.k, self.v))
        return KeyValues(k, v, self.metadata)

    def stacked(self) -> "KeyValues":
        """The reverse of `split`, of one trunk."""
        k, v = (jnp.stack(x) if isinstance(x, tuple) else x for x in (self.k, self.v))
        return KeyValues(k, v, self.metadata)

    def like(self, other: "KeyValues | None") -> "KeyValues":
        """Split where another one is."""
        return self.split() if other is not None and isinstance(other.k, tuple) else self.stacked()

    def grown(self, room: int) -> "KeyValues":
        """With `room` more slots, which are padding."""

        def pad(x: jax.Array, axis: int) -> jax.Array:
            return jnp.pad(x, [(0, room if i == axis else 0) for i in range(x.ndim)])

        k, v = jax.tree.map(lambda x: pad(x, x.ndim - 2), (self.k, self.v))
        return KeyValues(k, v, jax.tree.map(lambda x: pad(x, 1), self.metadata))


def merged(new: Pair) -> Pair:
    """New tokens' keys and values as a cache holds them: [B G, N, K] each."""
    k, v = (heads_first(x).reshape(-1, x.shape[1], x.shape[3]) for x in new)
    return k, v


def write(cached: Pair, new: Pair, at: jax.Array) -> Pair:
    """One layer of a cache with the new tokens in the slots at int32 [B, N], all of them inside it."""
    at = jnp.repeat(at, new[0].shape[2], axis=0)
    row = jnp.arange(len(at))[:, None]
    k, v = (x.at[row, at].set(y, mode="promise_in_bounds") for x, y in zip(cached, merged(new), strict=True))
    return k, v


def write_metadata(cached: Metadata, new: Metadata, at: jax.Array) -> Metadata:
    """A cache's metadata with that of the new tokens."""
    row = jnp.arange(len(at))[:, None]
    return jax.tree.map(lambda old, x: old.at[row, at].set(x, mode="promise_in_bounds"), cached, new)


def attention_over(
    queries: Metadata, keys: Metadata | None, cache: KeyValues | None, may: np.ndarray | None, backend: str
) -> Callable[[jax.Array, Pair | None, Pair | None], jax.Array]:
    """One layer's attention, a function of (q [B, N, H, K], new, cached); what all layers share is made here.

    Args:
      queries: metadata [B, N].
      keys: of new tokens that are not in the cache; None: there are none, or they have been written.
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
