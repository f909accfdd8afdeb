"""A ConvNeXt patch coder turns noised latent images into patch vectors, and the trunk's outputs into latent images.

The coder is JanusFlow's (arXiv 2411.07975, section 3), in the shape of U-ViT (arXiv 2301.11093). Patches go through
ConvNeXt blocks (arXiv 2201.03545, with the response norm of version 2, arXiv 2301.00808) before the trunk and behind
it. The output of the blocks before the trunk also passes around it, and is joined to the trunk's output before the
blocks behind it. The noise level scales and shifts the output of every block. All items of a stream have one fixed
shape.

Shape letters: M items, h and w sides of the latents, C channels, P patch, y and x rows and columns of patches, W width
of the coder, D width of the trunk.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.errors import UsageError
from transfusion.model.block import rms_norm
from transfusion.model.blocks import Linear
from transfusion.model.parameters import fan_in, ones, param, zeros
from transfusion.model.vit import patches_of
from transfusion.sequence.patches import unpatchify
from transfusion.sharding import by_rows

KERNEL = 7  # side of the depthwise convolutions
GROWTH = 4  # so many times more channels lie between the two dense layers of a block
EPSILON = 1e-6
SMALL = 144  # images of at most so many places are convolved by a product with a table, see `depthwise`


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """Sizes of the coder.

    Attributes:
      width: W; behind the trunk, where the skip joins, the blocks have 2 W channels.
      blocks: ConvNeXt blocks on each side of the trunk.
    """

    width: int = 64
    blocks: int = 2

    def __post_init__(self):
        if self.width < 1 or self.blocks < 1:
            raise UsageError("convnext: width and blocks must be at least 1")


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves every channel with its own kernel, zeros around the image: [M, y, x, W], [K, K, W] -> [M, y, x, W]."""
    places, reach = x.shape[1:3], kernel.shape[0] // 2
    if places[0] * places[1] > SMALL:
        return jax.lax.conv_general_dilated(
            x, kernel[:, :, None], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )  # fmt: skip
    # For 4 x 4 places, XLA:CPU takes 30 times as long for a convolution and its gradients as for these two products.
    steps = [np.arange(n)[None] - np.arange(n)[:, None] + reach for n in places]
    # [to, from, k] is 1 where row (column) k of the kernel leads from the one place to the other.
    rows, columns = ((s[..., None] == np.arange(len(kernel))).astype(x.dtype) for s in steps)
    table = jnp.einsum("yik,xjl,klc->yxijc", rows, columns, kernel)
    return jnp.einsum("mijc,yxijc->myxc", x, table)


def response_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Strengthens each channel of an image [M, y, x, F] by its share of the image's energy, in float32.

    This is global response normalization (ConvNeXt V2, section 3.2).
    """
    y = x.astype(jnp.float32)
    # The epsilon is for images that are all zeros (padding), where a plain square root has no gradient.
    energy = jnp.sqrt(jnp.sum(jnp.square(y), axis=(1, 2), keepdims=True) + EPSILON**2)
    share = energy / (jnp.mean(energy, axis=-1, keepdims=True) + EPSILON)
    scale, bias = (broadcast_to_rank(weight, y.ndim) for weight in (scale, bias))
    return (y + y * share * scale + bias).astype(x.dtype)


class ConvNeXtBlock(nnx.Module):
    """A residual block on images whose output the noise level scales and shifts.

    [M, y, x, W], condition [M, D_t] -> [M, y, x, W]. The residual branch is a depthwise convolution, an RMSNorm, and
    two dense layers with a GELU and a response norm between them.
    """

    def __init__(self, width: int, condition: int, *, rngs: nnx.Rngs):
        inner = GROWTH * width
        self.depthwise = param(rngs, (KERNEL, KERNEL, width), (None, None, "conv_out"), fan_in(KERNEL**2))
        self.depthwise_bias = param(rngs, (width,), (None,), zeros)
        self.norm = param(rngs, (width,), (None,), ones)
        self.up = Linear(width, inner, rngs=rngs)
        self.response_scale = param(rngs, (inner,), (None,), zeros)
        self.response_bias = param(rngs, (inner,), (None,), zeros)
        self.down = Linear(inner, width, rngs=rngs)
        self.modulation = Linear(condition, 2 * width, axes=(None, "conv_out"), rngs=rngs)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        y = depthwise(x, self.depthwise[...].astype(x.dtype))
        y = by_rows(y + broadcast_to_rank(self.depthwise_bias[...].astype(x.dtype), y.ndim))
        y = jax.nn.gelu(self.up(rms_norm(y, self.norm[...], EPSILON)), approximate=False)
        x = x + self.down(response_norm(y, self.response_scale[...], self.response_bias[...]))
        scale, shift = jnp.split(self.modulation(jax.nn.silu(condition.astype(x.dtype)))[:, None, None], 2, -1)
        return x * (1 + scale) + shift


class ConvNeXtDown(nnx.Module):
    """The half before the trunk: turns latent images into patch vectors.

    Args:
      channels: C, channels of the latents.
      patch: P, side of the square of latent pixels that becomes one vector.
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
        config: ConvNeXtConfig = ConvNeXtConfig(),
    ):
        self.patch = patch
        self.inward = Linear(channels * patch**2, config.width, axes=("patch", "conv_out"), rngs=rngs)
        self.blocks = nnx.List(
            [ConvNeXtBlock(config.width, condition or embed, rngs=rngs) for _ in range(config.blocks)]
        )
        self.out = Linear(config.width, embed, axes=("conv_in", "embed"), rngs=rngs)

    def __call__(self, latents: jax.Array, condition: jax.Array) -> tuple[jax.Array, tuple[jax.Array]]:
        """Turns latents into the trunk's tokens, and the skip that passes around the trunk.

        Latents [M, h, w, C] and condition [M, D_t] -> tokens [M, (h / P) * (w / P), D] in raster order, and the skip
        [M, h / P, w / P, W].

        Raises:
          UsageError: if P does not divide the sides of the latents.
        """
        M, h, w, _ = latents.shape
        x = self.inward(patches_of(latents, self.patch)).reshape(M, h // self.patch, w // self.patch, -1)
        for block in self.blocks:
            x = block(x, condition)
        return self.out(x).reshape(M, -1, self.out.kernel.shape[-1]), (x,)


class ConvNeXtUp(nnx.Module):
    """The half behind the trunk: turns the trunk's outputs and the skip of `ConvNeXtDown` into latent images.

    The arguments are those of `ConvNeXtDown`.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        embed: int,
        rngs: nnx.Rngs,
        *,
        condition: int = 0,
        config: ConvNeXtConfig = ConvNeXtConfig(),
    ):
        self.patch, width = patch, config.width
        self.norm_in = param(rngs, (embed,), (None,), ones)
        self.inward = Linear(embed, width, axes=("embed", None), rngs=rngs)
        self.norm_joined = param(rngs, (width,), (None,), ones)
        self.blocks = nnx.List([ConvNeXtBlock(2 * width, condition or embed, rngs=rngs) for _ in range(config.blocks)])
        self.norm_out = param(rngs, (2 * width,), (None,), ones)
        # A head that predicts a velocity or noise usually starts at zero: its first loss is the variance of the target.
        self.out = Linear(2 * width, channels * patch**2, axes=("conv_in", "patch"), init=zeros, rngs=rngs)

    def __call__(self, hidden: jax.Array, skips: tuple[jax.Array], condition: jax.Array) -> jax.Array:
        """Hidden states [M, n, D], the skip of the same images and condition [M, D_t] -> latents [M, h, w, C]."""
        (skip,) = skips
        M, rows, columns, _ = skip.shape
        x = rms_norm(self.inward(rms_norm(hidden, self.norm_in[...], EPSILON)), self.norm_joined[...], EPSILON)
        x = jnp.concatenate([x.reshape(M, rows, columns, -1), skip.astype(x.dtype)], -1)
        for block in self.blocks:
            x = block(x, condition)
        patches = self.out(rms_norm(x, self.norm_out[...], EPSILON)).reshape(M, rows * columns, -1)
        return unpatchify(patches, (rows * self.patch, columns * self.patch), self.patch)
