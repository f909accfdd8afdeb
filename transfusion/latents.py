"""Codecs, opened and ready to use, turn media (uint8 images and clips, sounds) into a stream's latents and back."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from transfusion.codecs import CodecConfig, pixels
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.mel import MelCodec
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.config import Experiment
from transfusion.data.config import SourceConfig
from transfusion.data.forms import Form, unfit
from transfusion.data.media import MEDIA
from transfusion.data.sizes import named
from transfusion.errors import UsageError, check
from transfusion.model.names import by_path
from transfusion.model.parameters import Params
from transfusion.running.restore import restore_params
from transfusion.sequence import Run, SequenceSpec
from transfusion.sequence.spelling import Grid
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.resume import as_trained

_KINDS = {1: "sound", 2: "image", 3: "video"}  # by the number of an item's sides


@dataclasses.dataclass(frozen=True)
class Codec:
    """A codec turns a medium into the latents or ids that a stream holds, and back.

    Attributes:
      encode: turns what a record holds into float32 latents (uint8 [H, W, C] -> [h, w, c] of an image) or int32 ids
        ([T] of a sound, [h, w] of an image, [t, h, w] of a clip; flat at growing scales).
      decode: turns latents or ids back into media; it takes leading axes.
      down: H / h, or the samples of a sound per frame.
      rate: samples of a sound per second.
      vocabulary: number of codes of an autoencoder; 0: its latents are continuous.
      scales: sides of the square grids whose ids stand one after the other; () if there is one grid.
      features: for codes at several scales, turns ids [..., L] into the inputs float32 [..., L - scales[0] ** 2, c]
        that predict every scale but the first (see `MultiScaleQuantizer.features_of_scales`).
      time_down: T / t of clips.
      first: the frames at the start of a clip that stand alone: T - first is `time_down` times t - first.
      parts: the dataclasses and parameters on which `encode` depends; cached latents are found by their digest.
      channels: channels of the images that it reads; 0: it takes any.
      keeps_channels: whether latents have the channels of the images.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    down: int = 1
    rate: int = 0
    vocabulary: int = 0
    scales: tuple[int, ...] = ()
    features: Callable[[np.ndarray], np.ndarray] | None = None
    time_down: int = 1
    first: int = 0
    parts: tuple[Any, ...] = ()
    channels: int = 0
    keeps_channels: bool = False

    def form(self, grids: Sequence[Grid], channels: int = 0) -> Form:
        """The form of media whose latents or codes have one of these `grids` and so many `channels`.

        A grid is (T,) of a sound, (h, w) of an image or (T, h, w) of a clip; zeros stand for any size. All grids have
        the same number of sides.
        """
        if len(grids[0]) == 1:
            return Form(length=grids[0][0] * self.down, rate=self.rate)
        sizes = tuple((grid[-2] * self.down, grid[-1] * self.down) for grid in grids if all(grid))
        length = self.first + (grids[0][0] - self.first) * self.time_down if len(grids[0]) == 3 and grids[0][0] else 0
        return Form(sizes, self.down, channels if self.keeps_channels else self.channels, length)

    def sides(self, encoded: np.ndarray) -> int:
        """The number of sides of one medium's latents or codes: 1 for a sound, 2 for an image, 3 for a clip."""
        # Latents (floats) have an axis of channels, which is no side. Codes at several scales are images, but flat.
        return encoded.ndim - (encoded.dtype.kind == "f") + bool(self.scales)

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


@dataclasses.dataclass(frozen=True)
class Codecs:
    """The codecs of a model by kind of segment: `codecs[kind]` is the codec that reads and draws this kind.

    Attributes:
      default: the codec of all kinds that `by_kind` does not name.
    """

    default: Codec
    by_kind: Mapping[str, Codec] = dataclasses.field(default_factory=dict)

    def __getitem__(self, kind: str) -> Codec:
        return self.by_kind.get(kind, self.default)

    def encode(self, kind: str, medium: np.ndarray) -> np.ndarray:
        """What the codec of this kind makes of a medium, see `Codec.encode`."""
        return self[kind].encode(medium)

    def digest(self, kind: str = "") -> str:
        """The digest of the codec of a kind; without one, that of all codecs together. See `Codec.digest`."""
        if kind or not self.by_kind:
            return self[kind].digest
        digests = {name: codec.digest for name, codec in {"": self.default, **self.by_kind}.items()}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def open_codecs(experiment: Experiment) -> Codecs:
    """Opens all codecs of an experiment; see `open_codec`."""
    by_kind = {kind: open_codec(config) for kind, config in experiment.codecs.items()}
    return Codecs(open_codec(experiment.codec), by_kind)


def open_codec(config: CodecConfig) -> Codec:
    """Opens the codec that a config names; an autoencoder's weights are read from its run.

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
    """Makes a codec of an autoencoder of any form with the given weights.

    An autoencoder of images takes clips frame by frame. One of clips takes an image as a clip in which nothing moves
    (of one frame, if the first frame stands alone), and gives back the first frame."""
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
            return encode(np.repeat(x[None], config.first or config.time_down, 0))[0]
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
        first=config.first,
        parts=(config, params),
        channels=config.image_channels,
    )


PIXELS = Codec(pixels.to_float, pixels.to_uint8, parts=({},), keeps_channels=True)

# To add a codec, add a row: its name, and a function from the config to a `Codec`.
CODECS: dict[str, Callable[[CodecConfig], Codec]] = {
    "pixels": lambda config: PIXELS,
    "autoencoder": _open_autoencoder,
    "levels": _open_levels,
    "mel": _open_mel,
    "mel_levels": _open_mel_levels,
}


def forms_of(spec: SequenceSpec, codecs: Codecs) -> dict[str, Form]:
    """The forms of the media that a model with these tables and codecs reads, by 'image', 'video' and 'sound'.

    Kinds of media that you have added are not among them: their arrays go to their codec unchanged.
    """
    runs: dict[str, list[Run]] = {}
    for kind, _, some in spec.entries:
        if kind in MEDIA:
            media = [run for run in some if spec.content(run).sides and spec.content(run).source != "none"]
            runs.setdefault(kind, []).extend(media)
    found = {kind: [run for run in some if _KINDS[spec.content(run).sides] == kind] for kind, some in runs.items()}
    return {kind: _form(spec, codecs[kind], some) for kind, some in found.items() if some}


def _form(spec: SequenceSpec, codec: Codec, runs: Sequence[Run]) -> Form:
    """The form of the media of these runs; if one stream reads pixels and another latents, the latents set the size."""
    read = [(run, spec.streams[run.stream]) for run in runs]
    readers = [PIXELS if stream.source == "pixels" else codec for _, stream in read]
    first = min(range(len(read)), key=lambda i: read[i][1].source == "pixels")
    run, stream = read[first]
    form = readers[first].form(run.spelling.grids or (tuple(stream.grid),), stream.channels)
    tokens = [(stream.patch * reader.down, stream) for (_, stream), reader in zip(read, readers, strict=True)]
    area = min((stream.budget - stream.content.lead) * side**2 for side, stream in tokens)
    return dataclasses.replace(form, multiple=math.lcm(*(side for side, _ in tokens)), area=area)


def check_resolutions(sources: Mapping[str, SourceConfig], spec: SequenceSpec, codecs: Codecs) -> None:
    """Refuses a source whose images are resized to a size that no stream holds, because these records would be bad.

    Raises:
      UsageError: naming the source, and the sizes that fit.
    """
    forms = {kind: form for kind, form in forms_of(spec, codecs).items() if kind in ("image", "video")}
    for name, source in sources.items() if forms else ():
        sides = {kind: source.resolution // codecs[kind].down * codecs[kind].down for kind in forms}
        fits = any(not form.sizes or (sides[kind],) * 2 in form.sizes for kind, form in forms.items())
        if source.resolution and not fits:
            raise UsageError(f"data.sources.{name}.resolution: {unfit(str(source.resolution), forms.values())}")
        for size in {size for _, stage in source.sizes.stages for size in stage.last}:
            if not any(form.holds(size) for form in forms.values()):
                raise UsageError(f"data.sources.{name}.sizes: {unfit(named([size]), forms.values())}")
