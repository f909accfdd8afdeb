"""Next-token prediction: cross entropy per token, with z-loss, over the whole vocabulary or chunk by chunk.

Shape letters: T tokens, D width, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from transfusion.errors import UsageError
from transfusion.sequence.arrays import Array, Float, Int
from transfusion.sharding import flat


@dataclasses.dataclass(frozen=True)
class NextTokenConfig:
    """`z_loss` weighs log(Z)^2 (PaLM, section 5; Chameleon: 1e-5); `chunk` slices the vocabulary, 0: all at once."""

    z_loss: float = 0.0
    chunk: int = 0

    def __post_init__(self):
        if self.chunk < 0 or self.z_loss < 0:
            raise UsageError("next_token: chunk and z_loss must not be negative")


def token_losses(
    head: Any, hidden: Float[Array, "B N D"], targets: Int[Array, "B N"], chunk: int = 0
) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Computes `cross_entropy` of a head's logits at hidden [B, N, D] against targets [B, N]: float32 [B, N] each."""
    y, kernel = head.factors(hidden)
    nll, log_z = cross_entropy(flat(y), kernel, flat(targets), chunk)
    return nll.reshape(targets.shape), log_z.reshape(targets.shape)


def cross_entropy(
    hidden: Float[Array, "*T D"], kernel: Float[Array, "D V"], targets: Int[Array, "*T"], chunk: int = 0
) -> tuple[Float[Array, "*T"], Float[Array, "*T"]]:
    """Computes the negative log likelihood and the log of the softmax sum, float32 [T] each; T may be several axes.

    Args:
      hidden: [T, D].
      kernel: [D, V]; the logits are hidden @ kernel.
      targets: int32 [T].
      chunk: with a positive chunk that divides V no array of T x V logits exists, forward or backward.
    """
    vocabulary = kernel.shape[1]
    kernel = kernel.astype(hidden.dtype)  # here, because a part of it is read again when its logits are recomputed
    if not chunk or chunk >= vocabulary:
        logits = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0], log_z
    if vocabulary % chunk:
        raise UsageError(f"next_token.chunk {chunk} does not divide the vocabulary {vocabulary}")

    @partial(jax.checkpoint, prevent_cse=False)
    def add(carry, scanned):
        log_z, chosen = carry
        part, start = scanned
        logits = jnp.einsum("...d,dv->...v", hidden, part, preferred_element_type=jnp.float32)
        local = targets - start
        inside = (local >= 0) & (local < chunk)
        picked = jnp.take_along_axis(logits, jnp.clip(local, 0, chunk - 1)[..., None], axis=-1)[..., 0]
        log_z = jnp.logaddexp(log_z, jax.nn.logsumexp(logits, axis=-1))
        return (log_z, chosen + jnp.where(inside, picked, 0)), None

    parts = kernel.reshape(kernel.shape[0], -1, chunk).swapaxes(0, 1)
    start = (jnp.full(targets.shape, -jnp.inf), jnp.zeros(targets.shape))
    (log_z, chosen), _ = jax.lax.scan(add, start, (parts, jnp.arange(0, vocabulary, chunk)))
    return log_z - chosen, log_z
