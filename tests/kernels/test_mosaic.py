"""The kernels for TPUs, run in an interpreter, against the plain reference: outputs, gradients and tangents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_streams import by_streams

from transfusion.errors import UsageError
from transfusion.kernels.mosaic import attend, cut_of, plan_of
from transfusion.kernels.mosaic_tiles import tokens as flat_plan
from transfusion.kernels.plan import FULL, NONE, Cut, plan
from transfusion.kernels.visits import FIRST, LAST, MASKED, inner, outer, visits
from transfusion.model.attention import masked_attention
from transfusion.sequence.masks import Metadata, intervals, see

SLICES = (150, 20, 90)
MAY = ((1, 0, 1), (1, 1, 1), (0, 1, 1))
LIMIT = {"float32": 1e-6, "bfloat16": 4e-3}


@functools.partial(jax.jit, static_argnums=(2, 3))
def both(arrays, tokens, may, slices):
    """(outputs, gradients of q, k and v, tangents) of the kernels, those of the reference in float32, and the mask."""
    may = None if may is None else np.array(may, bool)
    cut = cut_of(slices, 128)
    made, mask = flat_plan(plan(intervals(tokens, tokens, may), cut, cut)), see(tokens, tokens, may)

    def results(function, q, k, v, do, t_q, t_k, t_v):
        out, back = jax.vjp(function, q, k, v)
        return out, *back(do), jax.jvp(function, (q, k, v), (t_q, t_k, t_v))[1]

    ours = results(lambda *x: attend(*x, made, interpret=True)[0], *arrays)
    plain = results(lambda *x: masked_attention(*x, mask), *(x.astype(jnp.float32) for x in arrays))
    return ours, plain, mask


def check(rng, tokens, may, slices, heads, groups, size, dtype):
    shape = tokens.order.shape
    sizes = (heads, groups, groups, heads, heads, groups, groups)
    arrays = [jnp.asarray(rng.standard_normal((*shape, n, size)), dtype) for n in sizes]
    ours, plain, mask = jax.device_get(both(arrays, tokens, may, slices))
    for x, y in zip(ours, plain, strict=True):
        x = x.astype(np.float64)
        assert np.linalg.norm(x - y) <= LIMIT[dtype] * np.linalg.norm(y)
    unseen = ~mask.any(-1)
    for x in (ours[0], ours[1], ours[4]):
        assert not x[unseen].any()
    return unseen


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([None, MAY]))
def test_the_kernels_equal_the_reference(seed, may):
    rng = np.random.default_rng(seed)
    check(rng, by_streams(rng, 2, SLICES), may, SLICES, 2, 1, 72, "float32")


@pytest.mark.parametrize(("heads", "groups", "size", "dtype"), [(2, 2, 128, "bfloat16"), (3, 1, 256, "float32")])
def test_head_sizes_and_dtypes(heads, groups, size, dtype):
    rng = np.random.default_rng(size)
    tokens = by_streams(rng, 2, SLICES)
    assert check(rng, tokens, MAY, SLICES, heads, groups, size, dtype).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_the_list_has_each_needed_pair_once(seed):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, (2, 3, 4))
    made = jax.device_get(visits(jnp.asarray(kinds)))
    entries = made.entries[: made.count[0]]
    blocks, others = np.asarray(outer(entries)), np.asarray(inner(entries))
    assert (np.diff(blocks) >= 0).all() and set(blocks) == set(range(6))
    for block in range(6):
        row, n = divmod(block, 3)
        mine = entries[blocks == block]
        needed = np.flatnonzero(kinds[row, n] != NONE)
        assert (others[blocks == block] - 4 * row).tolist() == (needed.tolist() or [0])
        assert [bool(e & FIRST) for e in mine] == [True] + [False] * (len(mine) - 1)
        assert [bool(e & LAST) for e in mine] == [False] * (len(mine) - 1) + [True]
        assert [bool(e & MASKED) for e in mine] == [kinds[row, n, m] != FULL for m in others[blocks == block] - 4 * row]


def test_blocks_fill_rows_up_by_little():
    assert cut_of((4096,), 512) == Cut((4096,), 512)
    assert cut_of((4096, 2048), 256).size == 256
    assert cut_of((300, 900), 512).size == 128


def test_long_rows_have_larger_blocks_and_too_long_ones_are_refused():
    def sizes(rows, length):
        made = jax.eval_shape(
            lambda x: plan_of(x, x, None, (length,), (length,)), Metadata(*[columns(rows, length)] * 5)
        )
        return made.q.size, made.k.size

    def columns(rows, length):
        return jax.ShapeDtypeStruct((rows, length), "int32")

    assert sizes(8, 16384) == (256, 512) and sizes(1, 262144) == sizes(8, 65536) == (512, 1024)
    with pytest.raises(UsageError, match="split the rows"):
        sizes(64, 65536)
