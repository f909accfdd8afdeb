"""The semantic codec: the features of a frozen vision tower are the latents, and a decoder learns to draw from them.

BLIP3-o (arXiv 2505.09568, section 2) diffuses such features in place of pixels or the latents of an autoencoder. Its
decoder is a diffusion model; ours is the convolutional decoder, trained to reconstruct. As in arXiv 2510.11690,
training adds noise to the features, so that the decoder also decodes the inexact features that a model draws.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.lax import broadcast_to_rank

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.convolutions import PixelDecoder
from transfusion.codecs.kl_autoencoder import Autoencoder
from transfusion.model.parameters import Params, Template, ones, param, zeros
from transfusion.model.vit import ViT

BATCH, BATCHES = 32, 64  # mean and deviation are measured on so many images per batch, and so many batches


class SemanticAutoencoder(Autoencoder):
    """Images [B, H, W, C] in [-1, 1] <-> normalised features [B, h, w, c] of `config.tower`, one vector per patch.

    `latent_mean` and `latent_deviation` [c] normalise the features; `feature_statistics` measures them on the training
    images. They and the tower are not trained: a config freezes them with `optim.groups`.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.tower = ViT(config.tower, rngs=rngs)
        self.decoder = PixelDecoder(config, rngs=rngs)
        self.latent_mean = param(rngs, (config.latent_channels,), (None,), zeros)
        self.latent_deviation = param(rngs, (config.latent_channels,), (None,), ones)
        self.quant = self.post_quant = None

    def features(self, images: jax.Array) -> jax.Array:
        """The tower's features [B, h, w, c] of images [B, H, W, C]."""
        return self.tower(images).last.reshape(-1, *self.latent_shape(*images.shape[1:3]))

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The normalised features, and the log variance of the noise that training adds, float32 [B, h, w, c]."""
        features = self.features(images).astype(jnp.float32)
        centre, deviation = (
            broadcast_to_rank(statistic[...], features.ndim) for statistic in (self.latent_mean, self.latent_deviation)
        )
        mean = (features - centre) / deviation
        logvar = jnp.full_like(mean, 2 * np.log(max(self.config.noise, 1e-15)))
        return mean, jnp.clip(logvar, *self.config.logvar_range)


def feature_statistics(template: Template, tower: Params, batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Mean and standard deviation of each channel of a tower's features, under the paths of their parameters.

    `batches` are images [B, H, W, C]. All hosts must give the same images, and get the same result. A channel that does
    not vary has the deviation 1.
    """
    features = jax.jit(lambda tower, images: template.bind(template.shapes | {"tower": tower}).features(images))
    count, total, square = 0, 0.0, 0.0
    for images in batches:
        values = multihost_utils.process_allgather(features(tower, images), tiled=True).astype(np.float64)
        values = values.reshape(-1, values.shape[-1])
        count, total, square = count + len(values), total + values.sum(0), square + np.square(values).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(square / count - np.square(mean), 0))
    deviation = np.where(deviation > 1e-6, deviation, 1.0)
    return {"latent_mean": mean.astype(np.float32), "latent_deviation": deviation.astype(np.float32)}
