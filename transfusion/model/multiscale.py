"""Residual vector quantization at growing scales, of VAR."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion.errors import UsageError
from transfusion.model.blocks import Conv
from transfusion.model.quantizers import FiniteScalarQuantizer, Quantized, QuantizerConfig, VectorQuantizer, per_image


def area_matrix(inputs: int, outputs: int) -> np.ndarray:
    """The matrix float32 [outputs, inputs] of adaptive average pooling: an output averages its share of the inputs."""
    matrix = np.zeros((outputs, inputs), np.float32)
    for i in range(outputs):
        low, high = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
        matrix[i, low:high] = 1 / (high - low)
    return matrix


def cubic_matrix(inputs: int, outputs: int) -> np.ndarray:
    """The matrix float32 [outputs, inputs] of cubic interpolation: a = -0.75, repeated borders, half-pixel centres."""
    a, matrix = -0.75, np.zeros((outputs, inputs))
    for i in range(outputs):
        at = (i + 0.5) * inputs / outputs - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            d = abs(at - j)
            near = ((a + 2) * d - (a + 3)) * d * d + 1
            far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            matrix[i, min(max(j, 0), inputs - 1)] += near if d <= 1 else far
    return matrix.astype(np.float32)


def resize(x: jax.Array, side: int, matrix: Callable[[int, int], np.ndarray]) -> jax.Array:
    """Resizes [B, h, w, c] to [B, side, side, c] by a matrix per axis; an array of that size is returned unchanged."""
    h, w = x.shape[1:3]
    if (h, w) == (side, side):
        return x
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,jw,bhwc->bijc", matrix(h, side), matrix(w, side), x, precision=highest)


class MultiScaleQuantizer(VectorQuantizer):
    """Quantizes at growing scales with one codebook, each scale the rest that earlier scales have left.

    This is VAR's quantizer (arXiv 2404.02905, algorithms 1 and 2). At scale k the rest is averaged to s_k x s_k, looked
    up, enlarged and passed through a convolution phi; the sum over the scales approximates the latents. The ids of an
    image are flat, scale after scale, rows first: int32 [sum s_k^2]. Latents are square, with the last scale's side.
    """

    flat = True

    def __init__(self, config: QuantizerConfig, channels: int, *, rngs: nnx.Rngs):
        if config.lookup != "plain":
            raise UsageError("codec.quantizer.lookup: rests shrink from scale to scale, so they are compared 'plain'")
        super().__init__(config, channels, rngs=rngs)
        self.scales = config.scales
        self.phis = nnx.List([Conv(channels, channels, axes=(None, None), rngs=rngs) for _ in range(config.phis)])

    def ids_shape(self, *sides: int) -> tuple[int, ...]:
        """(sum s_k^2,).

        Raises:
          UsageError: if the latents are not of the last scale's size.
        """
        side = self.scales[-1]
        if sides != (side, side):
            raise UsageError(
                f"latents of {'x'.join(map(str, sides))} for codes of scales {self.scales}: images must be square, "
                f"with latents of {side}x{side}"
            )
        return (sum(s * s for s in self.scales),)

    def phi_of(self, scale: int) -> int:
        """The number of the convolution that a scale (counted from 0) uses: the nearest one, all spread over [0, 1]."""
        n, last = self.config.phis, len(self.scales) - 1
        edge = 1 / 3 / n if n == 4 else 1 / 2 / n  # as the released weights were trained
        places = np.linspace(edge, 1 - edge, n)
        return int(np.argmin(np.abs(places - (scale / last if last else 0))))

    def _enlarged(self, codes: jax.Array, scale: int) -> jax.Array:
        """Turns the codes [B, s, s, c] of a scale into their contribution to the latents [B, h, w, c]."""
        x, share = resize(codes, self.scales[-1], cubic_matrix), self.config.phi_share
        return (1 - share) * x + share * self.phis[self.phi_of(scale)](x) if share else x

    def split_scales(self, flat: jax.Array) -> list[jax.Array]:
        """Splits [B, sum s_k^2, ...] into a list of [B, s_k, s_k, ...], one array per scale."""
        ends = np.cumsum([s * s for s in self.scales])[:-1]
        parts = zip(jnp.split(flat, ends, axis=1), self.scales, strict=True)
        return [part.reshape(part.shape[0], s, s, *part.shape[2:]) for part, s in parts]

    def add_scale(self, total: jax.Array, ids: jax.Array, scale: int) -> jax.Array:
        """Adds the ids [B, s_k, s_k] of scale k to the sum [B, h, w, c] of earlier scales (zeros at the first)."""
        return total + self._enlarged(super().lookup(ids), scale)

    def next_features(self, total: jax.Array, scale: int) -> jax.Array:
        """The input that predicts scale k > 0: the sum [B, h, w, c] of earlier scales, averaged to [B, s_k^2, c]."""
        small = resize(total, self.scales[scale], area_matrix)
        return small.reshape(total.shape[0], -1, self.channels)

    def features_of_scales(self, ids: jax.Array) -> jax.Array:
        """The inputs from which a model predicts every scale but the first (VAR, section 3.2: teacher forcing).

        Ids int32 [B, sum s_k^2] -> float32 [B, sum s_k^2 - s_0^2, c]: at the places of scale k the sum of all scales
        before k, averaged to s_k x s_k. `add_scale` and `next_features` give the same one scale after the other.
        """
        side, parts = self.scales[-1], self.split_scales(ids)
        total, features = jnp.zeros((ids.shape[0], side, side, self.channels)), []
        for k, part in enumerate(parts[:-1]):
            total = self.add_scale(total, part, k)
            features.append(self.next_features(total, k + 1))
        empty = jnp.zeros((ids.shape[0], 0, self.channels))
        return jnp.concatenate([empty, *features], axis=1)

    def lookup(self, ids: jax.Array) -> jax.Array:
        """The values of ids: int32 [B, sum s_k^2] -> float32 [B, h, w, c], the sum over all scales."""
        side = self.scales[-1]
        total = jnp.zeros((ids.shape[0], side, side, self.channels))
        for k, part in enumerate(self.split_scales(ids)):
            total = self.add_scale(total, part, k)
        return total

    def __call__(self, z: jax.Array) -> Quantized:
        """Quantizes latents [B, h, w, c]: ids [B, sum s_k^2].
        Each term of the loss is the mean over the scales of the error of the sum so far. The codebook's term trains the
        convolutions even where the codes are moving averages.

        Raises:
          UsageError: if the latents are not of the last scale's size.
        """
        self.ids_shape(*z.shape[1:-1])
        latents, B = z.astype(jnp.float32), z.shape[0]
        fixed = jax.lax.stop_gradient(latents)
        total, commitment, codebook = jnp.zeros_like(fixed), 0.0, 0.0
        ids, vectors, errors = [], [], []
        for k, side in enumerate(self.scales):
            rest = jax.lax.stop_gradient(resize(fixed - total, side, area_matrix))
            part, error = self.nearest(rest)
            total = self.add_scale(total, part, k)
            commitment += per_image(latents - jax.lax.stop_gradient(total))
            codebook += per_image(total - fixed)
            ids.append(part.reshape(B, -1))
            vectors.append(rest.reshape(B, -1, self.channels))
            errors.append(error.reshape(B, -1))
        n = len(self.scales)
        terms = {"commitment": self.config.commitment / n * commitment, "codebook_loss": codebook / n}
        values = latents + jax.lax.stop_gradient(total - latents)
        flat = (jnp.concatenate(parts, axis=1) for parts in (ids, vectors, errors))
        return Quantized(values.astype(z.dtype), *flat, terms)


# The forms of an autoencoder that have codes, and their quantizers; 'movq' has its autoencoder in `vq_autoencoder`.
QUANTIZERS = {
    "vq": VectorQuantizer, "fsq": FiniteScalarQuantizer, "multiscale": MultiScaleQuantizer, "movq": VectorQuantizer,
}  # fmt: skip
