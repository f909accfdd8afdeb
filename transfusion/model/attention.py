"""Attention behind one function: every backend takes per-token metadata and obeys `transfusion.sequence.masks.see`.

Shape letters: B rows, Q queries, S keys, H heads, G key-value heads, R = H / G, K head size.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model import blockwise
from transfusion.model.blockwise import UNSEEN_SCORE
from transfusion.sequence.arrays import Array, Bool, Float
from transfusion.sequence.masks import Metadata, see


def attention(
    q: Float[Array, "B Q H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    q_metadata: Metadata,
    k_metadata: Metadata,
    *,
    may: Bool[np.ndarray, "streams streams"] | None = None,
    backend: str = "dense",
) -> Float[Array, "B Q H K"]:
    """Computes attention under the rule of `masks.see`, with a float32 softmax; queries that see nothing give zeros.

    Args:
      q: [B, Q, H, K]; scaled by 1 / sqrt(K) here.
      k, v: [B, S, G, K]; H is a multiple of G, and head h reads key-value head h // (H / G).
      q_metadata, k_metadata: metadata [B, Q] and [B, S].
      may: static bool [streams, streams], see `masks.see`.
      backend: a key of `BACKENDS`.

    Returns:
      [B, Q, H, K].
    """
    chosen = BACKENDS[backend]
    return chosen.attend(q, k, v, chosen.plan(q_metadata, k_metadata, may))


def grouped(q: Float[Array, "B Q H K"], kv_heads: int) -> Float[Array, "B {kv_heads} _ K"]:
    """Scales queries [B, Q, H, K] and groups them by key-value head: [B, G, Q R, K].
    The query heads of one token stay adjacent, so that a device has all of them where tokens are split."""
    b, n, h, size = q.shape
    apart = (q * size**-0.5).reshape(b, n, kv_heads, h // kv_heads, size).transpose(0, 2, 1, 3, 4)
    return apart.reshape(b, kv_heads, -1, size)


def masked_attention(
    q: Float[Array, "B Q H K"], k: Float[Array, "B S G K"], v: Float[Array, "B S G K"], mask: Bool[Array, "B Q S"]
) -> Float[Array, "B Q H K"]:
    """The reference attention: an explicit mask bool [B, Q, S], and the whole [B, H, Q, S] score array in memory."""
    return joined_attention(q, [(heads_first(k), heads_first(v), mask)])


def heads_first(x: Float[Array, "B S G K"]) -> Float[Array, "B G S K"]:
    """Turns [B, S, G, K] into [B, G, S, K], so that each head's keys or values lie in one piece."""
    return jnp.swapaxes(x, 1, 2)


def joined_attention(
    q: Float[Array, "B Q H K"],
    parts: Sequence[tuple[Float[Array, "B G _ K"], Float[Array, "B G _ K"], Bool[Array, "B Q _"]]],
) -> Float[Array, "B Q H K"]:
    """Attends over several (k, v, mask) as if they were concatenated along S, without copying keys and values.
    The keys and values are [B, G, S, K] here."""
    b, n, h, size = q.shape
    groups = parts[0][0].shape[1]
    # Each [Q or S, K] matrix contiguous per head: the layout in which XLA:CPU multiplies without a copy per call.
    qg = grouped(q, groups)
    scores = [jnp.einsum("bgqk,bgsk->bgqs", qg, k, preferred_element_type=jnp.float32) for k, _, _ in parts]
    scores = jnp.concatenate(scores, -1).reshape(b, groups, n, h // groups, -1)
    mask = jnp.concatenate([part[2] for part in parts], -1)
    weights = jax.nn.softmax(jnp.where(mask[:, None, :, None], scores, UNSEEN_SCORE), axis=-1)
    weights = jnp.split(
        weights.astype(q.dtype).reshape(b, groups, -1, mask.shape[-1]), _ends([k for k, _, _ in parts]), axis=-1
    )
    out = sum(jnp.einsum("bgqs,bgsk->bgqk", w, v) for w, (_, v, _) in zip(weights, parts, strict=True))
    out = out.reshape(b, groups, n, h // groups, size).transpose(0, 2, 1, 3, 4).reshape(b, n, h, size)
    # A query that sees nothing gives zeros; they are set here, where the array is small.
    return out * mask.any(-1)[..., None, None]


def _ends(keys: Sequence[jax.Array]) -> list[int]:
    """The positions at which all parts but the last end."""
    return np.cumsum([k.shape[2] for k in keys])[:-1].tolist()


@dataclasses.dataclass(frozen=True)
class Backend:
    """`plan(q_metadata, k_metadata, may)` prepares what all layers share; `attend(q, k, v, plan)` runs one layer."""

    plan: Callable[..., Any]
    attend: Callable[..., jax.Array]


# Kernels for TPUs and GPUs are further rows: the same arguments, the same result.
BACKENDS: dict[str, Backend] = {
    "dense": Backend(see, masked_attention),
    "blockwise": Backend(blockwise.plan_blocks, blockwise.attend),
}
