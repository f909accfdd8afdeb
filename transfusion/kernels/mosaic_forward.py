"""Attention on TPUs: the forward pass.

The online softmax of FlashAttention (arXiv 2205.14135, algorithm 1). Letters as in `transfusion.kernels.mosaic_tiles`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transfusion.kernels.mosaic_tiles import (
    LANES,
    LOG2E,
    LOWEST,
    ROWS_DOT_ROWS,
    UNSEEN,
    Tokens,
    both_ways,
    call,
    column,
    dot,
    numbers_of_head,
    of_head,
    once_if,
    rule,
    widen,
)
from transfusion.kernels.visits import FIRST, LAST, inner, outer
from transfusion.sequence.arrays import Array, Float


def forward(
    q: Float[Array, "B H N K"], k: Float[Array, "B G M K"], v: Float[Array, "B G M K"], tokens: Tokens, interpret: bool
) -> tuple[Float[Array, "B H N K"], Float[Array, "B H 1 N"]]:
    """The outputs, and the log-sum-exp of the scores of each query."""
    rows, heads, n, size = q.shape
    share = heads // k.shape[1]
    tq, tk = tokens.q.size, tokens.k.size
    query, key = (lambda h, s, e, of: outer(e[s])), (lambda h, s, e, of: inner(e[s]))
    head, key_head = (lambda h, *_: h), (lambda h, *_: jax.lax.div(h, share))
    return call(
        partial(_kernel, scale=size**-0.5),
        tokens.by_query,
        tokens.of,
        (heads, tokens.by_query.count[0]),
        [of_head(q, tq, query, head), *[of_head(x, tk, key, key_head) for x in (k, v)], *rule(tokens)],
        [
            of_head(jax.ShapeDtypeStruct(q.shape, q.dtype), tq, query, head),
            numbers_of_head(jax.ShapeDtypeStruct((rows, heads, 1, n), jnp.float32), tq, query, head),
        ],
        [
            *[pltpu.VMEM((tq, LANES), jnp.float32)] * 2,
            pltpu.VMEM((tq, LANES), jnp.int32),
            pltpu.VMEM((tq, size), jnp.float32),
        ],
        name="mosaic_forward",
        interpret=interpret,
    )


def _kernel(entries, of, q, k, v, order, first, last, out, lse, top, total, orders, acc, *, scale):
    entry = entries[pl.program_id(1)]

    @once_if(entry, FIRST)
    def start():
        top[...] = jnp.full_like(top, LOWEST)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)
        orders[...] = column(order[...])

    scores = dot(q[...], k[...], ROWS_DOT_ROWS) * (scale * LOG2E)
    tk = scores.shape[1]

    def add(scores):
        new = jnp.maximum(top[...], jnp.max(scores, 1, keepdims=True))
        weights = jnp.exp2(scores - widen(new, tk))
        shrink = jnp.exp2(top[...] - new)
        total[...] = total[...] * shrink + jnp.sum(weights, 1, keepdims=True)
        acc[...] = acc[...] * widen(shrink, acc.shape[1]) + dot(weights.astype(v.dtype), v[...])
        top[...] = new

    def add_masked():
        place = widen(orders[...], tk)
        add(jnp.where((first[...] <= place) & (place <= last[...]), scores, UNSEEN))

    both_ways(entry, lambda: add(scores), add_masked)

    @once_if(entry, LAST)
    def end():
        seen = total[...] > 0
        safe = jnp.where(seen, total[...], 1.0)
        out[...] = (acc[...] / widen(safe, acc.shape[1])).astype(out.dtype)
        lse[...] = jnp.where(seen, (top[...] + jnp.log2(safe)) / LOG2E, UNSEEN).T[:1]
