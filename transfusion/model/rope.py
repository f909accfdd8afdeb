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


def turns(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cosines (c, c) and sines (-s, s) of angles [B, L, K / 2], float32 [B, L, 1, K] each, for all layers.

    The barrier keeps the compiler from taking them again wherever they are used.
    """
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    return jax.lax.optimization_barrier((jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)))


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns x [B, L, H, K] by `turns`; the pairs are (i, i + K / 2). Computed in float32."""
    cos, sin = turn
    y = x.astype(jnp.float32)
    return (y * cos + jnp.roll(y, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)
