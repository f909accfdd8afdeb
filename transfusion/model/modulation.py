"""Modulation (adaLN): shifts, scales and gates of the tokens of a stream, from a vector that each item has.

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
    """What modulates the tokens of a stream: a vector per item, and the item of every token.

    Attributes:
      vector: [B, M, C], or [layers, B, M, C] where every layer has its own.
      item: [B, N].
      aligned: whether item m owns the m-th N / M slots.
    """

    vector: jax.Array
    item: jax.Array
    aligned: bool


class Modulation(nnx.Module):
    """From a condition to shifts, scales and gates; zero at first, so that a new layer changes nothing (adaLN-zero)."""

    def __init__(self, layers: int, width: int, parts: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (layers, width, parts * width), ("layers", "embed", None), zeros)
        self.bias = param(rngs, (layers, parts * width), ("layers", None), zeros)


def modulate(weights: dict[str, jax.Array], vector: jax.Array, condition: Condition, dtype: Any) -> list[jax.Array]:
    """The parts of one layer's modulation, [B, N, D] each; computed per item, then spread over its tokens."""
    parts = dense(jax.nn.silu(vector), weights["kernel"], weights["bias"])
    parts = per_token(parts, condition.item, condition.aligned).astype(dtype)
    return jnp.split(parts, parts.shape[-1] // weights["kernel"].shape[0], axis=-1)


def modulations(
    streams: Sequence[str], x: Mapping[str, jax.Array], parts: Mapping[str, list[jax.Array]], dtype: Any, shares: int
) -> list[jax.Array] | None:
    """The modulations of several streams' tokens, joined along the row; None where none of the streams has any.

    Args:
      streams: in the order in which they are joined.
      x: per stream [B, N, D].
      parts: per modulated stream what `modulate` gives; a stream that is missing is left as it is.
      dtype: of the computation.
      shares: see `transfusion.sharding.join`.
    """
    if not any(stream in parts for stream in streams):
        return None

    def of(stream: str, i: int) -> jax.Array:
        if stream in parts:
            return parts[stream][i]
        return jnp.full(x[stream].shape, 1.0 if i in (2, 5) else 0.0, dtype)

    return [join([of(stream, i) for stream in streams], shares) for i in range(MODULATIONS)]
