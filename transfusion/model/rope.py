"""Rotary position embedding over one to three axes (RoFormer, arXiv 2104.09864; rotate-half form)."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import check


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for longer contexts.

    Attributes:
      kind: 'none'; 'linear' (arXiv 2306.15595); 'llama3' (Llama 3.1: long waves are slowed down by `factor`, short ones
        kept, those between blended); 'longrope' (arXiv 2402.13753, Phi-3: every frequency divided by its own factor,
        those of `short` while all positions are below `original`, else those of `long`).
      factor, low, high: of 'linear' and 'llama3'; `low` and `high` divide `original` into the two wave lengths.
      original, maximum: context lengths of pretraining, and after stretching.
    """

    kind: str = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    maximum: int = 8192
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def __post_init__(self):
        check("model.released.rope_scaling.kind", self.kind, SCALINGS)

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines ('longrope' only)."""
        stretch = self.maximum / self.original
        if self.kind != "longrope" or stretch <= 1:
            return 1.0
        return math.sqrt(1 + math.log(stretch) / math.log(self.original))

    def scaled(self, frequency: np.ndarray, position: jax.Array) -> np.ndarray | jax.Array:
        """The frequencies [K / 2] to use at these positions, float32."""
        if self.kind == "linear":
            frequency = frequency / self.factor
        elif self.kind == "llama3":
            turns = self.original * frequency / (2 * np.pi)  # in the original context
            blend = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            frequency = (1 - blend) * frequency / self.factor + blend * frequency
        elif self.kind == "longrope":
            short, long = ((frequency / np.asarray(f)).astype(np.float32) for f in (self.short, self.long))
            return jnp.where(jnp.max(position) < self.original, short, long)
        return frequency.astype(np.float32)


SCALINGS = ("none", "linear", "llama3", "longrope")


def axis_of(half: int, axes: int, sections: Sequence[int] = (), interleaved: bool = False) -> np.ndarray:
    """The axis whose coordinate turns each of the K / 2 frequencies, int [half].

    Args:
      half: K / 2.
      axes: number of coordinates.
      sections: how many frequencies turn with each axis, in order; () splits them evenly, the rest to the first axis.
      interleaved: the axes take turns (Mogao's and Cosmos' form: every axis gets high and low frequencies); where the
        others have used up their share, the first axis has the rest.

    Raises:
      ValueError: if there is not one section per axis or they do not sum to `half`.
    """
    sections = tuple(sections) or (half - (axes - 1) * (half // axes), *[half // axes] * (axes - 1))
    if len(sections) != axes or sum(sections) != half:
        raise ValueError(f"rope sections {sections} must be {axes} numbers that sum to {half}")
    if not interleaved:
        return np.repeat(np.arange(axes), sections)
    axis = np.zeros(half, int)
    for number in range(1, axes):
        axis[number : axes * sections[number] : axes] = number
    return axis


def angles(
    position: jax.Array,
    head_size: int,
    theta: float,
    sections: Sequence[int] = (),
    interleaved: bool = False,
    scaling: RopeScaling = RopeScaling(),
) -> jax.Array:
    """Rotation angles, float32 [B, L, K / 2], of int32 coordinates [B, L, A]; see `axis_of` and `RopeScaling`.

    `theta` is the base of the geometric series of wave lengths.
    """
    half = head_size // 2
    frequency = scaling.scaled(theta ** (-np.arange(half, dtype=np.float64) / half), position)
    axis = axis_of(half, position.shape[-1], sections, interleaved)
    return position.astype(jnp.float32)[..., axis] * frequency[None, None]


def turns(angle: jax.Array, magnitude: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The cosines (c, c) and sines (-s, s) of angles [B, L, K / 2], float32 [B, L, 1, K] each, for all layers.

    The barrier keeps the compiler from taking them again wherever they are used.
    """
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    if magnitude != 1:
        cos, sin = cos * magnitude, sin * magnitude
    return jax.lax.optimization_barrier((jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)))


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns x [B, L, H, K] by `turns`; the pairs are (i, i + K / 2). Computed in float32."""
    cos, sin = turn
    y = x.astype(jnp.float32)
    return (y * cos + jnp.roll(y, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)
