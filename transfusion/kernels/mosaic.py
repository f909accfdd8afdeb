"""Attention on TPUs (Pallas, lowered by Mosaic): blocks that the rule forbids are neither fetched nor computed."""

from functools import partial

import jax.numpy as jnp

from transfusion.kernels import derivatives
from transfusion.kernels.derivatives import Kernels
from transfusion.kernels.mosaic_backward import backward
from transfusion.kernels.mosaic_forward import forward
from transfusion.kernels.mosaic_tangents import tangents
from transfusion.kernels.mosaic_tiles import LANES, Tokens
from transfusion.kernels.plan import Cut
from transfusion.sequence.arrays import Array, Float

QUERIES, KEYS = 256, 512
"""The most tokens of a block. They compile for v5e, v5p and v6e with heads of up to 256 numbers in float32; none was
timed."""


def cut_of(slices: tuple[int, ...], most: int) -> Cut:
    """Cuts rows into the largest blocks that fill rows up by an eighth at most, of whole registers."""
    sizes = [size for size in (512, 256) if size <= most]
    cuts = [Cut(slices, size) for size in (*sizes, LANES)]
    return next((cut for cut in cuts if cut.blocks * cut.size <= 1.125 * cut.length), cuts[-1])


def attend(
    q: Float[Array, "B Q H K"], k: Float[Array, "B S G K"], v: Float[Array, "B S G K"], tokens: Tokens,
    interpret: bool = False, one_pass: bool = False,
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q"]]:  # fmt: skip
    """Computes `transfusion.model.attention.attention` for the rows of one device, and what merges it with that over
    other keys.

    Args:
      q, k, v: queries, keys and values, of any head size and of dtype bfloat16 or float32.
      tokens: the plan of these rows.
      interpret: runs the kernels step by step in XLA, on any platform.
      one_pass: see `transfusion.kernels.derivatives.attend`.

    Returns:
      (outputs, zeros of a query that sees nothing; log-sum-exp of the scores, `UNSEEN` where there are none).
    """
    kernels = Kernels(*(partial(f, interpret=interpret) for f in (forward, backward, tangents)))
    flat = (_heads_first(x, cut) for x, cut in ((q, tokens.q), (k, tokens.k), (v, tokens.k)))
    out, lse = derivatives.attend(kernels, *flat, tokens, one_pass)
    lse = tokens.q.emptied(jnp.moveaxis(lse[:, :, 0], 2, 1))
    return tokens.q.emptied(jnp.swapaxes(out, 1, 2)), jnp.swapaxes(lse, 1, 2)


def _heads_first(x: Float[Array, "B L H K"], cut: Cut) -> Float[Array, "B H nT K"]:
    """Rows in whole blocks; each head lies apart.

    The compiler for TPUs lays arrays [B, L, H, K] out in this way by itself, so that this moves nothing.
    """
    return jnp.swapaxes(cut.filled(x), 1, 2)
