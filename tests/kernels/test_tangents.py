"""Attention in forward mode, on both kinds of accelerators: tangents against finite differences, and in a trunk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_streams import by_streams
from test_triton import SMALL

from transfusion.kernels import mosaic, triton
from transfusion.model.attention import masked_attention
from transfusion.sequence.masks import intervals, see

SLICES = (37, 16, 50)


def on_gpu(tokens, one_pass):
    made = triton.sides(intervals(tokens, tokens), SLICES, SLICES, SMALL)
    return lambda *x: triton.attend(*x, made, interpret=True, one_pass=one_pass)


def on_tpu(tokens, one_pass):
    made = mosaic.plan_of(tokens, tokens, None, SLICES, SLICES)
    return lambda *x: mosaic.attend(*x, made, interpret=True, one_pass=one_pass)


def plainly(tokens, one_pass):
    mask = see(tokens, tokens)
    return lambda *x: (masked_attention(*x, mask),)


def exact(q, k, v, mask):
    """Outputs and log-sum-exps in float64, of one head per key-value head."""
    scores = np.where(mask[:, None], np.einsum("bqhk,bshk->bhqs", q, k) / np.sqrt(q.shape[-1]), -np.inf)
    top = np.where(mask.any(-1)[:, None], scores.max(-1), 0.0)
    weights = np.exp(scores - top[..., None])
    total = np.maximum(weights.sum(-1), 1e-300)
    return np.einsum("bhqs,bshk->bqhk", weights / total[..., None], v), top + np.log(total)


@pytest.mark.parametrize("place", [on_gpu, on_tpu])
def test_tangents_are_those_of_finite_differences(place):
    """Central differences in float64: their own error is of the square of the step, and of its inverse times 1e-16."""
    rng = np.random.default_rng(0)
    tokens = by_streams(rng, 2, SLICES)
    mask = np.asarray(see(tokens, tokens))
    given = [rng.standard_normal((2, sum(SLICES), 2, 40)) for _ in range(6)]
    arrays = [jnp.asarray(x, jnp.float32) for x in given]
    given = [np.asarray(x, np.float64) for x in arrays]
    step = 1e-5
    (up, up_sums), (down, down_sums) = (
        exact(*(x + sign * step * t for x, t in zip(given[:3], given[3:], strict=True)), mask) for sign in (1, -1)
    )
    attend = place(tokens, True)
    _, (moved, moved_sums) = jax.jit(lambda x: jax.jvp(attend, tuple(x[:3]), tuple(x[3:])))(arrays)
    expected, expected_sums = (up - down) / (2 * step), (up_sums - down_sums) / (2 * step)
    seen = np.broadcast_to(mask.any(-1)[:, None], expected_sums.shape)
    for x, y in ((moved, expected), (moved_sums, np.where(seen, expected_sums, 0))):
        assert np.linalg.norm(x - y) <= 1e-6 * np.linalg.norm(y)
    assert not np.asarray(moved_sums)[~seen].any() and not np.asarray(moved)[~mask.any(-1)].any()


def trunk(attend, weights, x):
    """Two layers of attention, scanned and computed anew in the backward pass."""

    @jax.checkpoint
    def layer(x, w):
        q, k, v = jnp.split(jnp.einsum("bnd,de->bne", x, w).reshape(*x.shape[:2], 2, -1), 3, -1)
        return x + attend(q, k, v)[0].reshape(x.shape), None

    return jax.lax.scan(layer, x, weights)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def mean_flow(place, one_pass, weights, x, t, tokens):
    """The value and gradient of a loss whose target contains the tangent of what is trained."""
    run = place(tokens, one_pass)

    def loss(weights):
        out, moved = jax.jvp(lambda x: trunk(run, weights, x), (x,), (t,))
        return jnp.mean((out - jax.lax.stop_gradient(t - moved)) ** 2)

    return jax.value_and_grad(loss)(weights)


@pytest.mark.parametrize(("place", "one_pass"), [(on_gpu, False), (on_tpu, True)])
def test_a_trunk_trains_on_a_target_with_its_own_tangent(place, one_pass):
    rng = np.random.default_rng(1)
    tokens = by_streams(rng, 1, SLICES)
    x, t = (jnp.asarray(rng.standard_normal((1, sum(SLICES), 32)), jnp.float32) for _ in range(2))
    weights = jnp.asarray(rng.standard_normal((2, 32, 96)) / 6, jnp.float32)
    expected = mean_flow(plainly, False, weights, x, t, tokens)
    value, gradient = mean_flow(place, one_pass, weights, x, t, tokens)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    assert np.linalg.norm(gradient - expected[1]) <= 1e-5 * np.linalg.norm(expected[1])
