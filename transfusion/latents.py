"""Codecs that are ready to use: between media (uint8 images and clips, sounds) and the latents of a stream."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from transfusion.checkpoint import restore_params
from transfusion.codecs import CodecConfig, pixels
from transfusion.codecs.kl_autoencoder import Autoencoder, AutoencoderConfig
from transfusion.codecs.mel import MelCodec
from transfusion.errors import check
from transfusion.model.parameters import Template
from transfusion.programs import read_experiment


@dataclasses.dataclass(frozen=True)
class Codec:
    """`encode`: what a record holds -> float32 latents (uint8 [H, W, C] -> [h, w, c] of an image), or int32 codes
    ([h, w] of an image, [T] of a sound); `decode`: the way back, with leading axes. `down` is H / h, or the samples of
    a sound per frame; `rate` is samples per second."""

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    down: int = 1
    rate: int = 0


def autoencoder_template(config: AutoencoderConfig) -> Template:
    return Template(lambda rngs: Autoencoder(config, rngs=rngs))


def open_codec(config: CodecConfig) -> Codec:
    """The codec that a config names; an autoencoder's weights are read from its run.

    Raises:
      UsageError: if there is no such codec, or the autoencoder's workdir holds no run or no intact checkpoint.
    """
    check("codec.kind", config.kind, CODECS)
    return CODECS[config.kind](config)


def _open_mel(config: CodecConfig) -> Codec:
    codec = MelCodec(config.mel)
    return Codec(codec.encode, codec.decode, config.mel.hop, config.mel.rate)


def _open_levels(config: CodecConfig) -> Codec:
    levels = config.levels
    return Codec(
        lambda image: levels.encode(pixels.to_float(image)),
        lambda codes: pixels.to_uint8(levels.decode(codes, 2, levels.channels)),
        levels.patch,
    )


def _open_mel_levels(config: CodecConfig) -> Codec:
    levels, mel = config.levels, _open_mel(config)
    return Codec(
        lambda sound: levels.encode(mel.encode(sound)),
        lambda codes: mel.decode(levels.decode(codes, 1, config.mel.bands)),
        levels.patch * mel.down,
        mel.rate,
    )


def _open_autoencoder(config: CodecConfig) -> Codec:
    experiment = read_experiment(config.path)
    template = autoencoder_template(experiment.autoencoder)
    _, params, _ = restore_params(config.path, "ema" if experiment.optim.ema else "params")

    @jax.jit
    def encode(images):
        return template.bind(params).encode(images)

    @jax.jit
    def decode(latents):
        return template.bind(params).decode(latents)

    def encode_all(images: np.ndarray) -> np.ndarray:
        lead = images.shape[:-3]
        latents = np.asarray(encode(pixels.to_float(images).reshape(-1, *images.shape[-3:])))
        return latents.reshape(*lead, *latents.shape[-3:])

    def decode_all(latents: np.ndarray) -> np.ndarray:
        lead = latents.shape[:-3]
        images = pixels.to_uint8(decode(latents.reshape(-1, *latents.shape[-3:])))
        return images.reshape(*lead, *images.shape[-3:])

    return Codec(encode_all, decode_all, experiment.autoencoder.down)


# A codec of one's own is a row more: its name, and a function from the config to a `Codec`.
CODECS: dict[str, Callable[[CodecConfig], Codec]] = {
    "pixels": lambda config: Codec(pixels.to_float, pixels.to_uint8),
    "autoencoder": _open_autoencoder,
    "mel": _open_mel,
    "levels": _open_levels,
    "mel_levels": _open_mel_levels,
}
