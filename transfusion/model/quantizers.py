"""Quantizers turn latents [..., c] into codes, which are int32 ids of a vocabulary, and ids back into values.

A quantizer is a module with
  vocabulary: the number of codes
  channels: the number of channels of the latents that it takes and gives
  flat: whether the ids of an image have one axis; otherwise they have the axes of the latents
  ids_shape(*latent sides): the shape of the ids of one image
  __call__(z): quantizes to `Quantized`, straight through: the gradient of its values passes to z unchanged
  lookup(ids): turns ids into values
`transfusion.model.codebooks` updates the parts of codebooks that no optimizer trains.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.errors import UsageError, check
from transfusion.model.block import unit
from transfusion.model.parameters import normal, param, zeros

CODEBOOKS = ("ema", "gradient")


# Latents and codes pass through one of these before they are compared; the values are codes that have passed, too.
LOOKUPS: dict[str, Callable[[jax.Array], jax.Array]] = {"plain": lambda x: x, "normalised": unit}


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Settings of a quantizer; each form of autoencoder reads those that it needs.

    Attributes:
      codes: number of codes in the codebook.
      channels: channels of a code; 0: as many as the encoder's latents (FSQ has as many as it has levels).
      lookup: a key of `LOOKUPS`: 'plain', or 'normalised' to length 1 (ViT-VQGAN, arXiv 2110.04627, section 3.2).
      output: the `lookup` form in which codes are given out; '' for the form in which they are compared (Janus, as
        transformers runs it, compares them 'plain' and gives them out 'normalised').
      codebook: 'ema': codes are moving averages of the latents that chose them (VQ-VAE, arXiv 1711.00937, appendix
        A.1); 'gradient': the optimizer trains them (eq. 3).
      decay: decay of the moving averages.
      commitment: weight in the loss of the latents' distance to their codes, per value.
      revive: a code that is used less than this share of the mean use is replaced by a latent of the batch (as
        Jukebox, arXiv 2005.00341, section 3.1); 0: never.
      candidates: number of an image's latents that may become codes in a step; those far from all codes are likelier.
      levels: number of levels of each channel of FSQ (arXiv 2309.15505, table 1, recommends some).
      scales: sides of the square grids of a multi-scale quantizer, growing; the last is that of the latents.
      phis, phi_share: number of convolutions that the scales share, and the share of their output in the result (VAR,
        arXiv 2404.02905, section 3.2 and the code: 4 and 0.5).
    """

    codes: int = 512
    channels: int = 0
    lookup: str = "plain"
    output: str = ""
    codebook: str = "ema"
    decay: float = 0.99
    commitment: float = 0.25
    revive: float = 0.0
    candidates: int = 4
    levels: tuple[int, ...] = (8, 5, 5, 5)
    scales: tuple[int, ...] = (1, 2, 3, 4)
    phis: int = 4
    phi_share: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "scales", tuple(self.scales))
        check("codec.quantizer.lookup", self.lookup, LOOKUPS)
        check("codec.quantizer.output", self.output or self.lookup, LOOKUPS)
        check("codec.quantizer.codebook", self.codebook, CODEBOOKS)
        if min(self.codes, self.candidates, self.phis) < 1 or self.channels < 0:
            raise UsageError("codec.quantizer: codes, candidates and phis must be >= 1, channels >= 0")
        if not 0 <= self.decay < 1 or not 0 <= self.revive < 1 or not 0 <= self.phi_share <= 1:
            raise UsageError("codec.quantizer: decay and revive must be in [0, 1), phi_share in [0, 1]")
        if not self.levels or min(self.levels) < 2:
            raise UsageError(f"codec.quantizer.levels {self.levels}: each channel needs at least 2")
        if not self.scales or self.scales[0] < 1 or any(b <= a for a, b in itertools.pairwise(self.scales)):
            raise UsageError(f"codec.quantizer.scales {self.scales}: sides must grow from 1 or more")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """The result of quantizing latents [B, ..., c]; L is the number of ids of an image.

    Attributes:
      values: [B, ..., c], the values of the chosen codes; gradients pass to the latents.
      ids: int32 [B, *ids_shape].
      vectors: float32 [B, L, c], the vectors for which codes were looked up, in the order of the ids; no gradient.
      error: float32 [B, L], the squared distance of each vector to its code; no gradient.
      terms: weighted terms of the loss by name, each a sum over the values of an image [B].
    """

    values: jax.Array
    ids: jax.Array
    vectors: jax.Array
    error: jax.Array
    terms: dict[str, jax.Array]


def per_image(x: jax.Array) -> jax.Array:
    """Sum of squares over all axes but the first."""
    return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))


# --- vector quantization ----------------------------------------------------------------------------------------------


class VectorQuantizer(nnx.Module):
    """Replaces each vector by the nearest of K learned codes (van den Oord et al., arXiv 1711.00937, section 3.1).

    Parameters: `codebook` [K, c]; `counts` [K], where something reads them, the moving average of the uses of each code
    in a step; `sums` [K, c], for 'ema' codebooks, the moving average of the sum of the latents that chose each code.
    A codebook that is only read, such as one of released weights, is a 'gradient' one without `revive`.
    """

    flat = False  # ids have the axes of the latents

    def __init__(self, config: QuantizerConfig, channels: int, *, rngs: nnx.Rngs):
        self.config, self.channels = config, channels
        shape = (config.codes, channels)
        self.codebook = param(rngs, shape, (None, None), normal(1.0))
        follows = config.codebook == "ema"
        self.counts = param(rngs, shape[:1], (None,), zeros) if follows or config.revive else None
        self.sums = param(rngs, shape, (None, None), zeros) if follows else None

    @property
    def vocabulary(self) -> int:
        return self.config.codes

    def ids_shape(self, *sides: int) -> tuple[int, ...]:
        return sides

    def codes(self) -> jax.Array:
        """The codes float32 [K, c] in the form in which they are compared; 'ema' codes get no gradient."""
        codes = LOOKUPS[self.config.lookup](self.codebook[...].astype(jnp.float32))
        return codes if self.config.codebook == "gradient" else jax.lax.stop_gradient(codes)

    def nearest(self, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Finds the nearest codes of vectors float32 [..., c]: ids int32 [...] (the first of equals), errors."""
        codes = jax.lax.stop_gradient(self.codes())
        highest = jax.lax.Precision.HIGHEST
        product = jnp.einsum("...c,kc->...k", vectors, codes, precision=highest)
        distance = broadcast_to_rank(jnp.sum(jnp.square(codes), axis=-1), product.ndim) - 2 * product
        ids = jnp.argmin(distance, axis=-1).astype(jnp.int32)
        return ids, jnp.sum(jnp.square(vectors - codes[ids]), axis=-1)

    def lookup(self, ids: jax.Array) -> jax.Array:
        """The values of ids: int32 [...] -> float32 [..., c]."""
        codes = self.codes()[ids]
        return LOOKUPS[self.config.output](codes) if self.config.output else codes

    def __call__(self, z: jax.Array) -> Quantized:
        """Quantizes latents [B, ..., c]: ids [B, ...]."""
        latents = LOOKUPS[self.config.lookup](z.astype(jnp.float32))
        fixed = jax.lax.stop_gradient(latents)
        ids, error = self.nearest(fixed)
        codes = self.codes()[ids]
        terms = {"commitment": self.config.commitment * per_image(latents - jax.lax.stop_gradient(codes))}
        if self.config.codebook == "gradient":
            terms["codebook_loss"] = per_image(fixed - codes)
        values = latents + jax.lax.stop_gradient(self.lookup(ids) - latents)
        B, c = z.shape[0], self.channels
        return Quantized(values.astype(z.dtype), ids, fixed.reshape(B, -1, c), error.reshape(B, -1), terms)


# --- finite scalar quantization ---------------------------------------------------------------------------------------


def per_channel(numbers: Sequence[int] | np.ndarray, ndim: int) -> np.ndarray:
    """Shapes one whole number per channel (int32) so that it broadcasts against arrays [..., c] of `ndim` axes."""
    return np.reshape(np.asarray(numbers, np.int32), (1,) * (ndim - 1) + (-1,))


class FiniteScalarQuantizer(nnx.Module):
    """Rounds each channel to one of a few levels (FSQ, Mentzer et al., arXiv 2309.15505, section 3.1).
    There is no codebook, and so nothing to revive. Values are in [-1, 1]; ids count through all combinations of levels,
    with the first channel changing fastest."""

    flat = False
    counts = None  # nothing follows averages

    def __init__(self, config: QuantizerConfig, channels: int = 0, *, rngs: nnx.Rngs | None = None):
        del rngs  # nothing is learned
        self.levels = config.levels
        if channels not in (0, len(config.levels)):
            raise UsageError(
                f"codec.quantizer.channels: FSQ of {len(config.levels)} levels has as many channels, not {channels}"
            )

    @property
    def channels(self) -> int:
        return len(self.levels)

    @property
    def vocabulary(self) -> int:
        return math.prod(self.levels)

    def ids_shape(self, *sides: int) -> tuple[int, ...]:
        return sides

    def bound(self, z: jax.Array) -> jax.Array:
        """Bounds latents [..., c] so that rounding gives one of the n levels, of which -floor(n / 2) is the lowest."""
        levels = per_channel(self.levels, z.ndim).astype(np.float32)
        half = (levels - 1) * np.float32(1.001) / 2  # a little more, so that the outer levels are reached
        offset = np.where(levels % 2, 0, 0.5).astype(np.float32)
        return jnp.tanh(z + np.arctanh(offset / half)) * half - offset

    def lookup(self, ids: jax.Array) -> jax.Array:
        """The values of ids: int32 [...] -> float32 [..., c]."""
        levels = per_channel(self.levels, ids.ndim + 1)
        digits = ids[..., None] // self._basis(ids.ndim + 1) % levels
        return (digits - levels // 2) / (levels // 2).astype(np.float32)

    def _basis(self, ndim: int) -> np.ndarray:
        return per_channel(np.cumprod((1, *self.levels[:-1])), ndim)

    def ids(self, values: jax.Array) -> jax.Array:
        """The ids of values [..., c] as `lookup` gives them."""
        half = per_channel(self.levels, values.ndim) // 2
        return jnp.sum((jnp.round(values * half).astype(jnp.int32) + half) * self._basis(values.ndim), axis=-1)

    def __call__(self, z: jax.Array) -> Quantized:
        """Quantizes latents [B, ..., c]: ids [B, ...]."""
        half = (per_channel(self.levels, z.ndim) // 2).astype(np.float32)
        bounded = self.bound(z.astype(jnp.float32))
        values = (bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)) / half
        fixed = jax.lax.stop_gradient(bounded / half).reshape(z.shape[0], -1, self.channels)
        error = jnp.sum(jnp.square(fixed - jax.lax.stop_gradient(values).reshape(fixed.shape)), axis=-1)
        return Quantized(values.astype(z.dtype), self.ids(jax.lax.stop_gradient(values)), fixed, error, {})
