"""Attention on TPUs: the backward pass, in one kernel for queries and one for keys and values.

FlashAttention (arXiv 2205.14135, algorithm 4), without atomics: each kernel sums its own blocks, in the order of the
list, so that two runs give the same bits. Letters as in `transfusion.kernels.mosaic_tiles`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transfusion.kernels import mosaic_tiles as tiles
from transfusion.kernels.visits import FIRST, LAST, inner, outer
from transfusion.sequence.arrays import Array, Float


def backward(
    q: Float[Array, "B H N K"], k: Float[Array, "B G M K"], v: Float[Array, "B G M K"], tokens: tiles.Tokens,
    out: Float[Array, "B H N K"], lse: Float[Array, "B H 1 N"], d_out: Float[Array, "B H N K"],
    d_lse: Float[Array, "B H 1 N"], interpret: bool,
) -> tuple[Float[Array, "B H N K"], Float[Array, "B G M K"], Float[Array, "B G M K"]]:  # fmt: skip
    """The gradients with respect to q, k and v."""
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)[:, :, None] - d_lse
    given = (q, k, v, tokens, lse, delta, d_out, interpret)
    return (_of_queries(*given), *_of_keys(*given))


def _of_queries(q, k, v, tokens, lse, delta, d_out, interpret):
    heads, size = q.shape[1], q.shape[3]
    share, tq, tk = heads // k.shape[1], tokens.q.size, tokens.k.size
    query, key = (lambda h, s, e, of: outer(e[s])), (lambda h, s, e, of: inner(e[s]))
    head, key_head = (lambda h, *_: h), (lambda h, *_: jax.lax.div(h, share))
    [d_q] = tiles.call(
        partial(_query_kernel, scale=size**-0.5),
        tokens.by_query,
        tokens.of,
        (heads, tokens.by_query.count[0]),
        [
            *[tiles.of_head(x, tq, query, head) for x in (q, d_out)],
            *[tiles.numbers_of_head(x, tq, query, head) for x in (lse, delta)],
            *[tiles.of_head(x, tk, key, key_head) for x in (k, v)],
            *tiles.rule(tokens),
        ],
        [tiles.of_head(jax.ShapeDtypeStruct(q.shape, q.dtype), tq, query, head)],
        [
            *[pltpu.VMEM((tq, tiles.LANES), kind) for kind in (jnp.float32, jnp.float32, jnp.int32)],
            pltpu.VMEM((tq, size), jnp.float32),
        ],
        name="mosaic_backward_queries",
        interpret=interpret,
    )
    return d_q


def _query_kernel(
    entries, of, q, d_out, lse, delta, k, v, order, first, last, d_q, lses, deltas, orders, acc, *, scale
):
    entry = entries[pl.program_id(1)]

    @tiles.once_if(entry, FIRST)
    def start():
        acc[...] = jnp.zeros_like(acc)
        lses[...] = tiles.column(lse[...] * tiles.LOG2E)
        deltas[...] = tiles.column(delta[...])
        orders[...] = tiles.column(order[...])

    tk = len(k)
    scores = tiles.dot(q[...], k[...], tiles.ROWS_DOT_ROWS) * (scale * tiles.LOG2E)
    weights = jnp.exp2(scores - tiles.widen(lses[...], tk))
    d_weights = tiles.dot(d_out[...], v[...], tiles.ROWS_DOT_ROWS)

    def add(weights):
        d_scores = weights * (d_weights - tiles.widen(deltas[...], tk))
        acc[...] += tiles.dot(d_scores.astype(k.dtype), k[...])

    tiles.add_allowed(entry, add, weights, lambda: tiles.sees(orders, first, last), 0.0)

    @tiles.once_if(entry, LAST)
    def end():
        d_q[...] = (acc[...] * scale).astype(d_q.dtype)


def _of_keys(q, k, v, tokens, lse, delta, d_out, interpret):
    groups, size = k.shape[1], k.shape[3]
    share, tq, tk = q.shape[1] // groups, tokens.q.size, tokens.k.size
    query, key = (lambda g, s, r, e, of: inner(e[s])), (lambda g, s, r, e, of: outer(e[s]))
    head, key_head = (lambda g, s, r, *_: g * share + r), (lambda g, *_: g)
    return tiles.call(
        partial(_key_kernel, scale=size**-0.5, share=share),
        tokens.by_key,
        tokens.of,
        (groups, tokens.by_key.count[0], share),
        [
            *[tiles.of_head(x, tq, query, head) for x in (q, d_out)],
            *[tiles.numbers_of_head(x, tq, query, head) for x in (lse, delta)],
            *[tiles.of_head(x, tk, key, key_head) for x in (k, v)],
            (tokens.order, (1, tq), lambda *at: (0, query(*at))),
            (tokens.first, (1, tk), lambda *at: (0, key(*at))),
            (tokens.last, (len(tokens.last), 1, tk), lambda *at: (0, 0, key(*at))),
        ],
        [tiles.of_head(jax.ShapeDtypeStruct(x.shape, x.dtype), tk, key, key_head) for x in (k, v)],
        [
            pltpu.VMEM((tk, tiles.LANES), jnp.int32),
            pltpu.VMEM((len(tokens.last), tk, tiles.LANES), jnp.int32),
            *[pltpu.VMEM((tk, size), jnp.float32)] * 2,
        ],
        name="mosaic_backward_keys",
        interpret=interpret,
    )


def _key_kernel(
    entries, of, q, d_out, lse, delta, k, v, order, first, last, d_k, d_v, firsts, lasts, k_acc, v_acc, *, scale, share
):
    """Scores have keys along their rows here, as all sums run over queries."""
    entry, head = entries[pl.program_id(1)], pl.program_id(2)

    @tiles.once_if(entry, FIRST, head == 0)
    def start():
        k_acc[...] = jnp.zeros_like(k_acc)
        v_acc[...] = jnp.zeros_like(v_acc)
        firsts[...] = tiles.column(first[...])
        for number in range(len(last)):
            lasts[number] = tiles.column(last[number])

    tq = len(q)
    scores = tiles.dot(k[...], q[...], tiles.ROWS_DOT_ROWS) * (scale * tiles.LOG2E)
    weights = jnp.exp2(scores - lse[...] * tiles.LOG2E)
    d_weights = tiles.dot(v[...], d_out[...], tiles.ROWS_DOT_ROWS)

    def add(weights):
        v_acc[...] += tiles.dot(weights.astype(d_out.dtype), d_out[...])
        d_scores = weights * (d_weights - delta[...])
        k_acc[...] += tiles.dot(d_scores.astype(q.dtype), q[...])

    def seen():
        place, number = order[...], of[inner(entry)]
        return (tiles.widen(firsts[...], tq) <= place) & (place <= tiles.widen(lasts[number], tq))

    tiles.add_allowed(entry, add, weights, seen, 0.0)

    @tiles.once_if(entry, LAST, head == share - 1)
    def end():
        d_k[...] = (k_acc[...] * scale).astype(d_k.dtype)
        d_v[...] = v_acc[...].astype(d_v.dtype)
