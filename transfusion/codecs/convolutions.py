"""The convolutional encoder and decoder of all autoencoders: images [B, H, W, C] <-> latents [B, h, w, c].

They have the shape of the first stage of latent diffusion (Rombach et al., arXiv 2112.10752, appendix G), in the form
of Stable Diffusion's and FLUX's AutoencoderKL, so that released weights of that family can be loaded. For clips every
shape has an axis T after B.
"""

import math

import jax
from flax import nnx

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.model.blocks import (
    Conv,
    GroupNorm,
    Linear,
    ResidualBlock,
    SpatialAttention,
    make_norm,
    normed,
    upsample,
)
from transfusion.model.parameters import zeros

# Axes of convolutions to latents or pixels: they have so few output channels that these are not split over devices.
ENDS = ("conv_in", None)


class Middle(nnx.Module):
    """A residual block, an attention over all pixels (or none), a residual block: [B, ..., h, w, c] -> same."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, codes: int = 0):
        channels, groups, kind = config.channels[-1], config.norm_groups, {"time": config.frames, "codes": codes}
        self.first = ResidualBlock(channels, channels, groups, rngs=rngs, **kind)
        self.attention = (
            SpatialAttention(channels, groups, rngs=rngs, heads=config.attention_heads, **kind)
            if config.middle_attention
            else None
        )
        self.second = ResidualBlock(channels, channels, groups, rngs=rngs, **kind)

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        x = self.first(x, codes)
        return self.second(x if self.attention is None else self.attention(x, codes), codes)


class ResolutionStage(nnx.Module):
    """Residual blocks at one resolution, each followed by an attention if there are `heads`.

    `resample` changes the resolution behind them; the caller applies it.
    """

    def __init__(
        self, inputs: int, outputs: int, layers: int, groups: int, resample: Conv | None,
        *, rngs: nnx.Rngs, time: str = "", heads: int = 0, codes: int = 0,
    ):  # fmt: skip
        kind = {"time": time, "codes": codes}
        self.blocks = nnx.List(
            [ResidualBlock(outputs if i else inputs, outputs, groups, rngs=rngs, **kind) for i in range(layers)]
        )
        self.resample = resample
        attentions = range(layers if heads else 0)
        self.attentions = nnx.List(
            [SpatialAttention(outputs, groups, rngs=rngs, heads=heads, **kind) for _ in attentions]
        )

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        for i, block in enumerate(self.blocks):
            x = block(x, codes)
            x = self.attentions[i](x, codes) if self.attentions else x
        return x


class Encoder(nnx.Module):
    """Images [B, H, W, C] -> [B, h, w, outputs]. For Gaussian latents these are mean and log variance, joined."""

    def __init__(self, config: AutoencoderConfig, outputs: int, *, rngs: nnx.Rngs):
        channels, groups, time = config.channels, config.norm_groups, config.frames
        before = config.stem or channels[0]
        self.patches = config.patches
        self.conv_in = Conv(config.image_channels * math.prod(config.patches), before, rngs=rngs, time=time)
        stages = []
        for i, wide in enumerate(channels):
            # Padding at the right and bottom only: with symmetric padding released weights would read other pixels.
            halve = None
            if i < len(channels) - 1:
                pads, frames = ((0, 1), (0, 1)), 2 if 2**i * config.patch_frames < config.time_down else 1
                halve = Conv(wide, wide, stride=2, padding=pads, rngs=rngs, time=time, time_stride=frames)
            heads = config.attention_heads if i in config.encoder_attention else 0
            stages.append(
                ResolutionStage(before, wide, config.layers_per_block, groups, halve, rngs=rngs, time=time, heads=heads)
            )
            before = wide
        self.stages = nnx.List(stages)
        self.middle = Middle(config, rngs=rngs)
        self.norm_out = GroupNorm(channels[-1], groups, rngs=rngs, time=time)
        start = zeros if config.straight else None
        self.conv_out = Conv(channels[-1], outputs, axes=ENDS, init=start, rngs=rngs, time=time)
        self.cells = config.cells
        inputs = config.image_channels * math.prod(config.cells)
        self.straight = Linear(inputs, outputs, axes=ENDS, rngs=rngs) if config.straight else None

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.conv_in(to_patches(images, self.patches))
        for stage in self.stages:
            x = stage(x)
            x = x if stage.resample is None else stage.resample(x)
        x = self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))
        return x if self.straight is None else x + self.straight(to_patches(images, self.cells))


class PixelDecoder(nnx.Module):
    """Unscaled latents [B, h, w, c] -> images [B, H, W, C]. Norms that read the codes get them as `codes`."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        levels, codes = len(config.channels), config.code_channels if config.code_norms else 0
        channels, groups, time = config.channels[::-1], config.norm_groups, config.frames
        self.halved, self.first, self.patches = config.time_down // config.patch_frames, config.first, config.patches
        self.conv_in = Conv(config.latent_channels, channels[0], rngs=rngs, time=time)
        self.middle = Middle(config, rngs=rngs, codes=codes)
        stages = []
        for i, wide in enumerate(channels):
            double = None if i == len(channels) - 1 else Conv(wide, wide, rngs=rngs, time=time)
            before, layers = channels[max(i - 1, 0)], config.layers_per_block + 1
            kind = {"time": time, "codes": codes}
            kind["heads"] = config.attention_heads if levels - 1 - i in config.decoder_attention else 0
            stages.append(ResolutionStage(before, wide, layers, groups, double, rngs=rngs, **kind))
        self.stages = nnx.List(stages)
        self.norm_out = make_norm(channels[-1], groups, rngs, time, codes)
        pixels = config.image_channels * math.prod(config.patches)
        start = zeros if config.straight else None
        self.conv_out = Conv(channels[-1], pixels, axes=ENDS, init=start, rngs=rngs, time=time)
        self.cells = config.cells
        outputs = config.image_channels * math.prod(config.cells)
        self.straight = Linear(config.latent_channels, outputs, axes=ENDS, rngs=rngs) if config.straight else None

    def __call__(self, latents: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        x, left = self.middle(self.conv_in(latents), codes), len(self.stages) - 1
        for stage in self.stages:
            x = stage(x, codes)
            if stage.resample is not None:
                left -= 1  # halvings that are still to be undone; the encoder's first ones shrank the time, too
                x = stage.resample(upsample(x, 2**left < self.halved, self.first))
        x = to_pixels(self.conv_out(jax.nn.silu(normed(self.norm_out, x, codes))), self.patches)
        return x if self.straight is None else x + to_pixels(self.straight(latents), self.cells)


def to_patches(x: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """Pixels [B, (T,) H, W, C] as patches of these sides: [B, (t,) h, w, n], n = the product of the sides and C."""
    B, *whole, C = x.shape
    counts = [size // side for size, side in zip(whole, sides, strict=True)]
    x = x.reshape(B, *(n for pair in zip(counts, sides, strict=True) for n in pair), C)
    axes = range(1, 2 * len(sides) + 1)
    return x.transpose(0, *axes[::2], *axes[1::2], x.ndim - 1).reshape(B, *counts, math.prod(sides) * C)


def to_pixels(x: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """The inverse of `to_patches`."""
    B, *counts, n = x.shape
    C, s = n // math.prod(sides), len(sides)
    x = x.reshape(B, *counts, *sides, C)
    x = x.transpose(0, *(axis for i in range(1, s + 1) for axis in (i, i + s)), x.ndim - 1)
    return x.reshape(B, *(count * side for count, side in zip(counts, sides, strict=True)), C)
