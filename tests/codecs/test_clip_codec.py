"""Autoencoders of clips that are causal in time: what a frame depends on, and what an image is."""

import functools

import jax
import numpy as np
import pytest
from closeness import assert_close

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.pixels import to_float
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.errors import UsageError
from transfusion.latents import Codec, autoencoder_codec

# Time shrinks by four, in two halvings, or by patches of two frames and one; a latent stands for 8 x 8 pixels.
SIZES = {"norm_groups": 2, "latent_channels": 3, "time_down": 4}
HALVED = SIZES | {"channels": (4, 8, 8), "patch": 2}
CODECS = {
    "causal": AutoencoderConfig(frames="causal", **HALVED),
    "first": AutoencoderConfig(frames="first", **HALVED),
    "patches": AutoencoderConfig(frames="causal", channels=(8, 8), patch=4, patch_frames=2, straight=True, **SIZES),
}
OPERATIONS = 20 * 27 * 8  # the convolutions that follow one another, over 8 channels and 27 places


@functools.cache
def opened(name: str) -> tuple[AutoencoderConfig, dict]:
    """A config and weights, all of them random: a zero would hide what it multiplies."""
    config, rng = CODECS[name], np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return 1 + 0.2 * noise if path[-1].key == "scale" else noise * max(np.prod(leaf.shape[:-1]), 4) ** -0.5

    return config, jax.tree_util.tree_map_with_path(draw, autoencoder_template(config).shapes)


@functools.cache
def codec(name: str) -> Codec:
    return autoencoder_codec(*opened(name))


@functools.cache
def both(name: str):
    """A jitted function of clips: their latents, and what is made of them."""
    config, params = opened(name)
    model = autoencoder_template(config).bind(params)
    return jax.jit(lambda clips: (z := model.encode(clips), model.decode(z)))


def random_clips(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    "name, count, groups", [("causal", 8, (0, 4)), ("first", 9, (0, 1, 5)), ("patches", 8, (0, 4))]
)
def test_no_frame_depends_on_a_later_group_of_frames(name, count, groups):
    """Clip t of the batch is the first one up to frame t, and another one from there on."""
    one, other = to_float(random_clips(2, count))
    clips = np.stack([np.where(np.arange(count)[:, None, None, None] < t, one, other) for t in (*range(count), count)])
    latents, made = (np.asarray(x) for x in both(name)(clips))
    assert latents.shape == (count + 1, len(groups), 2, 2, 3) and made.shape == clips.shape
    for t in range(count):
        group = max(i for i, start in enumerate(groups) if start <= t)
        assert_close(latents[t, :group], latents[-1, :group], OPERATIONS, largest=np.abs(latents).max())
        assert_close(made[t, : groups[group]], made[-1, : groups[group]], OPERATIONS, largest=np.abs(made).max())
        # And on all frames of its own group and before it.
        assert np.abs(latents[t] - latents[-1])[group:].max((1, 2, 3)).min() > 1e-3
        assert np.abs(made[t] - made[-1])[groups[group] :].max((1, 2, 3)).min() > 1e-3


def test_an_image_is_a_clip_of_one_frame():
    clip = random_clips(9)
    latents, image = codec("first").encode(clip), codec("first").encode(clip[0])
    assert latents.shape == (3, 2, 2, 3) and image.shape == (2, 2, 3)
    assert_close(image, latents[0], OPERATIONS)
    made = codec("first").decode(image)
    assert made.shape == clip[0].shape and made.dtype == np.uint8
    assert np.abs(made.astype(int) - codec("first").decode(latents)[0]).max() <= 1  # uint8 may round either way
    assert codec("first").form([(3, 2, 2)]).length == 9 and codec("causal").form([(2, 2, 2)]).length == 8


def test_where_frames_are_joined_an_image_is_a_clip_in_which_nothing_moves():
    image = random_clips(1)[0]
    assert_close(codec("causal").encode(image), codec("causal").encode(np.stack([image] * 4))[0], OPERATIONS)
    assert codec("causal").decode(codec("causal").encode(image)).shape == image.shape


def test_a_number_of_frames_that_does_not_fit_is_refused():
    for name, count, line in (("causal", 9, "9 frames does not divide by 4"), ("first", 8, "by 4 behind the first")):
        with pytest.raises(UsageError, match=line):
            codec(name).encode(random_clips(count))


def test_patches_that_do_not_fit_are_refused():
    for wrong in ({"patch": 0}, {"patch_frames": 2}, {"frames": "first", "patch_frames": 2, "time_down": 2}):
        with pytest.raises(UsageError, match="patch"):
            AutoencoderConfig(**wrong)
