"""Autoencoders with Gaussian latents (KL), and the base class of all autoencoders.

Images [B, H, W, C] <-> latents [B, H / down, W / down, c]; clips have an axis T after B. `vq_autoencoder` has those
whose latents are codes, `semantic` those whose latents are a vision tower's features.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.convolutions import ENDS, Encoder, PixelDecoder
from transfusion.codecs.discriminator import PatchDiscriminator
from transfusion.errors import UsageError
from transfusion.model.blocks import Conv, check_size
from transfusion.model.quantizers import Quantized


class Coder(nnx.Module):
    """The base class of all autoencoders: encoder, decoder and the convolutions between them and the latents.

    `config` is static, everything else is parameters.
    """

    def __init__(self, config: AutoencoderConfig, outputs: int, *, rngs: nnx.Rngs):
        latent, code, time = config.latent_channels, config.code_channels, config.frames
        wide = code * (outputs // latent)
        self.config = config
        self.encoder = Encoder(config, outputs, rngs=rngs)
        self.decoder = PixelDecoder(config, rngs=rngs) if config.decodes else None
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
        """The shape (h, w, c) of the latents of an image of height x width pixels; for clips (t, h, w, c).

        Args:
          sides: height and width; for clips the number of frames before them.

        Raises:
          UsageError: if a side does not divide by `down`, or the frames by `time_down`.
        """
        *frames, height, width = sides
        check_size(height, width, self.down)
        if len(frames) != bool(self.config.frames):
            raise UsageError(f"this codec reads {'clips' if self.config.frames else 'images'}, not {list(sides)}")
        first, down = self.config.first, self.config.time_down
        if any(count < first or (count - first) % down for count in frames):
            behind = f" behind the first {first}" * bool(first)
            raise UsageError(f"a clip of {frames[0]} frames does not divide by {down}{behind}")
        times = [first + (count - first) // down for count in frames]
        return (*times, height // self.down, width // self.down, self.latent_channels)

    def encoded(self, images: jax.Array) -> jax.Array:
        """The encoder's output for images [B, H, W, C]: latents before they are drawn or become codes."""
        self.latent_shape(*images.shape[1:-1])
        x = self.encoder(images)
        return x if self.quant is None else self.quant(x)

    def reconstruct(self, z: jax.Array) -> jax.Array:
        """Images [B, H, W, C] of unscaled latents [B, h, w, c].

        Raises:
          UsageError: if the codec has no decoder (Chameleon's released weights have none).
        """
        if self.decoder is None:
            raise UsageError("this codec has no decoder: it reads images, and cannot show any")
        codes = z if self.config.code_norms else None
        return self.decoder(z if self.post_quant is None else self.post_quant(z), codes)


@dataclasses.dataclass(frozen=True)
class Coded:
    """The latents of a batch, with their share of the loss.

    Attributes:
      z: the latents that are decoded, [B, h, w, c].
      terms: terms of the loss by name, each a weighted mean per value of an image [B].
      metrics: numbers for the log by name, one per image [B].
      quantized: the codes; None for Gaussian latents.
    """

    z: jax.Array
    terms: dict[str, jax.Array]
    metrics: dict[str, jax.Array]
    quantized: Quantized | None = None


class Autoencoder(Coder):
    """The autoencoder with Gaussian latents."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, 2 * config.latent_channels, rngs=rngs)

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean and the log variance of the unscaled latents of images [B, H, W, C], each float32 [B, h, w, c]."""
        mean, logvar = jnp.split(self.encoded(images).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, *self.config.logvar_range)

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Scaled latents float32 [B, h, w, c]: a draw from the posterior with a key, its mean without one."""
        mean, logvar = self.moments(images)
        return (sample(mean, logvar, key) - self.config.shift) * self.config.scale

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images [B, H, W, C] of scaled latents [B, h, w, c]. They are not clipped."""
        return self.reconstruct(latents / self.config.scale + self.config.shift)

    @property
    def code_axes(self) -> int:
        """How many axes the latents of one image or clip have."""
        return 4 if self.config.frames else 3

    def code_shape(self, *sides: int) -> tuple[int, ...]:
        """The shape of the latents of one image of height x width pixels."""
        return self.latent_shape(*sides)

    def draw(self, key: jax.Array, rows: int, sides: tuple[int, ...]) -> dict[str, jax.Array]:
        """The random numbers of `code`: 'noise' [rows, h, w, c]."""
        return {"noise": jax.random.normal(key, (rows, *self.latent_shape(*sides)), jnp.float32)}

    def code(self, images: jax.Array, draws: dict[str, jax.Array]) -> Coded:
        """Draws the latents of images float32 [B, H, W, C].

        The term of the loss is the KL divergence per value of the image. The paper sums both the reconstruction and the
        divergence over the image (arXiv 2112.10752, eq. 25).
        """
        mean, logvar = self.moments(images)
        z = mean + jnp.exp(0.5 * logvar) * draws["noise"]
        kl = kl_divergence(mean, logvar)
        axes = tuple(range(1, z.ndim))
        metrics = {"kl_nats": kl, "latent_mean": jnp.mean(z, axes), "latent_square": jnp.mean(jnp.square(z), axes)}
        return Coded(z, {"kl": self.config.kl_weight / math.prod(images.shape[1:]) * kl}, metrics)


def sample(mean: jax.Array, logvar: jax.Array, key: jax.Array | None) -> jax.Array:
    """A draw from N(mean, exp(logvar)) with a key, `mean` without one."""
    if key is None:
        return mean
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)


def kl_divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats per image [B], for latents [B, ..., c]."""
    each = jnp.square(mean) + jnp.exp(logvar) - 1 - logvar
    return 0.5 * jnp.sum(each, axis=tuple(range(1, mean.ndim)))
