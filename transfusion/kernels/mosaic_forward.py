"""Attention on TPUs: the forward pass.

The online softmax of FlashAttention (arXiv 2205.14135, algorithm 1). Letters as in `transfusion.kernels.mosaic_tiles`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transfusion.kernels import mosaic_tiles as tiles
from transfusion.kernels.visits import FIRST, LAST, inner, outer
from transfusion.sequence.arrays import Array, Float


def forward(
    q: Float[Array, "B H N K"],
    k: Float[Array, "B G M K"],
    v: Float[Array, "B G M K"],
    tokens: tiles.Tokens,
    interpret: bool,
) -> tuple[Float[Array, "B H N K"], Float[Array, "B H 1 N"]]:
    """The outputs, and the log-sum-exp of the scores of each query."""
    rows, heads, n, size = q.shape
    share = heads // k.shape[1]
    tq, tk = tokens.q.size, tokens.k.size
    query, key = (lambda h, s, e, of: outer(e[s])), (lambda h, s, e, of: inner(e[s]))
    head, key_head = (lambda h, *_: h), (lambda h, *_: jax.lax.div(h, share))
    return tiles.call(
        partial(_kernel, scale=size**-0.5),
        tokens.by_query,
        tokens.of,
        (heads, tokens.by_query.count[0]),
        [
            tiles.of_head(q, tq, query, head),
            *[tiles.of_head(x, tk, key, key_head) for x in (k, v)],
            *tiles.rule(tokens),
        ],
        [
            tiles.of_head(jax.ShapeDtypeStruct(q.shape, q.dtype), tq, query, head),
            tiles.numbers_of_head(jax.ShapeDtypeStruct((rows, heads, 1, n), jnp.float32), tq, query, head),
        ],
        [
            *[pltpu.VMEM((tq, tiles.LANES), jnp.float32)] * 2,
            pltpu.VMEM((tq, tiles.LANES), jnp.int32),
            pltpu.VMEM((tq, size), jnp.float32),
        ],
        name="mosaic_forward",
        interpret=interpret,
    )


def _kernel(entries, of, q, k, v, order, first, last, out, lse, top, total, orders, acc, *, scale):
    entry = entries[pl.program_id(1)]

    @tiles.once_if(entry, FIRST)
    def start():
        top[...] = jnp.full_like(top, tiles.LOWEST)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)
        orders[...] = tiles.column(order[...])

    scores = tiles.dot(q[...], k[...], tiles.ROWS_DOT_ROWS) * (scale * tiles.LOG2E)
    tk = scores.shape[1]

    def add(scores):
        new = jnp.maximum(top[...], jnp.max(scores, 1, keepdims=True))
        weights = jnp.exp2(scores - tiles.widen(new, tk))
        shrink = jnp.exp2(top[...] - new)
        total[...] = total[...] * shrink + jnp.sum(weights, 1, keepdims=True)
        acc[...] = acc[...] * tiles.widen(shrink, acc.shape[1]) + tiles.dot(weights.astype(v.dtype), v[...])
        top[...] = new

    tiles.add_allowed(entry, add, scores, lambda: tiles.sees(orders, first, last), tiles.UNSEEN)

    @tiles.once_if(entry, LAST)
    def end():
        seen = total[...] > 0
        safe = jnp.where(seen, total[...], 1.0)
        out[...] = (acc[...] / tiles.widen(safe, acc.shape[1])).astype(out.dtype)
        lse[...] = jnp.where(seen, (top[...] + jnp.log2(safe)) / tiles.LOG2E, tiles.UNSEEN).T[:1]
