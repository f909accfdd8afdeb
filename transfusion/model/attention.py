"""Attention behind one function: every backend takes per-token metadata and obeys `transfusion.sequence.masks.see`.

Shape letters: B rows, Q queries, S keys, H heads, G key-value heads, R = H / G, K head size.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.kernels import devices, mosaic, triton
from transfusion.kernels.kernel import Kernel, Layout
from transfusion.model import blockwise
from transfusion.model.blockwise import UNSEEN_SCORE
from transfusion.sequence.arrays import Array, Bool, Float
from transfusion.sequence.masks import Metadata, see
from transfusion.sharding import platform


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
    """Computes attention of queries of one stream, or without `may`; see `Backend` for the rest.

    Args:
      q: [B, Q, H, K].
      k, v: [B, S, G, K].
      q_metadata, k_metadata: metadata [B, Q] and [B, S].
      may: static bool [streams, streams], see `masks.see`.
      backend: a key of `BACKENDS`, or 'auto'.

    Returns:
      [B, Q, H, K].
    """
    layout = Layout(q.shape[1:2], k.shape[1:2], q.shape[-1], str(q.dtype))
    chosen = backend_of(backend, layout)
    return chosen.attend(q, k, v, chosen.plan(q_metadata, k_metadata, may, layout))


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
    """A way to compute attention under the rule of `masks.see`; queries that see nothing give zeros.

    Attributes:
      plan: (metadata [B, Q] of queries, [B, S] of keys, may, layout) -> what all layers share.
      attend: (q [B, Q, H, K], k, v [B, S, G, K], plan) -> [B, Q, H, K]. It scales by 1 / sqrt(K), and has a float32
        softmax. H is a multiple of G, and head h reads key-value head h // (H / G).
      forward_mode: the same for `jax.jvp`; it need not have gradients.
      read: (q, [(k, v), ...] of keys and values [B, G, S, K] in several parts, as a cache and new tokens are, the
        result of `plan_read` for each part) -> the same as `attend`.
      plan_read: as `plan`, for one part.
      refusal: (layout, platform) -> why it does not run in this case; '' where it does.
      quadratic: whether it holds the scores of all pairs at once.
    """

    plan: Callable[..., Any]
    attend: Callable[..., jax.Array]
    forward_mode: Callable[..., jax.Array]
    plan_read: Callable[..., Any]
    read: Callable[..., jax.Array]
    refusal: Callable[[Layout, str], str] = lambda layout, platform: ""
    quadratic: bool = False


def _see(q: Metadata, k: Metadata, may: np.ndarray | None, layout: Layout) -> jax.Array:
    return see(q, k, may)


def _plan_blocks(q: Metadata, k: Metadata, may: np.ndarray | None, layout: Layout) -> blockwise.BlockPlan:
    return blockwise.plan_blocks(q, k, may)


def _read_masked(q: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array]], masks: Sequence[jax.Array]) -> jax.Array:
    return joined_attention(q, [(*pair, mask) for pair, mask in zip(parts, masks, strict=True)])


def of_kernel(kernel: Kernel) -> Backend:
    """The backend of an accelerator's kernel."""
    plan = partial(devices.plan, kernel)
    attend, forward_mode = (partial(devices.attend, of_device) for of_device in (kernel.attend, kernel.forward_mode))
    return Backend(plan, attend, forward_mode, plan, partial(devices.read, kernel), kernel.refusal)


FindBackend = Callable[[str, Layout], Backend]
"""How a model finds its backend by the name in its config: `backend_of`, or `backend_in_forward_mode`."""

BACKENDS: dict[str, Backend] = {
    "dense": Backend(_see, masked_attention, masked_attention, _see, _read_masked, quadratic=True),
    # The queries that see a cache are few, so that nothing is gained by blocks.
    "blockwise": Backend(_plan_blocks, blockwise.attend, blockwise.attend, _see, _read_masked),
    "triton": of_kernel(triton.KERNEL),
    "mosaic": of_kernel(mosaic.KERNEL),
}
AUTO = "auto"
# What 'auto' takes on each platform; the reference on any other.
OF_PLATFORM = {"gpu": "triton", "tpu": "mosaic"}


def chosen(name: str, where: str) -> str:
    """The backend that `name` means on a platform: `name` itself, or what 'auto' takes there."""
    return OF_PLATFORM.get(where, "dense") if name == AUTO else name


def backend_of(name: str, layout: Layout) -> Backend:
    """The backend to use here, a row of `BACKENDS`.

    Says once which kernel 'auto' chose, and why. Where there is no kernel to choose, as on a CPU, it says nothing.

    Raises:
      UsageError: if it does not run in this case.
    """
    where = platform()
    taken = chosen(name, where)
    refusal = BACKENDS[taken].refusal(layout, where)
    if refusal:
        raise UsageError(f"model.attention: {taken!r} {refusal}; set model.attention to 'dense' or 'blockwise'")
    if name == AUTO and where in OF_PLATFORM:
        _say(f"attention: {taken!r}, because this is a {where}")
    return BACKENDS[taken]


def backend_in_forward_mode(name: str, layout: Layout) -> Backend:
    """The same for a model that `jax.jvp` may differentiate, and `jax.grad` does not."""
    found = backend_of(name, layout)
    return dataclasses.replace(found, attend=found.forward_mode)


@functools.cache
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
