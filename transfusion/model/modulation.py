"""Modulation (adaLN) shifts, scales and gates the tokens of a stream by a vector that each item has.

DiT (arXiv 2212.09748, section 3.2). Shape letters: see `transfusion.model.transformer`; M items, C numbers of a vector.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.model.block import MODULATIONS, dense, per_token
from transfusion.model.parameters import param, zeros
from transfusion.sharding import join


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition modulates the tokens of a stream: it has a vector per item, and the item of every token.

    Attributes:
      vector: [B, M, C], or [layers, B, M, C] where every layer has its own.
      item: [B, N].
      aligned: whether item m owns the m-th N / M slots.
    """

    vector: jax.Array
    item: jax.Array
    aligned: bool


class Modulation(nnx.Module):
    """Turns a condition into shifts, scales and gates; zero at first, so a new layer changes nothing (adaLN-zero)."""

    def __init__(self, layers: int, width: int, parts: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (layers, width, parts * width), ("layers", "embed", None), zeros)
        self.bias = param(rngs, (layers, parts * width), ("layers", None), zeros)


def modulate(weights: dict[str, jax.Array], vector: jax.Array, condition: Condition, dtype: Any) -> list[jax.Array]:
    """Makes one layer's shifts, scales and gates, [B, N, D] each: computed per item, then spread over its tokens."""
    parts = dense(jax.nn.silu(vector), weights["kernel"], weights["bias"])
    parts = per_token(parts, condition.item, condition.aligned).astype(dtype)
    return jnp.split(parts, parts.shape[-1] // weights["kernel"].shape[0], axis=-1)


def modulations(
    streams: Sequence[str], x: Mapping[str, jax.Array], parts: Mapping[str, list[jax.Array]], dtype: Any, shares: int
) -> list[jax.Array] | None:
    """Joins the modulations of several streams' tokens along the row; None if none of the streams has any.

    Args:
      streams: in the order in which they are joined.
      x: per stream [B, N, D].
      parts: the result of `modulate` for each modulated stream; a stream that is missing is not modulated.
      dtype: dtype of the computation.
      shares: see `transfusion.sharding.join`.
    """
    if not any(stream in parts for stream in streams):
        return None

    def of(stream: str, i: int) -> jax.Array:
        if stream in parts:
            return parts[stream][i]
        return jnp.full(x[stream].shape, 1.0 if i in (2, 5) else 0.0, dtype)

    return [join([of(stream, i) for stream in streams], shares) for i in range(MODULATIONS)]
