"""Convolutional KL autoencoder: images [B, H, W, C] <-> Gaussian latents [B, H / down, W / down, c].

The shape of the first stage of latent diffusion (Rombach et al., arXiv 2112.10752, appendix G; in the form of Stable
Diffusion's and FLUX's AutoencoderKL, so that released weights of that family can be loaded).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.codecs.blocks import Conv, GroupNorm, ResidualBlock, SpatialAttention, upsample
from transfusion.codecs.pixels import check_size
from transfusion.errors import UsageError, nearest
from transfusion.model.vit import ViTConfig

# Convolutions to latents or pixels have few output channels: not to be split over devices.
ENDS = ("conv_in", None)
RECONSTRUCTIONS = {"l1": jnp.abs, "l2": jnp.square}


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes and loss. Each entry of `channels` is one resolution; all but the last halve the image.

    With a `tower` the latents are its features, frozen, and only the decoder learns (`transfusion.codecs.semantic`);
    `noise` is the standard deviation of what training adds to them.
    """

    image_channels: int = 3
    channels: tuple[int, ...] = (16, 32)
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_groups: int = 8
    middle_attention: bool = True
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

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "logvar_range", tuple(self.logvar_range))
        bad = [c for c in self.channels if c < 1 or c % self.norm_groups]
        if not self.channels or bad:
            raise UsageError(
                f"codec.channels {self.channels}: each must be a multiple of norm_groups={self.norm_groups}"
            )
        if min(self.image_channels, self.latent_channels, self.layers_per_block) < 1 or self.scale == 0:
            raise UsageError("codec: image_channels, latent_channels, layers_per_block must be >= 1 and scale not 0")
        if self.reconstruction not in RECONSTRUCTIONS:
            hint = nearest(self.reconstruction, RECONSTRUCTIONS)
            raise UsageError(f"codec.reconstruction {self.reconstruction!r} is none of {sorted(RECONSTRUCTIONS)}{hint}")
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


class Middle(nnx.Module):
    """Residual block, attention over all pixels (or none), residual block: [B, h, w, c] -> same."""

    def __init__(self, channels: int, groups: int, attention: bool, *, rngs: nnx.Rngs):
        self.first = ResidualBlock(channels, channels, groups, rngs=rngs)
        if attention:
            self.attention = SpatialAttention(channels, groups, rngs=rngs)
        self.second = ResidualBlock(channels, channels, groups, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        return self.second(self.attention(x) if hasattr(self, "attention") else x)


class Stage(nnx.Module):
    """Residual blocks at one resolution, then an optional change of resolution."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resample: Conv | None, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [ResidualBlock(outputs if i else inputs, outputs, groups, rngs=rngs) for i in range(layers)]
        )
        self.resample = resample

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nnx.Module):
    """Images [B, H, W, C] -> mean and log variance, joined [B, h, w, 2c]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        channels, groups = config.channels, config.norm_groups
        self.conv_in = Conv(config.image_channels, channels[0], rngs=rngs)
        stages = []
        for i, outputs in enumerate(channels):
            # Right and bottom only, as in the released weights: with symmetric padding they read other pixels.
            last = i == len(channels) - 1
            halve = None if last else Conv(outputs, outputs, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)
            stages.append(Stage(channels[max(i - 1, 0)], outputs, config.layers_per_block, groups, halve, rngs=rngs))
        self.stages = nnx.List(stages)
        self.middle = Middle(channels[-1], groups, config.middle_attention, rngs=rngs)
        self.norm_out = GroupNorm(channels[-1], groups, rngs=rngs)
        self.conv_out = Conv(channels[-1], 2 * config.latent_channels, axes=ENDS, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.conv_in(images)
        for stage in self.stages:
            x = stage(x)
            x = x if stage.resample is None else stage.resample(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Unscaled latents [B, h, w, c] -> images [B, H, W, C]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        channels, groups = config.channels[::-1], config.norm_groups
        self.conv_in = Conv(config.latent_channels, channels[0], rngs=rngs)
        self.middle = Middle(channels[0], groups, config.middle_attention, rngs=rngs)
        stages = []
        for i, outputs in enumerate(channels):
            double = None if i == len(channels) - 1 else Conv(outputs, outputs, rngs=rngs)
            stages.append(
                Stage(channels[max(i - 1, 0)], outputs, config.layers_per_block + 1, groups, double, rngs=rngs)
            )
        self.stages = nnx.List(stages)
        self.norm_out = GroupNorm(channels[-1], groups, rngs=rngs)
        self.conv_out = Conv(channels[-1], config.image_channels, axes=ENDS, rngs=rngs)

    def __call__(self, latents: jax.Array) -> jax.Array:
        x = self.middle(self.conv_in(latents))
        for stage in self.stages:
            x = stage(x)
            x = x if stage.resample is None else stage.resample(upsample(x))
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Autoencoder(nnx.Module):
    """The codec. `config` is static; everything else is parameters."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        c = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.quant = Conv(2 * c, 2 * c, size=1, axes=ENDS, rngs=rngs) if config.quant_convs else None
        self.post_quant = Conv(c, c, size=1, axes=ENDS, rngs=rngs) if config.quant_convs else None

    @property
    def down(self) -> int:
        return self.config.down

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of the latents of an image of height x width pixels.

        Raises:
          UsageError: if a side does not divide by `down`.
        """
        check_size(height, width, self.down)
        return height // self.down, width // self.down, self.latent_channels

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and log variance, each float32 [B, h, w, c], of the unscaled latents of images [B, H, W, C]."""
        self.latent_shape(*images.shape[1:3])
        x = self.encoder(images)
        x = (x if self.quant is None else self.quant(x)).astype(jnp.float32)
        mean, logvar = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(logvar, *self.config.logvar_range)

    def reconstruct(self, z: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] of unscaled latents [B, h, w, c]."""
        return self.decoder(z if self.post_quant is None else self.post_quant(z))

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns scaled latents float32 [B, h, w, c]: a draw from the posterior with a key, its mean without."""
        mean, logvar = self.moments(images)
        return (sample(mean, logvar, key) - self.config.shift) * self.config.scale

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] of scaled latents [B, h, w, c]; not clipped."""
        return self.reconstruct(latents / self.config.scale + self.config.shift)


def sample(mean: jax.Array, logvar: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns a draw from N(mean, exp(logvar)) with a key, `mean` without."""
    if key is None:
        return mean
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)


def kl_divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Returns KL(N(mean, exp(logvar)) || N(0, 1)) in nats per image [B], of [B, h, w, c]."""
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar, axis=(1, 2, 3))


Pairs = dict[str, jax.Array]


def loss(
    model: Autoencoder,
    images: jax.Array,
    noise: jax.Array,
    config: AutoencoderConfig,
    image_weight: jax.Array | None = None,
) -> tuple[Pairs, Pairs, dict[str, tuple[jax.Array, jax.Array]]]:
    """Reconstruction and KL of images float32 [B, H, W, C] (arXiv 2112.10752, eq. 25, without the adversarial term).

    Both terms are sums over the batch with the number of pixel values as their weight, so that their ratio is that of
    the paper, which sums both over the image. `noise` [B, h, w, c] is standard normal; `image_weight` [B] masks or
    weighs images.

    Returns:
      sums and weights by name ('reconstruction', 'kl'; the loss is the sum of their quotients), and metrics, each a
      pair (sum, weight): 'mse' per pixel value, 'kl_nats' per image, 'latent_mean' and 'latent_square' per value of
      the unscaled latents, from which their scale and shift follow.
    """
    mean, logvar = model.moments(images)
    z = mean + jnp.exp(0.5 * logvar) * noise
    error = (model.reconstruct(z.astype(images.dtype)) - images).astype(jnp.float32)
    w = jnp.ones(images.shape[0], jnp.float32) if image_weight is None else image_weight.astype(jnp.float32)
    n_images, n_pixels = jnp.sum(w), jnp.sum(w) * (error.size // error.shape[0])
    n_latents = jnp.sum(w) * (z.size // z.shape[0])

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sum(values, axis=(1, 2, 3)) * w)

    kl = jnp.sum(kl_divergence(mean, logvar) * w)
    sums = {"reconstruction": total(RECONSTRUCTIONS[config.reconstruction](error)), "kl": config.kl_weight * kl}
    metrics = {
        "mse": (total(jnp.square(error)), n_pixels),
        "kl_nats": (kl, n_images),
        "latent_mean": (total(z), n_latents),
        "latent_square": (total(jnp.square(z)), n_latents),
    }
    return sums, {"reconstruction": n_pixels, "kl": n_pixels}, metrics
