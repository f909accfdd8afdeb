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

LARGE, SMALL = 32_768, 1024  # see `chunk_of`


@dataclasses.dataclass(frozen=True)
class NextTokenConfig:
    """How next tokens are predicted.

    Attributes:
      z_loss: weighs log(Z)^2 (PaLM, section 5; Chameleon: 1e-5).
      chunk: how many logits of a token are computed at once. It must divide the vocabulary; 0 means all, and -1 chooses
        as `chunk_of` says.
    """

    z_loss: float = 0.0
    chunk: int = -1

    def __post_init__(self):
        if self.chunk < -1 or self.z_loss < 0:
            raise UsageError("next_token: chunk must be at least -1, and z_loss not negative")


def chunk_of(vocabulary: int, chunk: int = -1) -> int:
    """How many logits of a token are computed at once, 0 for all; -1 chooses by the size of the vocabulary.

    Up to 32,768 are computed at once. A row of 4,096 tokens has 2.3 GiB of logits in float32 with a vocabulary of
    152,064, of which training needs about three copies. There the largest divisor up to 16,384 is chosen. All are
    computed at once if that is below 1,024: a hundred small products would cost more time than the memory is worth.
    """
    if chunk >= 0 or vocabulary <= LARGE:
        return max(chunk, 0)
    largest = max(size for size in range(1, LARGE // 2 + 1) if vocabulary % size == 0)
    return largest if largest >= SMALL else 0


def token_losses(
    head: Any, hidden: Float[Array, "B N D"], targets: Int[Array, "B N"], chunk: int = -1
) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Computes `cross_entropy` of a head's logits at hidden [B, N, D] against targets [B, N]: float32 [B, N] each.

    `chunk` is that of `NextTokenConfig`."""
    y, kernel = head.factors(hidden)
    nll, log_z = cross_entropy(flat(y), kernel, flat(targets), chunk_of(kernel.shape[1], chunk))
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
