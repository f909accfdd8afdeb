"""Codecs that are ready to use: between uint8 images and the latents of an image stream."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from transfusion.checkpoint import restore_params
from transfusion.codecs import CodecConfig, pixels
from transfusion.codecs.kl_autoencoder import Autoencoder, AutoencoderConfig
from transfusion.model.parameters import Template
from transfusion.programs import read_experiment


@dataclasses.dataclass(frozen=True)
class Codec:
    """`encode`: uint8 [H, W, C] -> float32 latents [h, w, c]; `decode`: latents [..., h, w, c] -> uint8 [..., H, W, C].
    `down` is H / h."""

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    down: int


def autoencoder_template(config: AutoencoderConfig) -> Template:
    return Template(lambda rngs: Autoencoder(config, rngs=rngs))


def open_codec(config: CodecConfig) -> Codec:
    """The codec that a config names; an autoencoder's weights are read from its run.

    Raises:
      UsageError: if the autoencoder's workdir holds no run or no intact checkpoint.
    """
    if config.kind == "pixels":
        return Codec(pixels.to_float, pixels.to_uint8, 1)
    experiment = read_experiment(config.path)
    template = autoencoder_template(experiment.autoencoder)
    _, params, _ = restore_params(config.path, "ema" if experiment.optim.ema else "params")

    @jax.jit
    def encode(images):
        return template.bind(params).encode(images)

    @jax.jit
    def decode(latents):
        return template.bind(params).decode(latents)

    def decode_all(latents: np.ndarray) -> np.ndarray:
        lead = latents.shape[:-3]
        images = pixels.to_uint8(decode(latents.reshape(-1, *latents.shape[-3:])))
        return images.reshape(*lead, *images.shape[-3:])

    return Codec(
        lambda image: np.asarray(encode(pixels.to_float(image)[None])[0]), decode_all, experiment.autoencoder.down
    )
