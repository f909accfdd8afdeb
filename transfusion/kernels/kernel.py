"""What a kernel is to the model: how it plans, how it attends, and which cases it refuses.

Shape letters: B rows, L queries, S keys, H heads, G key-value heads, K head size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

UNSEEN = -1e30
"""The score of a pair that is not allowed, and the log-sum-exp of a query that sees nothing: finite, so that no
difference of two is NaN."""
DTYPES = ("bfloat16", "float32")

Result = tuple[jax.Array, jax.Array]
"""Outputs [B, L, H, K], zeros of a query that sees nothing; log-sum-exps of the scores, float32 [B, H, L]."""
Head = tuple[int, str]
"""How many numbers a head has, and their dtype."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is known of an attention before its tokens are there.

    Attributes:
      q: how many queries each stream has, in the order in which they lie, all shares together.
      k: the same of the keys, in pieces as they lie. A piece may mix streams, and then costs more blocks.
      size: the head size.
      dtype: that of queries, keys and values.
      shares: into how many shares the tokens of each stream are split, see `transfusion.sharding.join`.
    """

    q: tuple[int, ...]
    k: tuple[int, ...]
    size: int
    dtype: str
    shares: int = 1

    @property
    def head(self) -> "Head":
        return self.size, self.dtype


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Attention on one kind of devices.

    Attributes:
      platform: that of the devices on which it runs.
      largest: the largest head size.
      plan: (metadata of queries, metadata of keys, may, sizes of the slices of queries, those of keys, `Head`) -> what
        all layers share, for the rows of one device.
      attend: (q [B, L, H, K], k, v [B, S, G, K], plan) -> `Result`, with gradients.
      forward_mode: the same for `jax.jvp`, which gets outputs and tangents in one pass. It has no gradients itself.
      read: the same for keys and values [B, G, S, K], as a cache has them, without gradients.
    """

    platform: str
    largest: int
    plan: Callable[..., Any]
    attend: Callable[..., Result]
    forward_mode: Callable[..., Result]
    read: Callable[..., Result]

    def refusal(self, layout: Layout, platform: str) -> str:
        """Why it does not run in this case; '' where it does."""
        if platform != self.platform:
            return f"runs on a {self.platform}, and this is a {platform}"
        if layout.size > self.largest:
            return f"has no form for heads of {layout.size} numbers: {self.largest} is the most"
        return "" if layout.dtype in DTYPES else f"computes in {' or '.join(DTYPES)}, not in {layout.dtype}"


def merge(results: list[Result]) -> Result:
    """Joins attention over several sets of keys to that over all of them, by the log-sum-exps of their scores."""
    top = jnp.stack([lse for _, lse in results]).max(0)
    weights = [jnp.exp(lse - top) for _, lse in results]
    total = sum(weights)
    # A query that sees nothing has weights of one everywhere, and sums zeros.
    shares = [jnp.swapaxes(weight / total, 1, 2)[..., None] for weight in weights]
    out = sum(out.astype(jnp.float32) * share for (out, _), share in zip(results, shares, strict=True))
    return out.astype(results[0][0].dtype), top + jnp.log(total)
