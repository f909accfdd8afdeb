"""The GPU kernel, run in an interpreter, against the plain reference: outputs, log-sum-exps and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_streams import by_streams

from transfusion.kernels.triton import Shape, Shapes, attend, sides
from transfusion.model.attention import masked_attention
from transfusion.sequence.masks import intervals, see

SMALL = Shapes(*[Shape(16, 32, 4, 2)] * 2, *[Shape(32, 16, 4, 2)] * 2)


@functools.partial(jax.jit, static_argnums=(5, 6))
def both(q, k, v, do, tokens, may, sizes):
    """Outputs and gradients (out, dq, dk, dv) of the kernel, and of the reference in float32."""
    may = None if may is None else np.array(may, bool)
    made = sides(intervals(tokens, tokens, may), sizes, sizes, SMALL)
    ours, ours_back = jax.vjp(lambda q, k, v: attend(q, k, v, made, True)[0], q, k, v)
    mask = see(tokens, tokens, may)
    wide = [x.astype(jnp.float32) for x in (q, k, v, do)]
    with jax.default_matmul_precision("highest"):
        plain, plain_back = jax.vjp(lambda q, k, v: masked_attention(q, k, v, mask), *wide[:3])
        return (ours, *ours_back(do)), (plain, *plain_back(wide[3])), mask


def far(ours, plain) -> float:
    """The relative distance of two arrays."""
    ours, plain = (np.asarray(x, np.float64) for x in (ours, plain))
    return np.linalg.norm(ours - plain) / np.linalg.norm(plain)


def random_heads(rng, shape, heads, groups, size, dtype):
    return [jnp.asarray(rng.standard_normal((*shape, n, size)), dtype) for n in (heads, groups, groups, heads)]


CASES = [
    (64, 2, "float32", None),
    (72, 1, "float32", ((1, 0, 1), (1, 1, 1), (0, 1, 1))),
    (128, 1, "bfloat16", None),
]
RARE = [
    (8, 2, "float32", None),
    (80, 2, "bfloat16", None),
    (96, 2, "float32", None),
    (128, 2, "float32", None),
    (256, 2, "float32", None),
    (256, 1, "bfloat16", None),
]


@pytest.mark.parametrize(
    ("size", "groups", "dtype", "may"), CASES + [pytest.param(*case, marks=pytest.mark.soak) for case in RARE]
)
def test_the_kernel_equals_the_reference(size, groups, dtype, may):
    rng = np.random.default_rng(size)
    sizes = (37, 16, 50)
    tokens = by_streams(rng, 2, sizes)
    inputs = random_heads(rng, tokens.order.shape, 2, groups, size, dtype)
    ours, plain, mask = both(*inputs, tokens, may, sizes)
    for x, y in zip(ours, plain, strict=True):
        assert x.dtype == dtype
        assert far(x, y) <= (1e-6 if dtype == "float32" else 4e-3)
    unseen = ~np.asarray(mask).any(-1)
    assert unseen.any() and not np.asarray(ours[0])[unseen].any() and not np.asarray(ours[1])[unseen].any()
