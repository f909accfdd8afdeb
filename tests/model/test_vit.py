"""The vision tower: positions of other grids, patches of many images in one row, the pooled output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.model.parameters import Template
from transfusion.model.vit import ViT, ViTConfig, cubic_weights, patchify

TINY = ViTConfig(width=12, ffn=20, layers=3, heads=3, patch=2, grid=(3, 4))


@functools.cache
def template(config=TINY):
    return Template(lambda rngs: ViT(config, rngs=rngs))


@functools.cache
def params(config=TINY):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32), template(config).shapes)


@functools.cache
def jitted(method="__call__", config=TINY):
    return jax.jit(lambda params, *inputs: getattr(template(config).bind(params), method)(*inputs))


def pixels(height, width, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, height, width, 3)), jnp.float32)


def test_patches_are_in_reading_order():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    got = patchify(jnp.asarray(x), 2)
    assert got.shape == (2, 6, 12)
    np.testing.assert_array_equal(got[1, 4], x[1, 2:4, 2:4].ravel())
    with pytest.raises(UsageError, match="5x6"):
        patchify(jnp.zeros((1, 5, 6, 3)), 2)


def test_cubic_interpolation():
    np.testing.assert_array_equal(cubic_weights(5, 5), np.eye(5))
    np.testing.assert_allclose(cubic_weights(3, 7).sum(1), 1, rtol=1e-6)
    # Twice as many samples: the kernel with a = -0.75 at distances 1.25, 0.25, 0.75 and 1.75.
    np.testing.assert_allclose(cubic_weights(8, 16)[8, 2:6], [-0.03515625, 0.26171875, 0.87890625, -0.10546875])


def test_another_grid_changes_the_positions_only():
    model = template().bind(params())
    table = params()["positions"]
    np.testing.assert_array_equal(model.resized(3, 4), table)
    small = np.asarray(model.resized(5, 3))
    assert small.shape == (15, 12)
    down, across = cubic_weights(3, 5), cubic_weights(4, 3)
    want = np.einsum("y,x,yxd->d", down[4], across[1], table.reshape(3, 4, 12))
    np.testing.assert_allclose(small[4 * 3 + 1], want, rtol=1e-5, atol=1e-6)
    assert jitted()(params(), pixels(10, 6)).last.shape == (2, 15, 12)


def test_packed_images_give_what_each_gives_alone():
    first, second = pixels(6, 8), pixels(4, 4, seed=1)
    places = np.stack(np.meshgrid(np.arange(3), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    corner = np.stack(np.meshgrid(np.arange(2), np.arange(2), indexing="ij"), -1).reshape(-1, 2)
    row = jnp.concatenate([patchify(first, 2), patchify(second, 2), jnp.full((2, 2, 12), 9.0)], 1)
    image = np.array([1] * 12 + [2] * 4 + [0] * 2)  # 0: padding
    mask = (image[:, None] == image) & (image > 0)
    places = np.concatenate([places, corner, np.zeros((2, 2), int)])
    both = jitted("packed")(params(), row, jnp.tile(places, (2, 1, 1)), jnp.tile(mask, (2, 1, 1)))
    alone = jitted()(params(), first)
    np.testing.assert_allclose(both.hidden[:, :, :12], alone.hidden, rtol=1e-4, atol=1e-5)
    other = jitted("packed")(params(), patchify(second, 2), jnp.tile(corner, (2, 1, 1)), jnp.ones((2, 4, 4), bool))
    np.testing.assert_allclose(both.last[:, 12:16], other.last, rtol=1e-4, atol=1e-5)


def test_padding_does_not_reach_the_pooled_output():
    row, places = patchify(pixels(6, 8), 2), np.zeros((2, 12, 2), int)
    real = np.arange(12) < 8
    mask = jnp.tile(real[:, None] & real, (2, 1, 1))
    padded = jitted("packed")(params(), row.at[:, 8:].set(7.0), places, mask).pooled
    np.testing.assert_allclose(padded, jitted("packed")(params(), row, places, mask).pooled, rtol=1e-6)
    cut = jitted("packed")(params(), row[:, :8], places[:, :8], mask[:, :8, :8]).pooled
    np.testing.assert_allclose(padded, cut, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_and_remat_changes_nothing():
    def total(params, config):
        features = template(config).bind(params)(pixels(6, 8))
        return jnp.sum(features.last**2) + jnp.sum(jnp.sin(features.pooled))

    plain = jax.jit(jax.grad(lambda p: total(p, TINY)))(params())
    config = ViTConfig(**{**TINY.__dict__, "remat": True})
    again = jax.jit(jax.grad(lambda p: total(p, config)))(params())
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)
        # Softmax does not see a constant added to all scores, so the key's bias is a gauge.
        if "k_bias" not in str(path):
            assert float(jnp.abs(one).max()) > 0, path


def test_configs():
    assert "probe" not in template(ViTConfig(**{**TINY.__dict__, "pool": False, "final_norm": False})).shapes
    assert template().axes["blocks"]["q"] == ("layers", "embed", "heads", None)
    with pytest.raises(UsageError, match="did you mean 'gelu'"):
        ViTConfig(activation="gellu")
    with pytest.raises(UsageError, match="does not divide"):
        ViTConfig(width=10, heads=3)
