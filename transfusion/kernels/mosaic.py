"""Attention on TPUs (Pallas, lowered by Mosaic): blocks that the rule forbids are neither fetched nor computed."""

from functools import cache, partial

import jax.numpy as jnp
import numpy as np

from transfusion.kernels import derivatives
from transfusion.kernels.derivatives import Kernels
from transfusion.kernels.kernel import Kernel, Result
from transfusion.kernels.mosaic_backward import backward
from transfusion.kernels.mosaic_forward import forward
from transfusion.kernels.mosaic_tangents import tangents
from transfusion.kernels.mosaic_tiles import LANES, Tokens, tokens
from transfusion.kernels.plan import Cut, plan
from transfusion.kernels.visits import MOST
from transfusion.sequence.arrays import Array, Bool, Float
from transfusion.sequence.masks import Metadata, intervals

FORMS = ((256, 512), (512, 1024))
"""The most tokens of a query block and of a key block; the second form is for rows of whose blocks there are too many
pairs. They compile for v5e, v5p and v6e; none was timed."""


def cut_of(slices: tuple[int, ...], most: int) -> Cut:
    """Cuts rows into the largest blocks that fill rows up by an eighth at most, of whole registers."""
    sizes = [size for size in (1024, 512, 256) if size <= most]
    cuts = [Cut(slices, size) for size in (*sizes, LANES)]
    return next((cut for cut in cuts if cut.blocks * cut.size <= 1.125 * cut.length), cuts[-1])


def plan_of(
    q: Metadata, k: Metadata, may: Bool[np.ndarray, "streams streams"] | None, q_slices: tuple[int, ...],
    k_slices: tuple[int, ...],
) -> Tokens:  # fmt: skip
    """What all layers share. Queries and keys lie in slices of one stream each, see `transfusion.kernels.plan.Cut`.

    Raises:
      UsageError: if there are too many blocks even in the largest form.
    """
    cuts = [(cut_of(q_slices, queries), cut_of(k_slices, keys)) for queries, keys in FORMS]
    fits = (one for one in cuts if len(q.order) * one[0].blocks * one[1].blocks <= MOST)
    return tokens(plan(intervals(q, k, may), *next(fits, cuts[-1])))


def attend(
    q: Float[Array, "B Q H K"], k: Float[Array, "B S G K"], v: Float[Array, "B S G K"], planned: Tokens,
    interpret: bool = False, one_pass: bool = False,
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q"]]:  # fmt: skip
    """Computes `transfusion.model.attention.attention` for the rows of one device, and what merges it with that over
    other keys.

    Args:
      q, k, v: queries, keys and values, of any head size and of dtype bfloat16 or float32.
      planned: from `plan_of`, of these rows.
      interpret: runs the kernels step by step in XLA, on any platform.
      one_pass: see `transfusion.kernels.derivatives.attend`.

    Returns:
      (outputs, zeros of a query that sees nothing; log-sum-exp of the scores, `UNSEEN` where there are none).
    """
    flat = (_heads_first(x, cut) for x, cut in ((q, planned.q), (k, planned.k), (v, planned.k)))
    out, lse = derivatives.attend(_kernels(interpret), *flat, planned, one_pass)
    lse = planned.q.emptied(jnp.moveaxis(lse[:, :, 0], 2, 1))
    return planned.q.emptied(jnp.swapaxes(out, 1, 2)), jnp.swapaxes(lse, 1, 2)


@cache
def _kernels(interpret: bool) -> Kernels:
    return Kernels(*(partial(run, interpret=interpret) for run in (forward, backward, tangents)))


def _heads_first(x: Float[Array, "B L H K"], cut: Cut) -> Float[Array, "B H nT K"]:
    """Rows in whole blocks; each head lies apart.

    The compiler for TPUs lays arrays [B, L, H, K] out in this way by itself, so that this moves nothing.
    """
    return jnp.swapaxes(cut.filled(x), 1, 2)


def read(q: Array, k: Array, v: Array, planned: Tokens, interpret: bool = False) -> Result:
    """The same for keys and values [B, G, S, K], as a cache has them."""
    return attend(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), planned, interpret)


KERNEL = Kernel(
    "tpu", 256, lambda *tokens_and_slices: plan_of(*tokens_and_slices[:5]), attend, partial(attend, one_pass=True), read
)
