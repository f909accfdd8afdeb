"""The loss of an autoencoder, and the measures of its fidelity (PSNR and SSIM)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.codecs.autoencoder_config import RECONSTRUCTIONS
from transfusion.codecs.discriminator import hinge
from transfusion.codecs.kl_autoencoder import Coder
from transfusion.model.codebooks import histogram, statistics
from transfusion.objectives import STATISTICS

Perceptual = Callable[[jax.Array, jax.Array], jax.Array]
"""A function of two batches of images [N, H, W, C] that gives their distances [N]."""


def codec_loss(
    model: Coder,
    images: jax.Array,
    draws: dict[str, jax.Array],
    image_weight: jax.Array | None = None,
    perceptual: Perceptual | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """The loss of a batch of images, summed over them, and numbers for the log.

    Every term is a mean per value of an image, so that the weights of the config mean the same at any size.

    Args:
      model: the autoencoder.
      images: float32 [B, H, W, C], or clips [B, T, H, W, C].
      draws: the random numbers of `model.draw`.
      image_weight: [B], the weight of each image; 1 by default.
      perceptual: the distance of the perceptual term.

    Returns:
      The sum of all terms over the images, each times the image's weight; and pairs (sum, weight) by name: the terms,
      'mse' per pixel value, 'psnr' and 'ssim' per image, and the model's own metrics ('kl_nats', 'latent_mean', ...).
      An autoencoder with codes also has 'codebook', a histogram, and `STATISTICS`.
    """
    config = model.config
    w = jnp.ones(images.shape[0], jnp.float32) if image_weight is None else image_weight.astype(jnp.float32)
    coded = model.code(images, draws)
    made = model.reconstruct(coded.z.astype(images.dtype))
    error = (made - images).astype(jnp.float32)
    axes = tuple(range(1, images.ndim))
    terms = {"reconstruction": jnp.mean(RECONSTRUCTIONS[config.reconstruction](error), axes)} | coded.terms
    B, pictures = images.shape[0], (-1, *images.shape[-3:])
    real, fake = images.reshape(pictures), made.reshape(pictures)  # the frames of clips are images here
    if perceptual is not None:
        terms["perceptual"] = config.perceptual_weight * jnp.mean(perceptual(fake, real).reshape(B, -1), axis=1)
    if config.adversarial.weight:
        game = hinge(model.discriminator, real, fake)
        terms |= {name: jnp.mean(term.reshape(B, -1), axis=1) for name, term in game.items()}
    shown = jnp.clip(jax.lax.stop_gradient(fake).astype(jnp.float32), -1, 1)
    metrics = {"mse": jnp.mean(jnp.square(error), axes), **coded.metrics}
    for name, measure in FIDELITY.items():
        metrics[name] = jnp.mean(measure(shown, real.astype(jnp.float32)).reshape(B, -1), axis=1)
    sums = {name: (jnp.sum(w * value), jnp.sum(w)) for name, value in (terms | metrics).items()}
    if coded.quantized is not None:
        uses = histogram(coded.quantized, model.quantizer.vocabulary, w)
        sums["codebook"] = (uses, jnp.sum(uses))
        if model.quantizer.counts is not None:
            sums[STATISTICS] = statistics(coded.quantized, config.quantizer, draws, w)
    return sum(jnp.sum(w * term) for term in terms.values()), sums


# --- fidelity ---------------------------------------------------------------------------------------------------------


def psnr(made: jax.Array, real: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB [N] of images [N, H, W, C] in [-1, 1]. It is at most 100."""
    mse = jnp.mean(jnp.square(made - real), axis=(1, 2, 3))
    return 10 * jnp.log10(4 / jnp.maximum(mse, 4e-10))


def ssim(made: jax.Array, real: jax.Array) -> jax.Array:
    """Structural similarity [N] of images [N, H, W, C] in [-1, 1] (Wang et al. 2004, section III.B).

    The windows are Gaussian, of 11 pixels and deviation 1.5, and lie inside the image. In smaller images they have the
    largest odd side that fits. Each channel is measured alone.
    """
    blur = [_window_matrix(side) for side in made.shape[1:3]]
    x, y = (made + 1) / 2, (real + 1) / 2
    maps = jnp.stack([x, y, x * x, y * y, x * y])
    highest = jax.lax.Precision.HIGHEST
    mx, my, xx, yy, xy = jnp.einsum("ih,jw,mbhwc->mbijc", *blur, maps, precision=highest)
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    likeness /= (mx * mx + my * my + c1) * (xx - mx * mx + yy - my * my + c2)
    return jnp.mean(likeness, axis=(1, 2, 3))


def _window_matrix(side: int) -> np.ndarray:
    """float32 [side - size + 1, side]: a Gaussian window at every place."""
    size = min(11, side - (side + 1) % 2)
    window = np.exp(-0.5 * ((np.arange(size) - size // 2) / 1.5) ** 2)
    rows = [np.pad(window / window.sum(), (at, side - size - at)) for at in range(side - size + 1)]
    return np.stack(rows).astype(np.float32)


FIDELITY: dict[str, Perceptual] = {"psnr": psnr, "ssim": ssim}
