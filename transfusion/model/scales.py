"""Codes at growing scales: what the codes of some scales stand for together, and what the next is predicted from."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion.model.parameters import normal, param


class ScaleQuantizer(nnx.Module):
    """One codebook [K, C]; the codes of a scale, each repeated to the size of the last scale, add up over the scales.

    Shape letters: B items, n = sum s^2 codes of an item, C numbers of a code.
    """

    def __init__(self, vocabulary: int, channels: int, scales: Sequence[int], rngs: nnx.Rngs):
        self.scales = tuple(scales)
        self.codebook = param(rngs, (vocabulary, channels), ("vocab", None), normal(1.0))

    def features_of_scales(self, ids: jax.Array) -> jax.Array:
        """Ids int32 [B, n] -> float32 [B, n - s_0^2, C]: at the places of scale k the sum of all scales before it,
        averaged to s_k x s_k."""
        side, channels = self.scales[-1], self.codebook.shape[-1]
        total, features, start = jnp.zeros((len(ids), side, side, channels)), [], 0
        for s, after in zip(self.scales, self.scales[1:], strict=False):
            codes = self.codebook[...][ids[:, start : start + s * s]].reshape(-1, s, s, channels)
            total += resize(codes, _repeat(s, side))
            features.append(resize(total, _average(side, after)).reshape(len(ids), -1, channels))
            start += s * s
        return jnp.concatenate([jnp.zeros((len(ids), 0, channels)), *features], 1)


def resize(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """[B, s, s, C] -> [B, r, r, C] by a matrix [r, s] per axis."""
    return jnp.einsum("ih,jw,bhwc->bijc", matrix, matrix, x, precision=jax.lax.Precision.HIGHEST)


def _average(inputs: int, outputs: int) -> np.ndarray:
    """float32 [outputs, inputs]: each output is the mean of its share of the inputs."""
    matrix = np.zeros((outputs, inputs), np.float32)
    for i in range(outputs):
        low, high = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
        matrix[i, low:high] = 1 / (high - low)
    return matrix


def _repeat(inputs: int, outputs: int) -> np.ndarray:
    """float32 [outputs, inputs]: each output is the input at its place."""
    return np.eye(inputs, dtype=np.float32)[np.arange(outputs) * inputs // outputs]
