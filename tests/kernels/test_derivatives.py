"""One attention for both modes of differentiation, made of plain functions in the place of kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion.kernels.derivatives import Kernels, attend

TOKENS, SIZE, DEPTH = 6, 4, 2


def plain(q, k, v, mask):
    scores = jnp.where(mask != 0, q @ k.T, -1e30)
    return jax.nn.softmax(scores, -1) @ v, jax.nn.logsumexp(scores, -1)


def backward(q, k, v, mask, out, lse, d_out, d_lse):
    return jax.vjp(lambda *x: plain(*x, mask), q, k, v)[1]((d_out, d_lse))


def tangents(q, k, v, t_q, t_k, t_v, mask):
    out, moved = jax.jvp(lambda *x: plain(*x, mask), (q, k, v), (t_q, t_k, t_v))
    return *out, *moved


KERNELS = Kernels(plain, backward, tangents)


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    shapes = {"weights": (DEPTH, SIZE, 3 * SIZE), "x": (TOKENS, SIZE), "t": (TOKENS, SIZE), "y": (TOKENS, SIZE)}
    made = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    return made | {"mask": jnp.tril(jnp.ones((TOKENS, TOKENS), jnp.int32))}


def trunk(weights, x, mask, one_pass, scanned, remat):
    """Layers of attention; `one_pass` None: the plain one, which JAX differentiates."""

    def layer(x, w):
        q, k, v = jnp.split(x @ w, 3, -1)
        out, lse = plain(q, k, v, mask) if one_pass is None else attend(KERNELS, q, k, v, mask, one_pass)
        return x + out + lse[:, None], None

    layer = jax.checkpoint(layer) if remat else layer
    if scanned:
        return jax.lax.scan(layer, x, weights)[0]
    for w in weights:
        x, _ = layer(x, w)
    return x


def mean_flow(weights, given, *how, stop=True):
    """The gradient of a loss whose target contains the tangent of what is trained."""
    out, moved = jax.jvp(lambda x: trunk(weights, x, given["mask"], *how), (given["x"],), (given["t"],))
    target = given["y"] - moved
    return jnp.mean((out - (jax.lax.stop_gradient(target) if stop else target)) ** 2)


def close(ours, theirs):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * float(jnp.abs(y).max()))


@pytest.mark.parametrize(("scanned", "remat"), [(False, False), (True, False), (True, True)])
def test_both_modes_and_reverse_over_forward(given, scanned, remat):
    how = (scanned, remat)

    def loss(weights, one_pass):
        return jnp.mean((trunk(weights, given["x"], given["mask"], one_pass, *how) - given["y"]) ** 2)

    def moved(one_pass):
        return jax.jvp(
            lambda x: trunk(given["weights"], x, given["mask"], one_pass, *how), (given["x"],), (given["t"],)
        )

    weights = given["weights"]
    close(jax.value_and_grad(loss)(weights, False), jax.value_and_grad(loss)(weights, None))
    reference = jax.value_and_grad(mean_flow)(weights, given, None, *how)
    for one_pass in (False, True):
        close(moved(one_pass), moved(None))
        close(jax.value_and_grad(mean_flow)(weights, given, one_pass, *how), reference)
        # There is no kernel for the gradient through tangents, and none is made up.
        assert jnp.isnan(jax.grad(mean_flow)(weights, given, one_pass, *how, stop=False)).all()


def test_tangents_may_be_missing(given):
    x, y = given["x"], given["y"]
    for moving in ((0,), (1,), (2,), (0, 2)):
        ours = jax.grad(lambda *z: (attend(KERNELS, *z, given["mask"])[0] * y).sum(), moving)(x, 2 * x, y)
        close(ours, jax.grad(lambda *z: (plain(*z, given["mask"])[0] * y).sum(), moving)(x, 2 * x, y))
