import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transfusion.errors import UsageError
from transfusion.model.parameters import Template
from transfusion.model.unet import UNetConfig, UNetDown, UNetUp

EMBED, CONDITION, CHANNELS = 12, 6, 3


class Coder(nnx.Module):
    def __init__(self, patch, config, rngs):
        self.down = UNetDown(CHANNELS, patch, EMBED, rngs, condition=CONDITION, config=config)
        self.up = UNetUp(CHANNELS, patch, EMBED, rngs, condition=CONDITION, config=config)


@functools.cache
def template(patch=4, config=UNetConfig(width=4, growth=1.5)):  # noqa: B008
    return Template(lambda rngs: Coder(patch, config, rngs))


@functools.cache
def parameters():
    """Every parameter random: the last convolution starts at zero and would hide all others."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return 1 + 0.2 * noise if path[-1].key == "scale" else noise * max(np.prod(leaf.shape[:-1]), 4) ** -0.5

    return jax.tree_util.tree_map_with_path(draw, template().shapes)


def down(params, latents, condition):
    return template().bind(params).down(latents, condition)


def up(params, hidden, skips, condition):
    return template().bind(params).up(hidden, skips, condition)


DOWN, UP = jax.jit(down), jax.jit(up)


def inputs(m=2, h=8, w=12, seed=1):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.standard_normal((m, h, w, CHANNELS)), jnp.float32),
        jnp.asarray(rng.standard_normal((m, CONDITION)), jnp.float32),
    )


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("blocks", [1, 2])
def test_shapes_for_every_patch_size(patch, blocks):
    config = UNetConfig(width=4, growth=2, blocks=blocks)
    latents = jax.ShapeDtypeStruct((3, 16, 24, CHANNELS), jnp.bfloat16)
    condition = jax.ShapeDtypeStruct((3, CONDITION), jnp.float32)

    def both(params, latents, condition):
        coder = template(patch, config).bind(params)
        tokens, skips = coder.down(latents, condition)
        return tokens, skips, coder.up(tokens, skips, condition)

    tokens, skips, out = jax.eval_shape(both, template(patch, config).shapes, latents, condition)
    assert tokens.shape == (3, (16 // patch) * (24 // patch), EMBED) and tokens.dtype == jnp.bfloat16
    assert [s.shape for s in skips] == [(3, 16 >> i, 24 >> i, 4 << i) for i in range(len(config.widths(patch)) - 1)]
    assert out.shape == latents.shape and out.dtype == jnp.bfloat16


def test_wrong_sizes_are_refused():
    with pytest.raises(UsageError, match="coder is 3"):
        UNetDown(CHANNELS, 3, EMBED, nnx.Rngs(0))
    with pytest.raises(UsageError, match="width"):
        UNetConfig(width=0)
    with pytest.raises(UsageError, match="10x12"):
        jax.eval_shape(down, template().shapes, *inputs(h=10))


@pytest.mark.parametrize("row,column,token", [(6, 1, 3), (1, 5, 1), (6, 9, 5)])
def test_tokens_are_in_raster_order(row, column, token):
    latents, condition = inputs()
    before = DOWN(parameters(), latents, condition)[0]
    after = DOWN(parameters(), latents.at[:, row, column].add(5.0), condition)[0]
    assert jnp.abs(after - before).max(axis=(0, 2)).argmax() == token


def test_images_do_not_see_each_other():
    latents, condition = inputs()
    tokens, skips = DOWN(parameters(), latents, condition)
    other = DOWN(parameters(), latents.at[1].set(0.0), condition.at[1].set(0.0))
    np.testing.assert_array_equal(other[0][0], tokens[0])
    out = UP(parameters(), tokens, skips, condition)
    changed = UP(parameters(), tokens.at[1].set(0), other[1], condition.at[1].set(0.0))
    np.testing.assert_array_equal(changed[0], out[0])
    assert jnp.abs(changed[1] - out[1]).max() > 1e-3


def test_output_depends_on_hidden_every_skip_and_the_condition():
    latents, condition = inputs()
    tokens, skips = DOWN(parameters(), latents, condition)
    out = UP(parameters(), tokens, skips, condition)
    variants = [(tokens * 1.5, skips, condition), (tokens, skips, condition + 1)]
    variants += [(tokens, tuple(s * (1 + (i == j)) for j, s in enumerate(skips)), condition) for i in range(2)]
    for hidden, skip, time in variants:
        assert jnp.abs(UP(parameters(), hidden, skip, time) - out).max() > 1e-3
    assert jnp.abs(DOWN(parameters(), latents, condition + 1)[0] - tokens).max() > 1e-3


def test_noise_of_a_single_pixel_passes_around_the_trunk():
    # With the tokens held fixed, the skip at full resolution still tells one latent pixel from its neighbour.
    latents, condition = inputs()
    tokens, skips = DOWN(parameters(), latents, condition)
    _, other = DOWN(parameters(), latents.at[0, 2, 2].add(3.0), condition)
    change = jnp.abs(UP(parameters(), tokens, other, condition) - UP(parameters(), tokens, skips, condition))[0]
    assert change.max(-1)[1:4, 1:4].mean() > 3 * change.max(-1)[6:, 6:].mean()


def test_every_parameter_gets_a_gradient_and_the_head_starts_at_zero():
    latents, condition = inputs()

    def total(params):
        tokens, skips = down(params, latents, condition)
        return jnp.square(up(params, tokens, skips, condition) - latents).mean()

    gradient = jax.jit(jax.grad(total))(parameters())
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 0, path
    axes = template().axes
    assert axes["down"]["out"]["kernel"] == ("conv_in", "embed")
    assert axes["up"]["inward"]["kernel"] == ("embed", None)
    fresh = UNetUp(1, 2, 1, nnx.Rngs(0), config=UNetConfig(width=1))
    assert not fresh.conv_out.kernel[...].any()
