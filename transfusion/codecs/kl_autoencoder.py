"""Convolutional autoencoders: images [B, H, W, C] <-> latents [B, H / down, W / down, c], clips with a time axis more.

Here are what all of them share and the one with Gaussian latents (KL); `vq_autoencoder` has those with codes.

The shape of the first stage of latent diffusion (Rombach et al., arXiv 2112.10752, appendix G; in the form of Stable
Diffusion's and FLUX's AutoencoderKL, so that released weights of that family can be loaded).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.codecs.discriminator import AdversarialConfig, PatchDiscriminator
from transfusion.codecs.pixels import check_size
from transfusion.errors import UsageError, check
from transfusion.model.blocks import (
    TIMES,
    Conv,
    GroupNorm,
    ResidualBlock,
    SpatialAttention,
    make_norm,
    normed,
    upsample,
)
from transfusion.model.multiscale import QUANTIZERS
from transfusion.model.quantizers import Quantized, QuantizerConfig
from transfusion.model.vit import ViTConfig

# Convolutions to latents or pixels have few output channels: not to be split over devices.
ENDS = ("conv_in", None)
RECONSTRUCTIONS = {"l1": jnp.abs, "l2": jnp.square}


FORMS = ("kl", *QUANTIZERS)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes and loss. Each entry of `channels` is one resolution; all but the last halve the image.

    `form` is 'kl' (Gaussian latents) or what makes codes of them, a key of `QUANTIZERS`: 'vq', 'fsq', 'multiscale',
    or 'movq' (clips whose frames are coded as images; time is mixed between these and the codes, as in Emu3).
    With `frames`, a key of `blocks.TIMES`, it reads clips [B, T, H, W, C]; the first halvings shrink T, too, by
    `time_down` in all. The weights are those of the terms of the loss, each a mean per value; `perceptual_layers` are
    those of `evaluation.features`. With a `tower` the latents are its features, frozen, and only the decoder learns
    (`transfusion.codecs.semantic`); `noise` is the standard deviation of what training adds to them.

    Released weights differ in: `stem`, channels of the first convolution (0: those of the first resolution);
    `encoder_attention` and `decoder_attention`, the resolutions (places in `channels`) where an attention over all
    pixels follows each residual block; `attention_heads`, of these and of the middle's; `code_norms`, whether the
    decoder's norms read the codes (MoVQ, see `blocks.SpatialNorm`); `decodes`, whether there is a decoder.
    """

    form: str = "kl"
    image_channels: int = 3
    channels: tuple[int, ...] = (16, 32)
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_groups: int = 8
    middle_attention: bool = True
    stem: int = 0
    encoder_attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    attention_heads: int = 1
    code_norms: bool = False
    decodes: bool = True
    # FLUX has no 1x1 convolutions between encoder, latents and decoder; Stable Diffusion has.
    quant_convs: bool = True
    # Latents given out are (z - shift) * scale: the model wants them with unit variance.
    scale: float = 1.0
    shift: float = 0.0
    logvar_range: tuple[float, float] = (-30.0, 20.0)
    reconstruction: str = "l1"
    kl_weight: float = 1e-6
    tower: ViTConfig | None = None
    noise: float = 0.0
    quantizer: QuantizerConfig = QuantizerConfig()
    perceptual_weight: float = 0.0
    perceptual_layers: tuple[int, ...] = (0, 1, 2)
    adversarial: AdversarialConfig = AdversarialConfig()
    frames: str = ""
    time_down: int = 1

    def __post_init__(self):
        for field in ("channels", "logvar_range", "perceptual_layers", "encoder_attention", "decoder_attention"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        bad = [c for c in (self.stem, *self.channels) if c < 0 or c % self.norm_groups]
        if not self.channels or 0 in self.channels or bad:
            raise UsageError(
                f"codec.channels {self.channels}: each must be a multiple of norm_groups={self.norm_groups}"
            )
        if min(self.image_channels, self.latent_channels, self.layers_per_block) < 1 or self.scale == 0:
            raise UsageError("codec: image_channels, latent_channels, layers_per_block must be >= 1 and scale not 0")
        places = {*self.encoder_attention, *self.decoder_attention}
        if not places <= {*range(len(self.channels))}:
            raise UsageError(f"codec: encoder_attention and decoder_attention are places in channels, not {places}")
        with_attention = [self.channels[i] for i in places]
        if self.attention_heads < 1 or any(c % self.attention_heads for c in (*with_attention, self.channels[-1])):
            raise UsageError(f"codec.attention_heads {self.attention_heads} does not divide channels with an attention")
        check("codec.reconstruction", self.reconstruction, RECONSTRUCTIONS)
        check("codec.form", self.form, FORMS)
        check("codec.frames", self.frames, ("", *TIMES))
        # The latents of 'movq' are halved in time behind the last resolution.
        most = 32 if self.form == "movq" else len(self.channels)
        if self.time_down not in [2**i for i in range(most)] or (self.time_down > 1 and not self.frames):
            raise UsageError(
                f"codec.time_down is {self.time_down}: it must be a power of two up to {2 ** (most - 1)}, and needs "
                "frames"
            )
        if self.form == "movq" and (self.frames != "causal" or not self.quant_convs):
            raise UsageError("codec.form 'movq' reads clips: frames must be 'causal', and quant_convs true")
        if self.code_norms and self.frames and self.form != "movq":
            raise UsageError("codec.code_norms are of images, and of clips of form 'movq'")
        if self.form == "multiscale" and self.frames:
            raise UsageError("codec.frames: a multi-scale quantizer reads images only")
        if not self.quant_convs and self.code_channels != self.latent_channels:
            raise UsageError(
                f"codec.latent_channels is {self.latent_channels}, and codes have {self.code_channels}: give the same, "
                "or quant_convs between them"
            )
        if self.perceptual_weight < 0:
            raise UsageError("codec.perceptual_weight must not be negative")
        if self.tower and (self.form != "kl" or self.frames or self.adversarial.weight):
            raise UsageError("codec.tower: a decoder of features has form 'kl', reads images, and has no adversary")
        if (tower := self.tower) and (tower.width, tower.channels, tower.patch) != (
            self.latent_channels, self.image_channels, self.down,
        ):  # fmt: skip
            raise UsageError(
                f"codec.tower: its width {tower.width}, channels {tower.channels} and patch {tower.patch} must be "
                f"latent_channels {self.latent_channels}, image_channels {self.image_channels} and {self.down} (that "
                "halves the image once less than there are `channels`)"
            )

    @property
    def down(self) -> int:
        """The factor by which each side of the image shrinks."""
        return 2 ** (len(self.channels) - 1)

    @property
    def code_channels(self) -> int:
        """Channels of what the decoder's side of the quantizer gets."""
        if self.form == "kl":
            return self.latent_channels
        return len(self.quantizer.levels) if self.form == "fsq" else self.quantizer.channels or self.latent_channels


class Middle(nnx.Module):
    """Residual block, attention over all pixels (or none), residual block: [B, ..., h, w, c] -> same."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, codes: int = 0):
        channels, groups, kind = config.channels[-1], config.norm_groups, {"time": config.frames, "codes": codes}
        self.first = ResidualBlock(channels, channels, groups, rngs=rngs, **kind)
        if config.middle_attention:
            self.attention = SpatialAttention(channels, groups, rngs=rngs, heads=config.attention_heads, **kind)
        self.second = ResidualBlock(channels, channels, groups, rngs=rngs, **kind)

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        x = self.first(x, codes)
        return self.second(self.attention(x, codes) if hasattr(self, "attention") else x, codes)


class Stage(nnx.Module):
    """Residual blocks at one resolution, each followed by an attention if it has `heads`; then an optional change of
    resolution, which the caller makes."""

    def __init__(
        self, inputs: int, outputs: int, layers: int, groups: int, resample: Conv | None,
        *, rngs: nnx.Rngs, time: str = "", heads: int = 0, codes: int = 0,
    ):  # fmt: skip
        kind = {"time": time, "codes": codes}
        self.blocks = nnx.List(
            [ResidualBlock(outputs if i else inputs, outputs, groups, rngs=rngs, **kind) for i in range(layers)]
        )
        self.resample = resample
        if heads:
            self.attentions = nnx.List(
                [SpatialAttention(outputs, groups, rngs=rngs, heads=heads, **kind) for _ in range(layers)]
            )

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        for i, block in enumerate(self.blocks):
            x = block(x, codes)
            x = self.attentions[i](x, codes) if hasattr(self, "attentions") else x
        return x


class Encoder(nnx.Module):
    """Images [B, H, W, C] -> `outputs` channels [B, h, w, outputs] (KL: mean and log variance, joined)."""

    def __init__(self, config: AutoencoderConfig, outputs: int, *, rngs: nnx.Rngs):
        channels, groups, time = config.channels, config.norm_groups, config.frames
        before = config.stem or channels[0]
        self.conv_in = Conv(config.image_channels, before, rngs=rngs, time=time)
        stages = []
        for i, wide in enumerate(channels):
            # Right and bottom only, as in the released weights: with symmetric padding they read other pixels.
            halve = None
            if i < len(channels) - 1:
                pads, frames = ((0, 1), (0, 1)), 2 if 2**i < config.time_down else 1
                halve = Conv(wide, wide, stride=2, padding=pads, rngs=rngs, time=time, time_stride=frames)
            heads = config.attention_heads if i in config.encoder_attention else 0
            stages.append(
                Stage(before, wide, config.layers_per_block, groups, halve, rngs=rngs, time=time, heads=heads)
            )
            before = wide
        self.stages = nnx.List(stages)
        self.middle = Middle(config, rngs=rngs)
        self.norm_out = GroupNorm(channels[-1], groups, rngs=rngs, time=time)
        self.conv_out = Conv(channels[-1], outputs, axes=ENDS, rngs=rngs, time=time)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.conv_in(images)
        for stage in self.stages:
            x = stage(x)
            x = x if stage.resample is None else stage.resample(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Unscaled latents [B, h, w, c], and codes for norms that read them -> images [B, H, W, C]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        levels, codes = len(config.channels), config.code_channels if config.code_norms else 0
        channels, groups, time = config.channels[::-1], config.norm_groups, config.frames
        self.time_down = config.time_down
        self.conv_in = Conv(config.latent_channels, channels[0], rngs=rngs, time=time)
        self.middle = Middle(config, rngs=rngs, codes=codes)
        stages = []
        for i, wide in enumerate(channels):
            double = None if i == len(channels) - 1 else Conv(wide, wide, rngs=rngs, time=time)
            before, layers = channels[max(i - 1, 0)], config.layers_per_block + 1
            kind = {"time": time, "codes": codes}
            kind["heads"] = config.attention_heads if levels - 1 - i in config.decoder_attention else 0
            stages.append(Stage(before, wide, layers, groups, double, rngs=rngs, **kind))
        self.stages = nnx.List(stages)
        self.norm_out = make_norm(channels[-1], groups, rngs, time, codes)
        self.conv_out = Conv(channels[-1], config.image_channels, axes=ENDS, rngs=rngs, time=time)

    def __call__(self, latents: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        x, left = self.middle(self.conv_in(latents), codes), len(self.stages) - 1
        for stage in self.stages:
            x = stage(x, codes)
            if stage.resample is not None:
                left -= 1  # the halvings that are still to be undone; the first of them shrank the time
                x = stage.resample(upsample(x, time=2**left < self.time_down))
        return self.conv_out(jax.nn.silu(normed(self.norm_out, x, codes)))


class Coder(nnx.Module):
    """What all forms share. `config` is static; everything else is parameters. Of clips every shape has T after B."""

    def __init__(self, config: AutoencoderConfig, outputs: int, *, rngs: nnx.Rngs):
        latent, code, time = config.latent_channels, config.code_channels, config.frames
        wide = code * (outputs // latent)
        self.config = config
        self.encoder = Encoder(config, outputs, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs) if config.decodes else None
        both, ends = config.quant_convs, {"size": 1, "axes": ENDS, "time": time}
        self.quant = Conv(outputs, wide, rngs=rngs, **ends) if both else None
        self.post_quant = Conv(code, latent, rngs=rngs, **ends) if both and config.decodes else None
        if config.adversarial.weight:
            self.discriminator = PatchDiscriminator(config.adversarial, config.image_channels, rngs=rngs)

    @property
    def down(self) -> int:
        return self.config.down

    @property
    def latent_channels(self) -> int:
        return self.config.code_channels

    def latent_shape(self, *sides: int) -> tuple[int, ...]:
        """Returns (h, w, c) of the latents of an image of height x width pixels; (t, h, w, c) of (T, height, width).

        Raises:
          UsageError: if a side does not divide by `down`, or the frames by `time_down`.
        """
        *frames, height, width = sides
        check_size(height, width, self.down)
        if len(frames) != bool(self.config.frames):
            raise UsageError(f"this codec is of {'clips' if self.config.frames else 'images'}, not of {list(sides)}")
        if any(count % self.config.time_down for count in frames):
            raise UsageError(f"a clip of {frames[0]} frames does not divide by {self.config.time_down}")
        times = [count // self.config.time_down for count in frames]
        return (*times, height // self.down, width // self.down, self.latent_channels)

    def encoded(self, images: jax.Array) -> jax.Array:
        """What the encoder makes of images [B, H, W, C]."""
        self.latent_shape(*images.shape[1:-1])
        x = self.encoder(images)
        return x if self.quant is None else self.quant(x)

    def reconstruct(self, z: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] of unscaled latents [B, h, w, c].

        Raises:
          UsageError: if the codec has no decoder (Chameleon's released weights have none).
        """
        if self.decoder is None:
            raise UsageError("this codec has no decoder: it reads images, and cannot show any")
        codes = z if self.config.code_norms else None
        return self.decoder(z if self.post_quant is None else self.post_quant(z), codes)


@dataclasses.dataclass(frozen=True)
class Coded:
    """What the loss needs of a batch's latents.

    Attributes:
      z: what is reconstructed, [B, h, w, c].
      terms: of the loss by name, each a weighted mean per value of an image [B].
      metrics: per image [B] by name.
      quantized: the codes; None for Gaussian latents.
    """

    z: jax.Array
    terms: dict[str, jax.Array]
    metrics: dict[str, jax.Array]
    quantized: Quantized | None = None


class Autoencoder(Coder):
    """The codec with Gaussian latents."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, 2 * config.latent_channels, rngs=rngs)

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and log variance, each float32 [B, h, w, c], of the unscaled latents of images [B, H, W, C]."""
        mean, logvar = jnp.split(self.encoded(images).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, *self.config.logvar_range)

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns scaled latents float32 [B, h, w, c]: a draw from the posterior with a key, its mean without."""
        mean, logvar = self.moments(images)
        return (sample(mean, logvar, key) - self.config.shift) * self.config.scale

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] of scaled latents [B, h, w, c]; not clipped."""
        return self.reconstruct(latents / self.config.scale + self.config.shift)

    @property
    def code_axes(self) -> int:
        """How many axes `encode` gives one image or clip."""
        return 4 if self.config.frames else 3

    def code_shape(self, *sides: int) -> tuple[int, ...]:
        """What `encode` gives of one image of height x width pixels."""
        return self.latent_shape(*sides)

    def draw(self, key: jax.Array, rows: int, sides: tuple[int, ...]) -> dict[str, jax.Array]:
        """What `code` needs of chance: 'noise' [rows, h, w, c]."""
        return {"noise": jax.random.normal(key, (rows, *self.latent_shape(*sides)), jnp.float32)}

    def code(self, images: jax.Array, draws: dict[str, jax.Array]) -> Coded:
        """Draws the latents of images float32 [B, H, W, C]; the term is the KL per pixel value, as the paper sums both
        over the image (arXiv 2112.10752, eq. 25)."""
        mean, logvar = self.moments(images)
        z = mean + jnp.exp(0.5 * logvar) * draws["noise"]
        kl = kl_divergence(mean, logvar)
        axes = tuple(range(1, z.ndim))
        metrics = {"kl_nats": kl, "latent_mean": jnp.mean(z, axes), "latent_square": jnp.mean(jnp.square(z), axes)}
        return Coded(z, {"kl": self.config.kl_weight / math.prod(images.shape[1:]) * kl}, metrics)


def sample(mean: jax.Array, logvar: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns a draw from N(mean, exp(logvar)) with a key, `mean` without."""
    if key is None:
        return mean
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)


def kl_divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Returns KL(N(mean, exp(logvar)) || N(0, 1)) in nats per image [B], of [B, ..., c]."""
    each = jnp.square(mean) + jnp.exp(logvar) - 1 - logvar
    return 0.5 * jnp.sum(each, axis=tuple(range(1, mean.ndim)))
