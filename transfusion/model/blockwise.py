"""Attention without an L x L array: blocks that the rule forbids are neither computed nor stored.

The online softmax of FlashAttention (arXiv 2205.14135, algorithm 1; backward pass: algorithm 4), with the block list of
every query block found from the minima and maxima of the blocks' metadata. Rows are worked off one after the other, so
that a row skips by its own documents; memory is one block of scores.

Shape letters: B rows, Q queries, S keys, G key-value heads, R query heads of each, K head size; n and m number the
query and key blocks, T is the block size.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from transfusion.sequence.masks import Metadata, see
from transfusion.sharding import fitting, per_device

UNSEEN_SCORE = -1e30  # finite, so that a query without keys gives numbers, not NaN
BLOCK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """A plan that all layers share: the blocks' metadata [B, n or m, T], and the key blocks each query block needs."""

    q: Metadata
    k: Metadata
    order: jax.Array
    count: jax.Array
    may: tuple[tuple[bool, ...], ...] | None = dataclasses.field(metadata={"static": True})


def plan_blocks(
    q_metadata: Metadata, k_metadata: Metadata, may: np.ndarray | None = None, block: int = BLOCK
) -> BlockPlan:
    """Cuts the row, or a device's share of its queries, into blocks of `block` tokens and lists the needed pairs; see
    `schedule`."""
    static = None if may is None else tuple(map(tuple, may.tolist()))

    def make(q_metadata: Metadata, k_metadata: Metadata) -> BlockPlan:
        q = jax.tree.map(partial(_blocks, block=block), q_metadata)
        k = jax.tree.map(partial(_blocks, block=block), k_metadata)
        return BlockPlan(q, k, *schedule(q, k, may), static)

    queries = fitting(q_metadata.order.shape, "batch", "tokens")
    keys = fitting(k_metadata.order.shape, "batch", None)
    return per_device(make, (queries, keys), BlockPlan(queries, keys, queries, queries, static))(q_metadata, k_metadata)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, plan: BlockPlan) -> jax.Array:
    """Computes `transfusion.model.attention.attention`; every device works on its own rows, heads and queries."""
    split = any(fitting(k.shape[2:3], "act_heads"))
    heads = "act_heads" if split else None
    keys = fitting(k.shape, "batch", None, heads, None)
    queries = fitting(q.shape, "batch", "tokens", heads, None)
    plans = BlockPlan(*(PartitionSpec(*spec[:2]) for spec in (queries, keys, queries, queries)), plan.may)
    return per_device(_attend_all, (queries, keys, keys, plans), queries)(q, k, v, plan)


def _attend_all(q: jax.Array, k: jax.Array, v: jax.Array, plan: BlockPlan) -> jax.Array:
    b, n, h, size = q.shape
    groups, block = k.shape[2], plan.q.document.shape[-1]
    q_blocks = _blocks(q * size**-0.5, block).reshape(b, -1, block, groups, h // groups, size)
    k_blocks, v_blocks = _blocks(k, block), _blocks(v, block)
    out = _attend(
        q_blocks.transpose(0, 1, 3, 4, 2, 5),
        k_blocks.transpose(0, 1, 3, 2, 4),
        v_blocks.transpose(0, 1, 3, 2, 4),
        (plan.q, plan.k, plan.order, plan.count),
        plan.may,
    )
    return out.transpose(0, 1, 4, 2, 3, 5).reshape(b, -1, h, size)[:, :n]


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """Cuts [B, L, ...] into [B, blocks, T, ...], padded with zeros (document 0 is padding)."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, block, *x.shape[2:])


def schedule(q: Metadata, k: Metadata, may: np.ndarray | None = None) -> tuple[jax.Array, jax.Array]:
    """Lists the key blocks that each query block needs: (order int32 [B, n, m], needed ones first; count int32 [B, n]).

    The list is conservative: a block is left out only if the minima and maxima of its metadata forbid every pair in it.
    `may` is a static table over streams; a block whose streams it forbids altogether is left out too.
    """

    def low(x, keep):
        return jnp.where(keep, x, np.iinfo(np.int32).max).min(-1)

    def high(x, keep):
        return jnp.where(keep, x, -1).max(-1)

    def overlap(field, q_keep, k_keep):
        x, y = getattr(q, field), getattr(k, field)
        below = low(x, q_keep)[:, :, None] <= high(y, k_keep)[:, None, :]
        return below & (high(x, q_keep)[:, :, None] >= low(y, k_keep)[:, None, :])

    q_real, k_real = q.document > 0, k.document > 0
    open_keys = k_real & (k.private == 0)
    causal = high(q.order, q_real)[:, :, None] >= low(k.order, open_keys)[:, None, :]
    if may is not None:
        # `same[b, block, stream]`: does the block hold tokens of that stream?
        streams = np.arange(len(may))[None, None, None]
        q_has = ((q.stream[..., None] == streams) & q_real[..., None]).any(2)
        k_has = ((k.stream[..., None] == streams) & k_real[..., None]).any(2)
        causal &= jnp.einsum("bns,st,bmt->bnm", q_has * 1.0, jnp.asarray(may, jnp.float32), k_has * 1.0) > 0
    span = overlap("span", q_real & (q.span > 0), k_real & (k.span > 0))
    needed = overlap("document", q_real, k_real) & (causal | span)
    return jnp.argsort(~needed, axis=-1, stable=True).astype(jnp.int32), needed.sum(-1).astype(jnp.int32)


def _block_mask(q_meta: Metadata, k_meta: Metadata, i, j, may) -> jax.Array:
    """The mask bool [T, T] between query block i and key block j of one row."""
    one = jax.tree.map(lambda x: x[i][None], q_meta)
    other = jax.tree.map(lambda x: x[j][None], k_meta)
    return see(one, other, None if may is None else np.array(may))[0]


def _scores(q, k, mask) -> jax.Array:
    """The masked scores float32 [G, R, T, T] of q [G, R, T, K] and k [G, T, K] under the mask [T, T]."""
    scores = jnp.einsum("grtk,gsk->grts", q, k, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores, UNSEEN_SCORE)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, plan, may):
    return _forward(q, k, v, plan, may)[0]


def _forward(q, k, v, plan, may):
    """q [B, n, G, R, T, K]; k, v [B, m, G, T, K] -> outputs as q, and the log of the softmax sums [B, n, G, R, T]."""

    def row(args):
        q, k, v, (q_meta, k_meta, order, count) = args

        def query_block(i):
            qi = q[i]

            def add(step, carry):
                top, total, out = carry
                j = order[i, step]
                mask = _block_mask(q_meta, k_meta, i, j, may)
                scores = _scores(qi, k[j], mask)
                new_top = jnp.maximum(top, scores.max(-1))
                weights = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0)
                shrink = jnp.exp(top - new_top)
                out = out * shrink[..., None] + jnp.einsum(
                    "grts,gsk->grtk", weights.astype(v.dtype), v[j], preferred_element_type=jnp.float32
                )
                return new_top, total * shrink + weights.sum(-1), out

            shape = qi.shape[:-1]
            start = (jnp.full(shape, UNSEEN_SCORE, jnp.float32), jnp.zeros(shape), jnp.zeros(qi.shape, jnp.float32))
            top, total, out = jax.lax.fori_loop(0, count[i], add, start)
            total = jnp.where(total > 0, total, 1)  # a query that sees nothing gives zeros
            return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

        return jax.lax.map(query_block, jnp.arange(q.shape[0]))

    return jax.lax.map(row, (q, k, v, plan))


def _attend_forward(q, k, v, plan, may):
    out, log_total = _forward(q, k, v, plan, may)
    return out, (q, k, v, plan, out, log_total)


def _attend_backward(may, saved, d_out):
    q, k, v, plan, out, log_total = saved

    def row(args):
        q, k, v, (q_meta, k_meta, order, count), out, log_total, d_out = args
        delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)

        def query_block(carry, i):
            qi, d_oi = q[i], d_out[i]

            def add(step, carry):
                d_q, d_k, d_v = carry
                j = order[i, step]
                mask = _block_mask(q_meta, k_meta, i, j, may)
                weights = jnp.where(mask, jnp.exp(_scores(qi, k[j], mask) - log_total[i][..., None]), 0)
                d_weights = jnp.einsum("grtk,gsk->grts", d_oi, v[j], preferred_element_type=jnp.float32)
                d_scores = (weights * (d_weights - delta[i][..., None])).astype(q.dtype)
                weights = weights.astype(q.dtype)
                d_v = d_v.at[j].add(jnp.einsum("grts,grtk->gsk", weights, d_oi, preferred_element_type=jnp.float32))
                d_k = d_k.at[j].add(jnp.einsum("grts,grtk->gsk", d_scores, qi, preferred_element_type=jnp.float32))
                d_q += jnp.einsum("grts,gsk->grtk", d_scores, k[j], preferred_element_type=jnp.float32)
                return d_q, d_k, d_v

            d_q, *rest = jax.lax.fori_loop(0, count[i], add, (jnp.zeros(qi.shape, jnp.float32), *carry))
            return tuple(rest), d_q.astype(q.dtype)

        zero = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
        (d_k, d_v), d_q = jax.lax.scan(query_block, zero, jnp.arange(q.shape[0]))
        return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype)

    d_q, d_k, d_v = jax.lax.map(row, (q, k, v, plan, out, log_total, d_out))
    return d_q, d_k, d_v, None


_attend.defvjp(_attend_forward, _attend_backward)
