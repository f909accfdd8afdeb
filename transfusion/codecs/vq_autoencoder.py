"""Autoencoders whose latents are codes: images [B, H, W, C] <-> int32 ids.

Ids are [B, h, w] (VQ, FSQ; of clips [B, t, h, w]) or, at growing scales, flat [B, L]. Encoder, decoder and blocks are
those of the KL autoencoder (VQ-VAE, arXiv 1711.00937; with its losses, VQGAN, arXiv 2012.09841).
"""

import math

import jax
from flax import nnx

from transfusion.codecs.kl_autoencoder import Autoencoder, AutoencoderConfig, Coded, Coder
from transfusion.codecs.multiscale import QUANTIZERS
from transfusion.codecs.quantizers import draw_statistics
from transfusion.model.parameters import Template


class VqAutoencoder(Coder):
    """The codec with codes; `quantizer` is what its form names."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.latent_channels, rngs=rngs)
        self.quantizer = QUANTIZERS[config.form](config.quantizer, config.code_channels, rngs=rngs)

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns the ids int32 [B, h, w] or [B, L] of images [B, H, W, C]; `key` is not used."""
        del key
        return self.quantizer(self.encoded(images)).ids

    def decode(self, ids: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] of ids; not clipped."""
        return self.reconstruct(self.quantizer.lookup(ids))

    @property
    def code_axes(self) -> int:
        """How many axes `encode` gives one image or clip."""
        return 1 if self.quantizer.flat else 3 if self.config.frames else 2

    def code_shape(self, *sides: int) -> tuple[int, ...]:
        """What `encode` gives of one image of height x width pixels."""
        return self.quantizer.ids_shape(*self.latent_shape(*sides)[:-1])

    def draw(self, key: jax.Array, rows: int, sides: tuple[int, ...]) -> dict[str, jax.Array]:
        """What the statistics of `rows` images need of chance."""
        return draw_statistics(key, rows, math.prod(self.code_shape(*sides)))

    def code(self, images: jax.Array, draws: dict[str, jax.Array]) -> Coded:
        """Quantizes the latents of images float32 [B, H, W, C]."""
        del draws
        quantized = self.quantizer(self.encoded(images))
        values = math.prod(quantized.values.shape[1:])
        return Coded(quantized.values, {name: term / values for name, term in quantized.terms.items()}, {}, quantized)


def autoencoder_template(config: AutoencoderConfig) -> Template:
    """The autoencoder of the config's form."""
    kind = Autoencoder if config.form == "kl" else VqAutoencoder
    return Template(lambda rngs: kind(config, rngs=rngs))
