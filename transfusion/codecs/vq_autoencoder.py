"""Autoencoders whose latents are codes: images [B, H, W, C] <-> int32 ids. Also the choice among all autoencoders.

Ids are [B, h, w] (VQ, FSQ; for clips [B, t, h, w]) or, at growing scales, flat [B, L]. Encoder and decoder are those of
the KL autoencoder (VQ-VAE, arXiv 1711.00937; with the losses of VQGAN, arXiv 2012.09841).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.convolutions import ENDS
from transfusion.codecs.kl_autoencoder import Autoencoder, Coded, Coder
from transfusion.codecs.movq import TimeDecoder, TimeEncoder
from transfusion.codecs.semantic import SemanticAutoencoder
from transfusion.errors import UsageError
from transfusion.model.blocks import Conv
from transfusion.model.codebooks import draw_statistics
from transfusion.model.multiscale import QUANTIZERS
from transfusion.model.parameters import Template


class VqAutoencoder(Coder):
    """The autoencoder with codes. Its form names the quantizer."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.latent_channels, rngs=rngs)
        self.quantizer = QUANTIZERS[config.form](config.quantizer, config.code_channels, rngs=rngs)

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The ids int32 [B, h, w] or [B, L] of images [B, H, W, C]. Nothing is random, so `key` is not used."""
        del key
        return self.quantizer(self.encoded(images)).ids

    def decode(self, ids: jax.Array) -> jax.Array:
        """Images [B, H, W, C] of ids. They are not clipped."""
        return self.reconstruct(self.quantizer.lookup(ids))

    @property
    def code_axes(self) -> int:
        """How many axes the ids of one image or clip have."""
        return 1 if self.quantizer.flat else 3 if self.config.frames else 2

    def code_shape(self, *sides: int) -> tuple[int, ...]:
        """The shape of the ids of one image of height x width pixels."""
        return self.quantizer.ids_shape(*self.latent_shape(*sides)[:-1])

    def draw(self, key: jax.Array, rows: int, sides: tuple[int, ...]) -> dict[str, jax.Array]:
        """The random numbers that updating the codebook with `rows` images needs."""
        return draw_statistics(key, rows, math.prod(self.code_shape(*sides)))

    def code(self, images: jax.Array, draws: dict[str, jax.Array]) -> Coded:
        """Quantizes the latents of images float32 [B, H, W, C]."""
        del draws
        quantized = self.quantizer(self.encoded(images))
        values = math.prod(quantized.values.shape[1:])
        return Coded(quantized.values, {name: term / values for name, term in quantized.terms.items()}, {}, quantized)


class MovqAutoencoder(VqAutoencoder):
    """The autoencoder of clips [B, T, H, W, C] of Emu3 (arXiv 2409.18869, section 2.2).

    Encoder and decoder work frame by frame. Between them and the codes, frames are mixed and their number is halved. If
    the decoder's norms read the codes, these pass the same convolutions over time as the latents.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        super().__init__(dataclasses.replace(config, form="vq", frames="", time_down=1), rngs=rngs)
        latent, code = config.latent_channels, config.code_channels
        if config.code_norms and latent != code:
            raise UsageError(
                f"codec.form 'movq': with code_norms, codes must have the latents' {latent} channels, not {code}"
            )
        self.config = config
        times, layers = config.time_down.bit_length() - 1, config.layers_per_block
        kind = {"size": 1, "axes": ENDS, "time": "causal", "time_size": 3}
        self.quant, self.post_quant = Conv(latent, code, rngs=rngs, **kind), Conv(code, latent, rngs=rngs, **kind)
        self.time_encoder = TimeEncoder(latent, times, layers, rngs=rngs)
        self.time_decoder = TimeDecoder(latent, times, layers, rngs=rngs)

    def latents(self, clips: jax.Array) -> jax.Array:
        """Latents [B, t, h, w, c] of clips [B, T, H, W, C], before `quant`."""
        self.latent_shape(*clips.shape[1:-1])
        x = self.encoder(clips.reshape(-1, *clips.shape[2:]))
        return self.time_encoder(x.reshape(*clips.shape[:2], *x.shape[1:]))

    def encoded(self, clips: jax.Array) -> jax.Array:
        """Latents [B, t, h, w, c] of clips [B, T, H, W, C], as the quantizer reads them."""
        return self.quant(self.latents(clips))

    def reconstruct(self, z: jax.Array) -> jax.Array:
        """Clips [B, T, H, W, C] of the vectors of codes [B, t, h, w, c]."""
        x, reads = self.post_quant(z), self.config.code_norms
        x = self.time_decoder(jnp.concatenate([x, z]) if reads else x)
        x, codes = jnp.split(x, 2) if reads else (x, None)
        lead = x.shape[:2]
        x, codes = (None if y is None else y.reshape(-1, *y.shape[2:]) for y in (x, codes))
        images = self.decoder(x, codes)
        return images.reshape(*lead, *images.shape[1:])


AUTOENCODERS = {"kl": Autoencoder, "movq": MovqAutoencoder}


def autoencoder_template(config: AutoencoderConfig) -> Template:
    """The autoencoder that a config describes."""
    kind = SemanticAutoencoder if config.tower else AUTOENCODERS.get(config.form, VqAutoencoder)
    return Template(lambda rngs: kind(config, rngs=rngs))
