"""A U-Net patch coder turns noised latent images into patch vectors, and the trunk's outputs into latent images.

It is the coder of Transfusion (arXiv 2408.11039, section 3.1 and footnote 7): the noise level enters inside the U-Net,
in every residual block, and the norms are plain LayerNorm instead of AdaLayerNorm. The skips of the down path pass
around the trunk, so that the trunk need not carry the noise of every latent pixel. All items of a stream have one fixed
shape.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.errors import UsageError
from transfusion.model.blocks import Conv, LayerNorm, Linear, check_size, upsample
from transfusion.model.parameters import fan_in, zeros

PATCHES = (2, 4, 8)
Skips = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the coder.

    Attributes:
      width: number of channels at full resolution.
      growth: by how much the number of channels is multiplied when the sides are halved.
      blocks: number of residual blocks per resolution.
    """

    width: int = 64
    growth: float = 2.0
    blocks: int = 1

    def __post_init__(self):
        if self.width < 1 or self.blocks < 1 or self.growth <= 0:
            raise UsageError("unet: width and blocks must be at least 1 and growth above 0")

    def widths(self, patch: int) -> tuple[int, ...]:
        """The number of channels at each resolution, full resolution first.

        There is one more resolution than there are halvings, which together shrink a side by `patch`.

        Raises:
          UsageError: if patch is not 2, 4 or 8.
        """
        if patch not in PATCHES:
            raise UsageError(f"the patch of a U-Net coder is {patch}: its down blocks make it one of {PATCHES}")
        return tuple(round(self.width * self.growth**i) for i in range(round(math.log2(patch)) + 1))


class TimedBlock(nnx.Module):
    """A residual block that reads the noise level: [M, h, w, inputs], condition [M, D_t] -> [M, h, w, outputs].

    LayerNorm, SiLU and a convolution come twice; the condition is added to the output of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, condition: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(inputs, rngs=rngs)
        self.conv1 = Conv(inputs, outputs, rngs=rngs)
        self.time = Linear(condition, outputs, axes=(None, "conv_out"), rngs=rngs)
        self.norm2 = LayerNorm(outputs, rngs=rngs)
        # The kernel is small at first, so that a deep stack of blocks starts close to its shortcuts.
        self.conv2 = Conv(outputs, outputs, init=fan_in(100 * 9 * outputs), rngs=rngs)
        self.shortcut = None if inputs == outputs else Conv(inputs, outputs, size=1, rngs=rngs)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = y + self.time(jax.nn.silu(condition.astype(x.dtype)))[:, None, None, :]
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class UNetDown(nnx.Module):
    """The half before the trunk: turns latent images into patch vectors.

    Args:
      channels: C, channels of the latents.
      patch: P, side of the square of latent pixels that becomes one vector: 2, 4 or 8, which takes 1, 2 or 3 halvings.
      embed: D, width of the trunk.
      rngs: for the initial values.
      condition: D_t, width of the embedded noise level; 0 means D.
      config: sizes of the coder.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        embed: int,
        rngs: nnx.Rngs,
        *,
        condition: int = 0,
        config: UNetConfig = UNetConfig(),
    ):
        widths, condition = config.widths(patch), condition or embed
        self.patch = patch
        self.conv_in = Conv(channels, widths[0], rngs=rngs)
        levels, halves = [], []
        for i, width in enumerate(widths):
            levels.append(nnx.List([TimedBlock(width, width, condition, rngs=rngs) for _ in range(config.blocks)]))
            if i + 1 < len(widths):
                # The kernel reads all four pixels that become one, so no pixel is dropped unseen.
                halves.append(Conv(width, widths[i + 1], size=2, stride=2, padding="VALID", rngs=rngs))
        self.levels, self.halves = nnx.List(levels), nnx.List(halves)
        self.norm_out = LayerNorm(widths[-1], rngs=rngs)
        self.out = Linear(widths[-1], embed, axes=("conv_in", "embed"), rngs=rngs)

    def __call__(self, latents: jax.Array, condition: jax.Array) -> tuple[jax.Array, Skips]:
        """Turns latents into the trunk's tokens, and the skips that pass around the trunk.

        Latents [M, h, w, C] and condition [M, D_t] -> tokens [M, (h / P) * (w / P), D] in raster order, and one skip
        [M, h / 2**i, w / 2**i, widths[i]] for each resolution i that is finer than the tokens'.

        Raises:
          UsageError: if P does not divide the sides of the latents.
        """
        M, h, w, _ = latents.shape
        check_size(h, w, self.patch)
        x, skips = self.conv_in(latents), []
        for i, level in enumerate(self.levels):
            for block in level:
                x = block(x, condition)
            if i < len(self.halves):
                skips.append(x)
                x = self.halves[i](x)
        tokens = self.out(self.norm_out(x))
        return tokens.reshape(M, (h // self.patch) * (w // self.patch), -1), tuple(skips)


class UNetUp(nnx.Module):
    """The half behind the trunk: turns the trunk's outputs and the skips of `UNetDown` into latent images.

    The arguments are those of `UNetDown`.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        embed: int,
        rngs: nnx.Rngs,
        *,
        condition: int = 0,
        config: UNetConfig = UNetConfig(),
    ):
        widths, condition = config.widths(patch), condition or embed
        self.inward = Linear(embed, widths[-1], axes=("embed", None), rngs=rngs)
        self.first = TimedBlock(widths[-1], widths[-1], condition, rngs=rngs)
        levels, doubles = [], []
        for i in reversed(range(len(widths) - 1)):
            doubles.append(Conv(widths[i + 1], widths[i], rngs=rngs))
            # The first block of a level reads the upsampled image and the skip side by side.
            levels.append(
                nnx.List(
                    [
                        TimedBlock(widths[i] if j else 2 * widths[i], widths[i], condition, rngs=rngs)
                        for j in range(config.blocks)
                    ]
                )
            )
        self.levels, self.doubles = nnx.List(levels), nnx.List(doubles)
        self.norm_out = LayerNorm(widths[0], rngs=rngs)
        # A head that predicts a velocity or noise usually starts at zero: its first loss is the variance of the target.
        self.conv_out = Conv(widths[0], channels, axes=("conv_in", None), init=zeros, rngs=rngs)

    def __call__(self, hidden: jax.Array, skips: Skips, condition: jax.Array) -> jax.Array:
        """Hidden states [M, n, D], the skips of the same images and condition [M, D_t] -> latents [M, h, w, C]."""
        M, h, w, _ = skips[-1].shape
        x = self.first(self.inward(hidden).reshape(M, h // 2, w // 2, -1), condition)
        for double, level, skip in zip(self.doubles, self.levels, reversed(skips), strict=True):
            x = jnp.concatenate([double(upsample(x)), skip.astype(x.dtype)], axis=-1)
            for block in level:
                x = block(x, condition)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))
