from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.model import blockwise
from transfusion.model.attention import attention
from transfusion.sequence.masks import Metadata, see


def random_metadata(rng, rows, length, streams=3):
    """Packed documents with spans, private spans and padding, stored in a random order (as stream-major rows are)."""
    columns = np.zeros((5, rows, length), np.int32)
    for r in range(rows):
        place, span = 0, 0
        for document in range(1, rng.integers(1, 4) + 1):
            for _ in range(rng.integers(1, 5)):
                n = min(int(rng.integers(1, 12)), length - place)
                block = rng.random() < 0.5
                span += block
                private = span if block and rng.random() < 0.4 else 0
                run = slice(place, place + n)
                columns[0, r, run] = document
                columns[2, r, run] = span if block else 0
                columns[3, r, run] = private
                columns[4, r, run] = rng.integers(streams)
                place += n
        columns[1, r] = np.arange(length)
        columns[:, r] = columns[:, r, rng.permutation(length)] if rng.random() < 0.5 else columns[:, r]
    return Metadata(*map(jnp.asarray, columns))


# In sequence: the sums of a score, of the softmax, of its weighted values, and exp.
OPERATIONS = 8 + 40 + 40 + 8


def naive(q, k, v, mask):
    """One query and one head at a time, in float64."""
    q, k, v, mask = (np.asarray(x, np.float64) for x in (q, k, v, mask))
    out = np.zeros(q.shape)
    share = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(*q.shape[:3]):
        keys = np.flatnonzero(mask[b, i])
        if len(keys):
            scores = k[b, keys, h // share] @ q[b, i, h] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, i, h] = weights / weights.sum() @ v[b, keys, h // share]
    return out


@pytest.mark.parametrize("backend", ["dense", "blockwise"])
@pytest.mark.parametrize("may", [None, np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1]], bool)])
def test_attention_equals_a_loop_over_queries(backend, may):
    rng = np.random.default_rng(0)
    meta = random_metadata(rng, 2, 40)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 40, h, 8)), jnp.float32) for h in (4, 2, 2))
    out = attention(q, k, v, meta, meta, may=may, backend=backend)
    assert_close(out, naive(q, k, v, see(meta, meta, may)), OPERATIONS)


@partial(jax.jit, static_argnums=5)
@partial(jax.value_and_grad, argnums=(0, 1, 2))
def weighted(q, k, v, meta, weight, block):
    if block is None:
        return jnp.sum(attention(q, k, v, meta, meta) * weight)
    return jnp.sum(blockwise.attend(q, k, v, blockwise.plan_blocks(meta, meta, None, block)) * weight)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([8, 16]))
def test_blockwise_equals_dense_with_gradients(seed, block):
    rng = np.random.default_rng(seed)
    meta = random_metadata(rng, 2, 37)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 37, h, 4)), jnp.float32) for h in (4, 2, 2))
    weight = jnp.asarray(rng.standard_normal(q.shape), jnp.float32)

    value, gradients = weighted(q, k, v, meta, weight, None)
    fast, fast_gradients = weighted(q, k, v, meta, weight, block)
    # The value is a sum of terms of both signs, which may be near zero.
    assert_close(fast, value, OPERATIONS, largest=float(jnp.abs(weight).sum()))
    assert_close(fast_gradients, gradients, 2 * OPERATIONS)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_schedule_skips_only_forbidden_blocks(seed):
    rng = np.random.default_rng(seed)
    meta = random_metadata(rng, 2, 32)
    may = rng.random((3, 3)) < 0.7
    plan = blockwise.plan_blocks(meta, meta, may, 8)
    order, count = np.asarray(plan.order), np.asarray(plan.count)
    mask = np.asarray(see(meta, meta, may)).reshape(2, 4, 8, 4, 8).any((2, 4))
    for b, i in np.ndindex(2, 4):
        listed = set(order[b, i, : count[b, i]].tolist())
        assert set(np.flatnonzero(mask[b, i]).tolist()) <= listed
    # And it does skip: three documents in reading order leave the other documents' blocks out.
    document = jnp.repeat(jnp.arange(1, 4), 8)[None]
    zero = jnp.zeros_like(document)
    plain = Metadata(document, jnp.arange(24)[None], zero, zero, zero)
    assert np.asarray(blockwise.plan_blocks(plain, plain, None, 8).count).tolist() == [[1, 1, 1]]
