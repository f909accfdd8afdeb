"""The vision tower: positions of other grids, patches of many images in one row, the pooled output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, trunk_operations

from transfusion.errors import UsageError
from transfusion.model.config import TransformerConfig
from transfusion.model.parameters import Template
from transfusion.model.vit import ViT, ViTConfig, cubic_weights, patches_of

TINY = ViTConfig(width=12, ffn=20, layers=3, heads=3, patch=2, grid=(3, 4))
# In sequence: the tower's layers are those of a trunk, over the 12 patches of a row.
OPERATIONS = trunk_operations(TransformerConfig(width=12, layers=3 + 1, heads=3, ffn=20), 18)


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
    got = patches_of(jnp.asarray(x), 2)
    assert got.shape == (2, 6, 12)
    np.testing.assert_array_equal(got[1, 4], x[1, 2:4, 2:4].ravel())
    with pytest.raises(UsageError, match="5x6"):
        patches_of(jnp.zeros((1, 5, 6, 3)), 2)


def test_cubic_interpolation():
    np.testing.assert_array_equal(cubic_weights(5, 5), np.eye(5))
    assert_close(cubic_weights(3, 7).sum(1), 1, 8)
    # Twice as many samples: the kernel with a = -0.75 at distances 1.25, 0.25, 0.75 and 1.75.
    assert_close(cubic_weights(8, 16)[8, 2:6], [-0.03515625, 0.26171875, 0.87890625, -0.10546875], 8)


def test_another_grid_changes_the_positions_only():
    model = template().bind(params())
    table = params()["positions"]
    np.testing.assert_array_equal(model.resized(3, 4), table)
    small = np.asarray(model.resized(5, 3))
    assert small.shape == (15, 12)
    down, across = cubic_weights(3, 5), cubic_weights(4, 3)
    want = np.einsum("y,x,yxd->d", down[4], across[1], table.reshape(3, 4, 12))
    assert_close(small[4 * 3 + 1], want, 3 + 4 + 8)
    assert jitted()(params(), pixels(10, 6)).last.shape == (2, 15, 12)


def test_packed_images_give_what_each_gives_alone():
    first, second = pixels(6, 8), pixels(4, 4, seed=1)
    places = np.stack(np.meshgrid(np.arange(3), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    corner = np.stack(np.meshgrid(np.arange(2), np.arange(2), indexing="ij"), -1).reshape(-1, 2)
    row = jnp.concatenate([patches_of(first, 2), patches_of(second, 2), jnp.full((2, 2, 12), 9.0)], 1)
    image = np.array([1] * 12 + [2] * 4 + [0] * 2)  # 0: padding
    mask = (image[:, None] == image) & (image > 0)
    places = np.concatenate([places, corner, np.zeros((2, 2), int)])
    both = jitted("packed")(params(), row, jnp.tile(places, (2, 1, 1)), jnp.tile(mask, (2, 1, 1)))
    alone = jitted()(params(), first)
    assert_close(both.hidden[:, :, :12], alone.hidden, OPERATIONS)
    other = jitted("packed")(params(), patches_of(second, 2), jnp.tile(corner, (2, 1, 1)), jnp.ones((2, 4, 4), bool))
    assert_close(both.last[:, 12:16], other.last, OPERATIONS)


def test_padding_does_not_reach_the_pooled_output():
    row, places = patches_of(pixels(6, 8), 2), np.zeros((2, 12, 2), int)
    real = np.arange(12) < 8
    mask = jnp.tile(real[:, None] & real, (2, 1, 1))
    padded = jitted("packed")(params(), row.at[:, 8:].set(7.0), places, mask).pooled
    np.testing.assert_array_equal(padded, jitted("packed")(params(), row, places, mask).pooled)
    cut = jitted("packed")(params(), row[:, :8], places[:, :8], mask[:, :8, :8]).pooled
    assert_close(padded, cut, OPERATIONS)


def test_every_parameter_learns_and_remat_changes_nothing():
    def total(params, config):
        features = template(config).bind(params)(pixels(6, 8))
        return jnp.sum(features.last**2) + jnp.sum(jnp.sin(features.pooled))

    plain = jax.jit(jax.grad(lambda p: total(p, TINY)))(params())
    config = ViTConfig(**{**TINY.__dict__, "remat": True})
    again = jax.jit(jax.grad(lambda p: total(p, config)))(params())
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(again), strict=True):
        # Softmax does not see a constant added to all scores, so the key's bias is a gauge.
        gauge = "k_bias" in str(path)
        assert_close(one, two, 3 * OPERATIONS, largest=largest if gauge else None, note=str(path))
        if not gauge:
            assert float(jnp.abs(one).max()) > 0, path


def test_configs():
    assert "probe" not in template(ViTConfig(**{**TINY.__dict__, "pool": False, "final_norm": False})).shapes
    assert template().axes["blocks"]["q"] == ("layers", "embed", "heads", None)
    with pytest.raises(UsageError, match="did you mean 'gelu'"):
        ViTConfig(activation="gellu")
    with pytest.raises(UsageError, match="does not divide"):
        ViTConfig(width=10, heads=3)
