"""Rotary position embedding over one to three axes (RoFormer, arXiv 2104.09864; rotate-half form)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def angles(position: jax.Array, head_size: int, theta: float, sections: Sequence[int] = ()) -> jax.Array:
    """Rotation angles, float32 [B, L, K / 2].

    Args:
      position: int32 [B, L, A] coordinates.
      head_size: K.
      theta: base of the geometric series of wave lengths.
      sections: how many of the K / 2 frequencies turn with each axis, in order; () splits them evenly, the rest to
        the first axis. With one axis all turn with it.
    """
    half, axes = head_size // 2, position.shape[-1]
    sections = tuple(sections) or (half - (axes - 1) * (half // axes), *[half // axes] * (axes - 1))
    if len(sections) != axes or sum(sections) != half:
        raise ValueError(f"rope sections {sections} must be {axes} numbers that sum to {half}")
    frequency = theta ** (-np.arange(half, dtype=np.float64) / half)
    axis = np.repeat(np.arange(axes), sections)
    return position.astype(jnp.float32)[..., axis] * frequency.astype(np.float32)


def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Turns x [B, L, H, K] by angle [B, L, K / 2]; the pairs are (i, i + K / 2). Computed in float32."""
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x.dtype)
