import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.kl_autoencoder import Autoencoder, kl_divergence, sample
from transfusion.codecs.losses import codec_loss
from transfusion.errors import UsageError
from transfusion.model import blocks
from transfusion.model.parameters import Template

TINY = AutoencoderConfig(channels=(8, 8), latent_channels=2, norm_groups=4, scale=0.5, shift=0.25)
KEY = jax.random.key(1)
NOISE = jax.random.normal(KEY, (2, 4, 2, 2))


# In sequence: a dozen convolutions of 3 x 3 over 8 channels, each behind a norm over an image of 8 x 4.
OPERATIONS = 12 * (3 * 3 * 8 + 2 * 8 * 4)


def images(seed=0, shape=(2, 8, 4, 3)):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


@functools.cache
def template(config=TINY):
    return Template(lambda rngs: Autoencoder(config, rngs=rngs))


@functools.cache
def parameters(config=TINY):
    """Every parameter random, biases and norms too: a zero would hide what it multiplies."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return 1 + 0.2 * noise if path[-1].key == "scale" else noise * max(np.prod(leaf.shape[:-1]), 4) ** -0.5

    return jax.tree_util.tree_map_with_path(draw, template(config).shapes)


@functools.cache
def jitted(name, config=TINY):
    """A jitted function of (params, ...) for a method of the autoencoder: eager convolutions compile one by one."""
    return jax.jit(lambda params, *arguments: getattr(template(config).bind(params), name)(*arguments))


def call(name, *arguments):
    return jitted(name)(parameters(), *arguments)


@functools.cache
def loss_and_gradient(config=TINY):
    """A jitted function of (params, images, image_weight) -> (sum of the loss, Sums), gradient."""

    def total(params, images, weight):
        return codec_loss(template(config).bind(params), images, {"noise": NOISE}, weight)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def test_shapes_and_refused_sizes():
    model = template().bind(template().shapes)
    assert model.down == 2 and model.latent_shape(8, 4) == (4, 2, 2)
    latents = call("encode", images())
    assert latents.shape == (2, 4, 2, 2) and call("decode", latents).shape == (2, 8, 4, 3)
    with pytest.raises(UsageError, match="9x4"):
        model.encode(images(shape=(1, 9, 4, 3)))


def test_wrong_configs_are_refused():
    with pytest.raises(UsageError, match="norm_groups=8"):
        AutoencoderConfig(channels=(12,))
    with pytest.raises(UsageError, match="did you mean 'l2'"):
        AutoencoderConfig(reconstruction="l22")


def test_scale_and_shift_are_undone_by_decode():
    mean, _ = call("moments", images())
    latents = call("encode", images())
    assert_close(latents, (mean - 0.25) * 0.5, OPERATIONS)
    assert_close(call("decode", latents), call("reconstruct", mean), OPERATIONS)


def test_a_key_draws_from_the_posterior():
    mean, logvar = call("moments", images())
    draw = jax.jit(jax.vmap(lambda key: sample(mean, logvar, key)))(jax.random.split(KEY, 2000))
    np.testing.assert_allclose(draw.mean(0), mean, atol=0.15)  # a sample
    np.testing.assert_allclose(draw.std(0), jnp.exp(0.5 * logvar), rtol=0.1)
    drawn = call("encode", images(), KEY)
    assert_close(drawn, (sample(mean, logvar, KEY) - 0.25) * 0.5, OPERATIONS)


def test_log_variance_is_clamped():
    params = dict(parameters())
    params["quant"] = {**params["quant"], "bias": jnp.full(4, 1e4)}
    mean, logvar = jitted("moments")(params, images())
    assert (logvar == 20).all() and (mean > 1e3).all()


def test_kl_matches_the_closed_form():
    assert float(kl_divergence(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)))[0]) == 0
    # KL(N(1, 4) || N(0, 1)) = (1 + 4 - 1 - ln 4) / 2 for each of four values.
    value = kl_divergence(jnp.ones((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), jnp.log(4.0)))[0]
    assert_close(value, 4 * (4 - np.log(4)) / 2, 16)


def test_loss_pairs_add_over_images_and_ignore_masked_ones():
    params = dict(parameters())
    # No noise in the latents: otherwise a draw would depend on the image's place in the batch.
    params["quant"] = {**params["quant"], "bias": jnp.array([0.0, 0.0, -1e3, -1e3])}
    run = loss_and_gradient()
    whole, first, second = (run(params, images(), jnp.array(w))[0] for w in ([1.0, 1], [1.0, 0], [0.0, 1]))
    for name in ("reconstruction", "kl", "psnr", "ssim"):
        assert_close(whole[1][name][0], first[1][name][0] + second[1][name][0], OPERATIONS)
        assert first[1][name][1] == second[1][name][1] == 1 and whole[1][name][1] == 2
    assert_close(whole[0], first[0] + second[0], OPERATIONS)
    assert_close(whole[0], whole[1]["reconstruction"][0] + whole[1]["kl"][0], OPERATIONS)
    changed = run(params, images().at[1].set(0.3), jnp.array([1.0, 0]))[0]
    assert changed[0] == first[0] and changed[1]["kl_nats"] == first[1]["kl_nats"]


def test_l1_and_l2_measure_the_reconstruction():
    mean, logvar = call("moments", images())
    error = call("reconstruct", mean + jnp.exp(0.5 * logvar) * NOISE) - images()
    (_, sums), _ = loss_and_gradient()(parameters(), images(), jnp.ones(2))
    assert_close(sums["reconstruction"][0], 2 * jnp.abs(error).mean(), OPERATIONS)
    assert_close(sums["mse"][0], 2 * jnp.square(error).mean(), OPERATIONS)
    kl = TINY.kl_weight * kl_divergence(mean, logvar).sum() / (8 * 4 * 3)  # both terms per pixel value, as in the paper
    assert_close(sums["kl"][0], kl, OPERATIONS)
    squared = dataclasses.replace(TINY, reconstruction="l2")
    _, sums = jax.jit(lambda p: codec_loss(template(squared).bind(p), images(), {"noise": NOISE}))(parameters())
    assert_close(sums["reconstruction"][0], sums["mse"][0], 8 * 4 * 3)


def test_every_parameter_learns_and_declares_its_axes():
    _, gradient = loss_and_gradient()(parameters(), images(), jnp.ones(2))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        # Softmax does not see a constant added to all scores, so the key's bias is a gauge.
        if "'key'" not in str(path) or "'bias'" not in str(path):
            assert float(jnp.abs(leaf).max()) > 0, path
    stem = template().axes["encoder"]["conv_in"]
    assert stem == {"kernel": (None, None, "conv_in", "conv_out"), "bias": (None,)}
    assert template().axes["decoder"]["conv_out"]["kernel"] == (None, None, "conv_in", None)


def test_bfloat16_images_give_bfloat16_pictures_and_float32_moments():
    shapes = template().shapes
    mean, logvar = jax.eval_shape(jitted("moments"), shapes, jax.ShapeDtypeStruct((2, 8, 4, 3), jnp.bfloat16))
    assert mean.dtype == logvar.dtype == jnp.float32
    picture = jax.eval_shape(jitted("reconstruct"), shapes, jax.ShapeDtypeStruct(mean.shape, jnp.bfloat16))
    assert picture.dtype == jnp.bfloat16 and picture.shape == (2, 8, 4, 3)


def test_upsample_repeats_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(blocks.upsample(x)[0, :, :, 0], [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2)
