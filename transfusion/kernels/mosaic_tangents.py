"""Attention on TPUs in forward mode: outputs and their tangents in one pass over the keys.

With weights w, scores s and their tangents s', an output o = sum w v / sum w has the tangent

    o' = (sum w v' + sum w s' v) / sum w  -  o (sum w s') / sum w,

whose sums are taken along with those of the softmax. The last fraction is the tangent of the log-sum-exp. Letters
as in `transfusion.kernels.mosaic_tiles`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transfusion.kernels import mosaic_tiles as tiles
from transfusion.kernels.visits import FIRST, LAST, inner, outer
from transfusion.sequence.arrays import Array, Float


def tangents(
    q: Float[Array, "B H N K"], k: Float[Array, "B G M K"], v: Float[Array, "B G M K"],
    t_q: Float[Array, "B H N K"], t_k: Float[Array, "B G M K"], t_v: Float[Array, "B G M K"],
    tokens: tiles.Tokens, interpret: bool,
) -> tuple[
    Float[Array, "B H N K"], Float[Array, "B H 1 N"], Float[Array, "B H N K"], Float[Array, "B H 1 N"]
]:  # fmt: skip
    """The outputs, the log-sum-exp of the scores of each query, and the tangents of both."""
    rows, heads, n, size = q.shape
    share, tq, tk = heads // k.shape[1], tokens.q.size, tokens.k.size
    query, key = (lambda h, s, e, of: outer(e[s])), (lambda h, s, e, of: inner(e[s]))
    head, key_head = (lambda h, *_: h), (lambda h, *_: jax.lax.div(h, share))
    outputs = tiles.of_head(jax.ShapeDtypeStruct(q.shape, q.dtype), tq, query, head)
    sums = tiles.numbers_of_head(jax.ShapeDtypeStruct((rows, heads, 1, n), jnp.float32), tq, query, head)
    return tiles.call(
        partial(_kernel, scale=size**-0.5),
        tokens.by_query,
        tokens.of,
        (heads, tokens.by_query.count[0]),
        [
            *[tiles.of_head(x, tq, query, head) for x in (q, t_q)],
            *[tiles.of_head(x, tk, key, key_head) for x in (k, v, t_k, t_v)],
            *tiles.rule(tokens),
        ],
        [outputs, sums, outputs, sums],
        [
            *[pltpu.VMEM((tq, tiles.LANES), jnp.float32)] * 3,
            pltpu.VMEM((tq, tiles.LANES), jnp.int32),
            *[pltpu.VMEM((tq, size), jnp.float32)] * 2,
        ],
        name="mosaic_tangents",
        interpret=interpret,
    )


def _kernel(
    entries, of, q, t_q, k, v, t_k, t_v, order, first, last, out, lse, t_out, t_lse,
    top, total, moment, orders, acc, t_acc, *, scale,
):  # fmt: skip
    entry = entries[pl.program_id(1)]

    @tiles.once_if(entry, FIRST)
    def start():
        top[...] = jnp.full_like(top, tiles.LOWEST)
        for sums in (total, moment, acc, t_acc):
            sums[...] = jnp.zeros_like(sums)
        orders[...] = tiles.column(order[...])

    scores = tiles.dot(q[...], k[...], tiles.ROWS_DOT_ROWS) * (scale * tiles.LOG2E)
    moved = [tiles.dot(x, y, tiles.ROWS_DOT_ROWS) for x, y in ((t_q[...], k[...]), (q[...], t_k[...]))]
    t_scores = (moved[0] + moved[1]) * scale
    size, tk = acc.shape[1], scores.shape[1]

    def add(scores):
        new = jnp.maximum(top[...], jnp.max(scores, 1, keepdims=True))
        weights = jnp.exp2(scores - tiles.widen(new, tk))
        moved = weights * t_scores
        shrink = jnp.exp2(top[...] - new)
        total[...] = total[...] * shrink + jnp.sum(weights, 1, keepdims=True)
        moment[...] = moment[...] * shrink + jnp.sum(moved, 1, keepdims=True)
        weights, moved, shrink = weights.astype(v.dtype), moved.astype(v.dtype), tiles.widen(shrink, size)
        acc[...] = acc[...] * shrink + tiles.dot(weights, v[...])
        t_acc[...] = t_acc[...] * shrink + tiles.dot(weights, t_v[...]) + tiles.dot(moved, v[...])
        top[...] = new

    tiles.add_allowed(entry, add, scores, lambda: tiles.sees(orders, first, last), tiles.UNSEEN)

    @tiles.once_if(entry, LAST)
    def end():
        seen = total[...] > 0
        safe = jnp.where(seen, total[...], 1.0)
        mean = acc[...] / tiles.widen(safe, size)
        out[...] = mean.astype(out.dtype)
        change = moment[...] / safe
        t_out[...] = (t_acc[...] / tiles.widen(safe, size) - mean * tiles.widen(change, size)).astype(t_out.dtype)
        t_lse[...] = change.T[:1]
        lse[...] = jnp.where(seen, (top[...] + jnp.log2(safe)) / tiles.LOG2E, tiles.UNSEEN).T[:1]
