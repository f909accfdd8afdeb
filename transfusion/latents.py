"""Codecs that are ready to use: between media (uint8 images and clips, sounds) and the latents of a stream."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from transfusion.codecs import CodecConfig, pixels
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.mel import MelCodec
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.errors import UsageError, check
from transfusion.model.names import by_path
from transfusion.model.parameters import Params
from transfusion.running.restore import restore_params
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.resume import as_trained


@dataclasses.dataclass(frozen=True)
class Codec:
    """Between a medium and what a stream holds of it.

    Attributes:
      encode: what a record holds -> float32 latents (uint8 [H, W, C] -> [h, w, c] of an image) or int32 ids ([T] of a
        sound, [h, w] of an image, [t, h, w] of a clip; flat at growing scales).
      decode: the way back, with leading axes.
      down: H / h, or the samples of a sound per frame.
      rate: samples of a sound per second.
      vocabulary: number of codes of an autoencoder; 0: its latents are continuous.
      scales: sides of the square grids whose ids stand one after the other; () if there is one grid.
      features: of codes at scales, ids [..., L] -> float32 [..., L - scales[0] ** 2, c], what predicts each scale but
        the first (see `MultiScaleQuantizer.features_of_scales`).
      time_down: T / t of clips.
      parts: all that `encode` depends on, dataclasses and parameters: latents that are kept are those of its digest.
      channels: of the images that it reads; 0: it takes any.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    down: int = 1
    rate: int = 0
    vocabulary: int = 0
    scales: tuple[int, ...] = ()
    features: Callable[[np.ndarray], np.ndarray] | None = None
    time_down: int = 1
    parts: tuple[Any, ...] = ()
    channels: int = 0

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of `parts`.

        Raises:
          UsageError: if there are none.
        """
        if not self.parts:
            raise UsageError("latents of this codec cannot be kept: its Codec has no `parts` to know it by")
        found = hashlib.sha256()
        for part in self.parts:
            if dataclasses.is_dataclass(part):
                found.update(json.dumps(dataclasses.asdict(part), sort_keys=True).encode())
                continue
            for path, leaf in sorted(by_path(part).items()):
                array = np.asarray(leaf)
                found.update(f"{path} {array.dtype} {array.shape}".encode())
                found.update(np.ascontiguousarray(array))
        return found.hexdigest()


def open_codec(config: CodecConfig) -> Codec:
    """The codec that a config names; an autoencoder's weights are read from its run.

    Raises:
      UsageError: if there is no such codec, or the autoencoder's workdir holds no run or no intact checkpoint.
    """
    check("codec.kind", config.kind, CODECS)
    return CODECS[config.kind](config)


def _open_mel(config: CodecConfig) -> Codec:
    codec = MelCodec(config.mel)
    return Codec(codec.encode, codec.decode, config.mel.hop, config.mel.rate, parts=(config.mel,))


def _open_levels(config: CodecConfig) -> Codec:
    levels = config.levels
    return Codec(
        lambda image: levels.encode(pixels.to_float(image)),
        lambda codes: pixels.to_uint8(levels.decode(codes, 2, levels.channels)),
        levels.patch,
        scales=levels.scales,
        parts=(levels,),
        channels=levels.channels,
    )


def _open_mel_levels(config: CodecConfig) -> Codec:
    levels, mel = config.levels, _open_mel(config)
    return Codec(
        lambda sound: levels.encode(mel.encode(sound)),
        lambda codes: mel.decode(levels.decode(codes, 1, config.mel.bands)),
        levels.patch * mel.down,
        mel.rate,
        parts=(levels, config.mel),
    )


def _open_autoencoder(config: CodecConfig) -> Codec:
    experiment = read_experiment(config.path)
    _, params, saved = restore_params(config.path, "ema" if experiment.optim.ema else "params")
    experiment = as_trained(experiment, saved, config.path)
    return autoencoder_codec(experiment.autoencoder, params)


def autoencoder_codec(config: AutoencoderConfig, params: Params) -> Codec:
    """An autoencoder of any form with the given weights; one of images takes clips frame by frame, one of clips takes
    an image as a clip in which nothing moves, and shows its first frame."""
    template = autoencoder_template(config)
    model = template.bind(template.shapes)
    medium = 4 if config.frames else 3  # axes of one image or clip
    scales = config.quantizer.scales if config.form == "multiscale" else ()

    def over(axes: int, function: Callable[[Any, jax.Array], jax.Array]) -> Callable[[np.ndarray], np.ndarray]:
        """`function` of the module and a batch, for any axes before the last `axes`."""
        compiled = jax.jit(lambda arrays, x: function(template.bind(arrays), x))

        def call(x: np.ndarray) -> np.ndarray:
            lead = x.shape[: x.ndim - axes]
            result = np.asarray(compiled(params, np.reshape(x, (-1, *x.shape[len(lead) :]))))
            return result.reshape(*lead, *result.shape[1:])

        return call

    encode, decode = over(medium, lambda m, x: m.encode(x)), over(model.code_axes, lambda m, x: m.decode(x))

    def encode_all(images: np.ndarray) -> np.ndarray:
        x = pixels.to_float(images)
        if x.shape[-1] != config.image_channels:
            raise UsageError(f"an image of {x.shape[-1]} channels: the codec takes {config.image_channels}")
        if x.ndim < medium:
            return encode(np.repeat(x[None], config.time_down, 0))[0]
        return encode(x)

    def decode_all(codes: np.ndarray) -> np.ndarray:
        if np.ndim(codes) < model.code_axes:
            return pixels.to_uint8(decode(np.asarray(codes)[None])[0])
        return pixels.to_uint8(decode(codes))

    return Codec(
        encode_all,
        decode_all,
        config.down,
        vocabulary=0 if config.form == "kl" else model.quantizer.vocabulary,
        scales=scales,
        features=over(1, lambda m, ids: m.quantizer.features_of_scales(ids)) if scales else None,
        time_down=config.time_down,
        parts=(config, params),
        channels=config.image_channels,
    )


# A codec of one's own is a row more: its name, and a function from the config to a `Codec`.
CODECS: dict[str, Callable[[CodecConfig], Codec]] = {
    "pixels": lambda config: Codec(pixels.to_float, pixels.to_uint8, parts=({},)),
    "autoencoder": _open_autoencoder,
    "levels": _open_levels,
    "mel": _open_mel,
    "mel_levels": _open_mel_levels,
}
