"""The programs of the attention kernels for GPUs: each has one block of a row and head, and visits others.

They read arrays where they lie: a program is given a whole row and head, and its blocks begin wherever a slice does.
Exponents have base 2, which is what GPUs compute.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as gpu

from transfusion.kernels.kernel import UNSEEN
from transfusion.kernels.plan import Cut
from transfusion.kernels.triton_tiles import add, before, load, products, store, visit, zeros

LOG2E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a kernel knows when it is compiled: how queries and keys are cut, and the head size."""

    q: Cut
    k: Cut
    head: int

    @property
    def scale(self) -> float:
        return self.head**-0.5

    @property
    def scale2(self) -> float:
        """The same in powers of two, which are what GPUs compute."""
        return self.scale * LOG2E


def visible(places, first, last, number, keys):
    """Whether queries at `places` [tq], of the class `number`, see the keys of a block: bool [tq, tk]."""
    return (first[keys][None] <= places[:, None]) & (places[:, None] <= last[number, keys][None])


def forward(q, k, v, start, count, order, of, first, last, steps, jumps, counts, out, lse, *, sizes: Sizes):
    """Writes the outputs of one block of queries, and the log-sum-exp of each query's scores."""
    i, size, tq, tk = pl.program_id(0), sizes.head, sizes.q.size, sizes.k.size
    at = pl.ds(start[i], tq)
    own = jax.lax.iota(jnp.int32, tq) < count[i]
    mine, places, number = load(q, size, at, own), order[pl.ds(i * tq, tq)], of[i]

    def body(block, carry, partial):
        top, total, sums = carry
        begin = sizes.k.start_of(block)
        there = before(begin, tk, sizes.k.length) if partial else None
        keys = pl.ds(begin, tk)
        scores = products(mine, load(k, size, keys, there)) * sizes.scale2
        if partial:
            seen = visible(places, first, last, number, pl.ds(block * tk, tk))
            scores = jnp.where(seen, scores, UNSEEN)
        new = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp2(scores - new[:, None])
        shrink = jnp.exp2(top - new)
        sums = add([x * shrink[:, None] for x in sums], weights, load(v, size, keys, there))
        return new, total * shrink + weights.sum(-1), sums

    # The first maximum lies above the score of what is not seen, so that weights of unseen keys are zero, not one.
    begin = (jnp.full((tq,), UNSEEN / 10, jnp.float32), jnp.zeros((tq,), jnp.float32), zeros(tq, size))
    top, total, sums = visit(steps, jumps, counts, body, begin)
    sees = total > 0
    total = jnp.where(sees, total, 1.0)
    store(out, size, at, own, [jnp.where(sees[:, None], x / total[:, None], 0.0) for x in sums])
    gpu.store(lse.at[at], jnp.where(sees, (top + jnp.log2(total)) / LOG2E, UNSEEN), mask=own)


def tangents(
    q, k, v, t_q, t_k, t_v, start, count, order, of, first, last, steps, jumps, counts, out, lse, t_out, t_lse,
    *, sizes: Sizes,
):  # fmt: skip
    """Forward mode. With weights w, scores s and their tangents s', an output o = sum w v / sum w has the tangent

        o' = (sum w v' + sum w s' v) / sum w  -  o (sum w s') / sum w,

    whose sums are taken along with those of the softmax. The last fraction is the tangent of the log-sum-exp.
    """
    i, size, tq, tk = pl.program_id(0), sizes.head, sizes.q.size, sizes.k.size
    at = pl.ds(start[i], tq)
    own = jax.lax.iota(jnp.int32, tq) < count[i]
    mine, t_mine, places, number = load(q, size, at, own), load(t_q, size, at, own), order[pl.ds(i * tq, tq)], of[i]

    def body(block, carry, partial):
        top, total, moment, sums, t_sums = carry
        begin = sizes.k.start_of(block)
        there = before(begin, tk, sizes.k.length) if partial else None
        keys = pl.ds(begin, tk)
        theirs = load(k, size, keys, there)
        scores = products(mine, theirs) * sizes.scale2
        moves = (products(t_mine, theirs) + products(mine, load(t_k, size, keys, there))) * sizes.scale
        if partial:
            seen = visible(places, first, last, number, pl.ds(block * tk, tk))
            scores = jnp.where(seen, scores, UNSEEN)
        new = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp2(scores - new[:, None])
        moves = weights * moves
        shrink = jnp.exp2(top - new)
        values = load(v, size, keys, there)
        sums = add([x * shrink[:, None] for x in sums], weights, values)
        t_sums = add([x * shrink[:, None] for x in t_sums], moves, values)
        t_sums = add(t_sums, weights, load(t_v, size, keys, there))
        return new, total * shrink + weights.sum(-1), moment * shrink + moves.sum(-1), sums, t_sums

    zero = jnp.zeros((tq,), jnp.float32)
    begin = (jnp.full((tq,), UNSEEN / 10, jnp.float32), zero, zero, zeros(tq, size), zeros(tq, size))
    top, total, moment, sums, t_sums = visit(steps, jumps, counts, body, begin)
    sees = total > 0
    total = jnp.where(sees, total, 1.0)
    moment = moment / total
    means = [jnp.where(sees[:, None], x / total[:, None], 0.0) for x in sums]
    store(out, size, at, own, means)
    store(t_out, size, at, own, [x / total[:, None] - m * moment[:, None] for x, m in zip(t_sums, means, strict=True)])
    gpu.store(lse.at[at], jnp.where(sees, (top + jnp.log2(total)) / LOG2E, UNSEEN), mask=own)
    gpu.store(t_lse.at[at], moment, mask=own)


def queries_backward(
    q, k, v, do, lse, delta, start, count, order, of, first, last, steps, jumps, counts, dq, *, sizes: Sizes
):
    """Writes the gradients of one block of queries."""
    i, size, tq, tk = pl.program_id(0), sizes.head, sizes.q.size, sizes.k.size
    at = pl.ds(start[i], tq)
    own = jax.lax.iota(jnp.int32, tq) < count[i]
    mine, given, places, number = load(q, size, at, own), load(do, size, at, own), order[pl.ds(i * tq, tq)], of[i]
    norm = gpu.load(lse.at[at], mask=own, other=0.0) * LOG2E
    mean = gpu.load(delta.at[at], mask=own, other=0.0)

    def body(block, sums, partial):
        begin = sizes.k.start_of(block)
        there = before(begin, tk, sizes.k.length) if partial else None
        keys = pl.ds(begin, tk)
        theirs = load(k, size, keys, there)
        weights = jnp.exp2(products(mine, theirs) * sizes.scale2 - norm[:, None])
        if partial:
            seen = visible(places, first, last, number, pl.ds(block * tk, tk))
            weights = jnp.where(seen, weights, 0.0)
        change = weights * (products(given, load(v, size, keys, there)) - mean[:, None])
        return add(sums, change, theirs)

    sums = visit(steps, jumps, counts, body, zeros(tq, size))
    store(dq, size, at, own, [x * sizes.scale for x in sums])


def keys_backward(
    q, k, v, do, lse, delta, start, count, order, of, first, last, steps, jumps, counts, dk, dv, *, sizes: Sizes
):
    """Writes the gradients of one block of keys and of its values, summed over the queries' heads that share them."""
    j, size, tq, tk = pl.program_id(0), sizes.head, sizes.q.size, sizes.k.size
    at = pl.ds(start[j], tk)
    own = jax.lax.iota(jnp.int32, tk) < count[j]
    keys, values, near = load(k, size, at, own), load(v, size, at, own), pl.ds(j * tk, tk)
    begins = first[near]

    def body(block, carry, head, partial):
        dk, dv = carry
        begin = sizes.q.start_of(block)
        rows = pl.ds(begin, tq)
        there = before(begin, tq, sizes.q.length) if partial else None
        other = 0.0 if partial else None
        theirs, given = (load(x, size, rows, there, (head,)) for x in (q, do))
        norm, mean = (gpu.load(x.at[head, rows], mask=there, other=other) for x in (lse, delta))
        weights = jnp.exp2(products(keys, theirs) * sizes.scale2 - (norm * LOG2E)[None])
        if partial:
            places = order[pl.ds(block * tq, tq)]
            seen = (begins[:, None] <= places[None]) & (places[None] <= last[of[block], near][:, None])
            weights = jnp.where(seen, weights, 0.0)
        dv = add(dv, weights, given)
        return add(dk, weights * (products(values, given) - mean[None]), theirs), dv

    def of_head(head, carry):
        return visit(steps, jumps, counts, functools.partial(body, head=head), carry)

    sums = jax.lax.fori_loop(0, q.shape[1], of_head, (zeros(tk, size), zeros(tk, size)))
    store(dk, size, at, own, [x * sizes.scale for x in sums[0]])
    store(dv, size, at, own, sums[1])
